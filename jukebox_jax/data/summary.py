"""What building a data set came to: printed as a table, kept as DIR/summary.json and DIR/songs.jsonl."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jukebox_jax.data.metadata import Finding
from jukebox_jax.types import UserError, choose

FORMAT = 1
SUMMARY, SONGS = "summary.json", "songs.jsonl"


@dataclass(frozen=True)
class Split:
    """Size of one split."""

    songs: int
    seconds: float
    records: int
    shards: int
    bytes: int


@dataclass(frozen=True)
class Song:
    """A song of the data set. ``first_record`` is its place in the split; lengths in samples at the data set's rate."""

    song: int
    file: str
    split: str
    total_length: int
    channels: int
    first_record: int
    records: int
    artist: str
    genre: str
    title: str


@dataclass(frozen=True)
class Summary:
    """What `jukebox dataset` made of a folder. Every file found is a song, a finding or counted in ``other_files``."""

    input: str
    output: str
    sample_rate: int
    record_samples: int
    label_version: str
    splits: Mapping[str, Split]
    artists: Mapping[str, int]  # songs of each
    genres: Mapping[str, int]
    findings: Sequence[Finding]
    other_files: Mapping[str, int]  # by extension

    @property
    def skipped(self) -> list[Finding]:
        """Files and table rows that are not in the data set."""
        return [finding for finding in self.findings if finding.kind == "skipped"]

    def to_json(self) -> dict[str, Any]:
        """For summary.json."""
        skipped = [{"file": f.file, "reason": f.reason} for f in self.skipped]
        notes = [{"file": f.file, "reason": f.reason} for f in self.findings if f.kind == "note"]
        table = dataclasses.asdict(self) | {"skipped": skipped, "notes": notes}
        del table["findings"]
        return {"format": FORMAT} | table

    def table(self) -> str:
        """For people."""
        lines = []
        if self.findings:
            rows = [(f.kind, _shown(f.file), _shown(f.reason)) for f in self.findings]
            width = min(60, max(len(file) for _, file, _ in rows))
            lines += [f"{kind:<8} {file:<{width}}  {reason}" for kind, file, reason in rows] + [""]
        if self.other_files:
            lines.append("not audio: " + ", ".join(f"{n} {extension}" for extension, n in self.other_files.items()))
        for name, split in self.splits.items():
            size = f"{split.records} records in {split.shards} shards, {split.bytes / 1e6:.1f} MB"
            lines.append(f"{name:<8}{split.songs} songs, {_time(split.seconds)}, {size}")
        for kind, counts in (("artists", self.artists), ("genres", self.genres)):
            lines.append(f"{kind:<8}{len(counts)} ({_most(counts)})")
        lines.append(f"{len(self.skipped)} skipped; see {self.output}/{SUMMARY}" if self.skipped else "nothing skipped")
        return "\n".join(lines)


def save(folder: str | Path, summary: Summary, songs: Iterable[Song]) -> None:
    """Write both files into ``folder``; the summary last, as the sign of a complete data set."""
    lines = [json.dumps(dataclasses.asdict(song)) + "\n" for song in songs]
    (Path(folder) / SONGS).write_text("".join(lines), encoding="utf-8")
    (Path(folder) / SUMMARY).write_text(json.dumps(summary.to_json(), indent=1) + "\n", encoding="utf-8")


def load(dataset_dir: str | Path) -> dict[str, Any]:
    """The table of ``DIR/summary.json``. Raises ``UserError`` if ``DIR`` is no data set of this version."""
    path = Path(dataset_dir) / SUMMARY
    if not path.is_file():
        raise UserError(f"{dataset_dir} is no data set: it has no {SUMMARY} (make one with `jukebox dataset`)")
    table = json.loads(path.read_text(encoding="utf-8"))
    if table.get("format") != FORMAT:
        raise UserError(f"{path} has format {table.get('format')!r}; this version reads {FORMAT}")
    return table


def load_songs(dataset_dir: str | Path, split: str) -> list[Song]:
    """The songs of a split, in the order of its records."""
    choose(f"split of {dataset_dir}", split, load(dataset_dir)["splits"])
    with open(Path(dataset_dir) / SONGS, encoding="utf-8") as lines:
        songs = [Song(**json.loads(line)) for line in lines]
    return [song for song in songs if song.split == split]


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min"


def _most(counts: Mapping[str, int]) -> str:
    shown = [f"{name}: {n}" for name, n in sorted(counts.items(), key=lambda pair: -pair[1])[:5]]
    return ", ".join(map(_shown, shown)) + (", ..." if len(counts) > 5 else "")


def _shown(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").replace("\n", " ")
