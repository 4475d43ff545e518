"""The Beam pipeline (extra "beam") writes the shards that local processes write."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from jukebox_jax.data import builder

from .conftest import RATE
from .test_builder import tree

beam = pytest.importorskip("apache_beam")


@pytest.mark.filterwarnings("default")  # Beam's own
@pytest.mark.parametrize("mode", ["in_memory", "multi_threading"])
def test_same_shards(music: Path, dataset_dir: Path, tmp_path: Path, mode: str):
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    flags = ["--direct_num_workers=2", f"--direct_running_mode={mode}"]
    builder.build(
        music, tmp_path / "set", sample_rate=RATE, record_seconds=1.0, test_fraction=0.3, shard_bytes=50_000,
        runner="DirectRunner", runner_flags=flags,
    )  # fmt: skip
    first, second = tree(dataset_dir), tree(tmp_path / "set")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == ["summary.json"]
