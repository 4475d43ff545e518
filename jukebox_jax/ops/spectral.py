"""Short-time spectra and the losses on them (spec/vqvae.md section 4), with PyTorch's 2019 ``stft`` as the definition:
centred frames, reflected borders, a periodic Hann window in the middle of each frame, one side, no normalisation.

A spectrum is a (n_fft, hop, window) triple. All losses are sums inside a norm, so they grow with the length.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jukebox_jax.types import UserError

DEFAULT = (2048, 256, 1536)
SILENCE = 2e-3  # spectral norms below it count as silent in the convergence


def safe_norm(squares: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root of a sum of squares, with gradient 0 at 0 (where the original's is NaN)."""
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def stft_magnitude(
    x: Float[Array, "b a"], n_fft: int, hop: int, window: int, *, pad_mode: str = "reflect"
) -> Float[Array, "b f s"]:
    """|STFT| with ``f = n_fft // 2 + 1`` frequencies and ``s = a // hop + 1`` frames; gradient 0 where it is 0.

    Raises ``UserError`` where the signal is too short to be reflected.
    """
    length, half = x.shape[1], n_fft // 2
    if pad_mode == "reflect" and length <= half:
        raise UserError(f"{length} samples are too few for a spectrum of {n_fft}: at least {half + 1} are needed")
    frames = length // hop + 1
    # Only the window's samples of a frame are read: whole hops, the last with zeros behind the window.
    steps = -(-window // hop)
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (half, half)), mode=pad_mode)[:, (n_fft - window) // 2 :]
    needed = (frames + steps - 1) * hop
    padded = jnp.pad(padded[:, :needed], ((0, 0), (0, max(0, needed - padded.shape[1]))))
    hops = padded.reshape(x.shape[0], -1, hop)
    framed = jnp.concatenate([hops[:, i : i + frames] for i in range(steps)], axis=-1)
    hann = np.zeros(steps * hop)
    hann[:window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    framed = framed * hann.astype(np.float32)[None, None]
    # The magnitude does not depend on where in its frame the window stands.
    spectrum = jnp.fft.rfft(framed, n_fft)
    return safe_norm(spectrum.real**2 + spectrum.imag**2).transpose(0, 2, 1)


def _mono(x: Float[Array, "b a c"]) -> Float[Array, "b a"]:
    return jnp.mean(x.astype(jnp.float32), axis=-1)


def _norm(x: Float[Array, "b f s"]) -> Float[Array, " b"]:
    return safe_norm(jnp.sum(x**2, axis=(1, 2)))


def _distance(x, y, spectrum):
    target, output = (stft_magnitude(_mono(signal), *spectrum) for signal in (x, y))
    return _norm(target - output), target


def spectral_loss(
    x: Float[Array, "b a c"], y: Float[Array, "b a c"], spectrum: tuple[int, int, int] = DEFAULT
) -> Float[Array, " b"]:
    """Norm of the difference of magnitudes, per example."""
    return _distance(x, y, spectrum)[0]


def multispectral_loss(
    x: Float[Array, "b a c"], y: Float[Array, "b a c"], spectra: Sequence[tuple[int, int, int]]
) -> Float[Array, " b"]:
    """Mean of ``spectral_loss`` over several resolutions (paper section 3.2), per example."""
    return sum((spectral_loss(x, y, s) for s in spectra), jnp.zeros(x.shape[0])) / len(spectra)


def spectral_convergence(
    x: Float[Array, "b a c"], y: Float[Array, "b a c"], spectrum: tuple[int, int, int] = DEFAULT
) -> Float[Array, " b"]:
    """``spectral_loss`` relative to the norm of the target ``x``'s magnitudes; 0 where the target is silent."""
    distance, target = _distance(x, y, spectrum)
    norm = _norm(target)
    return jnp.where(norm > SILENCE, distance / jnp.maximum(norm, SILENCE), 0)


def log_magnitude_loss(
    x: Float[Array, "b a c"], y: Float[Array, "b a c"], spectrum: tuple[int, int, int] = DEFAULT, epsilon: float = 1e-4
) -> Float[Array, ""]:
    """Mean absolute difference of the logarithms of ``magnitude + epsilon``, over the batch."""
    x, y = (jnp.log(stft_magnitude(_mono(signal), *spectrum) + epsilon) for signal in (x, y))
    return jnp.mean(jnp.abs(x - y))
