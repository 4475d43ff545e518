"""Where the members of an uncompressed zip file are; nothing is unpacked, and whatever tensors do not need is refused.

``torch.save`` stores its members without compression, one after another, so each is a range of bytes of the file.
Compressed, encrypted, overlapping, oversized, duplicate and oddly named members are errors.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

MAX_MEMBERS = 100_000
MAX_DIRECTORY = 32 << 20  # bytes

_END, _END64, _LOCATOR64, _CENTRAL, _LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_UTF8_AND_DESCRIPTOR = 0x0808  # the only flag bits that say nothing about how the data is stored


class BadZip(Exception):
    """The zip container is damaged, or is built as no tensor file is."""


class Member(NamedTuple):
    """A byte range of the file."""

    offset: int
    size: int


def read_members(file: BinaryIO, file_size: int) -> dict[str, Member]:
    """Name -> byte range, in the order of the data. Raises ``BadZip``."""
    directory_offset, directory_size, count = _find_directory(file, file_size)
    if count > MAX_MEMBERS or directory_size > MAX_DIRECTORY:
        raise BadZip(f"refused: a directory of {count} members and {directory_size} bytes")
    data = _read(file, file_size, directory_offset, directory_size)
    entries: list[tuple[int, str, int]] = []
    position = 0
    for _ in range(count):
        offset, name, size, position = _central_entry(data, position)
        entries.append((offset, name, size))
    members: dict[str, Member] = {}
    end = 0
    for header, name, size in sorted(entries):
        _check_name(name)
        if name in members:
            raise BadZip(f"refused: the name {name!r} occurs twice")
        offset = _data_offset(file, file_size, header, name)
        if header < end or offset + size > directory_offset:
            raise BadZip(f"refused: member {name!r} reaches into other data")
        end = offset + size
        members[name] = Member(offset, size)
    return members


def _read(file: BinaryIO, file_size: int, offset: int, size: int) -> bytes:
    if offset < 0 or offset + size > file_size:
        raise BadZip("truncated, or an offset that the file does not have")
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise BadZip("truncated")
    return data


def _find_directory(file: BinaryIO, file_size: int) -> tuple[int, int, int]:
    """Offset, size and number of entries of the central directory."""
    tail_size = min(file_size, 22 + _FULL16)
    tail = _read(file, file_size, file_size - tail_size, tail_size)
    at = tail.rfind(_END)
    if at < 0 or at + 22 > len(tail):
        raise BadZip("truncated: the directory at the end of the zip container is missing")
    disk, _, here, count, size, offset, comment = struct.unpack("<HHHHIIH", tail[at + 4 : at + 22])
    end = file_size - tail_size + at
    if at + 22 + comment != len(tail) or disk not in (0, _FULL16):
        raise BadZip("damaged: the end of the zip container is not where it should be")
    if _FULL16 in (here, count) or _FULL32 in (size, offset):
        signature, _, end64, _ = struct.unpack("<4sIQI", _read(file, file_size, end - 20, 20))
        if signature != _LOCATOR64:
            raise BadZip("damaged: the zip64 locator is missing")
        record = _read(file, file_size, end64, 56)
        if record[:4] != _END64:
            raise BadZip("damaged: the zip64 record is missing")
        here, count, size, offset = struct.unpack("<QQQQ", record[24:56])
        end = end64
    if here != count or offset + size > end:
        raise BadZip("damaged: the directory does not fit the zip container")
    return offset, size, count


def _central_entry(data: bytes, at: int) -> tuple[int, str, int, int]:
    """Header offset, name and size of the entry at ``at``, and where the next one starts."""
    if data[at : at + 4] != _CENTRAL or at + 46 > len(data):
        raise BadZip("damaged: an entry of the directory is missing")
    flags, method = struct.unpack_from("<HH", data, at + 8)
    packed, size, name_size, extra_size, comment_size = struct.unpack_from("<IIHHH", data, at + 20)
    (offset,) = struct.unpack_from("<I", data, at + 42)
    end = at + 46 + name_size + extra_size + comment_size
    if end > len(data):
        raise BadZip("damaged: an entry of the directory is cut short")
    name = data[at + 46 : at + 46 + name_size].decode("utf-8", "replace")
    if method or flags & ~_UTF8_AND_DESCRIPTOR:
        raise BadZip(f"refused: member {name[:80]!r} is compressed or encrypted, which torch.save never does")
    extra = data[at + 46 + name_size : at + 46 + name_size + extra_size]
    size, packed, offset = _zip64(extra, [size, packed, offset])
    if size != packed:
        raise BadZip(f"damaged: member {name[:80]!r} has two sizes")
    return offset, name, size, end


def _zip64(extra: bytes, values: list[int]) -> list[int]:
    """Replace the values that did not fit 32 bits by those of the zip64 field."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            field, used = extra[at + 4 : at + 4 + size], 0
            for i, value in enumerate(values):
                if value == _FULL32:
                    if used + 8 > len(field):
                        raise BadZip("damaged: a zip64 field is cut short")
                    (values[i],) = struct.unpack_from("<Q", field, used)
                    used += 8
            break
        at += 4 + size
    return values


def _data_offset(file: BinaryIO, file_size: int, header: int, name: str) -> int:
    local = _read(file, file_size, header, 30)
    name_size, extra_size = struct.unpack("<HH", local[26:30])
    if local[:4] != _LOCAL or struct.unpack("<H", local[8:10])[0]:
        raise BadZip(f"damaged: the header of member {name!r}")
    if _read(file, file_size, header + 30, name_size).decode("utf-8", "replace") != name:
        raise BadZip(f"refused: member {name!r} has two names")
    return header + 30 + name_size + extra_size


def _check_name(name: str) -> None:
    parts = name.split("/")
    if "\\" in name or "\0" in name or ":" in name or name.startswith("/") or ".." in parts or len(name) > 1000:
        raise BadZip(f"refused: a member named {name[:80]!r}")
