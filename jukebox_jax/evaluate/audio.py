"""How much of the sound a VQ-VAE keeps: figures of the reconstructions of one level (spec/vqvae.md section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jukebox_jax import presets
from jukebox_jax.evaluate import codes
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.ops import spectral


def window_length(config: presets.VQVAE, seconds: float) -> int:
    """Samples, about ``seconds``, that every level decodes to exactly and that have spectra."""
    hop, longest = config.hop_lengths[-1], max(fft for fft, _, _ in (spectral.DEFAULT, *config.resolutions))
    return hop * max(round(seconds * config.sample_rate / hop), longest // 2 // hop + 1)


def figures(
    config: presets.VQVAE, variables: Any, level: int, windows: Iterable[Float[np.ndarray, "b a 1"]]
) -> dict[str, Any]:
    """Means over the windows: ``convergence`` of those that are not silent, as a ratio and in dB, ``multispectral``
    (a norm, which grows with the window's length); and the use of the codebook (``codes.usage``)."""
    model = VQVAE(config)

    @jax.jit
    def measure(variables: Any, audio: Float[Array, "b a 1"]) -> Any:
        first, then = ("encode_level", "decode") if config.use_bottleneck else ("latents", "decode_latents")
        found = model.apply(variables, audio, level, method=first)
        output: Any = model.apply(variables, found, level, method=then)
        norm = spectral.spectral_loss(audio, jnp.zeros_like(audio))
        multispectral = spectral.multispectral_loss(audio, output, config.resolutions)
        return found, (spectral.spectral_convergence(audio, output), multispectral, norm)

    counts, parts = np.zeros(config.codebook_size, np.int64), []
    for audio in windows:
        found, part = measure(variables, audio)
        if config.use_bottleneck:
            counts += codes.count(np.asarray(found), config.codebook_size)
        parts.append(np.asarray(part, np.float64))
    convergence, multispectral, norm = np.concatenate(parts, axis=1)
    audible = norm > spectral.SILENCE
    mean = float(np.mean(convergence[audible])) if audible.any() else 0.0
    means = {"convergence": mean, "convergence_db": decibels(mean), "multispectral": float(np.mean(multispectral))}
    usage = codes.usage(counts) if config.use_bottleneck else {}
    return means | {"silent_windows": int(np.sum(~audible))} | usage


def decibels(convergence: float) -> float:
    """20 log10 of a linear spectral convergence; -200 for one below 1e-10."""
    return 20 * math.log10(max(convergence, 1e-10))
