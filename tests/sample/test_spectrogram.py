"""Mel pictures: tones lie in their band, and pieces make the picture of the whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from jukebox_jax.sample.spectrogram import MelSpectrogram, mel_filters, png

RATE = 8000


def whole(audio: np.ndarray, **options) -> np.ndarray:
    spectrogram = MelSpectrogram(RATE, len(audio), **options)
    spectrogram.add(audio)
    return spectrogram.power()


@pytest.mark.parametrize("frequency", [200.0, 1000.0, 3000.0])
def test_a_tone_lies_in_its_band(frequency: float) -> None:
    audio = np.sin(2 * np.pi * frequency * np.arange(RATE) / RATE).astype(np.float32)
    filters = mel_filters(RATE, 512, 40)
    loudest = whole(audio, bands=40).mean(axis=1).argmax()
    bin_of_tone = round(frequency * 512 / RATE)
    assert filters[loudest, bin_of_tone] == filters[:, bin_of_tone].max()


@pytest.mark.parametrize("size", [1, 100, 777, 4096])
def test_pieces_make_the_whole(size: int) -> None:
    audio = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    expected = whole(audio, columns=20)
    spectrogram = MelSpectrogram(RATE, len(audio), columns=20)
    for begin in range(0, len(audio), size):
        spectrogram.add(audio[begin : begin + size])
    np.testing.assert_allclose(spectrogram.power(), expected, rtol=1e-4)
    assert expected.shape == (96, 20)


@pytest.mark.parametrize("length", [0, 1, 300])
def test_short_sounds_have_a_picture(length: int) -> None:
    spectrogram = MelSpectrogram(RATE, length)
    spectrogram.add(np.ones(length, np.float32))
    image = Image.open(io.BytesIO(spectrogram.picture()))
    assert image.height == 96 and image.width >= 1


def test_low_notes_are_at_the_bottom() -> None:
    audio = np.sin(2 * np.pi * 150 * np.arange(RATE) / RATE).astype(np.float32)
    spectrogram = MelSpectrogram(RATE, RATE)
    spectrogram.add(audio)
    grey = np.asarray(Image.open(io.BytesIO(spectrogram.picture())).convert("L"), np.float32)
    assert grey[-30:].mean() > 2 * grey[:30].mean()


def test_png_keeps_every_value() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(values)))), values)
