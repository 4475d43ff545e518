"""``jukebox sample``: draw music from a model directory."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jukebox_jax.types import UserError

if TYPE_CHECKING:
    from jukebox_jax.sample.request import Request
    from jukebox_jax.sample.source import Source

HELP = "draw music from a model; run it again to resume"
EXAMPLE = (
    "jukebox sample --model=models/mine --output=out --artist=unknown --genre=unknown --seconds=20 --num_samples=4"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags. Those that take one value per level begin with level 0, the bottom."""
    parser.add_argument("--model", required=True, metavar="DIR", help="what `jukebox train` or `convert` left")
    parser.add_argument("--output", required=True, metavar="DIR", help="made, or resumed if it holds the same run")
    parser.add_argument("--overwrite", action="store_true", help="begin anew where --output holds a run")
    parser.add_argument(
        "--mode", default="ancestral",
        help="ancestral (from nothing), continue (--codes go on), upsample (the levels below --codes) or primed"
        " (--audio goes on); default: ancestral",
    )  # fmt: skip
    what = parser.add_argument_group("what to draw")
    what.add_argument(
        "--seconds", type=float, help="length of the result (default: of --codes when upsampling, else 20)"
    )
    what.add_argument("--num_samples", type=int, help="how many items (default: 1, or as many as --codes has)")
    what.add_argument("--artist", help="search the names with `jukebox labels` (default: unknown)")
    what.add_argument("--genre", help="default: unknown")
    what.add_argument("--lyrics", help="the words of the whole song")
    what.add_argument("--lyrics_file", metavar="FILE", help="the same from a text file (UTF-8)")
    what.add_argument(
        "--drop_characters", action="store_true", help="leave out characters of the lyrics that the model does not know"
    )
    what.add_argument("--total_seconds", type=float, help="length of the song that the result is part of (default: the"
                      " result's, or the shortest that the model takes)")  # fmt: skip
    what.add_argument("--offset", type=float, default=0.0, help="where in that song the result begins, in seconds")
    what.add_argument("--metadata", metavar="FILE.json", help="a list with a table per item: artist, genre, lyrics,"
                      " total_seconds, offset; used in turn, and completed by the flags above")  # fmt: skip
    begin = parser.add_argument_group("what to begin with")
    begin.add_argument("--codes", metavar="FILE.npz", help="codes.npz of a run, for continue and upsample")
    begin.add_argument(
        "--items", type=_list(int), help="places in --codes of the items to take, e.g. 0,3 (default: all)"
    )
    begin.add_argument("--audio", help="audio files, comma-separated, used in turn by the items, for primed")
    begin.add_argument("--prompt_seconds", type=float, help="how much of --audio or --codes to begin with")
    begin.add_argument(
        "--prompt_offset", type=float, default=0.0, help="where in --audio the prompt begins, in seconds"
    )
    how = parser.add_argument_group("how to draw (one value, or one per level, level 0 first)")
    how.add_argument("--seed", type=int, default=0, help="the same seed gives the same codes, whatever the batch")
    how.add_argument("--levels", type=_list(int), help="only these levels, from higher to lower, e.g. 2 or 1,0")
    how.add_argument("--temperature", type=_list(float), default=[0.99], help="default: 0.99; 0: the most likely code")
    how.add_argument("--top_k", type=_list(int), default=[0], help="draw among so many codes (default: 0, all)")
    how.add_argument("--top_p", type=_list(float), default=[0.0], help="draw among the codes that make up so much"
                     " of the probability (default: 0, all)")  # fmt: skip
    how.add_argument("--hop_fraction", type=_list(float), help="how far a window moves, in contexts (default: 0.5, and"
                     " 0.125 at the top)")  # fmt: skip
    how.add_argument("--order", default="levels", help="levels (one after the other, default) or wavefront (all in"
                     " memory, each window as soon as it can be drawn): the same codes")  # fmt: skip
    how.add_argument("--fast", type=int, nargs="?", const=8, default=1, metavar="SEGMENTS", help="approximate: draw"
                     " the levels below the top in so many parts side by side (default: 8 if given) and their seams"
                     " again; run.json says how likely the seams are")  # fmt: skip
    how.add_argument("--mesh", help="how all devices share the work, such as data=2,tensor=4: items over data, heads"
                     " and hidden units over tensor; the same codes (default: one device)")  # fmt: skip
    how.add_argument("--int8", action="store_true", help="weights and caches of 8 bits: at best half the bytes, for"
                     " TPUs and GPUs; other codes than without, as likely to 0.01 bits")  # fmt: skip
    how.add_argument("--max_batch_size", type=_list(int), default=[16], help="items drawn together (default: 16)")


