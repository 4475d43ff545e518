"""What is trained: a VQ-VAE, or a prior on the codes of a frozen one. Three closures and no base class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jukebox_jax import presets
from jukebox_jax.models.prior import Prior
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.models.vqvae_by_level import gradients as by_level
from jukebox_jax.models.vqvae_loss import Bandwidth, vqvae_loss
from jukebox_jax.parallel.mesh import alone
from jukebox_jax.parallel.sharding import over_rows


class Task(NamedTuple):
    """One loss. ``frozen`` is always passed to a jitted function as an argument, never captured by it."""

    init: Callable[[jax.Array], dict[str, Any]]  # rng -> {"params": ..., **model_state}
    # params, model_state, frozen, batch, rng -> loss, (metrics, model_state); rng None: evaluation, nothing is updated
    loss: Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], Any]]]
    frozen: Any
    # as ``loss``, in programs of its own: ((loss, (metrics, model_state)), gradient by params), and the gradient's norm
    gradients: Callable[..., tuple[Any, jax.Array]] | None = None


def vqvae_task(config: presets.VQVAE, bandwidth: Bandwidth, *, dtype: Any = jnp.float32) -> Task:
    """The VQ-VAE. Batches carry ``audio`` (b, a, 1); codebooks start from the first batch and follow their averages."""
    model = VQVAE(config, dtype=dtype)

    def init(rng: jax.Array) -> dict[str, Any]:
        shapes = jax.eval_shape(model.init, rng, jnp.zeros((1, config.hop_lengths[-1], 1)))
        zeros = {name: jax.tree.map(lambda s: jnp.zeros(s.shape), tree) for name, tree in shapes.items()}
        return {**zeros, "params": init_convolutions(rng, shapes["params"])}

    def loss(params: Any, model_state: Any, frozen: Bandwidth, batch: Mapping[str, jax.Array], rng: jax.Array | None):
        output = vqvae_loss(model, {"params": params, **model_state}, batch["audio"], frozen, rng=rng)
        return output.loss, (output.metrics, {"codebook": output.codebook} if output.codebook else {})

    def gradients(params: Any, model_state: Any, frozen: Bandwidth, batch: Mapping[str, jax.Array], rng: jax.Array):
        output, grads, norm = by_level(model, {"params": params, **model_state}, batch["audio"], frozen, rng)
        return ((output.loss, (output.metrics, {"codebook": output.codebook})), grads), norm

    return Task(init, loss, bandwidth, gradients if alone() and config.use_bottleneck else None)


def init_convolutions(rng: jax.Array, shapes: Any) -> Any:
    """Weights as ``model.init`` draws them, U(-b, b) with b = 1 / sqrt(fan in), but all from one draw.

    The VQ-VAE has hundreds of small kernels; as many draws in one program take a CPU over a minute to compile.
    ``shapes``: a tree of ``kernel`` (k, in, out) and ``bias``; below ``upsample`` the fan in is counted over out.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    sizes = np.array([leaf.size for _, leaf in leaves])
    numbers = jax.lax.optimization_barrier(jax.random.uniform(rng, (sizes.sum(),), minval=-1.0))
    kernels = {path[:-1]: leaf.shape for path, leaf in leaves if path[-1].key == "kernel"}  # type: ignore[union-attr]
    made = []
    for (path, leaf), values in zip(leaves, jnp.split(numbers, np.cumsum(sizes)[:-1]), strict=True):
        size, fan_in, fan_out = kernels[path[:-1]]
        transposed = path[-2].key == "upsample"  # type: ignore[union-attr]
        bound = (size * (fan_out if transposed else fan_in)) ** -0.5
        made.append(bound * values.reshape(leaf.shape))
    return jax.tree.unflatten(structure, made)


def prior_task(
    config: presets.Prior,
    vqvae: presets.VQVAE | None = None,
    vqvae_variables: Any = None,
    *,
    dtype: Any = jnp.float32,
    remat: bool = False,
    remat_layers: tuple[int, ...] = (1,),
    loss_chunks: int = 1,
    at_once: int = 1,
) -> Task:
    """A prior. Batches carry ``codes`` (and ``upper_codes``), or ``audio`` that the frozen VQ-VAE encodes; and ``y``.

    ``vqvae_variables`` may be None if all batches carry codes. ``at_once``: see ``encode_batch``.
    """
    model = Prior(config, dtype=dtype, remat=remat, remat_layers=remat_layers, loss_chunks=loss_chunks)

    def init(rng: jax.Array) -> dict[str, Any]:
        return {"params": model.init(rng, method="initialise")["params"]}

    def loss(params: Any, model_state: Any, frozen: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None):
        del rng  # no dropout in any released prior
        batch = with_codes(config, vqvae, frozen, batch, at_once)

        def mean(params: Any, batch: Mapping[str, jax.Array]) -> Any:
            inputs = batch["codes"], batch.get("y"), batch.get("upper_codes")
            return model.apply({"params": params}, *inputs, method="loss")

        value, metrics = over_rows(mean, params, batch, config.transformer.num_heads)
        return value, (metrics, model_state)

    return Task(init, loss, vqvae_variables)


def with_codes(
    config: presets.Prior, vqvae: presets.VQVAE | None, frozen: Any, batch: Mapping[str, jax.Array], at_once: int = 1
) -> dict[str, jax.Array]:
    """The batch with ``codes`` and, for an upsampler, ``upper_codes`` in place of ``audio``."""
    if "codes" in batch:
        return dict(batch)
    assert vqvae is not None and frozen is not None, "batches of audio need a VQ-VAE"
    levels = (config.level,) if config.upsampling is None else (config.level, config.level + 1)
    codes = encode_batch(vqvae, frozen, batch["audio"], levels, at_once)
    rest = {name: value for name, value in batch.items() if name != "audio"}
    return rest | dict(zip(("codes", "upper_codes"), codes, strict=False))


def encode_batch(
    config: presets.VQVAE, variables: Any, audio: Float[Array, "b a 1"], levels: tuple[int, ...], at_once: int = 1
) -> list[Int[Array, "b t"]]:
    """Codes of each example as if it were alone, in float32: the same whatever the batch it stands in.

    One example after another; with ``at_once`` (the number of devices that share the batch axis) one on each device.
    Memory is that of one example, and `jukebox encode` gets the same codes from the same windows.
    """
    model = VQVAE(config)
    rows = audio.shape[0]
    at_once = at_once if rows % at_once == 0 else 1

    def encode(chunk: Float[Array, "c a 1"]) -> list[Int[Array, "c t"]]:
        return cast(Any, model.apply(variables, chunk, levels, method="encode"))

    # Device i holds rows i * n .. (i + 1) * n: take one row of each device in every turn.
    turns = jnp.swapaxes(audio.reshape(at_once, rows // at_once, *audio.shape[1:]), 0, 1)
    codes = jax.lax.map(encode, turns)
    return [jnp.swapaxes(c, 0, 1).reshape(rows, -1) for c in codes]
