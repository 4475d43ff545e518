"""What a listener wants to hear while a model trains: reconstructions of a VQ-VAE, samples of a prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jukebox_jax import presets
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.train.task import with_codes

# (preset, params, y, upper_codes, seed) -> codes (b, t), one window per row. It comes from `sample`, by way of `cli`.
Sampler = Callable[[presets.Prior, Any, jax.Array | None, jax.Array | None, int], np.ndarray]
ITEMS = 2


def reconstructions(
    config: presets.VQVAE, variables: Mapping[str, Any], batch: Mapping[str, jax.Array], replicate: Any
) -> dict[str, np.ndarray]:
    """The first items of a batch, and what each level makes of them: ``{"input/0": (a,), "level_2/0": (a,), ...}``."""

    def run(variables: Any, audio: jax.Array) -> dict[str, jax.Array]:
        audio = audio[:ITEMS]
        levels = VQVAE(config).apply(variables, audio)
        return {"input": audio} | {f"level_{i}": y for i, y in enumerate(levels)}  # type: ignore[arg-type]

    return _items(jax.jit(run, out_shardings=replicate)(variables, batch["audio"]))


def samples(
    config: presets.Prior,
    params: Any,
    vqvae: presets.VQVAE,
    frozen: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    sampler: Sampler,
    seed: int,
    replicate: Any,
) -> dict[str, np.ndarray]:
    """One window drawn with the labels (and upper codes) of each of the first items, beside the real codes' audio."""

    def given(frozen: Any, batch: Any) -> dict[str, jax.Array]:
        return with_codes(config, vqvae, frozen, jax.tree.map(lambda x: x[:ITEMS], dict(batch)))

    def decode(frozen: Any, codes: jax.Array) -> jax.Array:
        return VQVAE(vqvae).apply(frozen, codes, config.level, method="decode")  # type: ignore[return-value]

    first = jax.jit(given, out_shardings=replicate)(frozen, dict(batch))
    drawn = sampler(config, params, first.get("y"), first.get("upper_codes"), seed)
    decode = jax.jit(decode, out_shardings=replicate)
    return _items({"real": decode(frozen, first["codes"]), "sample": decode(frozen, drawn)})


def _items(audio: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    host = jax.device_get(dict(audio))
    return {f"{name}/{i}": item[:, 0] for name, items in host.items() for i, item in enumerate(items)}
