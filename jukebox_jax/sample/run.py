"""One run in its output directory: drawn, decoded, reported level by level, and resumed where it stopped.

::

    OUT/run.json                 what was asked, seeds, label rows, versions, times: enough to repeat it
    OUT/codes.npz                codes_level_0 .. (items x codes, int32), items
    OUT/level_{l}/item_{i}.wav   and .mp3 (or .ogg), and .png, the mel spectrogram
    OUT/alignment/item_{i}.json  when each character of the lyrics is sung, and .png, the whole map
    OUT/index.html               all of it in one file
    OUT/partial/                 the codes of a run that is not complete, as they are drawn
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32
from tqdm import tqdm

from jukebox_jax.parallel.sharding import row_groups
from jukebox_jax.sample import align, fast, prompts, record, report, sampler, spectrogram, stream
from jukebox_jax.sample.request import Request
from jukebox_jax.sample.source import Source
from jukebox_jax.sample.tape import Tape
from jukebox_jax.types import UserError

MAP_ROWS = 1000  # time steps of an alignment picture


@dataclass
class Run:
    """A run that is going on: its codes and its record (what ``run.json`` will say)."""

    out: Path
    source: Source
    request: Request
    tapes: list[Tape]
    record: dict[str, Any] = field(default_factory=dict)

    def stats(self, level: int) -> dict[str, Any]:
        """The record's figures of a level."""
        return self.record["levels"].setdefault(str(level), {"draw_seconds": 0.0, "drawn_codes": 0})

    def save(self) -> None:
        """Write codes and record."""
        prompts.save_codes(self.out / "codes.npz", [tape.array() for tape in self.tapes], self.request.items)
        record.write(self.out / record.NAME, self.record)


def generate(
    source: Source, request: Request, out: Path, start: prompts.Codes, about: dict[str, Any], *, overwrite: bool = False
) -> Run:
    """Draw, decode and report every level of a request into ``out``.

    ``about`` goes into the record: ``mode``, ``command``, ``model_directory``. If ``out`` holds the same run
    unfinished, it goes on from there; another run raises ``UserError``, unless ``overwrite``.
    """
    run = _open(source, request, out, start, about, overwrite)
    try:
        if request.order == "wavefront":
            _draw_wavefront(run)
        for level in request.levels:
            _draw(run, level)
            if "decode_seconds" not in run.stats(level):
                decode_level(run, level)
            if "alignment_seconds" not in run.record and align.available(source) and len(run.tapes[source.top].array()):
                _align(run)
            run.save()
            write_page(run)
    except BaseException:
        run.save()
        raise
    run.record["status"] = "complete"
    run.record["finished"] = time.strftime("%Y-%m-%d %H:%M:%S")
    run.save()
    shutil.rmtree(out / "partial", ignore_errors=True)
    return run


def _open(
    source: Source, request: Request, out: Path, start: prompts.Codes, about: dict[str, Any], overwrite: bool
) -> Run:
    identity = about | {
        "model": {"name": source.name, "fingerprint": source.fingerprint},
        "request": request.describe(),
        "start": [hashlib.sha256(np.ascontiguousarray(codes, "<i4").tobytes()).hexdigest()[:16] for codes in start],
    }
    partial = out / "partial"
    old = None if overwrite else record.read(out / record.NAME)
    if old is None:
        shutil.rmtree(partial, ignore_errors=True)
        new = record.begin(source, request, identity)
    else:
        record.require_same(old, json.loads(json.dumps(identity)), out)
        new = old | {"status": "running"}
    out.mkdir(parents=True, exist_ok=True)
    if old and old["status"] == "complete":
        start = prompts.load_codes(out / "codes.npz", source.vqvae.levels, source.vqvae.codebook_size)
    tapes = [
        Tape(len(request.items), codes, journal=[partial / f"level_{level}_item_{n}.i32" for n in request.items])
        for level, codes in enumerate(start)
    ]
    run = Run(out, source, request, tapes, new)
    record.write(out / record.NAME, run.record)
    return run


