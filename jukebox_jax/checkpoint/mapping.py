"""The tensors of a foreign checkpoint and our variable tree: one table of entries, read in both directions.

An ``Entry`` is one foreign tensor and the ``Part`` s of the tree that it fills: all of it or some columns, transposed
or not, as a whole leaf or as one layer of a stacked leaf. Both directions are strict: every tensor and every variable
takes part, or a table says which do not. Nothing is read before it is asked for, layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from jukebox_jax.checkpoint.mismatch import require_match
from jukebox_jax.checkpoint.stream import Piece, StreamedArray
from jukebox_jax.types import UserError

Path = tuple[str, ...]


@runtime_checkable
class Tensor(Protocol):
    """What a reader returns: shape and dtype now, values on demand."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def read(self) -> np.ndarray: ...


class Part(NamedTuple):
    """Where (some columns of) a foreign tensor go."""

    path: Path  # of the leaf, from the top of the variables
    columns: tuple[int, int] | None = None  # of the tensor's last axis; None for all
    axes: tuple[int, ...] | None = None  # the leaf's axes in terms of the tensor's; None for the same order
    layer: tuple[int, int] | None = None  # (index, length) on the leaf's leading axis; None for an unstacked leaf


class Entry(NamedTuple):
    """One foreign tensor. ``same_as`` names another that it must equal (a tied weight); it then fills nothing."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    same_as: str | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class OutgoingTensor:
    """A foreign tensor assembled from our variables when it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def import_tensors(what: str, tensors: Mapping[str, Tensor], entries: Sequence[Entry]) -> dict[str, Any]:
    """Our variables as lazy ``StreamedArray`` leaves. ``what`` names the file in errors."""
    require_match(what, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, _shapes(entries))
    for name, tensor in tensors.items():
        if not jax.numpy.issubdtype(tensor.dtype, np.floating):
            raise UserError(f"{what}: tensor {name} is of {tensor.dtype}, expected a floating-point type")
    for entry in entries:
        if entry.same_as and not _equal(tensors[entry.name], tensors[entry.same_as]):
            raise UserError(f"{what}: {entry.name} and {entry.same_as} differ, but this model shares them")
    pieces: dict[Path, list[tuple[int, Piece]]] = {}
    lengths: dict[Path, int | None] = {}
    for entry in entries:
        for part in entry.parts:
            index, length = part.layer or (0, None)
            pieces.setdefault(part.path, []).append((index, Piece(tensors[entry.name], part.columns, part.axes)))
            lengths[part.path] = length
    leaves = {path: _leaf(found, lengths[path]) for path, found in pieces.items()}
    return unflatten(leaves)


def export_tensors(what: str, variables: Mapping[str, Any], entries: Sequence[Entry]) -> dict[str, OutgoingTensor]:
    """The foreign tensors of our variables (jax, numpy or lazily stored arrays), in the order of ``entries``."""
    leaves = flatten(variables)
    found = {"/".join(path): tuple(leaf.shape) for path, leaf in leaves.items()}
    require_match(what, found, {"/".join(path): shape for path, shape in leaf_shapes(entries).items()})
    named = {entry.name: entry for entry in entries}
    return {entry.name: _outgoing(leaves, entry, named) for entry in entries}


def leaf_shapes(entries: Iterable[Entry]) -> dict[Path, tuple[int, ...]]:
    """Path -> shape of every variable that the entries fill."""
    shapes: dict[Path, tuple[int, ...]] = {}
    for entry in entries:
        for part in entry.parts:
            shape = entry.shape if part.columns is None else (*entry.shape[:-1], part.columns[1] - part.columns[0])
            shape = shape if part.axes is None else tuple(shape[axis] for axis in part.axes)
            shapes[part.path] = shape if part.layer is None else (part.layer[1], *shape)
    return shapes


def flatten(tree: Mapping[str, Any], prefix: Path = ()) -> dict[Path, Any]:
    """Nested dictionaries to path -> leaf."""
    leaves: dict[Path, Any] = {}
    for key, value in tree.items():
        leaves |= flatten(value, (*prefix, key)) if isinstance(value, Mapping) else {(*prefix, key): value}
    return leaves


def unflatten(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """Path -> leaf to nested dictionaries."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def read_all(tree: Mapping[str, Any], dtype: Any = np.float32) -> dict[str, Any]:
    """Lazy leaves to numpy arrays of ``dtype``."""
    return unflatten({path: leaf.read(dtype) for path, leaf in flatten(tree).items()})


def _shapes(entries: Sequence[Entry]) -> dict[str, tuple[int, ...]]:
    return {entry.name: entry.shape for entry in entries}


def _leaf(found: list[tuple[int, Piece]], length: int | None) -> StreamedArray:
    pieces = tuple(piece for _, piece in sorted(found, key=lambda item: item[0]))
    if [index for index, _ in sorted(found, key=lambda item: item[0])] != list(range(length or 1)):
        raise AssertionError("the entries fill a leaf twice, or leave a layer out")
    return StreamedArray(pieces, stacked=length is not None)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a == b or np.array_equal(a.read(), b.read())  # lazy tensors are equal if they are one range of a file


def _outgoing(leaves: Mapping[Path, Any], entry: Entry, named: Mapping[str, Entry]) -> OutgoingTensor:
    source = named[entry.same_as] if entry.same_as else entry
    dtype = np.result_type(*(np.dtype(leaves[part.path].dtype) for part in source.parts))

    def read() -> np.ndarray:
        columns = [_piece_of(leaves[part.path], part) for part in source.parts]
        return np.ascontiguousarray(columns[0] if len(columns) == 1 else np.concatenate(columns, axis=-1), dtype)

    return OutgoingTensor(entry.shape, dtype, read)


def _piece_of(leaf: Any, part: Part) -> np.ndarray:
    values = np.asarray(leaf[...] if part.layer is None else leaf[part.layer[0]])
    return values if part.axes is None else values.transpose(np.argsort(part.axes))
