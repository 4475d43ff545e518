"""A case: a directory of checkpoints, arrays and hyperparameters that the original has written."""

from __future__ import annotations

import functools
import itertools
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jukebox_jax.checkpoint.torch_reader import Checkpoint, open_checkpoint
from jukebox_jax.types import UserError


class Case:
    """``arrays`` of ``data.npz``; JSON files and checkpoints on demand. Remembers which arrays were looked at."""

    def __init__(self, folder: Path, ids: Path | None = None):
        if not folder.is_dir():
            raise UserError(f"{folder} is no directory with a case (data.npz, hps.json, checkpoints)")
        self.folder, self.seen = folder, set[str]()
        self.ids = ids
        self.arrays: dict[str, np.ndarray] = {}
        if (folder / "data.npz").exists():
            try:
                with np.load(folder / "data.npz") as file:
                    self.arrays = dict(file)
            except (zipfile.BadZipFile, ValueError, EOFError) as error:
                raise UserError(f"{folder / 'data.npz'} is damaged: {error}") from None

    @functools.cached_property
    def hps(self) -> dict[str, Any]:
        """Hyperparameters."""
        return self.json("hps.json")

    def json(self, name: str) -> Any:
        """The content of a JSON file."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{self.folder} has no {name}") from None
        except ValueError as error:
            raise UserError(f"{self.folder / name} is no JSON: {error}") from None

    def has(self, *names: str) -> bool:
        """Whether all of these arrays are there."""
        return all(name in self.arrays for name in names)

    def number(self, name: str) -> int:
        """An integer that is an input."""
        return int(self.input(name))

    def input(self, name: str) -> np.ndarray:
        """An array that our code starts from: not a result to compare."""
        self.seen.add(name)
        return self.arrays[name]

    def codes(self, name: str) -> Any:
        """An array of integers to start from, int32; None where the case has none."""
        return jnp.asarray(self.input(name), jnp.int32) if name in self.arrays else None

    def steps(self, array: str) -> Iterator[int]:
        """0, 1, ... as long as there is an array ``step{n}_{array}``."""
        return itertools.takewhile(lambda n: self.has(f"step{n}_{array}"), itertools.count())

    def checkpoint(self, name: str = "checkpoint") -> Checkpoint:
        """``{name}.pth.tar``."""
        return open_checkpoint(self.folder / f"{name}.pth.tar")

    def tables(self) -> Path | None:
        """The folder with the artist and genre tables: the case's, the given one, or that of the case beside it."""
        places = [self.folder / "ids", self.ids, self.folder.resolve().parent / "labeller" / "ids"]
        return next((place for place in places if place and place.is_dir()), None)
