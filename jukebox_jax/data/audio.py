"""Audio files to int16 at one rate: what a file says of itself, and its samples, a block at a time.

libsndfile (soundfile) decodes, soxr resamples. Memory does not grow with a file's length: blocks are resampled as they
come, and what a long file decodes to waits in a temporary file. int16 is value x 32768, so 16-bit sources at the right
rate pass unchanged. Mono stays mono, stereo stays stereo, more channels are folded down to stereo.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
import soxr
from etils import epath
from jaxtyping import Float32, Int16, Shaped

EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
OTHER_AUDIO = (".m4a", ".aac", ".mp4", ".m4b", ".wma", ".webm", ".mka", ".ape", ".wv", ".mpc", ".dsf", ".mid", ".midi")

BLOCK = 1 << 16  # frames decoded at a time
IN_MEMORY = 64 << 20  # bytes of one song that stay in memory; beyond, they go to a temporary file
FULL_SCALE = 32768.0
NON_FINITE_LIMIT = 0.01  # a file with more NaN or infinite samples than this share is refused
CLIPPING_NOTE = 0.01

# Channel orders by count (WAV and FLAC; Vorbis and Opus), and how each place enters left and right (ITU-R BS.775).
_WAVE = {3: "L R C", 4: "L R BL BR", 5: "L R C BL BR", 6: "L R C LFE BL BR", 7: "L R C LFE B SL SR",
         8: "L R C LFE BL BR SL SR"}  # fmt: skip
_VORBIS = {3: "L C R", 4: "L R BL BR", 5: "L C R BL BR", 6: "L C R BL BR LFE", 7: "L C R SL SR B LFE",
           8: "L C R SL SR BL BR LFE"}  # fmt: skip
_SIDE = 0.7071
_PLACES = {"L": (1.0, 0.0), "R": (0.0, 1.0), "C": (_SIDE, _SIDE), "LFE": (0.0, 0.0), "BL": (_SIDE, 0.0),
           "BR": (0.0, _SIDE), "SL": (_SIDE, 0.0), "SR": (0.0, _SIDE), "B": (0.5, 0.5)}  # fmt: skip


class Undecodable(Exception):
    """A file that gives no usable audio; the message is the reason, for the user."""


@dataclass
class Decoded:
    """A decoded file: ``total`` frames of ``channels`` int16 in ``store``, and what was odd about it. Close it."""

    store: IO[bytes]
    total: int
    channels: int
    notes: list[str]

    def records(self, frames: int) -> Iterator[Int16[np.ndarray, "a channels"]]:
        """The song in pieces of ``frames`` frames (the last may be shorter)."""
        self.store.seek(0)
        while data := self.store.read(frames * self.channels * 2):
            yield np.frombuffer(data, np.int16).reshape(-1, self.channels)


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
    """A local path with the bytes of ``path``: itself, or a temporary copy of a remote one (``gs://...``)."""
    if "://" not in path:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="jukebox_") as folder:
        copy = os.path.join(folder, "audio" + Path(path).suffix)
        epath.Path(path).copy(copy)
        yield copy


def probe(path: str) -> dict[str, Any]:
    """What the header says, cheaply: ``frames, sample_rate, channels, tags``. Raises ``Undecodable``."""
    with local_copy(path) as local, _open(local) as file:
        if not file.frames:
            raise Undecodable("there is no audio in it")
        tags = {key: value for key, value in file.copy_metadata().items() if value and value.strip()}
        return {"frames": file.frames, "sample_rate": file.samplerate, "channels": file.channels, "tags": tags}


def decode(path: str, sample_rate: int, min_seconds: float = 0.0) -> Decoded:
    """Decode, fold down and resample a file to int16 at ``sample_rate`` Hz. Raises ``Undecodable``.

    A file that breaks off is kept up to there, with a note; so are one with a few samples that are not finite (they
    become silence) and one with more than two channels.
    """
    with local_copy(path) as local, _open(local) as file:
        matrix = downmix(file.channels, vorbis=file.subtype in ("VORBIS", "OPUS"))
        channels = matrix.shape[1] if matrix is not None else file.channels
        sink = _Sink(tempfile.SpooledTemporaryFile(max_size=IN_MEMORY))  # noqa: SIM115 (closed by the caller)
        resampler = None
        if file.samplerate != sample_rate:
            resampler = soxr.ResampleStream(file.samplerate, sample_rate, channels, dtype="float32", quality="HQ")
        source = _Source(file)
        for block in source.blocks():
            block = block if matrix is None else block @ matrix
            sink.write(block if resampler is None else resampler.resample_chunk(block))
        if resampler is not None:
            sink.write(resampler.resample_chunk(np.zeros((0, channels), np.float32), last=True))
        seconds, total = sink.values / channels / sample_rate, sink.values // channels
        try:
            _refuse(source, sink, seconds, min_seconds)
        except Undecodable:
            sink.store.close()
            raise
        notes = source.notes + _truncation(local, file, source)
        if matrix is not None:
            notes.append(f"{file.channels} channels mixed down to stereo")
        if sink.clipped > CLIPPING_NOTE * sink.values:
            notes.append(f"{sink.clipped / sink.values:.1%} of the samples are beyond full scale: clipped")
        return Decoded(sink.store, total, channels, notes)


