"""Crops of songs: the songs of a split as one stream, cut into items of one window (spec/training.md section 1).

Item i covers window i of the stream, or, with ``shift``, one up to half a window away. It belongs to the song under its
middle and is moved into that song, so no crop crosses from song to song. What is random in an item is a function of
(seed, epoch, item); with ``passes``, of (seed, epoch modulo passes, item), so that there are finitely many crops, and
codes of all of them can be computed once (``codes``).
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int16

from jukebox_jax.data import records, summary
from jukebox_jax.data.audio import to_float
from jukebox_jax.data.summary import Song
from jukebox_jax.types import UserError


class Crop(NamedTuple):
    """A window of a song: position of the song in ``AudioItems.songs``, first sample in it."""

    index: int
    offset: int


def uniform(seed: int, *numbers: int) -> float:
    """A number in [0, 1) from integers: the same on every machine and in every version, unlike numpy's generators."""
    digest = hashlib.blake2b(struct.pack(f"<{1 + len(numbers)}q", seed, *numbers), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


class AudioItems:
    """The items of a split. ``items[...]`` is spelt ``example(epoch, item)``, since an item differs between epochs.

    Songs shorter than the window, or outside ``min_duration <= seconds < max_duration``, are left out: ``excluded``.
    Raises ``UserError`` if nothing remains, or if the data set is not at ``sample_rate`` (when given).
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        split: str,
        window_samples: int,
        *,
        seed: int = 0,
        shift: bool = False,
        blend: bool = False,
        passes: int | None = None,
        min_duration: float | None = None,
        max_duration: float | None = None,
        sample_rate: int | None = None,
    ):
        if window_samples < 1 or (passes is not None and passes < 1):
            raise UserError(f"window_samples {window_samples} and passes {passes} must be 1 or more")
        self.dataset_dir, self.split, self.window = str(dataset_dir), split, int(window_samples)
        self.seed, self.shift, self.blend, self.passes = seed, shift, blend, passes
        table = summary.load(dataset_dir)
        self.sample_rate, self.record_samples = int(table["sample_rate"]), int(table["record_samples"])
        if sample_rate is not None and sample_rate != self.sample_rate:
            hint = f"make one with `jukebox dataset --sample_rate={sample_rate}`"
            raise UserError(f"{dataset_dir} is at {self.sample_rate} Hz, the model at {sample_rate} Hz: {hint}")
        low = float(max(self.window, (min_duration or 0) * self.sample_rate))
        high = float("inf") if max_duration is None else float(max_duration * self.sample_rate)
        songs = summary.load_songs(dataset_dir, split)
        self.songs = [song for song in songs if low <= song.total_length < high]
        self.excluded = [song for song in songs if not low <= song.total_length < high]
        self.ends = np.cumsum([song.total_length for song in self.songs], dtype=np.int64)
        self.total = int(self.ends[-1]) if self.songs else 0
        self.num_items = self.total // self.window
        if not self.num_items:
            raise UserError(self._too_short(songs, low, high))
        self.source = records.open_split(dataset_dir, records.AUDIO, split)

    def crop(self, epoch: int, item: int) -> Crop:
        """Where item ``item`` lies in this epoch."""
        if not 0 <= item < self.num_items:
            raise IndexError(f"item {item}: there are {self.num_items}")
        half = self.window // 2
        # randint[-half, half)
        shift = int(self._uniform(epoch, item, 0) * 2 * half) - half if self.shift else 0
        offset = item * self.window + shift
        index = int(np.searchsorted(self.ends, offset + half))  # the first song that ends at the middle or after it
        end = int(self.ends[index])
        start = end - self.songs[index].total_length
        if offset > end - self.window:
            offset = min(max(start, offset - half), end - self.window)
        elif offset < start:
            offset = min(end - self.window, offset + half)
        return Crop(index, offset - start)

    def example(self, epoch: int, item: int) -> dict[str, Any]:
        """``audio`` float32 (window, 1), and ``song`` (id), ``total_length, offset, artist, genre, lyrics``.

        Lengths in samples. Stereo becomes m L + (1 - m) R: m uniform in [0, 1) with ``blend``, else one half.
        """
        crop = self.crop(epoch, item)
        samples, known = self._read(crop)
        audio = to_float(samples)
        if audio.shape[1] == 2:
            m = np.float32(self._uniform(epoch, item, 1) if self.blend else 0.5)
            audio = m * audio[:, :1] + (1 - m) * audio[:, 1:]
        numbers = {"song": int(known["song"]), "total_length": int(known["total_length"]), "offset": crop.offset}
        return {"audio": audio} | numbers | {key: known[key].decode("utf-8") for key in ("artist", "genre", "lyrics")}

    def chunk(self, item: int) -> Float32[np.ndarray, "a channels"]:
        """The samples of an item of epoch 0, not mixed down."""
        return to_float(self._read(self.crop(0, item))[0])

    def _uniform(self, epoch: int, item: int, purpose: int) -> float:
        return uniform(self.seed, epoch % self.passes if self.passes else epoch, item, purpose)

    def _read(self, crop: Crop) -> tuple[Int16[np.ndarray, "a channels"], dict[str, Any]]:
        """The samples of a crop, and the last record that it touches."""
        song, end = self.songs[crop.index], crop.offset + self.window
        first, last = crop.offset // self.record_samples, (end - 1) // self.record_samples
        examples = [self.source[song.first_record + number] for number in range(first, last + 1)]
        for number, example in zip(range(first, last + 1), examples, strict=True):
            if (int(example["song"]), int(example["record"])) != (song.song, number):
                raise UserError(
                    f"{self.dataset_dir}: {summary.SONGS} and the shards of {self.split} disagree; rebuild it"
                )
        start = first * self.record_samples
        return np.concatenate([e["audio"] for e in examples])[crop.offset - start : end - start], examples[-1]

    def _too_short(self, songs: list[Song], low: float, high: float) -> str:
        seconds = [samples / self.sample_rate for samples in (low, high, self.window)]
        longest = max(song.total_length for song in songs) / self.sample_rate
        needed = f"{seconds[0]:.3g} s" + (f" to {seconds[1]:g} s" if np.isfinite(high) else " or more")
        return (
            f"{self.dataset_dir}, split {self.split}: none of its {len(songs)} songs has the needed {needed}"
            f" (one window is {seconds[2]:.3g} s; the longest song is {longest:.3g} s)"
        )
