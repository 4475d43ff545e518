"""Bits per token are the training loss's, and a wrong label changes artist and genre only."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jukebox_jax.data.labels import Labeller
from jukebox_jax.data.summary import Song
from jukebox_jax.evaluate import score
from jukebox_jax.models.prior import Prior

from .conftest import BOTTOM, LABELS, MERGED, TOP, VOCABULARY, prior_params

KNOWN = np.array([[0, 0], [1, 1], [1, 2], [2, 1]])


def row(config=TOP) -> np.ndarray:
    meta = {"artist": "Ada", "genre": "folk", "lyrics": "la la la", "total_length": 2000, "offset": 300}
    return Labeller(LABELS, VOCABULARY, config.window_samples).label(meta)[0].astype(np.int32)[None]


@pytest.mark.parametrize("config", [TOP, dataclasses.replace(MERGED, transformer=TOP.transformer)], ids=("5b", "1b"))
def test_scores_are_the_loss_under_each_label(config):
    config = dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, depth=3))
    codes = np.random.default_rng(1).integers(0, 12, (1, config.context_length)).astype(np.int32)
    y = score.with_wrong_labels(row(config), KNOWN, 0)
    bits = np.asarray(score.make_score(config)(prior_params(config), codes, y, None))
    assert bits.shape == (4,)
    loss = jax.jit(lambda params, codes, y: Prior(config).apply({"params": params}, codes, y, None, method="loss")[1])
    for i in (0, 2):
        parts = loss(prior_params(config), codes, y[i : i + 1])
        assert bits[i] == pytest.approx(float(parts["gen_loss"]), rel=1e-4)
    assert len(np.unique(bits.round(4))) == 4


def test_an_upsampler_without_labels():
    rng = np.random.default_rng(2)
    codes, upper = (rng.integers(0, 12, (1, n)).astype(np.int32) for n in (16, 8))
    bits = score.make_score(BOTTOM)(prior_params(BOTTOM), codes, None, upper)
    loss = jax.jit(
        lambda params, *codes: Prior(BOTTOM).apply({"params": params}, codes[0], None, codes[1], method="loss")
    )
    expected, _ = loss(prior_params(BOTTOM), codes, upper)
    assert bits.shape == (1,) and float(bits[0]) == pytest.approx(float(expected), rel=1e-4)


def test_wrong_labels_are_all_the_others_or_a_draw(monkeypatch):
    y = score.with_wrong_labels(row(), KNOWN, 0)
    assert y[:, 3:5].tolist() == [[1, 1], [0, 0], [1, 2], [2, 1]]
    np.testing.assert_array_equal(np.delete(y, (3, 4), axis=1), np.delete(np.repeat(row(), 4, 0), (3, 4), axis=1))
    monkeypatch.setattr(score, "WRONG_LABELS", 2)
    drawn = [score.with_wrong_labels(row(), KNOWN, item)[1:, 3:5].tolist() for item in range(20)]
    assert drawn[3] == score.with_wrong_labels(row(), KNOWN, 3)[1:, 3:5].tolist()
    assert all(len(labels) == 2 and [1, 1] not in labels for labels in drawn)
    assert {tuple(label) for labels in drawn for label in labels} == {(0, 0), (1, 2), (2, 1)}


def test_label_columns_of_songs():
    songs = [
        Song(i, "", "test", 2000, 1, 0, 1, artist, genre, "")
        for i, (artist, genre) in enumerate([("ada", "folk"), ("bob", "folk"), ("Ada", "Folk"), ("new", "reel")])
    ]
    found = score.label_columns(Labeller(LABELS, VOCABULARY, TOP.window_samples), songs)
    assert found.tolist() == [[0, 2], [1, 1], [2, 1]]


def test_label_effect():
    bits = np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 8.0], [5.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    effect = score.label_effect(bits)
    assert effect == {"wrong": 2.5, "gain": 0.25, "right_wins": 0.75, "right_best": 0.5, "wrong_labels": 2}
    assert score.label_effect(bits[:, :1]) is None
