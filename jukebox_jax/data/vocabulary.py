"""Artists and genres: names to embedding rows, in the two versions of the released models.

v2 (5b, 5b_lyrics, both upsamplers) squeezes a name to ``[a-z0-9_]``, and a genre is a bag of words. v3 (1b_lyrics, and
the default for one's own music) keeps names as written, in lower case, and a genre is one name. Id 0 is "unknown" in
every table. Source: spec/labels.md sections 1 and 2; the fallbacks and the search are ours (spec/quirks.md C9).
"""

from __future__ import annotations

import difflib
import logging
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from etils import epath

from jukebox_jax.types import UserError, choose, nearest

Kind = Literal["artist", "genre"]
VERSIONS = ("v2", "v3")
UNKNOWN = "unknown"

_INVISIBLE = re.compile("[\u200e\u200f\ufeff]")  # direction marks, byte-order mark
_log = logging.getLogger(__name__)


def load_ids(path: epath.PathLike) -> dict[str, int]:
    """Read a table of ``name;id`` lines (UTF-8). Names become lower case; of duplicates the last line wins.

    A line that is no ``name;id`` raises ``UserError`` with its number; blank lines are passed over.
    """
    ids: dict[str, int] = {}
    try:
        lines = epath.Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    for number, line in enumerate(lines, 1):
        parts = line.strip().split(";")
        if parts == [""]:
            continue
        if len(parts) != 2 or not re.fullmatch(r"\s*\d+", parts[1]):
            raise UserError(f"{path}, line {number}: {line.strip()!r} is not of the form name;id")
        ids[parts[0].lower()] = int(parts[1])
    if not ids:
        raise UserError(f"{path} has no name;id line")
    return ids


def normalise(name: str, version: str) -> str:
    """The key under which a table of this version lists ``name``."""
    if version == "v3":
        return name.lower()
    return re.sub("_+", "_", re.sub("[^a-z0-9]", "_", name.lower())).strip("_")


def simplify(name: str) -> str:
    """What spellings of one name share: no invisible marks or outer spaces, composed accents, no ``;``, one line."""
    visible = _INVISIBLE.sub("", name).translate({ord(";"): ",", ord("\r"): " ", ord("\n"): " "})
    return unicodedata.normalize("NFC", visible).strip().lower()


