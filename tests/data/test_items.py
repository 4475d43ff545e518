"""Crops: the rule of spec/training.md section 1, written down a second time, plainly, and compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jukebox_jax.data import summary
from jukebox_jax.data.items import AudioItems, uniform
from jukebox_jax.types import UserError

from .conftest import RATE, song_samples


def reference(lengths: list[int], window: int, item: int, shift: int) -> tuple[int, int]:
    """Song and offset in it, straight from the specification."""
    cumulative = np.cumsum(lengths)
    half = window // 2
    offset = item * window + shift
    mid = offset + half
    assert 0 <= mid < cumulative[-1]
    index = next(k for k, end in enumerate(cumulative) if end >= mid)
    end = int(cumulative[index])
    start = end - lengths[index]
    if offset > end - window:
        offset = max(start, offset - half)
    elif offset < start:
        offset = min(end - window, offset + half)
    return index, offset - start


def items_of(lengths: list[int], window: int, seed: int) -> AudioItems:
    """Items of songs that need no files."""
    items = object.__new__(AudioItems)
    song = summary.Song(0, "x", "train", 1, 1, 0, 1, "a", "b", "c")
    items.songs = [dataclasses.replace(song, total_length=length) for length in lengths]
    items.ends, items.window, items.seed, items.shift, items.passes = np.cumsum(lengths), window, seed, True, None
    items.num_items = sum(lengths) // window
    return items


@given(
    window=st.integers(1, 40).map(lambda n: 2 * n),
    extra=st.lists(st.integers(0, 100), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
)
def test_every_crop_is_the_specification_s_and_in_one_song(window: int, extra: list[int], seed: int):
    lengths = [window + more for more in extra]
    items = items_of(lengths, window, seed)
    for item in range(items.num_items):
        for epoch in range(3):
            shift = int(np.floor(uniform(seed, epoch, item, 0) * window)) - window // 2
            crop = items.crop(epoch, item)
            assert tuple(crop) == reference(lengths, window, item, shift)
            assert 0 <= crop.offset <= lengths[crop.index] - window


@given(window=st.integers(1, 41), extra=st.lists(st.integers(0, 60), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_odd_windows_stay_in_the_song_too(window: int, extra: list[int], seed: int):
    items = items_of([window + more for more in extra], window, seed)
    for item in range(items.num_items):
        crop = items.crop(seed, item)
        assert 0 <= crop.offset <= items.songs[crop.index].total_length - window


def test_uniform():
    draws = np.array([uniform(3, epoch, item, 0) for epoch in range(20) for item in range(200)])
    assert draws.min() >= 0 and draws.max() < 1 and len(set(draws)) == len(draws)
    assert abs(draws.mean() - 0.5) < 0.02 and abs(draws.var() - 1 / 12) < 0.005
    assert uniform(0, 0, 0, 0) == uniform(0, 0, 0, 0) != uniform(1, 0, 0, 0)
    assert uniform(1, 2, 3) == pytest.approx(0.7069603535111167, abs=1e-15)  # the same in every version


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("window", [700, 2400])  # inside a record; over several
def test_samples_are_those_of_the_song(dataset_dir: Path, window: int, shift: bool):
    items = AudioItems(dataset_dir, "train", window, shift=shift, seed=1)
    assert items.excluded == [] or window > 700
    for item in range(items.num_items):
        crop = items.crop(2, item)
        song = items.songs[crop.index]
        expected = song_samples(song.file)[crop.offset : crop.offset + window].astype(np.float32) / 32768
        example = items.example(2, item)
        np.testing.assert_array_equal(example["audio"], expected.mean(1, keepdims=True))
        assert (example["total_length"], example["offset"], example["song"]) == (
            song.total_length,
            crop.offset,
            song.song,
        )
        assert (example["artist"], example["genre"]) == (song.artist, song.genre)
        if not shift:
            np.testing.assert_array_equal(items.chunk(item), expected)


def test_blend(dataset_dir: Path):
    items = AudioItems(dataset_dir, "train", 500, blend=True, seed=5)
    weights = []
    for item in range(items.num_items):
        left, right = items.chunk(item).T
        mono = items.example(0, item)["audio"][:, 0]
        m = (mono[-1] - right[-1]) / (left[-1] - right[-1])
        np.testing.assert_allclose(mono, m * left + (1 - m) * right, atol=1e-6)
        weights.append(m)
        assert items.example(1, item)["audio"].tolist() != mono.tolist()
    assert 0 <= min(weights) < 0.1 and 0.9 < max(weights) <= 1 and abs(np.mean(weights) - 0.5) < 0.15


def test_passes_repeat(dataset_dir: Path):
    items = AudioItems(dataset_dir, "train", 500, shift=True, blend=True, passes=2)
    endless = AudioItems(dataset_dir, "train", 500, shift=True, blend=True)
    for item in range(5):
        assert items.crop(0, item) == items.crop(2, item) == endless.crop(0, item)
        np.testing.assert_array_equal(items.example(1, item)["audio"], items.example(5, item)["audio"])
    assert any(endless.crop(0, item) != endless.crop(2, item) for item in range(5))
    assert any(items.crop(0, item) != items.crop(1, item) for item in range(5))


def test_songs_left_out(dataset_dir: Path):
    songs = {song.file: song.total_length / RATE for song in summary.load_songs(dataset_dir, "train")}
    items = AudioItems(dataset_dir, "train", 100, min_duration=4.0, max_duration=7.0)
    assert {song.file for song in items.songs} == {file for file, s in songs.items() if 4 <= s < 7}
    assert {song.file for song in items.excluded} == {file for file, s in songs.items() if not 4 <= s < 7}
    longest = max(songs.values())
    whole = AudioItems(dataset_dir, "train", round(longest * RATE))
    assert len(whole.songs) == whole.num_items == 1 and whole.crop(0, 0) == (0, 0)


def test_errors(dataset_dir: Path, tmp_path: Path):
    with pytest.raises(
        UserError, match=r"split train: none of its 4 songs has the needed 20 s or more .* longest song"
    ):
        AudioItems(dataset_dir, "train", 20 * RATE)
    with pytest.raises(UserError, match="needed 1 s to 1.1 s"):
        AudioItems(dataset_dir, "train", 100, min_duration=1.0, max_duration=1.1)
    with pytest.raises(UserError, match="is at 2000 Hz, the model at 44100 Hz: make one with"):
        AudioItems(dataset_dir, "train", 100, sample_rate=44100)
    with pytest.raises(UserError, match="unknown split .* 'tets': allowed are train, test. Did you mean 'test'?"):
        AudioItems(dataset_dir, "tets", 100)
    with pytest.raises(UserError, match="is no data set: it has no summary.json"):
        AudioItems(tmp_path, "train", 100)
    with pytest.raises(IndexError):
        AudioItems(dataset_dir, "train", 500).crop(0, 10_000)
