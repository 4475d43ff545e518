"""What is asked for is checked before anything is drawn, in words of the flags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jukebox_jax.sample import ask, prompts, request
from jukebox_jax.types import UserError

SONG = {"artist": "ada", "genre": "reel"}


@pytest.fixture
def codes(tmp_path: Path) -> str:
    """Two items of 24 top codes and 8 bottom codes."""
    prompts.save_codes(tmp_path / "codes.npz", [np.ones((2, 8), np.int32), np.ones((2, 24), np.int32)], (0, 1))
    return str(tmp_path / "codes.npz")


def test_seconds_become_whole_codes(source) -> None:
    start, asked = ask.prepare(source, seconds=0.0249, num_samples=3, metas=[SONG, {}], seed=5, temperature=[0.9, 0.8])
    assert asked.length == 192 and asked.levels == (1, 0) and asked.items == (0, 1, 2)
    assert [meta["artist"] for meta in asked.metas] == ["ada", "unknown", "ada"]
    assert asked.metas[0]["total_length"] == 192 and asked.hop_fractions == (0.5, 0.125)
    assert [s.temperature for s in asked.settings] == [0.9, 0.8]
    assert [c.shape for c in start] == [(3, 0), (3, 0)]


def test_saved_codes_bring_items_and_length(source, codes) -> None:
    start, asked = ask.prepare(source, mode="upsample", codes=codes, items=[1], metas=[SONG])
    assert asked.items == (1,) and asked.length == 192 and asked.levels == (0,)
    assert [c.shape for c in start] == [(1, 8), (1, 24)]
    start, asked = ask.prepare(source, mode="continue", codes=codes, seconds=0.1, prompt_seconds=0.006)
    assert asked.length == 800 and [c.shape for c in start] == [(2, 8), (2, 6)]


def test_the_song_is_as_long_as_the_model_needs(source) -> None:
    meta = ask.label(source, {"offset": 0.005}, 64)
    assert meta["total_length"] == 104 and meta["offset"] == 40
    assert ask.label(source, {}, 64)["total_length"] == 80  # min_duration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "upsampel"}, "Did you mean 'upsample'"),
        ({"mode": "upsample"}, "needs --codes"),
        ({"mode": "primed"}, "needs --audio"),
        ({"mode": "primed", "audio": ["a.wav"]}, "needs --prompt_seconds"),
        ({"audio": ["a.wav"]}, "--audio is for --mode=primed"),
        ({"codes": "x.npz"}, "--codes is for"),
        ({"prompt_seconds": 1.0}, "--prompt_seconds is for"),
        ({"items": [0]}, "--items chooses"),
        ({"num_samples": 0}, "--num_samples=0"),
        ({"seconds": 0.0}, "--seconds=0 must be at least 0.001 s"),
        ({"seconds": float("nan")}, "--seconds=nan"),
        ({"levels": [0, 1]}, "wrong order.*allowed are 1,0 or 1"),
        ({"levels": [1, 1]}, "wrong order"),
        ({"levels": [2, 1, 0]}, "wrong order"),
        ({"levels": [0]}, "level 1, which are not given"),
        ({"temperature": [1.0, 1.0, 1.0]}, "--temperature has 3 values; give one, or 2"),
        ({"temperature": [-1.0]}, "temperature is -1.0"),
        ({"top_k": [5], "top_p": [0.5]}, "choose one"),
        ({"max_batch_size": [0]}, "--max_batch_size=0"),
        ({"metas": [{"artits": "ada"}]}, "Did you mean 'artist'"),
        ({"metas": [{"lyrics": "la la #1"}], "seconds": 0.05}, "does not know: '#'.*allowed are letters, digits"),
        ({"metas": [{"offset": -1.0}]}, "offset must be a number of seconds"),
        ({"metas": [{"total_seconds": 0.02}], "seconds": 0.05}, "--total_seconds=0.02 is shorter"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_what_does_not_fit_is_refused(source, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask.prepare(source, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"seconds": 0.01},
            "0.007 s is too short: one window of level 0 is 0.008 s, so ask for at least 0.008 s .64 samples",
        ),
        ({"metas": [{"artist": "adda"}]}, "unknown artist 'adda': the nearest.*'ada'"),
        ({"metas": [{"genre": "folks"}]}, "unknown genre 'folks'.*'folk'"),
        ({"hop_fraction": [0.1, 0.5]}, "hop fraction 0.1"),
        ({"metas": [{"total_seconds": 20.0}]}, "this model takes songs of 0.01 to 10 s"),
    ],
)
def test_what_the_model_does_not_take_is_refused(source, options: dict, message: str) -> None:
    seconds = options.pop("seconds", 0.05)
    with pytest.raises(UserError, match=message):
        start, asked = ask.prepare(source, seconds=0.007 if seconds == 0.01 else seconds, **options)
        request.check(source, asked, [codes.shape[1] for codes in start])


def test_characters_can_be_dropped(source) -> None:
    meta = ask.label(source, {"lyrics": "a#b"}, 64, drop_characters=True)
    assert source.labellers[1].label(meta)[1]["lyrics"] == "ab"


def test_codes_that_are_too_short_are_refused(source, codes) -> None:
    with pytest.raises(UserError, match="has 0.02 s of its top level"):
        ask.prepare(source, mode="upsample", codes=codes, seconds=1.0)
    with pytest.raises(UserError, match="has 0.02 s of its top level"):
        ask.prepare(source, mode="continue", codes=codes, seconds=1.0, prompt_seconds=0.5)
    with pytest.raises(UserError, match="--codes has 2 items"):
        ask.prepare(source, mode="upsample", codes=codes, num_samples=3)
