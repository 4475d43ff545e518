"""Training and evaluation loss of the VQ-VAE (spec/vqvae.md sections 2.3 and 4; paper section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jukebox_jax import presets
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.ops import quantize, spectral
from jukebox_jax.types import UserError, choose


class Bandwidth(NamedTuple):
    """What the losses are divided by: mean absolute value, variance and spectral norm of the training audio.

    ``spectral`` belongs to one chunk length (``data/bandwidth.py``).
    """

    l1: float | Float[Array, ""] = 1.0
    l2: float | Float[Array, ""] = 1.0
    spectral: float | Float[Array, ""] = 1.0


class Output(NamedTuple):
    """``codebook`` is the new collection (the given one in evaluation), ``audio`` level 0's reconstruction."""

    loss: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]
    codebook: dict[str, Any]
    audio: Float[Array, "b a 1"]


def vqvae_loss(
    model: VQVAE,
    variables: Mapping[str, Any],
    audio: Float[Array, "b a 1"],
    bandwidth: Bandwidth,
    *,
    rng: jax.Array | None = None,
    draws: Sequence[quantize.Draws] | None = None,
) -> Output:
    """Loss, metrics and new codebooks of a batch. With ``rng`` the codebooks are updated; without, nothing is.

    ``draws`` (one per level) replaces what ``rng`` would draw. Differentiate with respect to ``variables["params"]``.
    The length must be a multiple of the top level's hop, or ``UserError`` is raised.
    """
    c = model.config
    if audio.shape[1] % c.hop_lengths[-1]:
        below = audio.shape[1] // c.hop_lengths[-1] * c.hop_lengths[-1]
        raise UserError(
            f"{audio.shape[1]} samples are no multiple of {c.hop_lengths[-1]}, the hop length of level {c.levels - 1}; "
            f"the nearest that are: {below} and {below + c.hop_lengths[-1]}"
        )
    audio = audio.astype(jnp.float32)
    metrics: dict[str, Float[Array, ""]] = {}
    bottleneck: list[dict[str, Float[Array, ""]]] = []
    codebooks: dict[str, Any] = {}
    outputs = []
    commitment = jnp.float32(0)
    for level in range(c.levels):
        x: Any = model.apply(variables, audio, level, method="latents")
        if c.use_bottleneck:
            level_rng = None if rng is None else jax.random.fold_in(rng, level)
            quantized, state, report = _quantize(
                c, variables["codebook"][f"level_{level}"], x, level_rng, draws[level] if draws else None
            )
            codebooks[f"level_{level}"] = state
            bottleneck.append(report)
            commitment += jnp.mean((quantized - x) ** 2)
            x = x + lax.stop_gradient(quantized - x)
        outputs.append(model.apply(variables, x, level, method="decode_latents"))
    loss = c.commitment_weight * commitment
    for name in ("recons_loss", "spectral_loss", "multispectral_loss"):
        metrics[name] = jnp.float32(0)
    for level, output in enumerate(outputs):
        terms = {
            "recons_loss": reconstruction_loss(c, c.loss, audio, output, bandwidth),
            "spectral_loss": _spectral_loss(c, audio, output, bandwidth),
            "multispectral_loss": jnp.mean(spectral.multispectral_loss(audio, output, c.resolutions))
            / bandwidth.spectral,
        }
        for name, value in terms.items():
            metrics[f"{name}_l{level + 1}"] = value
            metrics[name] += value
    loss += metrics["recons_loss"]
    # A term of weight 0 is reported, and must not turn the gradient into 0 * nan or cost a backward pass.
    loss += c.spectral_weight * metrics["spectral_loss"] if c.spectral_weight else 0
    loss += c.multispectral_weight * metrics["multispectral_loss"] if c.multispectral_weight else 0
    metrics["spectral_convergence"] = jnp.mean(spectral.spectral_convergence(audio, outputs[0]))
    for name in ("l2", "l1", "linf"):
        metrics[f"{name}_loss"] = reconstruction_loss(c, name, audio, outputs[0], bandwidth)
    metrics["commit_loss"] = commitment
    for name in bottleneck[0] if bottleneck else ():
        metrics[name] = jnp.mean(jnp.stack([report[name] for report in bottleneck]))
    return Output(loss, lax.stop_gradient(metrics), codebooks, outputs[0])


def _quantize(c: presets.VQVAE, state: Any, x: Float[Array, "b t e"], rng: Any, draws: quantize.Draws | None):
    """Vectors of the codes, state after the update (the same without ``rng`` and ``draws``), metrics."""
    state = quantize.CodebookState(**state)
    vectors = lax.stop_gradient(x).reshape(-1, x.shape[-1])
    if draws is None and rng is not None:
        draws = quantize.draw(rng, vectors, c.codebook_size)
    if draws is None:
        codes, distance = quantize.nearest_codes(vectors, state.codebook)
        chosen = quantize.dequantize(codes, state.codebook)
        metrics = {"fit": jnp.mean(distance), "pn": quantize.spread(vectors)}
        metrics |= quantize.usage_metrics(quantize.code_counts(codes, c.codebook_size), c.revival_threshold)
    else:
        _, chosen, state, metrics = quantize.training_step(state, vectors, draws, c.codebook_decay, c.revival_threshold)
    return lax.stop_gradient(chosen).reshape(x.shape), lax.stop_gradient(state._asdict()), metrics


def _spectral_loss(c: presets.VQVAE, x: Float[Array, "b a 1"], y: Float[Array, "b a 1"], bandwidth: Bandwidth):
    if c.nonrelative_spectral:
        return jnp.mean(spectral.spectral_loss(x, y)) / bandwidth.spectral
    return jnp.mean(spectral.spectral_convergence(x, y))


def reconstruction_loss(
    c: presets.VQVAE, name: str, x: Float[Array, "b a 1"], y: Float[Array, "b a 1"], bandwidth: Bandwidth
) -> Float[Array, ""]:
    """``l1``, ``l2``, ``linf`` (the ``linf_k`` largest squared errors of each example) or the mixture ``lmix``."""
    choose("loss", name, ("l1", "l2", "linf", "lmix"))
    if name == "l1":
        return jnp.mean(jnp.abs(x - y)) / bandwidth.l1
    if name == "l2":
        return jnp.mean((x - y) ** 2) / bandwidth.l2
    if name == "linf":
        errors = ((x - y) ** 2).reshape(x.shape[0], -1)
        if errors.shape[1] < c.linf_k:
            raise UserError(
                f"{errors.shape[1]} samples are fewer than linf_k={c.linf_k}, the largest errors to average"
            )
        return jnp.mean(lax.top_k(errors, c.linf_k)[0]) / bandwidth.l2
    weights = {"l1": c.lmix_l1, "l2": c.lmix_l2, "linf": c.lmix_linf}
    terms = (weight * reconstruction_loss(c, n, x, y, bandwidth) for n, weight in weights.items() if weight)
    return sum(terms, jnp.float32(0))
