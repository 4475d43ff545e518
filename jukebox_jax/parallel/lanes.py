"""Calls of one program at once, on the cores of one CPU.

XLA:CPU runs a program's operations one after the other, and only the large ones use a second core. Where a model is so
small that few do, a batch is quicker in lanes: parts of its rows, each in a call and a thread of its own. Every lane
reads all weights, so they must stay in the cache that the cores share (measurements: benchmarks/README.md).
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jukebox_jax.parallel.mesh import alone, use

LANES = 2  # more were not measured
WEIGHTS = 1 << 26  # bytes: 42 MB gain (1.2 to 1.9 x), 151 MB lose (0.8 x at four rows)
CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")  # such as 32768K
OWN_CACHE = CACHE.parents[1] / "index2/size"

_pool = ThreadPoolExecutor(LANES, thread_name_prefix="lane")
_met: set[Any] = set()


def suit(weights: Any) -> bool:
    """Whether this is one CPU where batches are quicker in lanes, with these weights (a tree, which may be traced)."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
    return alone() and _cores() > 1 and size <= min(WEIGHTS, _shared_cache())


def in_lanes(rows: Any, batch: int, weights: Any) -> list[Any]:
    """A tree of arrays whose first axis is the batch, cut into lanes that are alike: an odd batch's last row is there
    twice. One lane, unless lanes ``suit`` the weights."""
    if batch < 2 or not suit(weights):
        return [rows]
    lanes = np.split(np.minimum(np.arange(-(-batch // LANES) * LANES), batch - 1), LANES)
    return [jax.tree.map(lambda x: x[lane], rows) for lane in lanes]  # noqa: B023


def joined(lanes: Sequence[Any], batch: int) -> Any:
    """The rows of a batch from those of its lanes."""
    return lanes[0] if len(lanes) == 1 else np.concatenate(lanes)[:batch]


def at_once(program: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The results of a jitted function's calls, whose arguments have the same shapes. Several run in threads, in the
    mesh in use (but without other settings that a ``with`` has made for this thread), and are ready on return.

    Numbers that change from call to call are numpy's: a Python number counts as one that is compiled for.
    """
    if len(calls) == 1:
        return [program(*calls[0])]
    mesh = jax.sharding.get_mesh()

    def run(call: tuple[Any, ...]) -> Any:
        with contextlib.nullcontext() if mesh.empty else use(mesh):
            return jax.block_until_ready(program(*call))

    leaves, structure = jax.tree.flatten(calls[0])
    kind = (program, structure, mesh, *((x.shape, x.dtype) if hasattr(x, "shape") else x for x in leaves))
    if kind not in _met:  # or each of them would compile it
        found = [run(call) for call in calls]
        _met.add(kind)
        return found
    return list(_pool.map(run, calls))


@functools.cache
def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _shared_cache() -> int:
    """Bytes of the last cache; 0 where Linux does not say."""
    return _bytes(CACHE)


@functools.cache
def own_cache() -> int:
    """Bytes of the cache that a core has to itself; 0 where Linux does not say."""
    return _bytes(OWN_CACHE)


def _bytes(size: Path) -> int:
    try:
        return int(size.read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 0
