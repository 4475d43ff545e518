"""Which attention each layer uses, and how equal layers are grouped so that few bodies compile (spec/prior.md 5).

A pattern and a depth give one attention kind per layer; ``segments`` folds them into repeated groups, so that
``factored`` at depth 72 is ``(BLOCK COLUMN PREVIOUS) x 24``: three compiled bodies instead of seventy-two. No jax here.
"""

from __future__ import annotations

import enum
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from jukebox_jax.types import choose


class Kind(enum.Enum):
    """What a query at position p attends to (spec/prior.md section 4)."""

    DENSE = "dense"  # every position up to p
    BLOCK = "block"  # positions of p's block up to p
    COLUMN = "column"  # positions at p's offset, in p's block and earlier ones
    PREVIOUS = "previous"  # all of the block before p's; zeros for the first block
    SUMMARY = "summary"  # the last position of each complete block, and one zero key
    SPREAD = "spread"  # the last few positions of each complete block, and as many zero keys
    LYRICS = "lyrics"  # all lyric encodings (cross attention)
    PRIME = "prime"  # the lyrics in front of the music, and a little more, up to p


_B, _C, _P, _D, _L = Kind.BLOCK, Kind.COLUMN, Kind.PREVIOUS, Kind.DENSE, Kind.LYRICS
_FACTORED = (_B, _C, _P)
_LYRICS_10 = _FACTORED * 3 + (_L,)


def _every_sixteenth(special: tuple[Kind, Kind, Kind]) -> tuple[Kind, ...]:
    """Factored by absolute index, every sixteenth layer replaced by ``special`` in turn."""
    return tuple(special[d % 3] if d % 16 == 15 else _FACTORED[d % 3] for d in range(48))


# Each pattern repeats with its own length.
PATTERNS: dict[str, tuple[Kind, ...]] = {
    "dense": (_D,),
    "block_column": (_B, _C),
    "factored": _FACTORED,
    "block_summary": (_B, Kind.SUMMARY),
    "block_spread": (_B, Kind.SPREAD),
    "block_summary_4": (_B, Kind.SUMMARY, _B, _B),
    "factored_lyrics_4": (*_FACTORED, _L),
    "factored_lyrics_16": _FACTORED * 5 + (_L,),
    "factored_lyrics_10": _LYRICS_10,
    "factored_dense": (*_FACTORED, _D),
    "factored_lyrics": _FACTORED * 3 + _LYRICS_10 * 7,
    "factored_lyrics_dense": _every_sixteenth((_L, _L, _D)),
    "factored_prime": _every_sixteenth((Kind.PRIME, Kind.PRIME, _D)),
}


class Segment(NamedTuple):
    """``kinds`` applied in order, ``repeats`` times."""

    kinds: tuple[Kind, ...]
    repeats: int


def layer_kinds(pattern: str, depth: int) -> tuple[Kind, ...]:
    """The attention kind of each layer. Depth need not be a multiple of the pattern's length."""
    choose("attention pattern", pattern, PATTERNS)
    cycle = PATTERNS[pattern]
    return tuple(cycle[d % len(cycle)] for d in range(depth))


@functools.cache
def segments(pattern: str, depth: int) -> tuple[Segment, ...]:
    """Fold the layers into repeated groups with the fewest layer bodies, then the fewest groups."""
    kinds = layer_kinds(pattern, depth)
    best: list[tuple[int, int, tuple[Segment, ...]]] = [(0, 0, ())] * (depth + 1)
    for start in range(depth - 1, -1, -1):
        options = []
        for period in range(1, depth - start + 1):
            group, repeats = kinds[start : start + period], 1
            while True:
                bodies, groups, rest = best[start + period * repeats]
                options.append((bodies + period, groups + 1, (Segment(group, repeats), *rest)))
                end = start + period * (repeats + 1)
                if end > depth or kinds[end - period : end] != group:
                    break
                repeats += 1
        best[start] = min(options, key=lambda option: option[:2])
    return best[0][2]


def spans(layers: int, sizes: Sequence[int]) -> list[range]:
    """Places 0 .. layers - 1 of a group cut into neighbours, so many at a time as ``sizes`` say in turn."""
    found, cycle = [range(0)], itertools.cycle(sizes)
    while found[-1].stop < layers:
        found.append(range(found[-1].stop, min(layers, found[-1].stop + next(cycle))))
    return found[1:]


def locate(pattern: str, depth: int, layer: int) -> tuple[int, int, int]:
    """Layer number -> (segment, repeat, place within the group): where its parameters are stacked."""
    first = 0
    for index, (kinds, repeats) in enumerate(segments(pattern, depth)):
        if first <= layer < first + len(kinds) * repeats:
            return index, (layer - first) // len(kinds), (layer - first) % len(kinds)
        first += len(kinds) * repeats
    raise IndexError(f"layer {layer} is past the last one")
