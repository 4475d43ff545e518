"""Spectra and their losses against the original's numbers and against numpy."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax.ops import spectral
from jukebox_jax.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "audio_losses"


@pytest.fixture(scope="module")
def case() -> tuple[dict[str, np.ndarray], list[tuple[int, int, int]]]:
    hps = json.loads((GOLDEN / "hps.json").read_text())
    spectra = zip(*(hps[f"multispec_loss_{name}"] for name in ("n_fft", "hop_length", "window_size")), strict=True)
    with np.load(GOLDEN / "data.npz") as file:
        return dict(file), list(spectra)


def close(actual, expected) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_losses_of_the_original(case) -> None:
    data, spectra = case
    x, y = jnp.asarray(data["x_in"]), jnp.asarray(data["x_out"])
    close(spectral.spectral_loss(x, y), data["spectral_loss"])
    close(spectral.multispectral_loss(x, y, spectra), data["multispectral_loss"])
    close(spectral.spectral_convergence(x, y), data["spectral_convergence"])
    close(spectral.log_magnitude_loss(x, y), data["log_magnitude_loss"])


def test_spectra_of_the_original(case) -> None:
    data, spectra = case
    x = jnp.asarray(data["x_in"][:, :, 0])
    close(spectral.stft_magnitude(x[:2], *spectral.DEFAULT), data["spec_default"][:2])
    for i, spectrum in enumerate(spectra):
        close(spectral.stft_magnitude(x[:1], *spectrum), data[f"spec_ms{i}"])


def test_gradient_of_the_original_and_of_silence(case) -> None:
    data, spectra = case
    x, y = jnp.asarray(data["x_in"]), jnp.asarray(data["x_out"])
    loss = lambda y: jnp.sum(spectral.multispectral_loss(x, y, spectra))  # noqa: E731
    close(jax.jit(jax.grad(loss))(y), data["multispectral_grad_x_out"])
    nothing = jnp.zeros((1, 2600, 1))
    for f in (spectral.spectral_loss, spectral.spectral_convergence, spectral.log_magnitude_loss):
        gradient = jax.grad(lambda y, f=f: jnp.sum(f(nothing, y)))(nothing)
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(("n_fft", "hop", "window", "length"), [(32, 5, 12, 100), (16, 16, 16, 33), (16, 7, 10, 9)])
@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_any_spectrum_is_the_definition(n_fft: int, hop: int, window: int, length: int, mode: str) -> None:
    x = np.random.default_rng(1).standard_normal((2, length))
    padded = np.pad(x, ((0, 0), (n_fft // 2, n_fft // 2)), mode=mode)
    hann = np.zeros(n_fft)
    left = (n_fft - window) // 2
    hann[left : left + window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    frames = [np.abs(np.fft.rfft(padded[:, i : i + n_fft] * hann)) for i in range(0, length + 1, hop)]
    mine = spectral.stft_magnitude(jnp.asarray(x, jnp.float32), n_fft, hop, window, pad_mode=mode)
    np.testing.assert_allclose(mine, np.stack(frames, -1), rtol=1e-4, atol=1e-4)


def test_a_signal_too_short_to_reflect_is_refused() -> None:
    with pytest.raises(UserError, match="1024 samples are too few for a spectrum of 2048: at least 1025"):
        spectral.stft_magnitude(jnp.zeros((1, 1024)), *spectral.DEFAULT)
