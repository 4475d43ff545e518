"""A VQ-VAE's gradients on one CPU: level by level and example by example, so that memory is that of one.

Levels share nothing, and all but the codebooks' averages is a mean over examples: so each example's gradient is
computed along with its loss. A level is a program of its own, since XLA's compiler needs memory for a whole program.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jukebox_jax import presets
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.models.vqvae_loss import Bandwidth, Output, check_length, combined, mean_errors, over_levels
from jukebox_jax.ops import conv_stack, quantize
from jukebox_jax.parallel.products import eigen_jit


def gradients(
    model: VQVAE, variables: Mapping[str, Any], audio: Float[Array, "b a 1"], bandwidth: Bandwidth, rng: jax.Array
) -> tuple[Output, Any, Float[Array, ""]]:
    """``vqvae_loss`` in training, its gradient by ``variables["params"]`` and that one's norm. Several programs.

    Raises:
        UserError: as ``vqvae_loss``.
    """
    c = model.config
    check_length(c, audio)
    found = []
    for level in range(c.levels):
        params = {name: variables["params"][name] for name in (f"encoder_{level}", f"decoder_{level}")}
        state = quantize.CodebookState(**variables["codebook"][f"level_{level}"])
        found.append(_level(model, level, params, state, audio, bandwidth, rng))
    grads, squares, outputs, codebooks, reported = zip(*found, strict=True)
    loss, metrics, norm = _combined(c, reported, bandwidth, squares)
    books = {f"level_{level}": book._asdict() for level, book in enumerate(codebooks)}
    grads = {name: grad for level in grads for name, grad in level.items()}
    return Output(loss, metrics, books, outputs[0]), grads, norm


@partial(eigen_jit, static_argnums=(0, 1))
def _level(
    model: VQVAE, level: int, params: Any, state: quantize.CodebookState, audio: Float[Array, "b a 1"],
    bandwidth: Bandwidth, rng: jax.Array,
) -> Any:  # fmt: skip
    """A level's gradient, the sum of its squares, audio, codebook; mean errors, commitment, the codebook's metrics."""
    c, rng = model.config, jax.random.fold_in(rng, level)
    audio = audio.astype(jnp.float32)
    state = _started(model, level, params, state, audio, rng)

    def loss(params: Any, audio: Float[Array, "1 a 1"]) -> tuple[Float[Array, ""], Any]:
        x: Any = model.apply({"params": params}, audio, level, method="latents")
        vectors = lax.stop_gradient(x)
        codes, distance = quantize.nearest_codes(vectors, state.codebook)
        quantized = quantize.dequantize(codes, state.codebook)
        commitment = jnp.mean((quantized - x) ** 2)
        output: Any = model.apply(
            {"params": params}, x + lax.stop_gradient(quantized - x), level, method="decode_latents"
        )
        errors = mean_errors(c, audio, output)
        return combined(c, [errors], commitment, bandwidth)[0], (errors, commitment, vectors, codes, distance, output)

    def example(total: Any, audio: Float[Array, "a 1"]) -> tuple[Any, Any]:
        grads, found = jax.grad(loss, has_aux=True)(params, audio[None])
        return total + ravel_pytree(grads)[0], found

    flat, restored = ravel_pytree(params)  # one sum for all arrays, of which there are hundreds
    total, (errors, commitment, vectors, codes, distance, output) = lax.scan(example, jnp.zeros_like(flat), audio)
    vectors, codes, distance = (x[:, 0] for x in (vectors, codes, distance))
    revival = quantize.draw(rng, vectors.reshape(-1, vectors.shape[-1]), c.codebook_size).revival
    state, report = quantize.follow(state, vectors, codes, distance, revival, c.codebook_decay, c.revival_threshold)
    errors, commitment = jax.tree.map(jnp.mean, (errors, commitment))
    total /= len(audio)
    return restored(total), jnp.sum(total**2), output[:, 0], state, (errors, commitment, report)


def _started(
    model: VQVAE, level: int, params: Any, state: quantize.CodebookState, audio: Float[Array, "b a 1"], rng: jax.Array
) -> quantize.CodebookState:
    """The codebook, drawn from all examples' latents if it is none yet."""

    def start() -> quantize.CodebookState:
        stack: Any = model.apply({"params": params}, level, method="encoder")
        vectors = conv_stack.whole(stack, audio).reshape(-1, model.config.codebook_dim)
        return quantize.init_codebook(quantize.draw(rng, vectors, model.config.codebook_size).init)

    return lax.cond(jnp.sum(state.count) > 0, lambda: state, start)


@partial(jax.jit, static_argnums=0)
def _combined(c: presets.VQVAE, reported: Any, bandwidth: Bandwidth, squares: Any) -> Any:
    errors, commitments, reports = zip(*reported, strict=True)
    loss, metrics = combined(c, errors, jnp.sum(jnp.stack(commitments)), bandwidth)
    return loss, metrics | over_levels(reports), jnp.sqrt(sum(squares))
