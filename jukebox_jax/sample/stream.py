"""Codes to audio to files, piece by piece in constant memory: wav, a small mp3 for the page, and a spectrogram."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float, Int32

from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.models.vqvae_stream import decode_long
from jukebox_jax.sample.source import Source
from jukebox_jax.sample.spectrogram import MelSpectrogram

MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
BLOCK = 1 << 14  # samples written at once: libsndfile's Vorbis encoder takes no more than a few seconds


def decode(
    source: Source, variables: Any, codes: Int32[np.ndarray, "t"], level: int
) -> Iterator[Float[np.ndarray, "a"]]:
    """Audio of one item's codes, in pieces."""
    for piece in decode_long(VQVAE(source.vqvae), variables, codes[None], level):
        yield piece[0, :, 0]


def write_audio(pieces: Iterable[Float[np.ndarray, "_"]], rate: int, samples: int, stem: Path) -> None:
    """Write ``stem.wav`` (16 bit, clipped to [-1, 1]), its compressed twin, and ``stem.png``, its mel spectrogram.

    ``samples`` is the length of all pieces together. Each file appears when it is complete.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    targets = [stem.with_name(stem.name + suffix) for suffix in (".wav", compressed_suffix(rate))]
    spectrogram = MelSpectrogram(rate, samples)
    with ExitStack() as stack:
        files = [stack.enter_context(_open(target, rate)) for target in targets]
        for block in _blocks(pieces):
            audio = np.clip(block, -1, 1)
            for file in files:
                file.write(audio)
            spectrogram.add(audio)
    stem.with_name(stem.name + ".png").write_bytes(spectrogram.picture())
    for target in reversed(targets):
        _staged(target).replace(target)


def compressed_suffix(rate: int) -> str:
    """mp3, which every browser plays; Ogg Vorbis at rates that mp3 does not have."""
    return ".mp3" if rate in MP3_RATES else ".ogg"


def _open(target: Path, rate: int) -> soundfile.SoundFile:
    formats = {
        ".wav": {"format": "WAV", "subtype": "PCM_16"},
        ".mp3": {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.5},
        ".ogg": {"format": "OGG", "subtype": "VORBIS"},
    }
    return soundfile.SoundFile(_staged(target), "w", rate, 1, **formats[target.suffix])


def _staged(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _blocks(pieces: Iterable[Float[np.ndarray, "_"]]) -> Iterator[Float[np.ndarray, "_"]]:
    for piece in pieces:
        for begin in range(0, len(piece), BLOCK):
            yield piece[begin : begin + BLOCK]
