"""Codes to audio to files, piece by piece in constant memory: wav, a small mp3 for the page, and a spectrogram."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    source: Source, variables: Any, codes: Int32[np.ndarray, "b t"], level: int
) -> Iterator[Float[np.ndarray, "b a"]]:
    """Audio of some items' codes, in pieces."""
    for piece in decode_long(VQVAE(source.vqvae), variables, codes, level):
        yield piece[:, :, 0]


def write_audio(pieces: Iterable[Float[np.ndarray, "b _"]], rate: int, samples: int, stems: Sequence[Path]) -> None:
    """Write each item's ``stem.wav`` (16 bit, clipped to [-1, 1]), its compressed twin, and ``stem.png``, its mel
    spectrogram.

    ``samples`` is the length of all pieces together. Each file appears when it is complete.
    """
    suffixes = (".wav", compressed_suffix(rate))
    for stem in stems:
        stem.parent.mkdir(parents=True, exist_ok=True)
    targets = [[stem.with_name(stem.name + suffix) for suffix in suffixes] for stem in stems]
    spectrograms = [MelSpectrogram(rate, samples) for _ in stems]
    with ExitStack() as stack:
        files = [[stack.enter_context(_open(target, rate)) for target in item] for item in targets]
        for block in _blocks(pieces):
            for audio, twins, spectrogram in zip(np.clip(block, -1, 1), files, spectrograms, strict=True):
                for file in twins:
                    file.write(audio)
                spectrogram.add(audio)
    for stem, item, spectrogram in zip(stems, targets, spectrograms, strict=True):
        stem.with_name(stem.name + ".png").write_bytes(spectrogram.picture())
        for target in reversed(item):
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


def _blocks(pieces: Iterable[Float[np.ndarray, "b _"]]) -> Iterator[Float[np.ndarray, "b _"]]:
    for piece in pieces:
        for begin in range(0, piece.shape[1], BLOCK):
            yield piece[:, begin : begin + BLOCK]
