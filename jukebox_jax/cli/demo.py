"""``jukebox demo``: the whole way from music to a page of samples, through the commands that a user would type.

    OUTPUT/music    tunes made on the spot (not with --input)
    OUTPUT/data     the data set
    OUTPUT/model    the model directory: VQ-VAE, top prior, two upsamplers
    OUTPUT/sample   wavs, codes and index.html

A demo that was interrupted goes on where it stopped when it is run again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from jukebox_jax.types import UserError

HELP = "music in, a small trained Jukebox and its samples out, in about a quarter of an hour"
EXAMPLE = "jukebox demo --output=demo_out"

CONFIG = Path(__file__).parents[2] / "configs" / "tiny.py"
# Training steps, and what else suits a short run: about seven minutes in all on two cores.
PARTS = {
    "vqvae": (250, ("--config.window_samples=8192",)), "prior": (250, ()), "upsampler_1": (200, ()),
    "upsampler_0": (200, ()),
}  # fmt: skip
QUICK = "--config.sample_every=0"  # nobody watches TensorBoard here
ITEMS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``jukebox demo``."""
    parser.add_argument("--output", default="demo_out", metavar="DIR", help="where everything goes (demo_out)")
    parser.add_argument("--input", metavar="FOLDER", help="your own music, instead of tunes made on the spot")
    parser.add_argument("--seconds", type=float, default=12.0, metavar="S", help="length of a sample (12)")
    parser.add_argument("--effort", type=float, default=1.0, metavar="X", help="times as many training steps (1)")


def main(args: argparse.Namespace) -> int:
    """Run every step, and say where the page is."""
    if not args.effort > 0:
        raise UserError(f"--effort={args.effort:g}: allowed are numbers above 0")
    if not CONFIG.is_file():
        raise UserError(f"the demo's config {CONFIG} is not there: run the demo from a checkout of the repository")
    began, times = time.perf_counter(), {}
    out = Path(args.output)
    out.mkdir(parents=True, exist_ok=True)
    music = Path(args.input) if args.input else _timed(times, "music", _render, out / "music")
    data, model, sample = out / "data", out / "model", out / "sample"
    made_of = _made_of(data)
    if made_of and made_of.absolute() != music.absolute():
        raise UserError(f"{out} holds a demo of other music, {made_of}: choose another --output")
    if made_of:
        print(f"{data} is there already", flush=True)
    else:
        _timed(times, "dataset", jukebox, "dataset", f"--input={music}", f"--output={data}", "--overwrite")
    for part, (steps, flags) in PARTS.items():
        steps = f"--steps={max(1, round(steps * args.effort))}"
        where = f"--config={_short(CONFIG)}:{part}", f"--workdir={model}", f"--dataset={data}"
        _timed(times, f"train {part}", jukebox, "train", *where, steps, *flags, QUICK)
    (out / "labels.json").write_text(json.dumps(labels(data), indent=1) + "\n", encoding="utf-8")
    flags = f"--metadata={out / 'labels.json'}", f"--num_samples={ITEMS}", f"--seconds={args.seconds:g}"
    _timed(times, "sample", jukebox, "sample", f"--model={model}", f"--output={sample}", *flags)
    spent = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in times.items())
    print(f"\n{time.perf_counter() - began:.0f} s in all: {spent}\n\nListen: {(sample / 'index.html').absolute()}")
    return 0


def jukebox(*words: str) -> None:
    """Print a command and run it, in a process of its own. Ends the program with its exit code unless that is 0."""
    print(f"\n$ {shlex.join(['jukebox', *words])}", flush=True)
    stopped: list[int] = []
    process = None

    def stop(number: int, _: Any) -> None:
        stopped.append(number)
        if process is not None:
            process.terminate()

    before = signal.signal(signal.SIGTERM, stop)  # first, so that no signal finds neither a handler nor a command
    try:
        process = subprocess.Popen([sys.executable, "-m", "jukebox_jax", *words])
        if stopped:
            process.terminate()
        code = process.wait()
    except KeyboardInterrupt:  # the terminal has told the command too; let it save
        if process is not None:
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if stopped or code:
        raise SystemExit(128 + stopped[0] if stopped else code)


def labels(data: Path) -> list[dict[str, Any]]:
    """What to ask for: the pairs of artist and genre that the data has most of, each artist once before any twice."""
    rate = json.loads((data / "summary.json").read_text(encoding="utf-8"))["sample_rate"]
    songs = [json.loads(line) for line in (data / "songs.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = sorted(song["total_length"] for song in songs)[len(songs) // 2] / rate
    pairs = Counter((song.get("artist") or "unknown", song.get("genre") or "unknown") for song in songs)
    rounds: Counter[str] = Counter()
    ranked = []
    for artist, genre in sorted(pairs, key=lambda pair: (-pairs[pair], pair)):
        ranked.append((rounds[artist], artist, genre))
        rounds[artist] += 1
    return [
        {"artist": artist, "genre": genre, "total_seconds": round(seconds, 1)}
        for _, artist, genre in sorted(ranked, key=lambda entry: entry[0])[:ITEMS]
    ]


def _render(folder: Path) -> Path:
    if (folder / "metadata.csv").is_file():
        print(f"{folder} is there already", flush=True)
        return folder
    from jukebox_jax.data import demo_music  # needs the extra "demo"

    print("The music: public-domain tunes, several bands and styles.", flush=True)
    demo_music.render(folder)
    return folder


def _made_of(data: Path) -> Path | None:
    """The folder of music that the complete data set ``data`` was made of; None if there is none."""
    try:
        return Path(json.loads((data / "summary.json").read_text(encoding="utf-8"))["input"])
    except (OSError, ValueError, KeyError):
        return None


def _short(path: Path) -> Path:
    """Relative to the working directory if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _timed(times: dict[str, float], what: str, call: Any, *args: Any) -> Any:
    began = time.perf_counter()
    result = call(*args)
    times[what] = time.perf_counter() - began
    return result
