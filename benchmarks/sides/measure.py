"""Two programs measured against each other: each side in a process of its own, one call here, one call there.

A side is an object whose methods are called by name (``serve`` in the worker, ``Worker`` in the parent), so a side's
memory is its own, and what else the machine does meets both sides alike. Times are taken inside the worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
THREADS = len(os.sched_getaffinity(0))


class Worker:
    """``worker("name", argument=...)`` calls a method of the side that the process ``script --role=ROLE`` serves."""

    def __init__(self, script: str, role: str, **environment: str):
        self.role = role
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        environment = {"OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": path, **environment}
        self.process = subprocess.Popen(
            [sys.executable, script, f"--role={role}"], env=os.environ | environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, name: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        result = json.loads(answer) if answer else {"error": f"exit status {self.process.wait()}"}
        if "error" in result:
            raise RuntimeError(f"{self.role}: {name}: {result['error']}")
        return result["value"]

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


@contextlib.contextmanager
def workers(script: str, roles: Mapping[str, dict[str, str]]) -> Iterator[dict[str, Worker]]:
    """One worker per role (with its environment), ended at the end."""
    started = {role: Worker(script, role, **environment) for role, environment in roles.items()}
    try:
        yield started
    finally:
        for worker in started.values():
            worker.close()


def serve(side: Any) -> None:
    """Answer the parent's calls until it closes the pipe. Whatever else prints goes to the error stream."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            method = {"memory": memory, "reset_memory": reset_memory}.get(name) or getattr(side, name)
            result = {"value": method(**arguments)}
        except Exception as error:
            traceback.print_exc()
            result = {"error": repr(error)}
        print(json.dumps(result), file=replies, flush=True)


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def memory() -> float:
    """Largest resident size of this process since its start or ``reset_memory``, in MB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def reset_memory() -> None:
    """Give freed pages back to the system and forget the peak so far (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def alternate(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """``repeats`` times of each side, one after the other, each time starting with another side."""
    found: dict[str, list[Any]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(sides[name]())
    return found


def median(values: list[float]) -> float:
    return statistics.median(values)


def limits(repeats: int = 7) -> dict[str, float]:
    """What this machine can do: GB/s of a large copy and of matrix-vector products, GFLOP/s of a matrix product.

    All with as many threads as the programs have; the products are XLA's.
    """
    import jax
    import jax.numpy as jnp

    def rate(amount: float, function: Callable[..., Any], *arguments: Any) -> float:
        run = jax.jit(function)
        run(*arguments).block_until_ready()
        return amount / median([seconds(lambda: run(*arguments).block_until_ready()) for _ in range(repeats)])

    def ones(*shape: int) -> Any:
        return jnp.full(shape, 1e-3)

    source = np.ones((THREADS, 1 << 25), np.float32)
    target = np.ones_like(source)
    with ThreadPoolExecutor(THREADS) as pool:
        copies = lambda: list(pool.map(np.copyto, target, source))  # noqa: E731
        copies()
        copy = 2 * source.nbytes / median([seconds(copies) for _ in range(repeats)])
    large, square = ones(8192, 8192), ones(2048, 2048)
    layers = [ones(512, 512) for _ in range(24)]  # 25 MB, as many weights as the prior's: they stay in the last cache

    def chain(x: Any, layers: Any) -> Any:
        for w in layers:
            x = x @ w
        return x

    return {
        "copy_gb_s": copy / 1e9,
        "matrix_vector_gb_s": rate(large.nbytes, lambda x, w: x @ w, ones(1, 8192), large) / 1e9,
        "cached_matrix_vector_gb_s": rate(24 * layers[0].nbytes, chain, ones(1, 512), layers) / 1e9,
        "matrix_product_gflop_s": rate(2 * 2048.0**3, lambda x, w: x @ w, square, square) / 1e9,
    }


def environment() -> dict[str, Any]:
    """Where and when: commit, date, processor, cores, load average."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "commit": commit.stdout.strip(),
        "machine": f"{_processor()}, {THREADS} cores",
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.machine()


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown, the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return f"| {' | '.join(cells)} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def write_json(path: str | Path, value: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
