"""Figures of reconstructions: what they mean, and that they depend on the windows alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax.evaluate import audio
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.ops import spectral

from .conftest import CONFIG, vqvae_variables


def test_decibels():
    assert audio.decibels(0.1) == pytest.approx(-20) and audio.decibels(1.0) == 0 and audio.decibels(0.0) == -200


def test_window_length_decodes_and_has_spectra():
    assert audio.window_length(CONFIG, 1.0) == 2000
    assert audio.window_length(CONFIG, 0.01) == 1032  # more than half of 2048, whole codes of the top level
    assert audio.window_length(CONFIG, 1.0009) % 8 == 0


def test_figures_of_a_level_leave_silence_out():
    rng = np.random.default_rng(0)
    windows = [0.3 * rng.standard_normal((1, 1032, 1)).astype(np.float32) for _ in range(2)]
    silent = np.zeros((1, 1032, 1), np.float32)
    found = audio.figures(CONFIG, vqvae_variables(), 1, [*windows, silent])
    model, every = VQVAE(CONFIG), np.concatenate([*windows, silent])

    @jax.jit
    def expected(variables, every):
        codes = model.apply(variables, every, 1, method="encode_level")
        output = model.apply(variables, codes, 1, method="decode")
        linear = spectral.spectral_convergence(every[:2], output[:2])
        return codes, jnp.mean(linear), jnp.mean(spectral.multispectral_loss(every, output, CONFIG.resolutions))

    codes, linear, multispectral = expected(vqvae_variables(), every)
    assert found["convergence"] == pytest.approx(float(linear), rel=1e-4)
    assert found["multispectral"] == pytest.approx(float(multispectral), rel=1e-4)
    assert found["convergence_db"] == pytest.approx(20 * np.log10(found["convergence"]))
    assert found["silent_windows"] == 1 and found["codes"] == 3 * 1032 // 8
    assert found["used"] == len(np.unique(codes)) / 12
