"""Tensors that stay in their file until they are read, one at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jukebox_jax.types import UserError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass
class Storage:
    """A run of ``numel`` equal elements at byte ``position`` of ``path``."""

    path: Path
    dtype: np.dtype
    numel: int
    position: int = -1

    def read(self, start: int, count: int) -> np.ndarray:
        """Elements ``start .. start + count``, as a new array."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.position + start * self.dtype.itemsize)
                values = np.fromfile(file, self.dtype, count)
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror or error}") from error
        if len(values) != count:
            raise UserError(f"{self.path}: truncated while it was being read")
        return values


@dataclass(frozen=True)
class LazyTensor:
    """An array in a file: ``read()`` brings it, and nothing else, into memory."""

    storage: Storage
    shape: tuple[int, ...]
    offset: int = 0  # in elements
    strides: tuple[int, ...] | None = None  # in elements; None for row-major

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The values, row-major, in the type they are stored in."""
        if self.size == 0:
            return np.zeros(self.shape, self.dtype)
        if self.strides is None or self.strides == row_major(self.shape):
            return self.storage.read(self.offset, self.size).reshape(self.shape)
        flat = self.storage.read(self.offset, reach(self.shape, self.strides))
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self.read()
        return values if dtype is None else values.astype(dtype, copy=False)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of an array without gaps."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many elements from its first one on a non-empty strided array touches."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
