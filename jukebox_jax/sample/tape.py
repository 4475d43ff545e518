"""The codes of one level while they grow: items x codes, each item with its own length so far.

With a journal, every append also goes to a file per item, so a run that is killed goes on where it was. No jax here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32

from jukebox_jax.types import UserError

_DTYPE = np.dtype("<i4")


class Tape:
    """Append-only codes (int32) of ``items`` items of one level.

    ``journal`` names a file per item (little-endian int32, nothing else). What such files already hold is read first;
    ``codes``, the codes to start from, are then not needed again.
    """

    def __init__(
        self, items: int, codes: Int[np.ndarray, "b t"] | None = None, *, journal: Sequence[Path] | None = None
    ):
        if codes is not None and len(codes) != items:
            raise UserError(f"there are codes of {len(codes)} items to start from, but {items} items are asked for")
        self.lengths = np.zeros(items, np.int64)
        self._codes = np.zeros((items, 0), _DTYPE)
        self._journal: Sequence[Path] | None = None
        kept = [np.zeros(0, _DTYPE)] * items
        if journal is not None and all(path.exists() for path in journal):
            kept = [_read(path) for path in journal]
        elif codes is not None:
            kept = [row.astype(_DTYPE) for row in codes]
        for row, values in enumerate(kept):
            self.append([row], values[None])
        if journal is not None:
            for path, values in zip(journal, kept, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(values.tobytes())
            self._journal = list(journal)

    @property
    def items(self) -> int:
        return len(self.lengths)

    def append(self, rows: Sequence[int], codes: Int[np.ndarray, "b t"]) -> None:
        """Add ``codes[i]`` behind what item ``rows[i]`` has."""
        for row, values in zip(rows, codes, strict=True):
            values = np.ascontiguousarray(values, _DTYPE)
            begin, end = self.lengths[row], self.lengths[row] + len(values)
            self._reserve(int(end))
            self._codes[row, begin:end] = values
            self.lengths[row] = end
            if self._journal is not None:
                with open(self._journal[row], "ab") as file:
                    file.write(values.tobytes())

    def window(self, rows: Sequence[int], start: int, end: int) -> Int32[np.ndarray, "b t"]:
        """Codes ``[start, end)`` of some items, which all must have them."""
        shortest = min(self.lengths[list(rows)])
        if not 0 <= start <= end <= shortest:
            raise ValueError(f"codes {start} to {end} are asked for; there are {shortest}")
        return self._codes[list(rows), start:end].copy()

    def array(self) -> Int32[np.ndarray, "b t"]:
        """What all items have."""
        return self._codes[:, : int(self.lengths.min(initial=self._codes.shape[1]))].copy()

    def keep(self, row: int) -> None:
        """Replace every item by a copy of one (a take that was chosen)."""
        if self._journal is not None:
            raise ValueError("a journal is append-only")
        self._codes[:] = self._codes[row]
        self.lengths[:] = self.lengths[row]

    def _reserve(self, length: int) -> None:
        room = self._codes.shape[1]
        if length > room:
            self._codes = np.pad(self._codes, ((0, 0), (0, max(length, room + room // 4) - room)))


def _read(path: Path) -> np.ndarray:
    data = path.read_bytes()  # a write that was cut short may leave part of a code
    return np.frombuffer(data[: len(data) // _DTYPE.itemsize * _DTYPE.itemsize], _DTYPE)
