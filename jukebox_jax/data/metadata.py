"""Which files a folder of music has, and what is known about each: metadata.csv first, then the file's own tags."""

from __future__ import annotations

import collections
import csv
import io
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from etils import epath

from jukebox_jax.data import audio
from jukebox_jax.types import UserError, nearest

FIELDS = ("artist", "genre", "title", "lyrics")
_HEADERS = {"filename": "file", "path": "file"} | {name: name for name in ("file", *FIELDS)}
_MAX_FIELD = 1 << 24  # characters; csv's own limit is shorter than some lyrics


@dataclass(frozen=True)
class Finding:
    """Something the user should know about a file: "skipped", or a "note" about one that is used."""

    file: str
    kind: Literal["skipped", "note"]
    reason: str


def find_audio(folder: str) -> tuple[list[str], list[Finding], dict[str, int]]:
    """Audio files under ``folder``, as sorted POSIX paths relative to it.

    Also findings for audio of kinds that can't be read, and how many other files of each extension there are. Links are
    followed, each folder once.
    """
    files, findings, others = [], [], collections.Counter[str]()
    waiting, seen = [PurePosixPath(".")], set[str]()
    while waiting:
        relative = waiting.pop()
        here = epath.Path(folder) / relative
        if "://" not in folder:
            real = os.path.realpath(here)
            if real in seen:
                continue
            seen.add(real)
        try:
            entries = list(here.iterdir())
        except PermissionError:
            findings.append(Finding(str(relative), "skipped", "no permission to read this folder"))
            continue
        for entry in entries:
            path = relative / entry.name
            extension = path.suffix.lower()
            if entry.is_dir():
                waiting.append(path)
            elif extension in audio.EXTENSIONS:
                files.append(str(path))
            elif extension in audio.OTHER_AUDIO:
                reason = f"{extension} can't be read: convert it to {', '.join(audio.EXTENSIONS)}"
                findings.append(Finding(str(path), "skipped", reason))
            else:
                others[extension or "(no extension)"] += 1
    return sorted(files), sorted(findings, key=lambda finding: finding.file), dict(sorted(others.items()))


def read_metadata(folder: str, files: Sequence[str]) -> tuple[dict[str, dict[str, str]], list[Finding]]:
    """The rows of ``folder/metadata.csv`` by file (the first of several), and what is wrong with it.

    Comma, semicolon and tab separate; UTF-8, or Windows-1252 for lines that are not. Raises ``UserError`` for a table
    without a ``file`` column.
    """
    path = epath.Path(folder) / "metadata.csv"
    if not path.exists():
        return {}, []
    text, findings = _decode(path.read_bytes())
    header = text.split("\n", 1)[0]
    previous = csv.field_size_limit(_MAX_FIELD)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
        columns = [_column(name) for name in next(reader, [])]
        if "file" not in columns:
            raise UserError(f"{path} needs a column 'file'; it has {', '.join(filter(None, columns)) or 'none'}")
        if unused := [name for name in columns if name and name not in _HEADERS]:
            findings.append(Finding("metadata.csv", "note", f"columns not used: {', '.join(unused)}"))
        rows: dict[str, dict[str, str]] = {}
        find = _Finder(files)
        try:
            for values in reader:
                if any(value.strip() for value in values):
                    where = f"metadata.csv, line {reader.line_num}"
                    findings += _take(rows, find, columns, values, where)
        except csv.Error as error:
            findings.append(
                Finding(f"metadata.csv, line {reader.line_num}", "skipped", f"{error}: not read from here on")
            )
    finally:
        csv.field_size_limit(previous)
    if missing := [file for file in files if file not in rows]:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        findings.append(Finding("metadata.csv", "note", f"{len(missing)} files are not in it (tags used): {shown}"))
    return rows, findings


def describe(file: str, row: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """Artist, genre, title and lyrics of a song: from its row, else its tags, else "unknown", file name, none."""
    defaults = {"artist": "unknown", "genre": "unknown", "title": PurePosixPath(file).stem, "lyrics": ""}
    found = {name: row.get(name, "").strip() or tags.get(name, "").strip() or defaults[name] for name in FIELDS}
    return {name: clean(value) if name != "lyrics" else _printable(value) for name, value in found.items()}


def clean(name: str) -> str:
    """A name on one line, with composed accents and without semicolons (the label tables separate with them)."""
    return unicodedata.normalize("NFC", " ".join(_printable(name).replace(";", ",").split()))


def _printable(text: str) -> str:
    """Text that can be written as UTF-8: file names may carry bytes that are not."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def _column(name: str) -> str:
    name = name.strip().lower()
    return _HEADERS.get(name, name)


def _decode(data: bytes) -> tuple[str, list[Finding]]:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace"), []
    lines, findings = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").split(b"\n"), []
    text = []
    for number, line in enumerate(lines, 1):
        try:
            text.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            text.append(line.decode("cp1252", "replace"))
            reason = f"not UTF-8 (byte 0x{line[error.start]:02x} in column {error.start + 1}): read as Windows-1252"
            findings.append(Finding(f"metadata.csv, line {number}", "note", reason))
    return "\n".join(text), findings


def _take(
    rows: dict[str, dict[str, str]], find: _Finder, columns: Sequence[str], values: Sequence[str], where: str
) -> list[Finding]:
    """Enter one line of the table into ``rows``; what is wrong with it."""
    row = {column: value for column, value in zip(columns, values, strict=False) if column}
    name = row.pop("file", "").strip()
    if not name:
        return [Finding(where, "skipped", "no file named")]
    file, hint = find(name)
    if file is None:
        return [Finding(where, "skipped", f"there is no file {name!r}" + (f"; did you mean {hint!r}?" if hint else ""))]
    if file in rows:
        return [Finding(where, "skipped", f"a second row for {file!r}: the first one counts")]
    rows[file] = {key: row[key] for key in FIELDS if key in row}
    extra = len(values) - len(columns)
    return [Finding(where, "note", f"{extra} more fields than columns: left out")] if extra > 0 else []


class _Finder:
    """Finds the file a row means: its path, whatever the slashes, case or form of accents.

    A bare name, or a path that goes on to the left (``/home/me/music/...``), will do if it fits one file only.
    """

    def __init__(self, files: Sequence[str]):
        self.exact = set(files)
        self.by_path = {_key(file): file for file in files}
        self.by_name: dict[str, list[str]] = {}
        for file in files:
            self.by_name.setdefault(PurePosixPath(_key(file)).name, []).append(file)

    def __call__(self, name: str) -> tuple[str | None, str | None]:
        name = name.replace("\\", "/").removeprefix("./")
        if name in self.exact:
            return name, None
        key = _key(name)
        if key in self.by_path:
            return self.by_path[key], None
        same = self.by_name.get(PurePosixPath(key).name, [])
        fits = [file for file in same if "/" not in key or key.endswith("/" + _key(file))]
        if len(fits) == 1:
            return fits[0], None
        hints = nearest(name, same or self.exact) if len(self.exact) < 5000 else []
        return None, hints[0] if hints else None


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