def main(args: argparse.Namespace) -> int:
    """Check everything, then draw."""
    from jukebox_jax.parallel.mesh import make_mesh, parse_mesh, use
    from jukebox_jax.sample.source import from_directory

    mesh = None if args.mesh is None else make_mesh(parse_mesh(args.mesh))
    with contextlib.nullcontext() if mesh is None else use(mesh):
        return _sample(args, from_directory(args.model, mesh=mesh))


def _sample(args: argparse.Namespace, source: Source) -> int:
    from jukebox_jax.sample import ask, run
    from jukebox_jax.sample import request as requests

    start, request = ask.prepare(
        source, mode=args.mode, seconds=args.seconds, num_samples=args.num_samples, metas=_metas(args),
        codes=args.codes, items=args.items, audio=[path for path in (args.audio or "").split(",") if path],
        prompt_seconds=args.prompt_seconds, prompt_offset=args.prompt_offset, seed=args.seed, levels=args.levels,
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, hop_fraction=args.hop_fraction,
        max_batch_size=args.max_batch_size, drop_characters=args.drop_characters, order=args.order, segments=args.fast,
        int8=args.int8,
    )  # fmt: skip
    known = [codes.shape[1] for codes in start]
    requests.check(source, request, known)
    if not any(request.plan(source, level, known[level]) for level in request.levels):
        raise UserError(f"there is nothing to draw: --codes has {request.length / source.vqvae.sample_rate:.2f} s of"
                        f" level {request.levels[0]} already; ask for more --seconds, or other --levels")  # fmt: skip
    out, rate = Path(args.output), source.vqvae.sample_rate
    run.require_free_space(out, request.length / rate, len(request.items), len(request.levels), rate)
    _announce(source, request, known)
    about = {"mode": args.mode, "model_directory": args.model, "command": shlex.join(["jukebox", *sys.argv[1:]])}
    try:
        run.generate(source, request, out, start, about, overwrite=args.overwrite)
    except KeyboardInterrupt:
        print(f"\nall codes so far are in {out}; the same command goes on from there", file=sys.stderr)
        raise
    print(f"{out / 'index.html'} plays and shows everything")
    return 0


def _list(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """An argparse type: comma-separated values."""

    def parse(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"comma-separated {kind.__name__}"
    return parse


def _metas(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The descriptions of --metadata, completed by the flags."""
    if args.lyrics is not None and args.lyrics_file is not None:
        raise UserError("--lyrics and --lyrics_file are both given: choose one")
    lyrics = args.lyrics if args.lyrics_file is None else _text(args.lyrics_file)
    flags = {
        "artist": args.artist, "genre": args.genre, "lyrics": lyrics, "total_seconds": args.total_seconds,
        "offset": args.offset,
    }  # fmt: skip
    flags = {key: value for key, value in flags.items() if value is not None}
    if args.metadata is None:
        return [flags]
    try:
        found = json.loads(_text(args.metadata))
    except json.JSONDecodeError as error:
        raise UserError(f"{args.metadata} is no JSON: {error}") from None
    if not isinstance(found, list) or not found or not all(isinstance(meta, dict) for meta in found):
        raise UserError(f'{args.metadata} must be a list of tables, one per item: [{{"artist": ...}}, ...]')
    return [flags | meta for meta in found]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text") from None


def _announce(source: Source, request: Request, known: Sequence[int]) -> None:
    rate, items = source.vqvae.sample_rate, len(request.items)
    print(f"{source.name}: {items} item{'s' * (items > 1)} of {request.length / rate:.2f} s")
    for level in request.levels:
        plan = request.plan(source, level, known[level])
        new = sum(window.end - window.given for window in plan)
        print(f"  level {level}: {new:,} codes an item in {len(plan)} window{'s' * (len(plan) != 1)}"
              f" of {source.priors[level].context_length:,}, {known[level]:,} given")  # fmt: skip
