"""Read and write ``.safetensors`` files one tensor at a time (the library reads and writes whole files).

A file is a length (8 bytes), a JSON header ``{name: {"dtype", "shape", "data_offsets"}}``, and the data. Several files
can share an index, ``NAME.index.json`` with a ``weight_map`` from tensor to file.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jukebox_jax.checkpoint.tensors import BFLOAT16, LazyTensor, Storage
from jukebox_jax.types import UserError

MAX_HEADER = 100 << 20  # bytes; the format's own limit
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_safetensors(path: str | Path) -> dict[str, LazyTensor]:
    """Name -> lazy tensor of one file. ``UserError`` if it is no safetensors file, or damaged."""
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise UserError(f"{path}: not a safetensors file, or truncated")
            header = json.loads(file.read(length).decode())
        if not isinstance(header, dict):
            raise ValueError("the header is no table")
        tensors = {
            name: _tensor(path, name, entry, 8 + length, size)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, RecursionError) as error:  # UserError is a ValueError, and passes with its own text
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a safetensors file: {str(error)[:200]}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    return tensors


def read_metadata(path: str | Path) -> dict[str, str]:
    """The free text entries of a file that ``read_safetensors`` has accepted."""
    with Path(path).open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    found = header.get("__metadata__")
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def read_index(path: str | Path) -> list[Path]:
    """The files that an ``.index.json`` lists; they lie beside it."""
    path = Path(path)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        names = set(table["weight_map"].values())
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError("it names a file in another folder")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not an index of tensor files: {str(error)[:200]}") from error
    return [path.parent / name for name in sorted(names)]


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    written: Callable[[int], object] = lambda count: None,
) -> None:
    """Write ``tensors`` (``shape``, ``dtype``, ``read()``), reading one at a time. The file appears when complete."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, tensor in tensors.items():
        count = math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
        header[name] = {
            "dtype": _NAMES[np.dtype(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + count],
        }
        offset += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = Path(path)
    staged = path.with_name(f"{path.name}.new")
    with staged.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            data = np.asarray(tensor.read(), order="C")
            if data.shape != tuple(tensor.shape) or data.dtype != tensor.dtype:
                raise AssertionError(f"{name} was announced as {tensor.shape} {tensor.dtype}")
            file.write(data.reshape(-1).view(np.uint8).data)
            written(data.nbytes)
    staged.replace(path)


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> LazyTensor:
    if not isinstance(entry, dict):
        raise UserError(f"{path}: the header's entry of {name[:200]!r} is damaged")
    kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if dtype is None or len(offsets or ()) != 2 or any(type(n) is not int or n < 0 for n in numbers):
        raise UserError(f"{path}: the header's entry of {name[:200]!r} is damaged, or of an unknown type")
    begin, end = offsets  # type: ignore[misc]
    count = math.prod(shape)  # type: ignore[arg-type]
    if len(shape) > 8 or end - begin != count * dtype.itemsize or start + end > size or count == 0:  # type: ignore[arg-type]
        raise UserError(f"{path}: truncated, or {name[:200]!r} has a size that the file does not have")
    return LazyTensor(Storage(path, dtype, count, start + begin), tuple(shape))  # type: ignore[arg-type]
