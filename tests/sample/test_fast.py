"""Segments side by side: fewer steps, the same first segment, continuous at the seams as far as a model can tell."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jukebox_jax.models.prior import Prior
from jukebox_jax.sample import fast, sampler
from jukebox_jax.sample.request import Request
from jukebox_jax.sample.tape import Tape
from jukebox_jax.types import UserError

TOTAL = 96  # codes of the bottom level, six contexts


@pytest.fixture(scope="module")
def drawn(source, request_for):
    request: Request = dataclasses.replace(request_for(), length=4 * TOTAL)
    tapes = [Tape(2), Tape(2)]
    sampler.sample_level(source, request, 1, tapes)
    steps = sampler.sample_level(source, request, 0, tapes)
    quick = [Tape(2), tapes[1]]
    seen: list[int] = []
    seams = fast.sample_level(source, dataclasses.replace(request, segments=3), 0, quick, seen.append)
    return request, tapes, steps, quick, seams, seen


def test_segments_take_fewer_steps(drawn) -> None:
    request, tapes, steps, quick, seams, seen = drawn
    assert seams.segments == 3 and sum(seen) == 2 * TOTAL
    assert seams.steps == TOTAL // 3 + seams.redrawn < steps / 2
    serial, codes = tapes[0].array(), quick[0].array()
    assert codes.shape == serial.shape == (2, TOTAL) and codes.dtype == np.int32
    np.testing.assert_array_equal(codes[:, : TOTAL // 3], serial[:, : TOTAL // 3])
    assert (codes != serial).any()


def test_seams_are_drawn_after_what_stands_before_them(source, drawn) -> None:
    """A redrawn code is what its window gives for the codes before the seam, and its likelihood is reported."""
    request, tapes, _, quick, seams, _ = drawn
    codes, upper, seam = quick[0].array(), tapes[1].array(), TOTAL // 3
    model, params = Prior(source.priors[0], source.dtype), source.load("prior_level_0")["params"]
    at = seam - 8
    key = sampler.item_keys(request.seed, [(3 + 0) << 20], 0)
    y = sampler.label_rows(source, 0, source.labellers[0].batch(request.metas), [0], [at])
    again = sampler.sample_window(
        model, params, codes[:1, at:seam], y, upper[:1, at // 2 : at // 2 + 8], key, start=0, num_steps=seams.redrawn
    ).codes[0, 8:]
    np.testing.assert_array_equal(codes[0, seam : seam + seams.redrawn], again)
    assert 0 < seams.seam_bits < 40 and 0 < seams.serial_bits < 40 and seams.seam_bits != seams.serial_bits


def test_bits_are_those_of_the_models_loss(source, drawn) -> None:
    request, tapes, _, quick, _, _ = drawn
    prior, codes = source.priors[0], quick[0].array()[:1, :16]
    y = sampler.label_rows(source, 0, source.labellers[0].batch(request.metas), [0], [0])
    model, params = Prior(prior), source.load("prior_level_0")["params"]
    bits = fast._bits(model, params, codes, y, tapes[1].array()[:1, :8])
    loss = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs, method="loss"))
    np.testing.assert_allclose(np.mean(bits), loss(codes, y, tapes[1].array()[:1, :8])[0], rtol=1e-5)


def test_the_top_level_is_drawn_in_order(source, request_for) -> None:
    request = request_for()  # the top level has nothing above it to follow
    serial, quick = [Tape(2), Tape(2)], [Tape(2), Tape(2)]
    sampler.sample(source, request, serial)
    assert fast.sample_level(source, dataclasses.replace(request, segments=3), 1, quick) is None
    np.testing.assert_array_equal(quick[1].array(), serial[1].array())


def test_segments_and_a_wavefront_exclude_each_other(request_for) -> None:
    with pytest.raises(UserError, match="--fast takes 1 or more, and draws one level after the other"):
        request_for(segments=2, order="wavefront")
    with pytest.raises(UserError, match="unknown order 'sideways'.*levels, wavefront"):
        request_for(order="sideways")
