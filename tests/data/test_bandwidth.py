"""Loudness of a data set, against the original's figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jukebox_jax.data import bandwidth
from jukebox_jax.data.items import AudioItems

GOLDEN = Path(__file__).parents[1] / "golden" / "audio_losses" / "data.npz"


class Fake:
    """Items from arrays; counts what is asked for."""

    def __init__(self, chunks: np.ndarray, sample_rate: int = 1000):
        self.chunks, self.num_items, self.sample_rate = chunks, len(chunks), sample_rate
        self.asked: list[int] = []

    def chunk(self, item: int) -> np.ndarray:
        self.asked.append(item)
        return self.chunks[item]


def test_golden():
    golden = np.load(GOLDEN)
    found = bandwidth.of_items(Fake(golden["bandwidth_items"]), 1e9)
    assert found["l1"] == pytest.approx(float(golden["bandwidth_l1"]), rel=1e-6)
    assert found["l2"] == pytest.approx(float(golden["bandwidth_l2"]), rel=1e-5)
    assert found["spec"] == pytest.approx(391.1937, rel=1e-6)  # reflected borders (goldens/README.md)
    zeros = [bandwidth.spectrogram_norm(x.mean(1), "constant") for x in golden["bandwidth_items"]]
    assert np.mean(zeros) == pytest.approx(float(golden["bandwidth_spec"]), rel=1e-6)


def test_which_items():
    few = Fake(np.ones((40, 1100, 2), np.float32))
    bandwidth.of_items(few, 5 * 2 * 1.1)  # five items: channels count separately
    assert few.asked == [0, 16, 32, 1, 17]
    everything = Fake(np.ones((40, 1100, 2), np.float32))
    bandwidth.of_items(everything, 1e9)
    assert sorted(everything.asked) == list(range(40)) and everything.asked[:3] == [0, 16, 32]


def test_of_a_data_set(dataset_dir: Path):
    items = AudioItems(dataset_dir, "train", 2400)
    x = np.concatenate([items.chunk(i) for i in range(items.num_items)]).astype(np.float64)
    found = bandwidth.bandwidth(dataset_dir, 2400)
    assert found["l1"] == pytest.approx(np.abs(x).mean()) and found["l2"] == pytest.approx(x.var())
    assert found["spec"] > 0
