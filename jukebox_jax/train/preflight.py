"""The first seconds of a run: what runs where, and whether all hosts run the same thing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

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


def check(fingerprint: str) -> str:
    """Compare config and versions of all hosts; returns a line to print. Raises ``UserError`` where they differ.

    ``fingerprint``: of the experiment. Every process calls this, and every process raises.
    """
    count, index = jax.process_count(), jax.process_index()
    text = f"process {index + 1} of {count}: {jax.local_device_count()} of {jax.device_count()} devices"
    if count > 1:
        facts = {"config": fingerprint, **versions(), "devices per process": str(jax.local_device_count())}
        mine = np.array([list(hashlib.sha256(f"{k}={v}".encode()).digest()[:8]) for k, v in facts.items()], np.uint8)
        everyone = np.asarray(multihost_utils.process_allgather(mine))
        for row, (name, value) in enumerate(facts.items()):
            others = [i for i in range(count) if not np.array_equal(everyone[i, row], everyone[0, row])]
            if others:
                raise UserError(
                    f"process {index + 1} of {count}: {name} is {value} here, and differs between process 1 and"
                    f" process {', '.join(str(i + 1) for i in others)}:"
                    " start all hosts with the same command and packages"
                )
    return text