def _draw(run: Run, level: int) -> None:
    tape, source, stats = run.tapes[level], run.source, run.stats(level)
    new = _planned(run, level)
    if not new:
        return
    seconds = new * source.hop(level) / source.vqvae.sample_rate / tape.items
    with _booked(run, level) as spent, progress(f"level {level}", new, seconds) as bar, _timed(spent, level):
        if run.request.segments > 1:
            seams = fast.sample_level(source, run.request, level, run.tapes, bar.update)
            if seams:
                stats["seams"] = seams._asdict()
                bar.write(f"level {level}: {seams.segments} segments; {seams.seam_bits:.3f} bits per code behind"
                          f" their seams, {seams.serial_bits:.3f} elsewhere")  # fmt: skip
        else:
            sampler.sample_level(source, run.request, level, run.tapes, bar.update)


def _draw_wavefront(run: Run) -> None:
    """All levels, each window as soon as the codes above it are there."""
    levels = run.request.levels
    new = sum(_planned(run, level) for level in levels)
    with (
        _booked(run, *levels) as spent,
        progress("all levels", new, run.request.length / run.source.vqvae.sample_rate) as bar,
    ):
        sampler.wavefront(run.source, run.request, run.tapes, bar.update, spent)


def _planned(run: Run, level: int) -> int:
    """Codes that a level lacks, of all items; its windows go into the record."""
    plans, stats = sampler.missing(run.source, run.request, level, run.tapes).values(), run.stats(level)
    stats["windows"] = max(stats.get("windows", 0), *map(len, plans))
    return sum(window.end - window.given for plan in plans for window in plan)


@contextmanager
def _booked(run: Run, *levels: int) -> Iterator[dict[int, float]]:
    """What is drawn inside goes into the record, whatever ends it: codes, and the seconds that one puts down here."""
    before = {level: int(run.tapes[level].lengths.sum()) for level in levels}
    spent: dict[int, float] = {}
    try:
        yield spent
    finally:
        for level in levels:
            stats = run.stats(level)
            stats["draw_seconds"] += spent.get(level, 0.0)
            stats["drawn_codes"] += int(run.tapes[level].lengths.sum()) - before[level]


@contextmanager
def _timed(spent: dict[int, float], level: int) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        spent[level] = time.perf_counter() - began


def decode_level(run: Run, level: int) -> None:
    """Write the sound and the spectrograms of a level's codes, and the time that took into the record."""
    began, codes = time.perf_counter(), run.tapes[level].array()
    variables, samples = run.source.load("vqvae"), codes.shape[1] * run.source.hop(level)
    rate = run.source.vqvae.sample_rate
    with progress(f"level {level} to audio", samples * len(codes), samples * len(codes) / rate) as bar:
        stems = [run.out / f"level_{level}" / f"item_{number}" for number in run.request.items]
        at_once = row_groups()  # an item on each device that shares the batch
        for first in range(0, len(stems), at_once):
            some = slice(first, first + at_once)
            pieces = _counted(stream.decode(run.source, variables, codes[some], level), bar)
            stream.write_audio(pieces, rate, samples, stems[some])
    run.stats(level)["decode_seconds"] = time.perf_counter() - began


def _align(run: Run) -> None:
    began, source = time.perf_counter(), run.source
    codes = run.tapes[source.top].array()
    seconds = source.hop(source.top) / source.vqvae.sample_rate
    folder = run.out / "alignment"
    folder.mkdir(exist_ok=True)
    maps = align.align(source, run.request, codes)
    for number, meta, weights in zip(run.request.items, run.request.metas, maps, strict=True):
        if not weights.any():
            continue
        lyrics = source.labellers[source.top].label(meta)[1]["lyrics"]
        timed = {"lyrics": lyrics, "seconds": align.times(weights, seconds)}
        (folder / f"item_{number}.json").write_text(json.dumps(timed))
        (folder / f"item_{number}.png").write_bytes(spectrogram.png(align.picture(weights, MAP_ROWS)))
    run.record["alignment_seconds"] = time.perf_counter() - began


