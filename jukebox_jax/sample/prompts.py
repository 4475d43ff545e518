"""What a run starts from: nothing, saved codes, or the codes of an audio prompt (spec/sampling.md section 1)."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32, Int32

from jukebox_jax.types import UserError

Codes = list[Int32[np.ndarray, "_ _"]]  # one array per level, bottom first


def empty(items: int, levels: int) -> Codes:
    """Ancestral sampling: no codes at any level."""
    return [np.zeros((items, 0), np.int32) for _ in range(levels)]


def load_codes(path: str | Path, levels: int, codebook_size: int) -> Codes:
    """``codes_level_{i}`` (items x codes) of an npz file that a run has written. A level that is absent is empty."""
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files if name.startswith("codes_level_")}
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no codes file (codes.npz of a run): {error}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the codes.npz in it") from None
    known = [f"codes_level_{level}" for level in range(levels)]
    if not found or set(found) - set(known):
        raise UserError(f"{path} has {', '.join(found) or 'no codes'}; this model has {', '.join(known)}")
    items = {len(codes) for codes in found.values() if codes.ndim == 2}
    for name, codes in found.items():
        if codes.ndim != 2 or codes.dtype.kind not in "iu" or len(items) != 1:
            raise UserError(f"{path}: {name} must be integers of items x codes, alike in items; it is"
                            f" {codes.dtype}{list(codes.shape)}")  # fmt: skip
        if codes.size and not 0 <= codes.min() <= codes.max() < codebook_size:
            raise UserError(f"{path}: {name} has codes {codes.min()} to {codes.max()}; this model's are 0 to"
                            f" {codebook_size - 1}")  # fmt: skip
    none = np.zeros((items.pop(), 0), np.int32)
    return [found.get(name, none).astype(np.int32) for name in known]


def save_codes(path: Path, codes: Sequence[Int32[np.ndarray, "_ _"]], items: Sequence[int]) -> None:
    """Write what ``load_codes`` reads, and the items' numbers. The file appears whole or not at all."""
    staged = path.with_name(path.name + ".new")
    with open(staged, "wb") as file:
        arrays = {"items": np.asarray(items, np.int32)} | {f"codes_level_{i}": c for i, c in enumerate(codes)}
        np.savez_compressed(file, allow_pickle=False, **arrays)
    staged.replace(path)


def select(codes: Codes, items: Sequence[int]) -> Codes:
    """Some items, by their place in the file."""
    for item in items:
        if not 0 <= item < len(codes[0]):
            raise UserError(f"item {item} is not among the {len(codes[0])} of the codes file: allowed are 0 to"
                            f" {len(codes[0]) - 1}")  # fmt: skip
    return [level[list(items)] for level in codes]


def cut(codes: Codes, samples: int, hops: Sequence[int]) -> Codes:
    """What is within the first ``samples`` of audio."""
    return [level[:, : samples // hop] for level, hop in zip(codes, hops, strict=True)]


def read_prompts(
    paths: Sequence[str], items: int, rate: int, samples: int, offset: float = 0.0
) -> Float32[np.ndarray, "b a 1"]:
    """One prompt per item: files in turn, from ``offset`` seconds, mono at ``rate``, exactly ``samples`` long."""
    read = {path: _read(path, rate, samples, offset) for path in dict.fromkeys(paths)}
    return np.stack([read[paths[item % len(paths)]] for item in range(items)])[..., None]


def _read(path: str, rate: int, samples: int, offset: float) -> Float32[np.ndarray, "a"]:
    try:
        with soundfile.SoundFile(path) as file:
            there = file.frames / file.samplerate
            file.seek(min(int(offset * file.samplerate), file.frames))
            frames = int(np.ceil(samples / rate * file.samplerate)) + file.samplerate // 10  # the filter reads ahead
            audio = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
            audio = audio if file.samplerate == rate else soxr.resample(audio, file.samplerate, rate)
    except soundfile.LibsndfileError as error:
        reason = "there is no such file" if not Path(path).exists() else error.error_string
        raise UserError(f"{path} cannot be read as audio: {reason}") from None
    if len(audio) < samples:
        raise UserError(f"{path} has {max(0.0, there - offset):.2f} s of audio after {offset:g} s; the prompt takes"
                        f" {samples / rate:.2f} s")  # fmt: skip
    if not np.isfinite(audio).all():
        raise UserError(f"{path} has samples that are no numbers (NaN or infinite)")
    return audio[:samples].astype(np.float32)
