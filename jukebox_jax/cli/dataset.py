"""``jukebox dataset``: a folder of music becomes a data set for training."""

from __future__ import annotations

import argparse

from jukebox_jax.types import UserError

HELP = "Turn a folder of music into a data set (TFDS, ArrayRecord) with artist, genre and lyric labels."
EXAMPLE = "jukebox dataset --input=music --output=data/music --sample_rate=44100"

DETAILS = """
metadata.csv in the input folder (optional) has a column file, and any of artist, genre, title, lyrics. What it does not
say is taken from the files' own tags. Everything that is left out is named in the table below and in
OUTPUT/summary.json, with the reason.

With --runner=DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, ... the same shards are written by an Apache Beam
pipeline (extra "beam"); flags after -- go to Beam:
  jukebox dataset --input=/nfs/music --output=/nfs/data --runner=FlinkRunner -- --flink_master=host:8081 --parallelism=9
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``jukebox dataset``."""
    parser.epilog = f"{parser.epilog}\n{DETAILS}"
    parser.add_argument("--input", required=True, metavar="FOLDER", help="music: wav, flac, ogg, opus, mp3, aiff")
    parser.add_argument("--output", required=True, metavar="DIR", help="where the data set goes")
    parser.add_argument("--sample_rate", type=int, default=44_100, metavar="HZ", help="resample to this (44100)")
    parser.add_argument("--record_seconds", type=float, default=4.0, metavar="S", help="length of a record (4)")
    parser.add_argument("--test_fraction", type=float, default=0.1, metavar="F", help="share of songs for test (0.1)")
    parser.add_argument("--min_seconds", type=float, default=1.0, metavar="S", help="skip shorter files (1)")
    parser.add_argument("--label_version", default="v3", help="label tables: v3, names as written (default); v2, words")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (all cores)")
    parser.add_argument("--runner", default="local", help="local (default), or a Beam runner such as DirectRunner")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that is there already")
    parser.add_argument("beam_flags", nargs="*", metavar="-- BEAM FLAGS", help="flags for the Beam runner")


def main(args: argparse.Namespace) -> int:
    """Build, and print what came of it."""
    from jukebox_jax.data import builder  # after the flags are known to be right: imports TFDS

    if args.beam_flags and args.runner == "local":
        raise UserError(
            f"{' '.join(args.beam_flags)!r}: flags after -- need --runner, for example --runner=DirectRunner"
        )
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers={args.workers}: allowed are 1 and more")
    made = builder.build(
        args.input,
        args.output,
        sample_rate=args.sample_rate,
        record_seconds=args.record_seconds,
        test_fraction=args.test_fraction,
        min_seconds=args.min_seconds,
        label_version=args.label_version,
        workers=args.workers,
        runner=args.runner,
        runner_flags=args.beam_flags,
        overwrite=args.overwrite,
    )
    print(made.table())
    return 0
