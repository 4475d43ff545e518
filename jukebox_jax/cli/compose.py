"""``jukebox compose``: choose among takes, a few seconds at a time, then upsample what was chosen."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jukebox_jax.types import UserError

if TYPE_CHECKING:
    from jukebox_jax.sample.takes import Session

HELP = "compose together with a model: keep one of several takes, a few seconds at a time"
EXAMPLE = "jukebox compose --model=models/mine --output=piece --artist=unknown --step_seconds=4 --takes=3"
QUESTION = "keep which take? NUMBER, NUMBER done, again, back, or quit: "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags."""
    parser.add_argument("--model", required=True, metavar="DIR", help="what `jukebox train` or `convert` left")
    parser.add_argument("--output", required=True, metavar="DIR", help="made, or gone on with")
    parser.add_argument("--takes", type=int, default=3, metavar="N", help="takes to choose from (default: 3)")
    parser.add_argument("--step_seconds", type=float, default=4.0, help="length of a take (default: 4)")
    parser.add_argument("--artist", help="search the names with `jukebox labels` (default: unknown)")
    parser.add_argument("--genre", help="default: unknown")
    parser.add_argument("--lyrics", help="the words of the whole song")
    parser.add_argument("--total_seconds", type=float, default=60.0, help="length of the whole song (default: 60)")
    parser.add_argument("--audio", metavar="FILE", help="a recording to begin with")
    parser.add_argument("--prompt_seconds", type=float, help="how much of --audio to begin with")
    parser.add_argument("--temperature", type=float, default=0.98, help="default: 0.98")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    """Draw takes, ask, and go on until the answer is done or quit. Answers are read from the standard input."""
    from jukebox_jax.sample import ask
    from jukebox_jax.sample.source import from_directory
    from jukebox_jax.sample.takes import Session, num_codes

    source = from_directory(args.model).resident()
    new = num_codes(source, args.step_seconds)
    meta = {key: getattr(args, key) for key in ("artist", "genre", "lyrics", "total_seconds") if getattr(args, key)}
    start, request = ask.prepare(
        source, mode="primed" if args.audio else "ancestral", seconds=args.total_seconds, num_samples=args.takes,
        metas=[meta], audio=[args.audio] if args.audio else [], prompt_seconds=args.prompt_seconds, seed=args.seed,
        temperature=[args.temperature],
    )  # fmt: skip
    for row in request.metas:
        source.labellers[source.top].label(row)
    command = shlex.join(["jukebox", *sys.argv[1:]])
    session = Session(source, request, Path(args.output), start[source.top][0], command)
    while True:
        if session.takes is None:
            session.draw(new)
        print(f"listen: {session.step_folder / 'index.html'}")
        try:
            done = answer(session, input(QUESTION).split())
        except EOFError:
            done = "quit"
        except UserError as error:
            print(f"jukebox compose: {error}", file=sys.stderr)
            continue
        if done:
            break
    if done == "quit":
        print(f"\nall is in {args.output}; the same command goes on from there")
        return 0
    session.finish()
    print(f"{Path(args.output) / session.final / 'index.html'} plays and shows the result")
    return 0


def answer(session: Session, words: list[str]) -> str | None:
    """Do what was answered; "done" or "quit" where that ends the session."""
    match words:
        case ["quit"]:
            return "quit"
        case ["again"]:
            session.takes = None
        case ["back"]:
            session.back()
        case [number] if number.isdecimal():
            session.keep(int(number))
        case [number, "done"] if number.isdecimal():
            session.keep(int(number))
            return "done"
        case _:
            raise UserError(f"{' '.join(words)!r} is no answer: allowed are 0, 0 done, again, back, quit")
    return None
