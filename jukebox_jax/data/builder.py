"""A folder of music to a TFDS data set of ArrayRecord shards, without TensorFlow.

Two passes over the files: ``_probe`` reads headers and tags, then ``_write_songs`` decodes and writes whole shards. The
plan between them (ids, split, shards) depends on the files alone, so any number of processes, or Beam's workers, write
the same bytes. Songs lie in the shards in order, cut into records of a few seconds.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from etils import epath

from jukebox_jax.data import audio, metadata, records, summary
from jukebox_jax.data.metadata import Finding
from jukebox_jax.data.records import Shard
from jukebox_jax.data.summary import Song, Summary
from jukebox_jax.data.vocabulary import VERSIONS, Vocabulary
from jukebox_jax.data.workers import BeamWorkers, Item, LocalWorkers, Tick, Workers
from jukebox_jax.types import UserError, choose, nearest

RUNNERS = ("local", "DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner", "PortableRunner", "PrismRunner")
SHARD_BYTES = 64 << 20
MAX_SHARDS = 4096
PROBE_BATCH = 64


def build(
    input: str | Path,
    output: str | Path,
    *,
    sample_rate: int = 44_100,
    record_seconds: float = 4.0,
    test_fraction: float = 0.1,
    min_seconds: float = 1.0,
    label_version: str = "v3",
    workers: int | None = None,
    runner: str = "local",
    runner_flags: Sequence[str] = (),
    overwrite: bool = False,
    progress: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> Summary:
    """Build the data set ``output`` from the audio files under ``input`` and its optional ``metadata.csv``.

    Both folders may be anything that ``etils.epath`` reads; with Beam, what all its workers see (a shared disk, or
    ``gs://`` with gcsfs). ``runner`` "local" uses ``workers`` processes; any other is a Beam runner, which gets
    ``runner_flags``. Files that can't be used are findings of the summary. Raises ``UserError`` for wrong arguments,
    a folder without usable audio, and an ``output`` that holds a data set already (unless ``overwrite``: it is
    replaced when the new one is complete).
    """
    source, target = _check(input, output, sample_rate, record_seconds, test_fraction, overwrite)
    choose("label version", label_version, VERSIONS)
    choose("runner", runner, RUNNERS)
    record_samples = max(1, round(record_seconds * sample_rate))
    files, findings, others = metadata.find_audio(source)
    if not files:
        found = ", ".join(f"{n} {extension}" for extension, n in others.items()) or "nothing"
        raise UserError(f"no audio in {source}: looked for {', '.join(audio.EXTENSIONS)}, found {found}")
    rows, problems = metadata.read_metadata(source, files)
    findings += problems
    scratch = target / ".incomplete"
    run = LocalWorkers(workers, progress) if runner == "local" else BeamWorkers(runner, runner_flags, str(scratch))
    scratch.rmtree(missing_ok=True)
    folder = scratch / records.AUDIO / records.VERSION
    folder.mkdir(parents=True)
    try:
        songs, problems = _probe_all(run, source, files, rows, min_seconds)
        findings += problems
        settings = {"sample_rate": sample_rate, "record_samples": record_samples, "min_seconds": min_seconds}
        tasks = [
            {"path": str(folder / f"part-{split}-{number:05d}"), "split": split, "songs": members} | settings
            for split, number, members in _plan(songs, sample_rate, test_fraction, shard_bytes)
        ]
        results = run(_write_songs, tasks, what="decode", total=len(songs))
        used, problems = _collect(tasks, results, files)
        findings += problems
        if not used:
            raise UserError(_nothing_left(source, findings))
        if test_fraction and len({song.split for song in used}) == 1:  # one song, or all of the other split failed
            findings.append(
                Finding("the test split", "skipped", "all usable songs are in train: too few for two splits")
            )
            used = [dataclasses.replace(song, split="train") for song in used]
            tasks = [task | {"split": "train"} for task in tasks]
        shards: dict[str, list[Shard]] = {}
        for task, result in zip(tasks, results, strict=True):
            if result["shard"]["records"]:
                shards.setdefault(task["split"], []).append(Shard(**result["shard"]))
        records.finish(folder, records.AUDIO, records.audio_features(), shards, f"Music from {source}")
        made = Summary(
            input=source, output=str(target), sample_rate=sample_rate, record_samples=record_samples,
            label_version=label_version, splits=_sizes(used, shards, sample_rate),
            artists=_counts(used, "artist"), genres=_counts(used, "genre"), findings=findings, other_files=others,
        )  # fmt: skip
        _publish(scratch, target, made, used)
        return made
    finally:
        scratch.rmtree(missing_ok=True)


def _check(
    input: str | Path,
    output: str | Path,
    sample_rate: int,
    record_seconds: float,
    test_fraction: float,
    overwrite: bool,
) -> tuple[str, epath.Path]:
    if not 1000 <= sample_rate <= 384_000:
        raise UserError(f"sample_rate {sample_rate}: allowed are 1000 to 384000 Hz")
    if not 0.01 <= record_seconds <= 600:
        raise UserError(f"record_seconds {record_seconds:g}: allowed are 0.01 to 600")
    if not 0 <= test_fraction < 1:
        raise UserError(f"test_fraction {test_fraction:g}: allowed are 0 up to, not including, 1")
    source, target = str(input), epath.Path(output)
    if "://" not in source:
        path = Path(source)
        if not path.is_dir():
            beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
            hint = nearest(path.name, beside)
            what = "a file, not a folder" if path.exists() else "not there"
            raise UserError(f"input {source} is {what}" + (f"; did you mean {path.parent / hint[0]}?" if hint else ""))
        source = str(path)
    if target.exists() and not target.is_dir():
        raise UserError(f"output {target} is a file, not a folder")
    if (target / summary.SUMMARY).exists() and not overwrite:
        raise UserError(f"output {target} has a data set already: pass --overwrite to replace it, or another folder")
    return source, target


def _probe_all(
    run: Workers, source: str, files: Sequence[str], rows: Mapping[str, Mapping[str, str]], min_seconds: float
) -> tuple[list[Item], list[Finding]]:
    """The usable files as songs (id, path, duration, names), and findings for the rest."""
    batches = [files[i : i + PROBE_BATCH] for i in range(0, len(files), PROBE_BATCH)]
    tasks = [{"paths": [f"{source}/{file}" for file in batch]} for batch in batches]
    headers = [
        header for result in run(_probe, tasks, what="read headers", total=len(files)) for header in result["headers"]
    ]
    songs, findings = [], []
    for number, (file, header) in enumerate(zip(files, headers, strict=True)):
        if "error" not in header and header["seconds"] < min_seconds:
            header["error"] = f"{header['seconds']:.3g} s long; the shortest allowed is {min_seconds:g} s"
        if "error" in header:
            findings.append(Finding(file, "skipped", header["error"]))
            continue
        names = metadata.describe(file, rows.get(file, {}), header["tags"])
        songs.append({"song": number, "file": file, "path": f"{source}/{file}", "seconds": header["seconds"]} | names)
    return songs, findings


def _probe(item: Item, tick: Tick) -> Item:
    """Read the headers of some files."""
    headers = []
    for path in item["paths"]:
        try:
            header = audio.probe(path)
            headers.append({"seconds": header["frames"] / header["sample_rate"], "tags": header["tags"]})
        except Exception as error:  # one bad file must not end the run: whatever it is, it is named
            headers.append({"error": _reason(error)})
        tick(1)
    return {"headers": headers}


def _plan(
    songs: Sequence[Item], sample_rate: int, test_fraction: float, shard_bytes: int
) -> list[tuple[str, int, list[Item]]]:
    """Shards: their split, their number in it, and their songs.

    The test split is the given share of the songs, at least one of two or more: those whose paths hash lowest, so it
    changes little when files come or go.
    """
    count = min(max(1, round(test_fraction * len(songs))), len(songs) - 1) if test_fraction and songs else 0
    ranked = sorted(songs, key=lambda song: hashlib.sha256(song["file"].encode("utf-8", "surrogateescape")).digest())
    test = {song["song"] for song in ranked[:count]}
    plan = []
    for split in ("train", "test"):
        members = [song for song in songs if (song["song"] in test) == (split == "test")]
        sizes = [int(song["seconds"] * sample_rate) * 4 for song in members]
        limit = max(shard_bytes, sum(sizes) // MAX_SHARDS)
        shards = collections.defaultdict(list)
        for song, end in zip(members, itertools.accumulate(sizes), strict=True):
            shards[end // limit].append(song)
        plan += [(split, number, shards[key]) for number, key in enumerate(sorted(shards))]
    return plan


def _write_songs(item: Item, tick: Tick) -> Item:
    """Decode the songs of one shard and write it. The result has the shard and, per song, its length or the error."""
    outcomes: list[Item] = []
    shard = records.write_shard(item["path"], records.audio_features(), _examples(item, outcomes, tick))
    return {"shard": vars(shard), "songs": outcomes}


def _examples(item: Item, outcomes: list[Item], tick: Tick) -> Iterator[Item]:
    size = item["record_samples"]
    for song in item["songs"]:
        try:
            decoded = audio.decode(song["path"], item["sample_rate"], item["min_seconds"])
        except Exception as error:  # as in _probe
            outcomes.append({"error": _reason(error)})
            tick(1)
            continue
        labels = {key: song[key] for key in ("song", *metadata.FIELDS)} | {"total_length": decoded.total}
        count = 0
        with decoded.store:
            for count, piece in enumerate(decoded.records(size), 1):
                yield {"audio": piece, "record": count - 1, "offset": (count - 1) * size} | labels
        outcomes.append({"total_length": decoded.total, "channels": decoded.channels, "records": count,
                         "notes": decoded.notes})  # fmt: skip
        tick(1)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, audio.Undecodable) else f"{type(error).__name__}: {error}"


def _collect(tasks: Sequence[Item], results: Sequence[Item], files: Sequence[str]) -> tuple[list[Song], list[Finding]]:
    """The songs that got in, in the order of their records, and findings about them and the others."""
    songs, findings, first = [], [], collections.Counter[str]()
    for task, result in zip(tasks, results, strict=True):
        for song, outcome in zip(task["songs"], result["songs"], strict=True):
            if "error" in outcome:
                findings.append(Finding(song["file"], "skipped", outcome["error"]))
                continue
            findings += [Finding(song["file"], "note", note) for note in outcome.pop("notes")]
            known = {key: song[key] for key in ("song", "file", "artist", "genre", "title")}
            songs.append(Song(**known, **outcome, split=task["split"], first_record=first[task["split"]]))
            first[task["split"]] += outcome["records"]
    order = {file: number for number, file in enumerate(files)}
    return songs, sorted(findings, key=lambda finding: order[finding.file])


def _nothing_left(source: str, findings: Sequence[Finding]) -> str:
    shown = [f"{finding.file}: {finding.reason}" for finding in findings if finding.kind == "skipped"]
    return f"no usable audio in {source}: {'; '.join(shown[:3])}" + (
        f"; and {len(shown) - 3} more" if shown[3:] else ""
    )


def _sizes(songs: Sequence[Song], shards: Mapping[str, Sequence[Shard]], rate: int) -> dict[str, summary.Split]:
    sizes = {}
    for split, written in shards.items():
        members = [song for song in songs if song.split == split]
        sizes[split] = summary.Split(
            songs=len(members), seconds=round(sum(song.total_length for song in members) / rate, 3),
            records=sum(shard.records for shard in written), shards=len(written),
            bytes=sum(shard.bytes for shard in written),
        )  # fmt: skip
    return sizes


def _counts(songs: Sequence[Song], key: str) -> dict[str, int]:
    return dict(sorted(collections.Counter[str](getattr(song, key) for song in songs).items()))


def _publish(scratch: epath.Path, target: epath.Path, made: Summary, songs: Sequence[Song]) -> None:
    """Put the complete data set in place of whatever was there, the summary last."""
    for name in (summary.SUMMARY, summary.SONGS):
        (target / name).unlink(missing_ok=True)
    for name in ("labels", records.AUDIO):
        (target / name).rmtree(missing_ok=True)
    folder = target / records.AUDIO / records.VERSION
    folder.mkdir(parents=True)
    for path in (scratch / records.AUDIO / records.VERSION).iterdir():
        path.rename(folder / path.name)
    with tempfile.TemporaryDirectory() as local:
        Vocabulary.from_names(made.artists, made.genres, made.label_version).save(Path(local) / "labels")
        summary.save(local, made, songs)
        (target / "labels").mkdir()
        for path in [*Path(local, "labels").iterdir(), Path(local, summary.SONGS), Path(local, summary.SUMMARY)]:
            epath.Path(path).copy(target / path.relative_to(local))
