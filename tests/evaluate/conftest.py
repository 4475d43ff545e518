"""Small random models, and model directories of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.checkpoint import bundle
from jukebox_jax.data.labels import Vocabulary
from jukebox_jax.models.prior import Prior
from jukebox_jax.models.vqvae import VQVAE

RATE = 2000
VOCABULARY = Vocabulary("v3", {"unknown": 0, "ada": 1, "bob": 2}, {"unknown": 0, "folk": 1, "reel": 2})
LABELS = presets.Labels("v3", 3, 3, 1, 6, 4, 0.05, 4.0, RATE)
CONFIG = presets.VQVAE(
    sample_rate=RATE, down_depths=(2, 1), strides=(2, 2), width=4, depth=1, multipliers=None, codebook_size=12,
    codebook_dim=4,
)  # fmt: skip
TOP = presets.Prior(
    level=1, context_length=32, codebook_size=12, hop_length=8, labels=LABELS, tied_output=False,
    transformer=presets.Transformer(32, 8, 5, 2, 8, "factored_lyrics_4", init_scale=8.0),
    lyrics=presets.Lyrics("separate", 6, 79, encoder=presets.Transformer(6, 8, 1)),
)  # fmt: skip
MERGED = presets.Prior(
    level=1, context_length=26, codebook_size=12, hop_length=8, labels=LABELS,
    transformer=presets.Transformer(32, 8, 3, 2, 8, "block_column", init_scale=8.0),
    lyrics=presets.Lyrics("merged", 6, 79),
)  # fmt: skip
BOTTOM = presets.Prior(
    level=0, context_length=16, codebook_size=12, hop_length=4, upsampling=2,
    transformer=presets.Transformer(16, 8, 1, init_scale=8.0), conditioner=presets.Conditioner(8, 1, 1),
)  # fmt: skip


def _draw(init: Callable[[], Any]) -> Any:
    """Random numbers in place of what ``init`` makes, without compiling it."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), jax.eval_shape(init))


@functools.cache
def vqvae_variables() -> Any:
    return dict(_draw(lambda: VQVAE(CONFIG).init(jax.random.key(0), jnp.zeros((1, 64, 1)))))


@functools.cache
def prior_params(config: presets.Prior) -> Any:
    return _draw(lambda: Prior(config).init(jax.random.key(1), method="initialise")["params"])


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``save(priors...)``: a model directory with the VQ-VAE and these priors."""

    @functools.cache
    def make(*priors: presets.Prior) -> Path:
        folder = tmp_path_factory.mktemp("model") / "tiny"
        bundle.save_component(folder, "vqvae", vqvae_variables(), CONFIG)
        for prior in priors:
            bundle.save_component(folder, f"prior_level_{prior.level}", {"params": prior_params(prior)}, prior)
        VOCABULARY.save(bundle.labels_dir(folder))
        return folder

    return make
