"""Arrays that are written to an Orbax checkpoint piece by piece, and read from one piece by piece.

A stacked leaf of the 5B model has several gigabytes; its layers have some fifty megabytes. ``StreamedArray`` knows
its layers and reads one at a time; ``StreamHandler`` teaches Orbax to write them so. What is on disk is an ordinary
Orbax array, one chunk per layer. ``StoredArray`` is the way back: indexing it reads that part only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from orbax.checkpoint import type_handlers

CHUNK_BYTES = 64 << 20  # larger pieces are divided, so that readers of a shard need not read a whole one


@dataclass(frozen=True)
class Piece:
    """A tensor (``shape``, ``dtype``, ``read()``), or some of its columns, its axes reordered."""

    tensor: Any
    columns: tuple[int, int] | None = None
    axes: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(self.tensor.shape)
        if self.columns is not None:
            shape = (*shape[:-1], self.columns[1] - self.columns[0])
        return shape if self.axes is None else tuple(shape[axis] for axis in self.axes)

    def read(self) -> np.ndarray:
        values = self.tensor.read()
        if self.columns is not None:
            values = values[..., slice(*self.columns)]
        return values if self.axes is None else values.transpose(self.axes)


@dataclass(frozen=True)
class StreamedArray:
    """One piece, or equal pieces stacked on a leading axis. ``written`` is called with the bytes of each piece."""

    pieces: Sequence[Piece]
    stacked: bool
    written: Callable[[int], object] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.pieces[0].shape
        return (len(self.pieces), *shape) if self.stacked else shape

    @property
    def dtype(self) -> np.dtype:
        return np.result_type(*(piece.tensor.dtype for piece in self.pieces))

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def read(self, dtype: Any = None) -> np.ndarray:
        """The whole array, in its own type or in ``dtype``."""
        out = np.empty(self.shape, self.dtype if dtype is None else dtype)
        for index, piece in enumerate(self.pieces):
            out[index if self.stacked else ...] = piece.read()
        return out


class StreamHandler(type_handlers.NumpyHandler):
    """Writes ``StreamedArray`` leaves, one piece at a time. Restoring needs no handler: they are plain arrays then."""

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
        for value, info, arg in zip(values, infos, args or [None] * len(values), strict=True):
            await info.await_path_creation()
            spec = type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=info.is_ocdbt_checkpoint,
                global_shape=value.shape,
                local_shape=_chunk(value),
                dtype=value.dtype,
                arg=arg,
            )
            store = await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)
            for index, piece in enumerate(value.pieces):
                data = np.asarray(piece.read(), value.dtype, order="C")
                await store[index if value.stacked else ...].write(data)
                if value.written is not None:
                    value.written(data.nbytes)
        return []


def _chunk(value: StreamedArray) -> tuple[int, ...]:
    """One piece per chunk; a piece over ``CHUNK_BYTES`` is divided on its longest axis."""
    shape = list(value.pieces[0].shape)
    while int(np.prod(shape, dtype=np.int64)) * value.dtype.itemsize > CHUNK_BYTES:
        axis = int(np.argmax(shape))
        shape[axis] = -(-shape[axis] // 2)
    return (1, *shape) if value.stacked else tuple(shape)


def stream_checkpointer() -> ocp.Checkpointer:
    """A checkpointer of trees whose leaves are all ``StreamedArray``.

    A directory per array, a file per chunk: OCDBT would rewrite its index for every piece.
    """
    handlers = (StreamedArray, StreamHandler()), (jax.Array, type_handlers.ArrayHandler())
    registry = type_handlers.create_type_handler_registry(*handlers)
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_ocdbt=False))


@dataclass(frozen=True)
class StoredArray:
    """An array of an Orbax checkpoint on disk. ``array[index]`` reads that part."""

    store: ts.TensorStore

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.store.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.store.dtype.numpy_dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self.store[index].read().result())


def open_array(checkpoint: epath.PathLike, path: Sequence[str], context: ts.Context | None = None) -> StoredArray:
    """The leaf at ``path`` of an Orbax PyTree checkpoint. A shared ``context`` spares opening the store again."""
    name, folder = ".".join(path), epath.Path(checkpoint).absolute()
    if type_handlers.is_ocdbt_checkpoint(folder):
        kvstore: dict[str, Any] = {"driver": "ocdbt", "base": f"file://{folder}/", "path": f"{name}/"}
    else:
        kvstore = {"driver": "file", "path": f"{folder}/{name}/"}
    return StoredArray(ts.open({"driver": "zarr", "kvstore": kvstore}, open=True, context=context).result())
