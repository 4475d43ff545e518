"""Spectra, the losses on them, mono mixes and bandwidths: golden ``audio_losses``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jukebox_jax.cli.verify_cases.case import Case
from jukebox_jax.cli.verify_cases.report import Report
from jukebox_jax.data import bandwidth
from jukebox_jax.ops import spectral


def check_audio(case: Case, report: Report) -> None:
    """Every array of the case that can be computed from its inputs."""
    h = case.hps
    default = (h["n_fft_default"], h["hop_length_default"], h["window_size_default"])
    sizes = (h[f"multispec_loss_{name}"] for name in ("n_fft", "hop_length", "window_size"))
    spectra = list(zip(*sizes, strict=True))
    with report.part("spectra"):
        _check_spectra(case, report, default, spectra)
    with report.part("stereo_mono"):
        if case.has("stereo"):
            report.close("stereo_mono", case.input("stereo").mean(-1, keepdims=True))
    with report.part("bandwidth"):
        if case.has("bandwidth_items"):
            _check_bandwidth(case, report)


def _check_spectra(case: Case, report: Report, default: tuple, spectra: list[tuple]) -> None:
    @jax.jit
    def compute(x, y):
        total = lambda y: jnp.sum(spectral.multispectral_loss(x, y, spectra))  # noqa: E731
        return {
            "spectral_loss": spectral.spectral_loss(x, y, default),
            "spectral_convergence": spectral.spectral_convergence(x, y, default),
            "log_magnitude_loss": spectral.log_magnitude_loss(x, y, default),
            "multispectral_loss": spectral.multispectral_loss(x, y, spectra),
            "multispectral_grad_x_out": jax.grad(total)(y),
            "spec_default": spectral.stft_magnitude(x[:2, :, 0], *default),
            **{f"spec_ms{i}": spectral.stft_magnitude(x[:1, :, 0], *s) for i, s in enumerate(spectra)},
        }

    computed = compute(*(jnp.asarray(case.input(name)) for name in ("x_in", "x_out")))
    if case.has("spec_default"):
        # Item 2 was not made from its x_in alone (README of the goldens), so items 0 and 1 are compared.
        actual, expected = computed.pop("spec_default"), case.input("spec_default")[:2]
        report.compare("spec_default", actual, expected, 1e-4 * (np.abs(expected) + expected.max()), "1e-04")
    for name, actual in computed.items():
        report.close(name, actual)


class _Items:
    """The case's audio, as ``bandwidth.of_items`` wants it."""

    def __init__(self, audio: np.ndarray, sample_rate: int):
        self.audio, self.num_items, self.sample_rate = audio, len(audio), sample_rate

    def chunk(self, item: int) -> np.ndarray:
        return self.audio[item]


def _check_bandwidth(case: Case, report: Report) -> None:
    items = case.input("bandwidth_items")
    found = bandwidth.of_items(_Items(items, case.hps["sr"]), seconds=float("inf"))
    report.close("bandwidth_l1", found["l1"])
    report.close("bandwidth_l2", found["l2"])
    # Of this array alone the borders were padded with zeros.
    norms = [bandwidth.spectrogram_norm(item.astype(np.float64).mean(-1), "constant") for item in items]
    report.close("bandwidth_spec", np.mean(norms))
