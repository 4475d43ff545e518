"""``jukebox labels``: which artists and genres a model knows, under which names."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable

from etils import epath

from jukebox_jax.data.vocabulary import VERSIONS, Kind, Vocabulary
from jukebox_jax.types import UserError

HELP = "List or search the artists and genres that a model knows."
EXAMPLE = "jukebox labels search ella fitzgerald --model=runs/demo"
KINDS: tuple[Kind, ...] = ("artist", "genre")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("search", "list"), help="search: the names most like WORDS; list: all names")
    parser.add_argument("words", nargs="*", metavar="WORDS", help="a name, or a part of it")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="DIR", help="a model directory")
    source.add_argument("--ids", metavar="DIR", help="a folder with {v2,v3}_{artist,genre}_ids.txt files")
    parser.add_argument("--kind", choices=KINDS, help="only artists, or only genres")
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="search: at most N names (default: 10)")


def main(args: argparse.Namespace) -> int:
    words = " ".join(args.words)
    if args.action == "search" and not words.strip():
        raise UserError("search for what? Example: " + EXAMPLE)
    if args.action == "list" and words:
        raise UserError(f"list takes no words; to look for {words!r}: jukebox labels search {words}")
    if args.limit < 1:
        raise UserError(f"--limit={args.limit} must be at least 1")
    found = 0
    for title, vocabulary in _vocabularies(args):
        for kind in KINDS if args.kind is None else (args.kind,):
            table = vocabulary.table(kind)
            listed = args.action == "list"
            names = (
                sorted(table.items(), key=lambda item: item[1])
                if listed
                else vocabulary.search(words, kind, args.limit)
            )
            if names:
                print(f"{title}, {kind}s ({len(names)} of {len(table)}):")
                print("".join(f"  {row:5}  {_visible(name)}\n" for name, row in names))
            found += len(names)
    if not found:
        print(f"nothing like {words!r}; an unknown name counts as id 0")
    return 0 if found else 1


def _vocabularies(args: argparse.Namespace) -> Iterable[tuple[str, Vocabulary]]:
    """Each label version of the model (and the levels that use it), or of a folder of id files."""
    if args.ids is not None:
        there = [v for v in VERSIONS if (epath.Path(args.ids) / f"{v}_artist_ids.txt").exists()]
        if not there:
            raise UserError(
                f"{args.ids} has no label tables; they are called v2_artist_ids.txt, v2_genre_ids.txt, v3_..."
            )
        return [(version, Vocabulary.load(args.ids, version)) for version in there]
    from jukebox_jax.checkpoint import bundle  # imports jax: only now

    levels: dict[str, list[int]] = {}
    for level, prior in sorted(bundle.load_description(args.model).priors.items()):
        if prior.labels is not None:
            levels.setdefault(prior.labels.version, []).append(level)
    if not levels:
        raise UserError(f"no prior of {args.model} takes labels")
    return [
        (f"{version} (level {', '.join(map(str, where))})", Vocabulary.load(bundle.labels_dir(args.model), version))
        for version, where in levels.items()
    ]


def _visible(name: str) -> str:
    """The name, with marks that would not show written out."""
    shown = re.sub("[\u200e\u200f\ufeff]", lambda mark: f"<U+{ord(mark[0]):04X}>", name)
    return shown or "(no name)"
