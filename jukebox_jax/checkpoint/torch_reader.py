"""Read what ``torch.save`` wrote, without torch: the legacy stream of 2020 and the zip container of today.

The pickles are read by ``pickle_reader`` (nothing but tensors and plain data; no code can run), the tensors are left
in the file and read one at a time. Every failure is a ``UserError`` with the file's name and the reason.

Legacy stream: four pickles (magic number, protocol, system facts, the object), a pickled list of storage keys, then
per storage its element count (int64) and its raw data. Zip: ``NAME/data.pkl`` and one member per storage.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jukebox_jax.checkpoint.pickle_reader import BadPickle, OrderedTable, PickleReader, Symbol
from jukebox_jax.checkpoint.tensors import BFLOAT16, LazyTensor, Storage, reach
from jukebox_jax.checkpoint.zip_reader import BadZip, read_members
from jukebox_jax.types import UserError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MAX_DIMENSIONS = 8
MAX_EMPTY = 1 << 31  # product of the other dimensions of a tensor without elements

STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


@dataclass(frozen=True)
class Checkpoint:
    """A trainer's checkpoint. ``tensors`` is its ``model`` entry, without a leading ``module.``.

    ``hps`` (hyperparameters), ``step`` and ``opt`` (the optimiser's state, with lazy tensors) are None where absent.
    """

    path: Path
    container: str  # "legacy" or "zip"
    tensors: Mapping[str, LazyTensor]
    hps: dict[str, Any] | None = None
    step: int | None = None
    opt: dict[str, Any] | None = None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a ``.pth.tar`` file of the original, or a bare table of tensors. Reads the pickles only.

    Raises ``UserError``: no such file, truncated, damaged, refused, or not a checkpoint of Jukebox.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(4)
            file.seek(0)
            if start[:2] == b"PK":
                container, content = "zip", _read_zip(path, file, size)
            elif start[:1] == b"\x80":
                container, content = "legacy", _read_legacy(path, file, size)
            else:
                raise UserError(f"{path}: not a file of torch.save (it starts with {start!r})")
            return _checkpoint(path, container, content)
    except (BadPickle, BadZip) as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


class _Tensors:
    """The inert stand-ins for the globals that tensors name, and the storages seen so far."""

    def __init__(self, path: Path, available: int):
        self.path, self.available = path, available
        self.storages: dict[str, Storage] = {}
        symbols = [
            ("collections", "OrderedDict", self._ordered_dict),
            ("torch._utils", "_rebuild_tensor", self._rebuild_tensor),
            ("torch._utils", "_rebuild_tensor_v2", self._rebuild_tensor),
            ("torch._utils", "_rebuild_parameter", self._rebuild_parameter),
            ("torch", "Size", self._size),
            *(("torch", name, None) for name in STORAGES),
        ]
        self.symbols = {(module, name): Symbol(name, build) for module, name, build in symbols}

    def storage(self, reference: Any) -> Storage:
        """Persistent id: ("storage", type, key, device, element count[, view])."""
        if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
            raise BadPickle("refused: a reference to something that is no tensor")
        kind, key, _, numel = reference[1:5]
        if not isinstance(kind, Symbol) or kind.name not in STORAGES or not isinstance(key, str):
            raise BadPickle("damaged: a storage without type or key")
        if len(reference) == 6 and reference[5] is not None:
            raise BadPickle("storage views of torch before 0.4 are not supported")
        dtype = STORAGES[kind.name]
        if type(numel) is not int or numel < 0 or numel * dtype.itemsize > self.available:
            raise BadPickle(f"truncated, or a tensor of {_short(numel)} elements that the file does not have")
        storage = self.storages.setdefault(key, Storage(self.path, dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise BadPickle("damaged: one storage of two kinds")
        return storage

    @staticmethod
    def _ordered_dict(*arguments: Any) -> OrderedTable:
        if arguments:
            raise BadPickle("refused: an OrderedDict that is made from other objects")
        return OrderedTable()

    @staticmethod
    def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> LazyTensor:
        if not isinstance(storage, Storage):
            raise BadPickle("damaged: a tensor without storage")
        numbers = (offset, *shape, *strides) if isinstance(shape, tuple) and isinstance(strides, tuple) else (None,)
        if any(type(n) is not int or n < 0 for n in numbers) or len(shape) != len(strides):
            raise BadPickle("damaged: the shape, strides or offset of a tensor")
        full = math.prod(n for n in shape if n)
        if len(shape) > MAX_DIMENSIONS or full > (MAX_EMPTY if 0 in shape else storage.numel):
            raise BadPickle("refused: a tensor that is larger than its storage")
        if 0 not in shape and offset + reach(shape, strides) > storage.numel:
            raise BadPickle("damaged: a tensor reaches past the end of its storage")
        return LazyTensor(storage, shape, offset, strides)

    @staticmethod
    def _rebuild_parameter(tensor: Any, *_: Any) -> LazyTensor:
        if not isinstance(tensor, LazyTensor):
            raise BadPickle("damaged: a parameter without a tensor")
        return tensor

    @staticmethod
    def _size(shape: Any) -> tuple:
        if not isinstance(shape, tuple):
            raise BadPickle("damaged: the shape of a tensor")
        return shape


def _read_legacy(path: Path, file: BinaryIO, size: int) -> Any:
    tensors = _Tensors(path, size)

    def load(symbols: Mapping[tuple[str, str], Symbol], persistent: Any = None) -> Any:
        return PickleReader(file, size - file.tell(), symbols, persistent).load()

    if load({}) != MAGIC:
        raise BadPickle("not a file of torch.save (its magic number is missing)")
    if (protocol := load({})) != PROTOCOL:
        raise BadPickle(f"torch.save protocol {_short(protocol)} is unknown")
    system = load({})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise BadPickle("written on a big-endian machine, which is not supported")
    content = load(tensors.symbols, tensors.storage)
    keys = load({})
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise BadPickle("damaged: the list of storages")
    position = file.tell()
    for key in keys:
        storage = tensors.storages.get(key)
        if storage is None or storage.position >= 0:
            raise BadPickle("damaged: the list of storages")
        file.seek(position)
        if file.read(8) != struct.pack("<q", storage.numel):
            raise BadPickle("truncated, or a storage of another length than its tensor says")
        storage.position = position + 8
        position += 8 + storage.numel * storage.dtype.itemsize
    if position > size:
        raise BadPickle(f"truncated: {size} bytes, and {position} are needed")
    if any(storage.position < 0 for storage in tensors.storages.values()):
        raise BadPickle("truncated: the data of a tensor is missing")
    return content


def _read_zip(path: Path, file: BinaryIO, size: int) -> Any:
    members = read_members(file, size)
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1 or not all(name.startswith(f"{roots[0]}/") for name in members):
        raise BadZip("not a file of torch.save (a zip container without one NAME/data.pkl)")
    order = members.get(f"{roots[0]}/byteorder")
    if order is not None:
        file.seek(order.offset)
        if file.read(min(order.size, 16)) != b"little":
            raise BadZip("written on a big-endian machine, which is not supported")
    tensors = _Tensors(path, size)
    pickle = members[f"{roots[0]}/data.pkl"]
    file.seek(pickle.offset)
    content = PickleReader(file, pickle.size, tensors.symbols, tensors.storage).load()
    for key, storage in tensors.storages.items():
        member = members.get(f"{roots[0]}/data/{key}")
        if member is None or member.size != storage.numel * storage.dtype.itemsize:
            raise BadZip(f"damaged: the data of storage {_short(key)} is missing or of another size")
        storage.position = member.offset
    return content


def _checkpoint(path: Path, container: str, content: Any) -> Checkpoint:
    if isinstance(content, dict) and content and all(isinstance(value, LazyTensor) for value in content.values()):
        content = {"model": content}  # tensors alone, as the transformers port saves them
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        have = ", ".join(_short(key) for key in list(content)[:8]) if isinstance(content, dict) else "no table"
        raise UserError(f"{path}: not a Jukebox checkpoint: it has no 'model' entry (it has {have})")
    tensors: dict[str, LazyTensor] = {}
    for key, value in model.items():
        name = str(key).removeprefix("module.")
        if not isinstance(value, LazyTensor):
            raise UserError(f"{path}: entry {_short(key)} of 'model' is no tensor")
        if name in tensors:
            raise UserError(f"{path}: entry {_short(key)} of 'model' occurs twice, with and without 'module.'")
        tensors[name] = value
    hps, step, opt = content.get("hps"), content.get("step"), content.get("opt")
    return Checkpoint(
        path,
        container,
        tensors,
        {key: value for key, value in hps.items() if isinstance(key, str)} if isinstance(hps, dict) else None,
        step if type(step) is int else None,
        opt if isinstance(opt, dict) else None,
    )


def _short(value: Any) -> str:
    """A scalar of the file for a message: never long, never nested."""
    return repr(value)[:80] if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
