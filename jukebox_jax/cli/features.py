"""``jukebox features``: activations of a layer, for other people's classifiers."""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from jukebox_jax.types import UserError, choose

HELP = "turn recordings into features: activations of the top prior after some of its layers"
EXAMPLE = "jukebox features --model=models/mine --layer=3 --pool=mean --output=features.npz music"

DETAILS = """
FILE.npz has one float32 array per recording, named by its path: (d,), or (t, d) with --pool=none. FILE.json has the
settings, the frame rate, and the recordings that were skipped with the reason.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``jukebox features``."""
    parser.epilog = f"{parser.epilog}\n{DETAILS}"
    parser.add_argument("paths", nargs="+", metavar="AUDIO", help="recordings, or folders of them")
    parser.add_argument("--model", required=True, metavar="DIR", help="what `jukebox train` or `convert` left")
    parser.add_argument("--output", required=True, metavar="FILE.npz", help="made, or replaced")
    parser.add_argument("--layer", type=int, default=36, help="after so many layers (default: 36)")
    parser.add_argument("--pool", default="mean", help="over time: mean (default), max or none")
    parser.add_argument("--artist", default="unknown", help="what the model is told (default: unknown)")
    parser.add_argument("--genre", default="unknown", help="default: unknown")


def main(args: argparse.Namespace) -> int:
    """Read, extract, write."""
    import numpy as np
    from tqdm import tqdm

    from jukebox_jax.data import audio
    from jukebox_jax.evaluate import features

    output = Path(args.output)
    if output.suffix != ".npz":
        raise UserError(f"--output={args.output} must end in .npz")
    choose("pool", args.pool, features.POOLS)
    skipped: dict[str, str] = {}
    files = list(dict.fromkeys(_files(args.paths, skipped)))
    extractor = features.load(args.model, args.layer)
    rate, done = extractor.vqvae.sample_rate, {}
    output.parent.mkdir(parents=True, exist_ok=True)
    staged = output.with_name(output.name + ".new")
    try:
        with zipfile.ZipFile(staged, "w") as archive:  # as np.savez does, with one recording in memory at a time
            for file in tqdm(files, desc="features", unit="file"):
                try:
                    decoded = audio.decode(file, rate, min_seconds=extractor.prior.hop_length / rate)
                except audio.Undecodable as error:
                    skipped[file] = str(error)
                    continue
                with decoded.store:
                    windows = (audio.to_float(block).mean(axis=1) for block in decoded.records(extractor.window))
                    pooled = features.pool(extractor.frames(windows, decoded.total, args.artist, args.genre), args.pool)
                with archive.open(f"{file}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, pooled, allow_pickle=False)
                done[file] = {"seconds": decoded.total / rate, "shape": pooled.shape, "notes": decoded.notes}
        for file, reason in skipped.items():
            print(f"skipped  {file}  {reason}")
        if not done:
            raise UserError(f"none of the {len(skipped)} recordings could be used")
        staged.replace(output)
    finally:
        staged.unlink(missing_ok=True)
    facts = {"level": extractor.prior.level, "width": extractor.prior.transformer.width, "sample_rate": rate}
    facts |= {"frame_rate": extractor.frame_rate, "window_seconds": extractor.window / rate}
    settings = vars(args) | facts | {"files": done, "skipped": skipped}
    output.with_suffix(".json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    print(f"{len(done)} recordings, {extractor.frame_rate:g} frames per second: {output}")
    return 0


def _files(paths: Sequence[str], skipped: dict[str, str]) -> Iterator[str]:
    """The recordings among ``paths`` and in the folders among them."""
    from jukebox_jax.data.metadata import find_audio

    for path in paths:
        if not Path(path).exists():
            raise UserError(f"{path} is not there: name recordings, or folders of them")
        if not Path(path).is_dir():
            yield path
            continue
        found, findings, _ = find_audio(path)
        skipped |= {str(Path(path) / finding.file): finding.reason for finding in findings}
        if not found and not findings:
            raise UserError(f"{path} has no recordings in it")
        yield from (str(Path(path) / file) for file in found)
