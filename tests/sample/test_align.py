"""Lyric maps are stitched so that the earlier window counts; times and pictures come from the map."""

from __future__ import annotations

import numpy as np

from jukebox_jax.sample import align


def test_earlier_windows_count_and_padding_is_dropped() -> None:
    def attention(start: int):
        indices = np.array([-1, 0, 1]) if start == 0 else np.array([1, 2, 3])
        return np.full((4, 3), 0.1 * (start + 1), np.float32), indices

    found = align.stitch(attention, length=6, characters=4, context=4, hop=2)
    expected = np.zeros((6, 4), np.float32)
    expected[2:6, 1:4] = 0.3
    expected[0:4, 0:2] = 0.1
    np.testing.assert_allclose(found, expected)


def test_a_song_shorter_than_a_window_is_cut_to_its_length() -> None:
    calls = []

    def attention(start: int):
        calls.append(start)
        return np.ones((8, 2), np.float32), np.array([0, 1])

    assert align.stitch(attention, length=5, characters=2, context=8, hop=4).shape == (5, 2)
    assert calls == [0]


def test_times_are_where_a_character_gets_most() -> None:
    weights = np.zeros((10, 3), np.float32)
    weights[4, 0], weights[7, 1] = 0.5, 0.2
    assert align.times(weights, 0.5) == [2.0, 3.5, None]
    assert align.times(np.zeros((0, 2), np.float32), 0.5) == [None, None]


def test_pictures_end_at_the_last_heard_character() -> None:
    weights = np.zeros((100, 6), np.float32)
    weights[:, 1], weights[:50, 3] = 1.0, 0.5
    picture = align.picture(weights, 10)
    assert picture.shape == (10, 4)
    assert (picture[:, 1] == 255).all() and picture[0, 3] == 128 and picture[-1, 3] == 0
    assert align.picture(np.zeros((5, 3), np.float32), 10).shape[1] == 0
    assert align.picture(weights[:3], 10).shape == (3, 4)
