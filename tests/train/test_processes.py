"""Two real processes train as one; ``make chaos`` has the rest (``tests/chaos/many_hosts.py``)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from jukebox_jax import __main__, config
from jukebox_jax.train import loop
from jukebox_jax.train.experiment import from_config


@pytest.fixture(scope="module")
def hosts() -> ModuleType:
    script = Path(__file__).parents[1] / "chaos" / "many_hosts.py"
    spec = importlib.util.spec_from_file_location("many_hosts", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(hosts: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hosts")
    hosts.prepare(path)
    return path


def test_two_processes_share_the_data_and_give_the_losses_of_one(hosts: ModuleType, folder: Path):
    short = ["steps=3", "evaluate_batches=0", "sample_every=0"]
    run = hosts.Run(folder, "two", 2, *(f"--config.{item}" for item in short), part="one_level", record=True)
    c = config.load(f"{folder / 'config.py'}:one_level", [*short, f"dataset={folder / 'data'}"])
    loop.train(from_config(c.to_dict()), folder / "one")  # on eight devices
    hosts.only_the_first_writes(run.succeed())
    hosts.same(hosts.losses(run.workdir), hosts.losses(folder / "one"))
    first, second = run.rows(3)
    assert not first & second and first | second == {(step, row) for step in range(3) for row in range(8)}


def test_two_configs_end_both_processes(hosts: ModuleType, folder: Path):
    beta = lambda i: [f"--config.optimizer.beta1=0.{8 + i}"]  # noqa: E731
    message = "config.optimizer.beta1 is 0.8 on process 1 and 0.9 on process 2"
    hosts.ended_alike(hosts.Run(folder, "new", 2, each=beta), 2, message)
    assert not (folder / "new").exists()


def test_a_line_of_an_error_is_written_at_once(monkeypatch: pytest.MonkeyPatch):
    """Or another thread's, about the same failure, could stand between the line and its end."""
    written = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=written.append))
    assert __main__._fail("jukebox train", "the processes\ndiffer") == 2
    assert written == ["jukebox train: error: the processes differ\n"]