@dataclass(frozen=True)
class Vocabulary:
    """The artist and the genre table of one version ("v2" or "v3")."""

    version: str
    artists: dict[str, int]
    genres: dict[str, int]
    _simple: dict[str, dict[str, int]] = field(init=False, repr=False, compare=False)
    _warned: set[tuple[str, str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        choose("label version", self.version, VERSIONS)
        simple: dict[str, dict[str, int]] = {"artist": {}, "genre": {}}
        if self.version == "v3":
            for kind, table in simple.items():
                for name, row in self.table(kind).items():
                    table.setdefault(simplify(name), row)
        object.__setattr__(self, "_simple", simple)
        object.__setattr__(self, "_warned", set())

    @classmethod
    def load(cls, directory: epath.PathLike, version: str) -> Vocabulary:
        """Read ``{version}_artist_ids.txt`` and ``{version}_genre_ids.txt`` of ``directory``."""
        paths = [epath.Path(directory) / f"{version}_{kind}_ids.txt" for kind in ("artist", "genre")]
        for path in paths:
            if not path.exists():
                there = sorted(p.name for p in epath.Path(directory).glob("v?_*_ids.txt"))
                raise UserError(f"no label table {path}" + (f" (the folder has {', '.join(there)})" if there else ""))
        return cls(version, load_ids(paths[0]), load_ids(paths[1]))

    @classmethod
    def from_names(cls, artists: Iterable[str], genres: Iterable[str], version: str = "v3") -> Vocabulary:
        """Tables for one's own data: sorted names from id 1, 0 for unknown. v2 genres go in by the word."""
        names = [_keys(artists, version), _keys(genres, version)]
        if version == "v2":
            names[1] = {word for genre in names[1] for word in genre.split("_")}
        tables = [{UNKNOWN: 0} | {name: i for i, name in enumerate(sorted(n - {"", UNKNOWN}), 1)} for n in names]
        return cls(version, *tables)

    def save(self, directory: epath.PathLike) -> None:
        """Write both tables into ``directory`` in the format that ``load`` reads, in id order."""
        epath.Path(directory).mkdir(parents=True, exist_ok=True)
        for kind in ("artist", "genre"):
            lines = [f"{name};{row}\n" for name, row in sorted(self.table(kind).items(), key=lambda item: item[1])]
            if bad := [name for name in self.table(kind) if re.search(r"[;\r\n]", name)]:
                raise UserError(f"the {kind} name {bad[0]!r} can't be stored: it has a semicolon or a line break")
            path = epath.Path(directory) / f"{self.version}_{kind}_ids.txt"
            path.write_bytes("".join(lines).encode())

    def table(self, kind: str) -> dict[str, int]:
        """Name to id, for "artist" or "genre"."""
        return self.artists if kind == "artist" else self.genres

    @property
    def num_artists(self) -> int:
        """Rows that an artist embedding needs (the highest id and one)."""
        return max(self.artists.values()) + 1

    @property
    def num_genres(self) -> int:
        """Rows that a genre embedding needs."""
        return max(self.genres.values()) + 1

    def artist_id(self, artist: str | None, *, strict: bool = False, compat: bool = False) -> int:
        """The embedding row of an artist; see ``row`` for names that are not in the table."""
        return self.row("artist", normalise(UNKNOWN if artist is None else artist, self.version), strict, compat)

    def genre_ids(self, genre: str | None, *, strict: bool = False, compat: bool = False) -> list[int]:
        """The embedding rows of a genre: one (v3), or one per word (v2; an unknown word counts as id 0)."""
        key = normalise(UNKNOWN if genre is None else genre, self.version)
        words = key.split("_") if self.version == "v2" else [key]
        return [self.row("genre", word, strict, compat) for word in words]

    def row(self, kind: Kind, key: str, strict: bool = False, compat: bool = False) -> int:
        """Look up a normalised name, and failing that its plain spelling (not with ``compat``).

        A name that is nowhere is row 0 with one warning in the log, as in the original, or a ``UserError`` that names
        the nearest (``strict``). Empty names and "unknown" are row 0 without a word.
        """
        table = self.table(kind)
        if key in table:
            return table[key]
        if not compat and simplify(key) in self._simple[kind]:
            return self._simple[kind][simplify(key)]
        if simplify(key) in ("", UNKNOWN):
            return 0
        if strict:
            raise UserError(f"unknown {kind} {key!r}: {self._hint(kind, key)}")
        if (kind, key) not in self._warned:
            self._warned.add((kind, key))
            _log.warning("unknown %s %r: id 0 (%d are known, %s)", kind, key, len(table), self.version)
        return 0

    def knows(self, kind: Kind, key: str, compat: bool = False) -> bool:
        """Whether a normalised name, or (not with ``compat``) its plain spelling, is in the table."""
        return key in self.table(kind) or (not compat and simplify(key) in self._simple[kind])

    def name(self, kind: Kind, row: int) -> str:
        """The name of an id; several names of one id are sorted and joined by ``_``. "#id" where the table has none."""
        names = sorted(name for name, i in self.table(kind).items() if i == row)
        return "_".join(names) if names else f"#{row}"

    def search(self, words: str, kind: Kind, limit: int = 10) -> list[tuple[str, int]]:
        """The (name, id) pairs most like ``words``: exact, then names that contain them all, then similar spellings."""
        table = self.table(kind)
        query = simplify(normalise(words, self.version))
        names = {name: simplify(name) for name in table if simplify(name)}
        asked = _words(query)
        found = [name for name, plain in names.items() if asked and all(word in plain for word in asked)]
        found.sort(key=lambda name: (names[name] != query, not names[name].startswith(query), len(name), name))
        if len(found) < limit:  # whole names spelt alike, then names with a word spelt like each word asked for
            alike = difflib.get_close_matches(query, set(names.values()), n=limit, cutoff=0.6)
            found += [name for plain in alike for name in names if names[name] == plain]
            known = sorted({word for plain in names.values() for word in _words(plain)})
            close = [set(difflib.get_close_matches(word, known, n=limit, cutoff=0.7)) for word in asked]
            found += [name for name, plain in names.items() if close and all(c & set(_words(plain)) for c in close)]
        return [(name, table[name]) for name in list(dict.fromkeys(found))[:limit]]

    def _hint(self, kind: Kind, key: str) -> str:
        table = self.table(kind)
        close = [name for name, _ in self.search(key, kind, limit=3)] or nearest(key, table, limit=3)
        if close:
            return f"the nearest of the {len(table)} allowed are {', '.join(map(repr, close))}; {UNKNOWN!r} is id 0"
        if len(table) <= 20:
            return f"allowed are {', '.join(map(repr, table))}"
        return f"none of the {len(table)} allowed is like it (`jukebox labels list` prints them); {UNKNOWN!r} is id 0"


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\s_]+", name) if word]


def _keys(names: Iterable[str], version: str) -> set[str]:
    return {normalise(name, "v2") if version == "v2" else simplify(name) for name in names}
