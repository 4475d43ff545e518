"""A piece grows by the takes that were chosen, and a session goes on where it was left."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jukebox_jax.cli.compose import answer
from jukebox_jax.sample import prompts
from jukebox_jax.sample.takes import Session, num_codes
from jukebox_jax.types import UserError

NOTHING = np.zeros(0, np.int32)


@pytest.fixture
def session(source, request_for, tmp_path) -> Session:
    return Session(source.resident(), request_for(), tmp_path / "piece", NOTHING, "jukebox compose")


def test_seconds_are_whole_codes_of_one_context(source) -> None:
    assert num_codes(source, 0.0075) == 8 and num_codes(source, 0.016) == 16
    with pytest.raises(UserError, match="at most 0.02 s, one context"):
        num_codes(source, 0.02)


def test_a_piece_is_chosen_left_and_finished(session, source, request_for) -> None:
    session.draw(16)
    first = session.takes
    assert first.shape == (2, 16) and (first[0] != first[1]).any()
    assert (session.step_folder / "index.html").exists()
    assert answer(session, ["again"]) is None
    session.draw(16)
    assert (session.takes != first).any(axis=1).all(), "other takes of the same seconds"
    chosen = session.takes[1].copy()
    assert answer(session, ["1"]) is None

    again = Session(source.resident(), request_for(), session.folder, NOTHING, "jukebox compose")
    np.testing.assert_array_equal(again.kept, chosen)
    again.draw(8)
    np.testing.assert_array_equal(again.takes[:, :16], np.stack([chosen, chosen]))
    last = again.takes[0].copy()
    assert answer(again, ["0", "done"]) == "done"
    result = again.finish()
    codes = prompts.load_codes(result.out / "codes.npz", 2, 12)
    np.testing.assert_array_equal(codes[1][0], last)
    assert codes[0].shape == (1, 48)


def test_a_choice_is_taken_back(session) -> None:
    session.takes = np.arange(8, dtype=np.int32).reshape(2, 4)
    session.keep(1)
    assert session.kept.tolist() == [4, 5, 6, 7]
    answer(session, ["back"])
    assert session.kept.tolist() == [] and session.takes is None
    with pytest.raises(UserError, match="no choice to take back"):
        session.back()


@pytest.mark.parametrize("words", [[], ["9"], ["1", "2"], ["take", "1"], ["done"]])
def test_other_answers_are_refused(session, words) -> None:
    session.takes = np.zeros((2, 4), np.int32)
    with pytest.raises(UserError, match="allowed are"):
        answer(session, words)


def test_another_piece_is_not_overwritten(session, source, request_for) -> None:
    session.save()
    with pytest.raises(UserError, match="request.seed"):
        Session(source, request_for(seed=9), session.folder, NOTHING, "jukebox compose")
    assert json.loads((session.folder / "compose.json").read_text())["kept"] == 0
