"""Codes do not depend on batches, interruptions or the order of work; starting codes stay as they are."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jukebox_jax.sample import sampler
from jukebox_jax.sample.request import Settings
from jukebox_jax.sample.tape import Tape
from jukebox_jax.types import UserError


def run(source, request, start=None, on_step=lambda codes: None):
    tapes = [Tape(len(request.metas), None if start is None else start[level]) for level in range(2)]
    sampler.sample(source, request, tapes, on_step)
    return [tape.array() for tape in tapes]


@pytest.fixture(scope="module")
def codes(source, request_for):
    return run(source, request_for())


def test_every_level_is_as_long_as_asked(codes) -> None:
    assert [c.shape for c in codes] == [(2, 48), (2, 24)]
    assert all(c.dtype == np.int32 and 0 <= c.min() and c.max() < 12 for c in codes)
    assert len({row.tobytes() for row in codes[0]}) == 2


def test_an_item_does_not_depend_on_its_batch(source, request_for, codes) -> None:
    full = request_for()
    split = run(source, dataclasses.replace(full, batch_sizes=(1, 1)))
    alone = run(source, dataclasses.replace(full, metas=full.metas[1:2], items=(1,)))
    for level in range(2):
        np.testing.assert_array_equal(split[level], codes[level])
        np.testing.assert_array_equal(alone[level], codes[level][1:2])


def test_a_wavefront_draws_the_same_codes_in_fewer_steps(source, request_for, codes) -> None:
    """Songs that stand at different places are drawn together; one by one they take twice the steps."""
    start = [codes[0][:, :0], codes[1][:, :16]]
    alone = 0
    for row in range(2):
        one = dataclasses.replace(request_for(), metas=request_for().metas[row : row + 1], items=(row,))
        alone += sampler.sample(source, one, [Tape(1, level[row : row + 1]) for level in start])
    order: list[int] = []
    tapes = [Tape(2, level) for level in start]
    steps = sampler.wavefront(source, request_for(), tapes, lambda new: order.append(int(tapes[1].lengths[0])))
    for level in range(2):
        np.testing.assert_array_equal(tapes[level].array(), codes[level])
    assert order[0] < 24, "the bottom level begins before the top one is complete"
    assert alone == 2 * steps


def test_four_songs_take_a_fraction_of_the_steps(source, request_for) -> None:
    full = request_for(4)
    alone, expected = 0, []
    for row in range(4):
        tapes = [Tape(1), Tape(1)]
        alone += sampler.sample(source, dataclasses.replace(full, metas=full.metas[row : row + 1], items=(row,)), tapes)
        expected.append([tape.array() for tape in tapes])
    tapes = [Tape(4), Tape(4)]
    assert alone >= 1.5 * sampler.wavefront(source, full, tapes)
    for level in range(2):
        np.testing.assert_array_equal(tapes[level].array(), np.concatenate([codes[level] for codes in expected]))


def test_a_wavefront_names_missing_codes(source, request_for) -> None:
    tapes = [Tape(2), Tape(2, np.zeros((2, 6), np.int32))]
    with pytest.raises(UserError, match="there are 6"):
        sampler.wavefront(source, request_for(levels=(0,)), tapes)


def test_a_seed_is_another_sample(source, request_for, codes) -> None:
    other = run(source, request_for(seed=4, levels=(1,)))
    assert (other[1] != codes[1]).any(axis=1).all()


def test_an_interrupted_run_goes_on_to_the_same_codes(source, request_for, codes) -> None:
    """Items stand at different places: one has nothing, one is inside a window, one is complete."""
    tapes = [Tape(2), Tape(2)]
    for row, known in enumerate((0, 24)):
        tapes[1].append([row], codes[1][row : row + 1, :known])
    for row, known in enumerate((0, 20)):
        tapes[0].append([row], codes[0][row : row + 1, :known])
    sampler.sample(source, request_for(), tapes)
    for level in range(2):
        np.testing.assert_array_equal(tapes[level].array(), codes[level])


def test_starting_codes_stay(source, request_for) -> None:
    start = [np.full((2, 8), 2), np.full((2, 4), 1)]
    codes = run(source, request_for(), start)
    assert [c.shape for c in codes] == [(2, 48), (2, 24)]
    for level in range(2):
        np.testing.assert_array_equal(codes[level][:, : start[level].shape[1]], start[level])


def test_a_short_top_level_is_as_long_as_asked_but_not_in_compat(source, request_for) -> None:
    request = request_for(length=96, levels=(1,), settings=(Settings(temperature=0.0),) * 2)
    start = [np.zeros((2, 0), np.int32), np.full((2, 4), 1)]
    mended = run(source, request, start)[1]
    original = run(source, dataclasses.replace(request, compat=True), start)[1]
    assert mended.shape == (2, 12) and original.shape == (2, 16)
    np.testing.assert_array_equal(original[:, :12], mended)


def test_progress_counts_every_new_code_once(source, request_for) -> None:
    steps: list[int] = []
    run(source, request_for(), on_step=steps.append)
    assert sum(steps) == 2 * (48 + 24)


def test_a_complete_level_loads_nothing(source, request_for, codes) -> None:
    def load(component):
        raise AssertionError(component)

    run(dataclasses.replace(source, load=load), request_for(), codes)


def test_codes_missing_above_are_named(source, request_for) -> None:
    tapes = [Tape(2), Tape(2, np.zeros((2, 6), np.int32))]
    with pytest.raises(UserError, match="level 0 needs 8 codes of level 1 for the window at 0; there are 6"):
        sampler.sample_level(source, request_for(), 0, tapes)


def test_hops_inside_an_upper_code_are_named(source, request_for) -> None:
    tapes = [Tape(2), Tape(2, np.zeros((2, 24), np.int32))]
    with pytest.raises(UserError, match="multiples of 2 codes"):
        sampler.sample_level(source, request_for(compat=True, hop_fractions=(0.2, 0.5)), 0, tapes)


def test_keys_differ_by_seed_item_and_level() -> None:
    keys = [sampler.item_keys(seed, (0, 1), level) for seed in (0, 1) for level in (0, 1)]
    data = np.concatenate([np.asarray(jax.random.key_data(k)) for k in keys])
    assert len(np.unique(data, axis=0)) == 8
