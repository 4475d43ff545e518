"""Training and evaluation loss of the VQ-VAE (spec/vqvae.md sections 2.3 and 4; paper section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jukebox_jax import presets
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.ops import quantize, spectral
from jukebox_jax.parallel.sharding import on_rows
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
    check_length(c, audio)
    audio = audio.astype(jnp.float32)
    found = reconstruct(model, variables, audio, rng=rng, draws=draws)
    loss, metrics = losses(c, audio, found, bandwidth)
    return Output(loss, lax.stop_gradient(metrics), found.codebook, found.audio[0])


def check_length(c: presets.VQVAE, audio: Float[Array, "b a 1"]) -> None:
    """Raise ``UserError`` unless all levels' hops divide the audio."""
    if audio.shape[1] % c.hop_lengths[-1]:
        below = audio.shape[1] // c.hop_lengths[-1] * c.hop_lengths[-1]
        raise UserError(
            f"{audio.shape[1]} samples are no multiple of {c.hop_lengths[-1]}, the hop length of level {c.levels - 1}; "
            f"the nearest that are: {below} and {below + c.hop_lengths[-1]}"
        )


class Reconstruction(NamedTuple):
    """What the losses are made of: every level's audio, the commitment term, the bottleneck's metrics and new state."""

    audio: list[Float[Array, "b a 1"]]
    commitment: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]
    codebook: dict[str, Any]


def reconstruct(
    model: VQVAE,
    variables: Mapping[str, Any],
    audio: Float[Array, "b a 1"],
    *,
    rng: jax.Array | None = None,
    draws: Sequence[quantize.Draws] | None = None,
) -> Reconstruction:
    """A batch through all levels, with straight-through gradients; ``rng`` and ``draws`` as in ``vqvae_loss``."""
    c = model.config
    reports: list[dict[str, Float[Array, ""]]] = []
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
            reports.append(report)
            commitment += jnp.mean((quantized - x) ** 2)
            x = x + lax.stop_gradient(quantized - x)
        outputs.append(model.apply(variables, x, level, method="decode_latents"))
    return Reconstruction(outputs, commitment, over_levels(reports), codebooks)


def over_levels(reports: Sequence[dict[str, Float[Array, ""]]]) -> dict[str, Float[Array, ""]]:
    """Means of the levels' metrics."""
    return {name: jnp.mean(jnp.stack([report[name] for report in reports])) for name in next(iter(reports), ())}


