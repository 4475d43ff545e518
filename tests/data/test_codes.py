"""Codes computed once give the batches that encoding on the fly gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.data import codes, loader
from jukebox_jax.data.labels import Labeller, Vocabulary
from jukebox_jax.types import UserError

WINDOW = 512
SETTINGS = {"window_samples": WINDOW, "seed": 7, "passes": 3, "shift": True, "blend": True, "progress": False}


def encode(audio: np.ndarray) -> dict[str, np.ndarray]:
    """A stand-in for a VQ-VAE: codes from means of 8 and 32 samples."""
    assert audio.shape == (5, WINDOW, 1) and audio.dtype == np.float32
    return {
        key: ((audio[:, :, 0].reshape(5, -1, hop).mean(-1) * 100_000) % 2048).astype(np.int32)
        for key, hop in (("codes", 8), ("upper_codes", 32))
    }


@pytest.fixture(scope="module")
def codes_dir(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("codes") / "set"
    codes.write_codes(output, dataset_dir, encode, batch_size=5, upper=True, shard_records=70, **SETTINGS)
    return output


def labeller(folder: Path) -> Labeller:
    labels = presets.Labels("v3", 4, 3, 1, 8, 16, sample_rate=2000)
    return Labeller(labels, Vocabulary.load(folder / "labels", "v3"), WINDOW)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("rows", [None, (1,), (0, 3)])
def test_same_as_on_the_fly(dataset_dir: Path, codes_dir: Path, split: str, rows: tuple[int, ...] | None):
    augment = {"passes": 3, "shift": True, "blend": True} if split == "train" else {}
    live = loader.make_loader(dataset_dir, split, WINDOW, 5, 7, labeller=labeller(dataset_dir), **augment)
    stored = codes.make_codes_loader(codes_dir, split, 5, 7, labeller=labeller(codes_dir), rows=rows)
    assert stored.steps_per_epoch == live.steps_per_epoch
    for step in (*range(4), *(epoch * live.steps_per_epoch + 1 for epoch in range(1, 5))):
        batch, found = live.batch(step), stored.batch(step)
        expected = encode(batch["audio"]) | {"y": batch["y"]}
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].dtype == np.int32
            np.testing.assert_array_equal(found[key], value[list(rows or range(5))])


def test_description(dataset_dir: Path, codes_dir: Path):
    described = codes.load_description(codes_dir)
    assert (described["window_samples"], described["passes"], described["seed"]) == (WINDOW, 3, 7)
    items = described["splits"]["train"]["items"]
    assert len(codes.records.open_split(codes_dir, "jukebox_codes", "train")) == 3 * items
    assert sorted(p.name for p in codes_dir.iterdir()) == ["codes.json", "jukebox_codes", "labels"]


def test_seed_defaults_to_that_of_the_crops(codes_dir: Path):
    first, second = (codes.make_codes_loader(codes_dir, "train", 5, seed).batch(2) for seed in (None, 7))
    np.testing.assert_array_equal(first["codes"], second["codes"])
    assert first.keys() == {"codes", "upper_codes"}
    other = codes.make_codes_loader(codes_dir, "train", 5, 8).batch(2)
    assert not np.array_equal(first["codes"], other["codes"])


def test_an_interrupted_run_goes_on(dataset_dir: Path, codes_dir: Path, tmp_path: Path):
    calls = []

    def fails(audio: np.ndarray) -> dict[str, np.ndarray]:
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return encode(audio)

    settings = SETTINGS | {"batch_size": 5, "upper": True, "shard_records": 70}
    with pytest.raises(KeyboardInterrupt):
        codes.write_codes(tmp_path / "set", dataset_dir, fails, **settings)
    with pytest.raises(UserError, match="has no codes"):
        codes.make_codes_loader(tmp_path / "set", "train", 5)
    calls[:] = [1] * 20  # no second failure
    codes.write_codes(tmp_path / "set", dataset_dir, fails, **settings)
    sizes = codes.load_description(codes_dir)["splits"].values()
    whole = sum(size["items"] * size["passes"] for size in sizes) // 5
    assert 0 < len(calls) - 20 < whole - 10  # the first shard, of 14 batches, was not encoded again
    for split in ("train", "test"):
        first, second = (codes.CodesItems(folder, split) for folder in (codes_dir, tmp_path / "set"))
        for item in range(first.num_items):
            np.testing.assert_array_equal(first.example(1, item)["codes"], second.example(1, item)["codes"])
    with pytest.raises(UserError, match="has codes already: pass --overwrite"):
        codes.write_codes(tmp_path / "set", dataset_dir, fails, **settings)
    codes.write_codes(tmp_path / "set", dataset_dir, fails, **settings | {"upper": False, "overwrite": True})
    assert codes.CodesItems(tmp_path / "set", "train").example(0, 0).keys() & {"codes", "upper_codes"} == {"codes"}


def test_a_test_split_without_usable_songs_is_left_out_unless_asked_for(dataset_dir: Path, tmp_path: Path):
    settings = {"window_samples": 1000, "max_duration": 8.0, "batch_size": 1, "progress": False}

    def zeros(audio: np.ndarray) -> dict[str, np.ndarray]:
        return {"codes": np.zeros((len(audio), 4), int)}

    assert codes.write_codes(tmp_path / "a", dataset_dir, zeros, **settings)["splits"].keys() == {"train"}
    with pytest.raises(UserError, match="split test: none of its"):
        codes.write_codes(tmp_path / "b", dataset_dir, zeros, splits=["train", "test"], **settings)


def test_errors(dataset_dir: Path, codes_dir: Path, tmp_path: Path):
    with pytest.raises(UserError, match="windows of 512 samples; the prior takes 1024: encode again"):
        codes.make_codes_loader(codes_dir, "train", 5, window_samples=1024)
    with pytest.raises(UserError, match="fewer than one batch of 1000"):
        codes.make_codes_loader(codes_dir, "train", 1000)
    with pytest.raises(UserError, match="unknown split"):
        codes.write_codes(tmp_path, dataset_dir, encode, batch_size=5, splits=["valid"], **SETTINGS)
    with pytest.raises(UserError, match="codes from -1 to .* can't be stored: allowed are 0 to 65535"):
        codes.write_codes(
            tmp_path, dataset_dir, lambda audio: {"codes": np.full((5, 4), -1)}, batch_size=5, **SETTINGS
        )  # fmt: skip
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "codes.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(UserError, match="format 0; this version reads 1"):
        codes.load_description(tmp_path / "old")
