"""Usage of a codebook, and the unigram model."""

from __future__ import annotations

import numpy as np
import pytest

from jukebox_jax.evaluate import codes


def test_usage():
    counts = codes.count(np.array([[0, 0, 1, 1], [3, 3, 3, 3]]), 8)
    assert counts.tolist() == [2, 2, 0, 4, 0, 0, 0, 0]
    assert codes.usage(counts) == {"codes": 8, "used": 3 / 8, "entropy": pytest.approx(1.5)}
    assert codes.usage(codes.count(np.zeros(5, np.int32), 4)) == {"codes": 5, "used": 0.25, "entropy": 0.0}


def test_unigram_is_smoothed_and_scored_on_the_other_codes():
    seen, scored = np.array([3, 1, 0, 0]), np.array([1, 0, 1, 0])
    assert codes.unigram_bits(seen, scored) == pytest.approx(-(np.log2(4 / 8) + np.log2(1 / 8)) / 2)
    assert codes.unigram_bits(np.zeros(16, np.int64), np.ones(16, np.int64)) == pytest.approx(4)