def _refuse(source: _Source, sink: _Sink, seconds: float, min_seconds: float) -> None:
    if not sink.values:
        raise Undecodable(source.notes[0] if source.notes else "there is no audio in it")
    if source.non_finite > NON_FINITE_LIMIT * source.values:
        raise Undecodable(f"{source.non_finite / source.values:.0%} of its samples are NaN or infinite")
    if seconds < min_seconds:
        why = f" ({source.notes[0]})" if source.notes else ""
        raise Undecodable(f"{seconds:.3g} s long; the shortest allowed is {min_seconds:g} s{why}")
    if not sink.peak:
        raise Undecodable("silent from start to end")
    if source.non_finite:
        source.notes.append(f"{source.non_finite} samples are NaN or infinite: silence in their place")


def downmix(channels: int, *, vorbis: bool = False) -> Float32[np.ndarray, "channels 2"] | None:
    """The matrix that folds ``channels`` down to stereo; None for one or two channels.

    Up to eight channels count as the surround layout of that many, low frequencies left out; of more, the even ones go
    left and the odd ones right. Columns sum to 1, so nothing clips that did not before.
    """
    if channels <= 2:
        return None
    layout = (_VORBIS if vorbis else _WAVE).get(channels)
    places = layout.split() if layout else list(itertools.islice(itertools.cycle("LR"), channels))
    matrix = np.array([_PLACES[place] for place in places], np.float32)
    return matrix / matrix.sum(0, keepdims=True)


def to_float(samples: Shaped[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """int16 to float32 in [-1, 1)."""
    return samples.astype(np.float32) * np.float32(1 / FULL_SCALE)


@dataclass
class _Sink:
    """Takes float blocks, keeps int16, counts."""

    store: IO[bytes]
    values: int = 0
    clipped: int = 0
    peak: int = 0

    def write(self, block: Float32[np.ndarray, "a channels"]) -> None:
        scaled = np.rint(block * np.float32(FULL_SCALE))
        self.clipped += int(np.count_nonzero((scaled > FULL_SCALE) | (scaled < -FULL_SCALE)))
        samples = np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
        self.values += samples.size
        self.peak = max(self.peak, int(np.abs(samples.astype(np.int32)).max(initial=0)))
        self.store.write(samples.tobytes())


@dataclass
class _Source:
    """Reads blocks until the end or the first error, without NaNs."""

    file: soundfile.SoundFile
    frames: int = 0
    values: int = 0
    non_finite: int = 0
    broken: bool = False
    notes: list[str] = field(default_factory=list)

    def blocks(self) -> Iterator[Float32[np.ndarray, "a channels"]]:
        while True:
            try:
                block = self.file.read(BLOCK, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                self.broken = True
                self.notes.append(f"damaged after {self.frames / self.file.samplerate:.3g} s: {_message(error)}")
                return
            if not len(block):
                return
            finite = np.isfinite(block)
            self.non_finite += block.size - int(np.count_nonzero(finite))
            self.frames, self.values = self.frames + len(block), self.values + block.size
            yield np.where(finite, block, np.float32(0))


def _open(path: str) -> soundfile.SoundFile:
    if not os.path.getsize(path):
        raise Undecodable("the file is empty")
    try:
        return soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        raise Undecodable(f"not audio that libsndfile can read: {_message(error)}") from None


def _message(error: soundfile.LibsndfileError) -> str:
    text = error.error_string.removeprefix("Error : ").strip().rstrip(".")
    return text[:1].lower() + text[1:]


def _truncation(path: str, file: soundfile.SoundFile, source: _Source) -> list[str]:
    """What the container promised and did not hold, if it says so."""
    if source.broken:
        return []
    there = f"truncated: {source.frames / file.samplerate:.3g} s of"
    if file.frames - source.frames > 0.05 * file.samplerate:
        return [f"{there} {file.frames / file.samplerate:.3g} s are there"]
    if file.format in ("WAV", "WAVEX"):
        for line in file.extra_info.splitlines():
            words = line.replace("(", "").replace(")", "").split()  # "data : 3528000 (should be 1175937)"
            if words[:2] == ["data", ":"] and words[3:5] == ["should", "be"] and words[2].isdigit():
                promised, held = int(words[2]), int(words[5])
                if held < promised < 0x7FFF0000:  # larger ones are what a pipe writes for "unknown"
                    return [f"{there} {source.frames / file.samplerate * promised / held:.3g} s are there"]
    if file.format == "OGG" and not _ogg_ends(path):
        return ["truncated: the stream's last page is missing"]
    return []


def _ogg_ends(path: str) -> bool:
    """Whether the last page of an Ogg file carries the end-of-stream flag."""
    with open(path, "rb") as file:
        file.seek(-min(os.path.getsize(path), 1 << 17), os.SEEK_END)
        tail = file.read()
    page = tail.rfind(b"OggS")
    return page >= 0 and len(tail) > page + 5 and bool(tail[page + 5] & 4)


def publish(local: str, target: str) -> None:
    """Move a finished local file to its place, which may be remote."""
    if "://" in target:
        epath.Path(local).copy(target, overwrite=True)
        os.remove(local)
    else:
        shutil.move(local, target)