def write_page(run: Run) -> None:
    """Write ``index.html`` of the levels that have been decoded."""
    source, items = run.source, []
    rate = source.vqvae.sample_rate
    for number, meta in zip(run.request.items, run.request.metas, strict=True):
        info = source.labellers[source.top].label(meta)[1] if source.priors[source.top].labels else {}
        labels = {key: str(meta[key]) for key in ("artist", "genre") if info and meta.get(key)}
        if info:
            labels["song"] = f"{meta['total_length'] / rate:.4g} s, from {meta['offset'] / rate:.4g} s on"
        labels["seed"] = str(run.request.seed)
        picture = run.out / "alignment" / f"item_{number}.png"
        lyrics = info.get("lyrics", "") if source.priors[source.top].lyrics else ""
        items.append(report.Item(number, labels, lyrics, picture if picture.exists() else None))
    levels = [
        _row(run, level, run.tapes[level].array())
        for level in run.request.levels
        if "decode_seconds" in run.stats(level)
    ]
    seconds = run.request.length / rate
    versions = ", ".join(f"{name} {version}" for name, version in run.record["versions"].items())
    report.write(
        run.out / "index.html", items, levels, rate=rate, title=f"{source.name}: {seconds:.1f} s, {run.record['mode']}",
        summary=f"{len(items)} item{'s' * (len(items) > 1)} at {rate:,} Hz, begun {run.record['started']}",
        command=run.record["command"], footer=f"{run.record['device']} · {versions}",
    )  # fmt: skip


def _row(run: Run, level: int, codes: Int32[np.ndarray, "b t"]) -> dict[str, Any]:
    stats, hop, rate = run.stats(level), run.source.hop(level), run.source.vqvae.sample_rate
    return stats | {
        "level": level,
        "codes": codes.shape[1],
        "seconds": codes.shape[1] * hop / rate,
        "codes_per_second": rate / hop,
        "drawn_per_second": stats["drawn_codes"] / stats["draw_seconds"] if stats["draw_seconds"] else 0.0,
    }


@contextmanager
def progress(what: str, codes: int, seconds: float) -> Iterator[tqdm]:
    """A bar over ``codes`` that last ``seconds``, shown in seconds of audio, with the time gone and the time to go."""
    bar_format = "{desc:<16} {percentage:3.0f}% |{bar:24}| {heard} s of audio, {elapsed} gone, {remaining} to go"
    with _Bar(total=codes, desc=what, bar_format=bar_format, mininterval=0.5, smoothing=0.1) as bar:
        bar.seconds_per_code = seconds / max(codes, 1)
        yield bar


class _Bar(tqdm):
    """Counts codes, exactly; shows seconds."""

    seconds_per_code = 0.0

    @property
    def format_dict(self) -> dict[str, Any]:
        shown = super().format_dict
        done, all_of_it = (count * self.seconds_per_code for count in (self.n, self.total))
        return {**shown, "heard": f"{done:.1f} of {all_of_it:.1f}"}


def _counted(pieces: Iterator[np.ndarray], bar: tqdm) -> Iterator[np.ndarray]:
    for piece in pieces:
        bar.update(piece.size)
        yield piece


def require_free_space(out: Path, seconds: float, items: int, levels: int, rate: int) -> None:
    """Raise ``UserError`` if the wavs would not fit the disk that ``out`` is on."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    need, free = 2.3 * seconds * rate * items * levels, shutil.disk_usage(there).free
    if need > free:
        raise UserError(f"{out} would need {need / 1e9:.1f} GB for its audio; {there} has {free / 1e9:.1f} GB free")
