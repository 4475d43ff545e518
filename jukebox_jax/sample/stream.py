"""Codes to audio to files, piece by piece in constant memory: wav, a small mp3 for the page, and a spectrogram."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
from jaxtyping import Float, Int32

from jukebox_jax import presets
from jukebox_jax.models.resnet import dilations
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.sample.source import Source
from jukebox_jax.sample.spectrogram import MelSpectrogram

MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
PIECE = 1 << 18  # samples decoded at once, about: 6 s at 44.1 kHz
BLOCK = 1 << 14  # samples written at once: libsndfile's Vorbis encoder takes no more than a few seconds


def decode(
    source: Source, variables: Any, codes: Int32[np.ndarray, "t"], level: int
) -> Iterator[Float[np.ndarray, "a"]]:
    """Audio of one item's codes, in pieces: the same as of all codes at once, in memory that does not grow with them.

    Each piece is decoded with as many codes on both sides as can reach it, and those are cut off again. All windows
    have one length (so one program is compiled), and the ends of the song are ends of windows.
    """
    hop, reach, model = source.hop(level), decoder_reach(source.vqvae, level), VQVAE(source.vqvae)
    window = min(len(codes), max(PIECE // hop, 2 * reach) + 2 * reach)
    done = 0
    while done < len(codes):
        start = min(max(0, done - reach), len(codes) - window)
        end = len(codes) if start + window == len(codes) else start + window - reach
        audio = _decode(model, variables, jnp.asarray(codes[None, start : start + window]), level)
        yield np.asarray(audio)[0, (done - start) * hop : (end - start) * hop, 0]
        done = end


@functools.partial(jax.jit, static_argnums=(0, 3))
def _decode(model: VQVAE, variables: Any, codes: jax.Array, level: int) -> Any:
    return model.apply(variables, codes, level, method="decode")


def decoder_reach(config: presets.VQVAE, level: int) -> int:
    """How many codes away a code can be and still change another one's audio (spec/quirks.md A25: 5742, 80, 82)."""
    _, depth = config.level_width_depth(level)
    low, high = 0, config.hop_lengths[level] - 1  # samples of one code; from here to the codes that they are made of
    low, high = low - 1, high + 1  # the last convolution, width 3
    for block in range(level + 1):
        stride = config.strides[block]
        for _ in range(config.down_depths[block]):
            low, high = -(-(low + stride // 2 - 2 * stride + 1) // stride), (high + stride // 2) // stride
            spread = sum(dilations(depth, config.dilation_growth, config.dilation_cycle))
            low, high = low - spread, high + spread
        low, high = (low - 1, high + 1) if config.down_depths[block] else (low, high)
    return max(-low, high)


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
