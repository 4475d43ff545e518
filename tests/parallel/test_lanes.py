"""Rows of a batch in threads: which rows, when, and what a thread finds there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax.parallel import lanes
from jukebox_jax.parallel.mesh import make_mesh, use

WEIGHTS = np.zeros(256, np.float32)  # 1 KiB


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Two cores and a last cache of 2 KiB."""
    path = tmp_path / "size"
    path.write_text("2K\n")
    monkeypatch.setattr(lanes, "CACHE", path)
    monkeypatch.setattr(lanes, "_cores", lambda: 2)
    lanes._shared_cache.cache_clear()
    yield path
    lanes._shared_cache.cache_clear()


def count(batch: int, weights: np.ndarray = WEIGHTS) -> int:
    return len(lanes.in_lanes(np.arange(batch), batch, {"w": weights}))


@pytest.mark.parametrize("batch", [2, 3, 4, 5])
def test_lanes_have_every_row_in_order(batch: int) -> None:
    tree = {"x": np.arange(batch) * 10, "none": None, "key": jax.random.split(jax.random.key(0), batch)}
    found = lanes.in_lanes(tree, batch, WEIGHTS)
    assert [len(lane["x"]) for lane in found] == [-(-batch // 2)] * 2
    assert all(lane["none"] is None for lane in found)
    np.testing.assert_array_equal(lanes.joined([lane["x"] for lane in found], batch), tree["x"])
    keys = lanes.joined([jax.random.key_data(lane["key"]) for lane in found], batch)
    np.testing.assert_array_equal(keys, jax.random.key_data(tree["key"]))


def test_lanes_are_for_small_weights_on_one_cpu_with_cores(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert count(2) == 2 and count(1) == 1
    assert count(2, np.zeros(512, np.float32)) == 2 and count(2, np.zeros(513, np.float32)) == 1
    for devices, expected in ((jax.devices()[:1], 2), (jax.devices()[:2], 1)):
        with use(make_mesh(devices=devices)):
            assert count(2) == expected
    with monkeypatch.context() as patch:
        patch.setattr(lanes, "WEIGHTS", 1023)
        assert count(2) == 1
    with monkeypatch.context() as patch:
        patch.setattr(lanes, "_cores", lambda: 1)
        assert count(2) == 1
    machine.unlink()
    lanes._shared_cache.cache_clear()
    assert count(2) == 1


@pytest.mark.parametrize(("text", "size"), [("512K\n", 1 << 19), ("2048K", 1 << 21), ("", 0), (None, 0)])
def test_a_core_has_a_cache_of_its_own(text: str | None, size: int, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lanes, "OWN_CACHE", tmp_path / "own")
    if text is not None:
        (tmp_path / "own").write_text(text)
    lanes.own_cache.cache_clear()
    assert lanes.own_cache() == size
    lanes.own_cache.cache_clear()


def test_one_lane_is_the_batch_as_it_came() -> None:
    tree = [jnp.arange(1)]
    assert lanes.in_lanes(tree, 1, WEIGHTS)[0] is tree and lanes.joined(tree, 1) is tree[0]


def test_calls_compile_once_and_then_run_at_once() -> None:
    traced, meeting = [], threading.Barrier(2)

    @jax.jit
    def double(x: jax.Array) -> jax.Array:
        traced.append(x.shape)
        return 2 * x

    def program(x: jax.Array) -> jax.Array:
        if len(ready):
            meeting.wait(20)  # breaks unless both calls are here
        return double(x)

    ready: list[bool] = []
    for _ in range(2):
        np.testing.assert_array_equal(
            lanes.at_once(program, [(jnp.arange(3),), (jnp.arange(3, 6),)]), [[0, 2, 4], [6, 8, 10]]
        )
        ready.append(True)
    assert traced == [(3,)]
    ready.clear()
    lanes.at_once(program, [(jnp.arange(4),), (jnp.arange(4),)])  # another shape: one after the other again
    assert traced == [(3,), (4,)]


def test_threads_have_the_mesh_and_give_their_errors_back() -> None:
    def mesh(_: int, fail: bool) -> str:
        if fail:
            raise ValueError("from a lane")
        return str(jax.sharding.get_mesh())

    with use(make_mesh(devices=jax.devices()[:1])) as expected:
        for _ in range(2):
            assert lanes.at_once(mesh, [(0, False)] * 2) == [str(expected)] * 2
    with pytest.raises(ValueError, match="from a lane"):
        lanes.at_once(mesh, [(0, False), (0, True)])
