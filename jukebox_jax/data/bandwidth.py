"""How loud a data set is: the normalisers of the VQ-VAE's losses (spec/vqvae.md section 4, "Bandwidth")."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from jukebox_jax.data.items import AudioItems

STRIDE = 16  # the original looks at every 16th item
N_FFT, HOP, WINDOW = 2048, 256, 1536
FRAMES = 512  # transformed at a time


@runtime_checkable
class Chunks(Protocol):
    """What the statistics are taken of: ``AudioItems``."""

    num_items: int
    sample_rate: int

    def chunk(self, item: int) -> Float[np.ndarray, "a channels"]: ...


def bandwidth(
    dataset_dir: str | Path, window_samples: int, *, split: str = "train", seconds: float = 600.0
) -> dict[str, float]:
    """``l1`` (mean |x|), ``l2`` (variance) and ``spec`` (mean norm of a window's spectrogram) of a split.

    Looks at items 0, 16, 32, ..., then 1, 17, ..., until it has seen ``seconds`` (channels count separately, as in the
    original) or all there is. ``spec`` is a norm over a window, so it holds for this ``window_samples`` only.
    """
    return of_items(AudioItems(dataset_dir, split, window_samples), seconds)


def of_items(items: Chunks, seconds: float) -> dict[str, float]:
    """``bandwidth`` of items."""
    count, total, absolute, squares, norms = 0, 0.0, 0.0, 0.0, []
    for item in (item for start in range(STRIDE) for item in range(start, items.num_items, STRIDE)):
        x = items.chunk(item).astype(np.float64)
        count, total = count + x.size, total + x.sum()
        absolute, squares = absolute + np.abs(x).sum(), squares + np.square(x).sum()
        norms.append(spectrogram_norm(x.mean(1)))
        if count >= items.sample_rate * seconds:
            break
    return {"l1": float(absolute / count), "l2": float(squares / count - (total / count) ** 2),
            "spec": float(np.mean(norms))}  # fmt: skip


def spectrogram_norm(x: Float[np.ndarray, "a"], padding: str = "reflect") -> float:
    """Norm of the magnitude STFT: 2048 points, hop 256, periodic Hann of 1536, centred; ``padding`` of ``np.pad``."""
    hann = np.zeros(N_FFT)
    left = (N_FFT - WINDOW) // 2
    hann[left : left + WINDOW] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    padded = np.pad(x, N_FFT // 2, mode=padding)  # pyright: ignore[reportArgumentType, reportCallIssue]
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    squares = 0.0
    for start in range(0, len(frames), FRAMES):
        squares += float(np.square(np.abs(np.fft.rfft(frames[start : start + FRAMES] * hann))).sum())
    return float(np.sqrt(squares))
