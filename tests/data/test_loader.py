"""Batches: functions of (seed, step), shared out without gap or overlap, with the labels of their crops."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.data import loader as loader_module
from jukebox_jax.data.labels import Labeller, Vocabulary
from jukebox_jax.data.loader import Loader, Order, make_loader
from jukebox_jax.types import UserError

WINDOW = 500
LABELS = presets.Labels("v3", 4, 3, 1, 8, 16, sample_rate=2000)


def labeller(dataset_dir: Path, window: int = WINDOW, labels: presets.Labels = LABELS) -> Labeller:
    return Labeller(labels, Vocabulary.load(dataset_dir / "labels", "v3"), window)


def loader(dataset_dir: Path, split: str = "train", batch_size: int = 6, seed: int = 0, **kwargs) -> Loader:
    settings = {"labeller": labeller(dataset_dir), "shift": True, "blend": True} | kwargs
    return make_loader(dataset_dir, split, WINDOW, batch_size, seed, **settings)


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


def test_batch(dataset_dir: Path):
    batch = loader(dataset_dir).batch(3)
    assert batch.keys() == {"audio", "y"}
    assert batch["audio"].shape == (6, WINDOW, 1) and batch["audio"].dtype == np.float32
    assert batch["y"].shape == (6, LABELS.columns) and batch["y"].dtype == np.int32
    assert np.abs(batch["audio"]).max() <= 1
    assert loader(dataset_dir, labeller=None).batch(0).keys() == {"audio"}


def test_labels_are_those_of_the_crop(dataset_dir: Path):
    train = loader(dataset_dir, blend=False)
    describe = labeller(dataset_dir)
    y = np.concatenate([train.batch(step)["y"] for step in range(train.steps_per_epoch)])
    rows = {(int(r[0]), int(r[1])): r for r in y}
    windows = set()
    for epoch, item in (train.order.place(step, row) for step in range(train.steps_per_epoch) for row in range(6)):
        example = train.examples.example(epoch, item)
        expected, _ = describe.label(example)
        np.testing.assert_array_equal(rows[example["total_length"], example["offset"]], expected)
        words = describe.describe(expected)
        assert words["artist"] == example["artist"].lower() and words["genre"] == example["genre"].lower()
        windows.add(words["lyrics"])
    assert {"", "la la la", "la\nna na"} & windows and len(windows) > 2  # the lyrics move with the crop


def test_a_batch_depends_on_seed_and_step_alone(dataset_dir: Path):
    first, second = loader(dataset_dir), loader(dataset_dir)
    steps = [0, 7, first.steps_per_epoch + 2, 10_000_000]
    kept = [first.batch(step) for step in steps]
    for step, batch in reversed(list(zip(steps, kept, strict=True))):
        assert_same(second.batch(step), batch)
    assert not np.array_equal(kept[0]["audio"], kept[1]["audio"])
    assert not np.array_equal(loader(dataset_dir, seed=1).batch(0)["audio"], kept[0]["audio"])


@pytest.mark.parametrize("start", [0, 5])
def test_iterating_is_random_access(dataset_dir: Path, start: int):
    train = loader(dataset_dir)
    for step, batch in zip(range(start, start + 30), train.iterate(start), strict=False):
        assert_same(batch, train.batch(step))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_processes_share_the_global_batch(dataset_dir: Path, split: str, count: int):
    whole = loader(dataset_dir, split)
    parts = [loader(dataset_dir, split, rows=range(6)[i::count]) for i in range(count)]
    for step in (0, 3, whole.steps_per_epoch):
        shares = [part.batch(step) for part in parts]
        assert all(len(share["audio"]) == 6 // count for share in shares)
        joined = {key: np.stack([share[key] for share in shares], 1) for key in shares[0]}
        assert_same({key: x.reshape(-1, *x.shape[2:]) for key, x in joined.items()}, whole.batch(step))


@pytest.mark.parametrize("small", [0, loader_module.SMALL])  # the two ways an epoch's order is drawn
@pytest.mark.parametrize("num_items", [6, 7, 23, 300])
def test_an_epoch_has_each_item_once(num_items: int, small: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loader_module, "SMALL", small)
    order = Order(num_items, 6, seed=3, shuffle=True)
    assert order.steps_per_epoch == num_items // 6
    epochs = []
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        places = [order.place(step, row) for step in steps for row in range(6)]
        assert {e for e, _ in places} == {epoch}
        items = [item for _, item in places]
        assert len(set(items)) == len(items) == num_items // 6 * 6 and max(items) < num_items
        assert order.num_valid(steps[-1]) == 6
        epochs.append(items)
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])


def test_test_split_in_order_and_whole(dataset_dir: Path):
    test = loader(dataset_dir, "test", batch_size=6, shift=False, blend=False)
    n = test.num_items
    places = [test.order.place(step, row) for step in range(2 * test.steps_per_epoch) for row in range(6)]
    filled = test.steps_per_epoch * 6
    assert [item for _, item in places[:filled]] == [i % n for i in range(filled)]
    assert [epoch for epoch, _ in places] == [0] * filled + [1] * filled
    assert sum(test.num_valid(step) for step in range(test.steps_per_epoch)) == n
    big = loader(dataset_dir, "test", batch_size=500)
    assert big.steps_per_epoch == 1 and big.num_valid(0) == n and len(big.batch(0)["audio"]) == 500


def test_durations_default_to_the_labels(dataset_dir: Path):
    labels = presets.Labels("v3", 4, 3, 1, 8, 16, 4.0, 600.0, sample_rate=2000)
    train = loader(dataset_dir, batch_size=1, labeller=labeller(dataset_dir, labels=labels))
    assert train.examples.excluded and all(s.total_length >= 8000 for s in train.examples.songs)  # pyright: ignore


def test_errors(dataset_dir: Path):
    with pytest.raises(
        UserError, match=r"s of music in songs long enough; one batch of 5000 windows of 0.25 s needs 1250 s"
    ):
        loader(dataset_dir, batch_size=5000)
    with pytest.raises(UserError, match="is at 2000 Hz, the model at 44100 Hz"):
        loader(dataset_dir, labeller=labeller(dataset_dir, labels=presets.Labels("v3", 4, 3, 1, 0)))
    v2 = Labeller(
        presets.Labels("v2", 9, 9, 0, 0, sample_rate=2000), Vocabulary.from_names(["ann"], ["x"], "v2"), WINDOW
    )
    with pytest.raises(UserError, match="takes at most 0"):
        loader(dataset_dir, labeller=v2)


def test_iterators_may_be_left(dataset_dir: Path):
    for _ in range(3):
        assert len(list(itertools.islice(loader(dataset_dir).iterate(), 2))) == 2