def losses(
    c: presets.VQVAE, audio: Float[Array, "b a 1"], found: Reconstruction, bandwidth: Bandwidth
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of a reconstruction, and everything that is reported of it."""
    loss, metrics = combined(c, [mean_errors(c, audio, x) for x in found.audio], found.commitment, bandwidth)
    return loss, metrics | found.metrics


def mean_errors(
    c: presets.VQVAE, audio: Float[Array, "b a 1"], output: Float[Array, "b a 1"]
) -> dict[str, Float[Array, ""]]:
    """What the losses of a level are made of, each the mean over examples."""
    return {n: jnp.mean(e) for n, e in on_rows(partial(_errors, c), (audio, output)).items()}


def combined(
    c: presets.VQVAE,
    levels: Sequence[Mapping[str, Float[Array, ""]]],
    commitment: Float[Array, ""],
    bandwidth: Bandwidth,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of some levels' ``mean_errors``, linear in them and in the commitment; and what is reported of it."""
    choose("loss", c.loss, ("l1", "l2", "linf", "lmix"))
    metrics: dict[str, Float[Array, ""]] = {}
    for name in ("recons_loss", "spectral_loss", "multispectral_loss"):
        metrics[name] = jnp.float32(0)
    scale = {"l1": bandwidth.l1, "l2": bandwidth.l2, "linf": bandwidth.l2}
    levels = [{name: value / scale.get(name, 1.0) for name, value in errors.items()} for errors in levels]
    for level, errors in enumerate(levels):
        terms = {
            "recons_loss": reconstruction_loss(c, errors),
            "spectral_loss": errors["spectral"] / bandwidth.spectral if c.nonrelative_spectral else errors["relative"],
            "multispectral_loss": errors["multispectral"] / bandwidth.spectral,
        }
        for name, value in terms.items():
            metrics[f"{name}_l{level + 1}"] = value
            metrics[name] += value
    loss = c.commitment_weight * commitment + metrics["recons_loss"]
    # A term of weight 0 is reported, and must not turn the gradient into 0 * nan or cost a backward pass.
    loss += c.spectral_weight * metrics["spectral_loss"] if c.spectral_weight else 0
    loss += c.multispectral_weight * metrics["multispectral_loss"] if c.multispectral_weight else 0
    metrics["spectral_convergence"] = levels[0]["relative"]
    for name in ("l2", "l1", "linf"):
        metrics[f"{name}_loss"] = levels[0][name]
    metrics["commit_loss"] = commitment
    return loss, metrics


def _quantize(c: presets.VQVAE, state: Any, x: Float[Array, "b t e"], rng: Any, draws: quantize.Draws | None):
    """Vectors of the codes, state after the update (the same without ``rng`` and ``draws``), metrics."""
    state = quantize.CodebookState(**state)
    vectors = lax.stop_gradient(x)
    if draws is None and rng is not None:
        draws = quantize.draw(rng, vectors.reshape(-1, x.shape[-1]), c.codebook_size)
    if draws is None:
        codes, distance = _nearest(vectors, state.codebook)
        chosen = quantize.dequantize(codes, state.codebook)
        metrics = {"fit": jnp.mean(distance), "pn": quantize.spread(vectors)}
        counts = quantize.code_counts(codes.reshape(-1), c.codebook_size)
        metrics |= quantize.usage_metrics(counts, c.revival_threshold)
    else:
        _, chosen, state, metrics = quantize.training_step(
            state, vectors, draws, c.codebook_decay, c.revival_threshold, _nearest
        )
    return lax.stop_gradient(chosen), lax.stop_gradient(state._asdict()), metrics


def _nearest(vectors: Array, codebook: Array) -> tuple[Array, Array]:
    def search(vectors: Float[Array, "b t e"], codebook: Float[Array, "k e"]) -> Any:
        found = quantize.nearest_codes(vectors.reshape(-1, vectors.shape[-1]), codebook)
        return jax.tree.map(lambda x: x.reshape(vectors.shape[:-1]), found)

    return on_rows(search, vectors, codebook)


def _errors(c: presets.VQVAE, rows: Any, _: Any) -> dict[str, Float[Array, " b"]]:
    """Per example: mean absolute and squared errors, the mean of the ``linf_k`` largest squares, spectral norms."""
    x, y = rows
    squares = ((x - y) ** 2).reshape(x.shape[0], -1)
    if squares.shape[1] < c.linf_k:
        raise UserError(f"{squares.shape[1]} samples are fewer than linf_k={c.linf_k}, the largest errors to average")
    return {
        "l1": jnp.mean(jnp.abs(x - y), axis=(1, 2)),
        "l2": jnp.mean(squares, axis=1),
        "linf": jnp.mean(lax.top_k(squares, c.linf_k)[0], axis=1),
        "spectral": spectral.spectral_loss(x, y),
        "relative": spectral.spectral_convergence(x, y),
        "multispectral": spectral.multispectral_loss(x, y, c.resolutions),
    }


def reconstruction_loss(c: presets.VQVAE, errors: Mapping[str, Float[Array, ""]]) -> Float[Array, ""]:
    """``l1``, ``l2``, ``linf``, or the mixture ``lmix`` of the three."""
    if c.loss != "lmix":
        return errors[c.loss]
    weights = {"l1": c.lmix_l1, "l2": c.lmix_l2, "linf": c.lmix_linf}
    return sum((weight * errors[name] for name, weight in weights.items() if weight), jnp.float32(0))
