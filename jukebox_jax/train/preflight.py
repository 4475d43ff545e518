"""The first seconds of a run: what runs where, and what all hosts must have in common."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import jukebox_jax
from jukebox_jax.types import UserError

PACKAGES = ("jukebox_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "libtpu")


def versions() -> dict[str, str]:
    """Python and the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """The revision of the source tree that runs ("-dirty" if it was changed), None outside of git."""
    here = Path(__file__).parent
    try:
        run = lambda *args: subprocess.run(  # noqa: E731
            ["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        return run("rev-parse", "HEAD") + ("-dirty" if run("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def describe() -> dict[str, Any]:
    """What ``config.json`` says of the machine and the code."""
    devices = jax.devices()
    return {
        "versions": versions(),
        "git_revision": git_revision(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
        "host_cpus": os.cpu_count(),
    }


def facts(settings: Mapping[str, Any]) -> dict[str, str]:
    """What must be equal on all hosts, by name: the settings of the experiment, package versions, our code."""
    flat: dict[str, str] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add(f"{name}.{key}", inner)
        else:
            flat[name] = repr(value)

    add("config", settings)
    return {"the source of jukebox_jax": source_hash(), **versions(), **flat}


def source_hash() -> str:
    """A short hash of this package's files: a host that was not synchronised has another one."""
    root, digest = Path(jukebox_jax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def greet() -> str:
    """A line on processes and devices. ``UserError`` on all of them if they have unequal numbers of devices."""
    count, index = jax.process_count(), jax.process_index()
    held = Counter(device.process_index for device in jax.devices())
    if len(set(held.values())) > 1:
        table = ", ".join(f"process {i + 1}: {held[i]}" for i in sorted(held))
        raise UserError(f"all processes must have the same number of devices ({table})")
    return f"process {index + 1} of {count}: {jax.local_device_count()} of {jax.device_count()} devices"


def check_shared(directory: Path, seconds: float = 20.0) -> None:
    """Make ``directory``. Raises ``UserError`` on all processes unless each of them sees what the first one writes.

    ``seconds``: how long a network file system may take to show it.
    """
    if jax.process_count() == 1:
        return
    mine = np.frombuffer(os.urandom(8), np.uint8)
    token = np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes().hex()
    probe = directory / ".shared"
    if jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_text(token)
    deadline, seen = time.monotonic() + seconds, False
    while not seen and time.monotonic() < deadline:
        seen = probe.is_file() and probe.read_text() == token
        time.sleep(0 if seen else 0.2)
    everyone = np.asarray(multihost_utils.process_allgather(np.array(seen)))
    if jax.process_index() == 0:
        probe.unlink()
    if not everyone.all():
        blind = ", ".join(str(i + 1) for i in np.flatnonzero(~everyone))
        raise UserError(
            f"process {blind} of {len(everyone)} does not see what process 1 writes to {directory}: --workdir must be"
            " on a file system that all hosts share (launch/README.md)"
        )
