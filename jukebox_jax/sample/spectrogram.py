"""Mel spectrogram pictures of audio that comes in pieces, so a long song needs no more memory than a short one."""

from __future__ import annotations

import functools
import io

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from jukebox_jax.types import UserError

BANDS = 96
COLUMNS = 1200  # at most this many across
RANGE_DB = 80.0


class MelSpectrogram:
    """Mean power per mel band and picture column of a signal of known length.

    Call ``add`` with consecutive pieces, then ``power`` or ``picture``. The window is about 46 ms (a power of two
    samples), a quarter of it the hop; short signals are padded with zeros.
    """

    def __init__(self, sample_rate: int, num_samples: int, *, bands: int = BANDS, columns: int = COLUMNS):
        self.size = 2 ** max(4, round(np.log2(0.046 * sample_rate)))
        self.hop = self.size // 4
        self.frames = max(1, -(-num_samples // self.hop))
        self.columns = min(columns, self.frames)
        self._filters = mel_filters(sample_rate, self.size, bands)
        self._window = np.hanning(self.size).astype(np.float32)
        self._sums = np.zeros((bands, self.columns))
        self._counts = np.zeros(self.columns)
        self._left = np.zeros(self.size // 2, np.float32)  # what the next frame begins with
        self._done = 0

    def add(self, audio: Float[np.ndarray, "a"]) -> None:
        """The next samples."""
        signal = np.concatenate([self._left, audio.astype(np.float32)])
        frames = max(0, (len(signal) - self.size) // self.hop + 1)
        self._left = signal[frames * self.hop :]
        if frames:
            self._accumulate(np.lib.stride_tricks.sliding_window_view(signal, self.size)[:: self.hop][:frames])

    def power(self) -> Float32[np.ndarray, "bands columns"]:
        """Mean power, lowest band first. Ends the signal: nothing can be added after it."""
        missing = self.frames - self._done
        if missing > 0:
            self.add(np.zeros(missing * self.hop + self.size, np.float32))
        return (self._sums / np.maximum(self._counts, 1)).astype(np.float32)

    def picture(self) -> bytes:
        """A PNG, low frequencies at the bottom, ``RANGE_DB`` below the loudest point in the darkest colour."""
        power = self.power()
        decibels = 10 * np.log10(np.maximum(power, 1e-10))
        shade = np.clip(1 + (decibels - max(decibels.max(), -60.0)) / RANGE_DB, 0, 1)
        return png(np.round(255 * shade[::-1]).astype(np.uint8), "magma")

    def _accumulate(self, windows: Float32[np.ndarray, "f size"]) -> None:
        for begin in range(0, len(windows), 256):
            spectrum = np.fft.rfft(windows[begin : begin + 256] * self._window, axis=1)
            power = self._filters @ (np.abs(spectrum.T) ** 2)
            column = np.arange(self._done, self._done + power.shape[1]) * self.columns // self.frames
            keep = column < self.columns  # the zeros at the end may give a frame too many
            np.add.at(self._sums.T, column[keep], power.T[keep])
            np.add.at(self._counts, column[keep], 1)
            self._done += power.shape[1]


@functools.cache
def mel_filters(sample_rate: int, size: int, bands: int) -> Float32[np.ndarray, "bands bins"]:
    """Triangles, evenly spaced in mel (2595 log10(1 + f / 700)) up to half the rate, each of unit height.

    A band narrower than the bins are apart takes the bin nearest its centre.
    """
    if bands < 1:
        raise UserError(f"{bands} mel bands: at least 1")
    bins = np.fft.rfftfreq(size, 1 / sample_rate)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + sample_rate / 1400), bands + 2) / 2595) - 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = np.clip(np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)), 0, None)
    for band in np.flatnonzero(filters.sum(axis=1) < 1e-3):
        filters[band, np.abs(bins - centre[band]).argmin()] = 1
    return filters.astype(np.float32)


def png(values: UInt8[np.ndarray, "y x"], colours: str | None = None) -> bytes:
    """A PNG of one byte per pixel: grey, or in a matplotlib colour map."""
    image = Image.fromarray(np.ascontiguousarray(values))
    if colours is not None:
        image = image.convert("P")
        image.putpalette(_palette(colours))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


@functools.cache
def _palette(colours: str) -> bytes:
    from matplotlib import colormaps

    return (colormaps[colours](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes()
