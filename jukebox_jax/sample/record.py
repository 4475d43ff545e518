"""``run.json``: what a run was asked for and how it went, in the words of the request."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import jukebox_jax
from jukebox_jax.sample.request import Request
from jukebox_jax.sample.source import Source
from jukebox_jax.types import UserError

NAME = "run.json"
FORMAT = 1
IDENTITY = ("mode", "model", "request", "start")  # runs that agree in these are the same run


def begin(source: Source, request: Request, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run that starts now."""
    labels = {}
    for level in request.levels:
        if source.priors[level].labels:
            labels[f"level_{level}"] = source.labellers[level].batch(request.metas)[0].tolist()
    packages = ("jax", "jaxlib", "flax", "numpy")
    versions = {"jukebox_jax": jukebox_jax.__version__} | {name: metadata.version(name) for name in packages}
    devices = jax.devices()
    return {
        "format": FORMAT,
        "status": "running",
        **identity,
        "sample_rate": source.vqvae.sample_rate,
        "labels": labels,
        "levels": {},
        "versions": versions | {"python": platform.python_version()},
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def read(path: Path) -> dict[str, Any] | None:
    """A record, or None if there is none."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise UserError(f"{path} has format {found['format']}; this version writes {FORMAT}")
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): choose another --output, or --overwrite it") from None


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write a record; the file is replaced at once."""
    staged = path.with_name(path.name + ".new")
    staged.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    staged.replace(path)


def require_same(old: Mapping[str, Any], new: Mapping[str, Any], out: Path) -> None:
    """Raise ``UserError``, naming the first difference, unless two records are of the same run."""
    for key in IDENTITY:
        difference = _difference(key, old.get(key), new[key])
        if difference:
            raise UserError(f"{out} holds another run ({difference}): choose another --output, or --overwrite it")


def _difference(name: str, old: Any, new: Any) -> str | None:
    if isinstance(old, dict) and isinstance(new, dict):
        found = (_difference(f"{name}.{key}", old.get(key), new.get(key)) for key in sorted({*old, *new}))
        return next((difference for difference in found if difference), None)
    return None if old == new else f"{name} is {str(old)[:60]!r} there, {str(new)[:60]!r} here"
