"""Codes grow per item, and a journal brings them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jukebox_jax.sample.tape import Tape
from jukebox_jax.types import UserError


def journal(folder: Path) -> list[Path]:
    return [folder / "level_0" / f"item_{i}.i32" for i in range(3)]


def test_items_grow_on_their_own() -> None:
    tape = Tape(3, np.arange(6).reshape(3, 2))
    tape.append([2, 0], np.array([[7, 8, 9], [4, 5, 6]]))
    assert tape.lengths.tolist() == [5, 2, 5]
    np.testing.assert_array_equal(tape.window([0, 2], 1, 4), [[1, 4, 5], [5, 7, 8]])
    np.testing.assert_array_equal(tape.array(), [[0, 1], [2, 3], [4, 5]])
    with pytest.raises(ValueError, match="there are 2"):
        tape.window([0, 1], 0, 3)


def test_a_journal_survives_a_kill_in_the_middle_of_a_write(tmp_path: Path) -> None:
    start = np.arange(6).reshape(3, 2)
    tape = Tape(3, start, journal=journal(tmp_path))
    tape.append([0, 1], np.full((2, 4), 9))
    with open(journal(tmp_path)[1], "ab") as file:
        file.write(b"\x01\x02")  # two bytes of a code's four
    again = Tape(3, start, journal=journal(tmp_path))
    assert again.lengths.tolist() == [6, 6, 2]
    again.append([1], np.array([[3]]))
    third = Tape(3, journal=journal(tmp_path))
    assert third.lengths.tolist() == [6, 7, 2]
    np.testing.assert_array_equal(third.window([1], 0, 7), [[2, 3, 9, 9, 9, 9, 3]])


def test_keeping_a_take_copies_it_to_every_item() -> None:
    tape = Tape(2)
    tape.append([0, 1], np.array([[1, 2], [3, 4]]))
    tape.keep(1)
    np.testing.assert_array_equal(tape.array(), [[3, 4], [3, 4]])


def test_codes_of_other_items_are_refused() -> None:
    with pytest.raises(UserError, match="codes of 2 items"):
        Tape(3, np.zeros((2, 4), int))
