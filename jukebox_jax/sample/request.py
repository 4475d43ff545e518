"""What to sample: a frozen description that is checked against the model before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from jukebox_jax.ops.logits import Settings
from jukebox_jax.sample import windows
from jukebox_jax.sample.source import Source
from jukebox_jax.types import UserError, choose

T = TypeVar("T")
MODES = ("ancestral", "continue", "upsample", "primed")
ORDERS = ("levels", "wavefront")


@dataclass(frozen=True)
class Request:
    """One run of the sampler.

    Attributes:
      metas: per item: artist, genre, lyrics, total_length and offset (samples), as ``data.labels`` takes them.
      length: samples of audio to end with, whole codes of every level.
      levels: levels to draw, from the higher to the lower.
      hop_fractions, settings, batch_sizes: per level, bottom first.
      seed, items: item ``i`` of a level is drawn from a key made of seed, ``items[i]`` and level.
      compat: what the original does where spec/quirks.md B says to fix it.
      order: one level after the other, or each window as soon as it can be drawn; the codes are the same.
      segments: more than 1: an upsampled level is drawn in so many parts side by side, approximately (fast.py).
      int8: decode with weights and caches of 8 bits: other codes, as likely to a hundredth of a bit (models/int8.py).
    """

    metas: tuple[Mapping[str, Any], ...]
    length: int
    levels: tuple[int, ...]
    hop_fractions: tuple[float, ...]
    settings: tuple[Settings, ...]
    batch_sizes: tuple[int, ...]
    seed: int = 0
    items: tuple[int, ...] = ()
    compat: bool = False
    order: str = "levels"
    segments: int = 1
    int8: bool = False

    def __post_init__(self) -> None:
        choose("order", self.order, ORDERS)
        if self.segments < 1 or self.segments > 1 and self.order != "levels":
            raise UserError(f"{self.segments} segments with order {self.order!r}: --fast takes 1 or more, and draws"
                            " one level after the other")  # fmt: skip
        if not self.items:
            object.__setattr__(self, "items", tuple(range(len(self.metas))))
        if len(self.items) != len(self.metas) or not self.metas:
            raise UserError(f"{len(self.items)} items, but labels of {len(self.metas)}: give one of each, at least one")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed {self.seed} must be 0 to {2**32 - 1}")

    def hop(self, source: Source, level: int) -> int:
        """Codes between window starts."""
        prior = source.priors[level]
        return windows.hop_length(self.hop_fractions[level], prior.context_length, prior.upsampling, compat=self.compat)

    def plan(self, source: Source, level: int, known: int) -> list[windows.Window]:
        """The windows that complete a level of which ``known`` codes are there."""
        context, total = source.priors[level].context_length, self.length // source.hop(level)
        return windows.plan(known, total, context, self.hop(source, level), compat=self.compat)

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        values = dataclasses.asdict(self) | {"metas": [dict(meta) for meta in self.metas]}
        return {name: value for name, value in values.items() if name != "int8" or value}  # older runs go on


def per_level(name: str, values: Sequence[T], levels: int) -> tuple[T, ...]:
    """One value for all levels, or one per level (bottom first)."""
    if len(values) not in (1, levels):
        raise UserError(f"{name} has {len(values)} values; give one, or {levels} (level 0 first)")
    return tuple(values) * (levels if len(values) == 1 else 1)


def choose_levels(wanted: Sequence[int] | None, mode: str, top: int, have: Sequence[int]) -> tuple[int, ...]:
    """The levels to draw, in order. ``have``: levels of which codes are given."""
    highest = top - 1 if mode == "upsample" else top
    levels = tuple(range(highest, -1, -1)) if wanted is None else tuple(wanted)
    if not levels:
        raise UserError("a model of one level has nothing to upsample: use --mode=continue")
    allowed = " or ".join(",".join(map(str, range(highest, low - 1, -1))) for low in range(highest + 1))
    if levels != tuple(range(levels[0], levels[0] - len(levels), -1)) or not 0 <= levels[-1] <= levels[0] <= top:
        raise UserError(f"levels {','.join(map(str, levels))} are in the wrong order: a level is drawn from the one"
                        f" above it, so from the higher to the lower without a gap; allowed are {allowed}")  # fmt: skip
    if levels[0] < top and levels[0] + 1 not in have:
        raise UserError(f"level {levels[0]} is drawn from the codes of level {levels[0] + 1}, which are not given;"
                        f" allowed are {allowed}, or --mode=upsample with --codes")  # fmt: skip
    return levels


def check(source: Source, request: Request, known: Sequence[int]) -> None:
    """Raise ``UserError`` for what would fail in the middle of a run. ``known``: codes given per level."""
    rate = source.vqvae.sample_rate
    for level in range(source.top + 1):
        if request.length % source.hop(level):
            raise UserError(f"length {request.length} samples is no multiple of {source.hop(level)} (level {level})")
    for level in request.levels:
        prior = source.priors[level]
        window = prior.window_samples
        above = 0 if level == source.top else known[level + 1] * source.hop(level + 1)
        if level < source.top and request.length < window and above < window:
            least = -(-window // source.hop(source.top)) * source.hop(source.top)
            raise UserError(f"{request.length / rate:.3g} s is too short: one window of level {level} is"
                            f" {window / rate:.3g} s, so ask for at least {math.ceil(1000 * least / rate) / 1000:g} s"
                            f" ({least} samples at {rate} Hz)")  # fmt: skip
        labeller = source.labellers[level]
        plan = request.plan(source, level, known[level])
        for meta in request.metas:
            row, info = labeller.label(meta)
            if plan and labeller.labels:
                _check_song(row, plan[-1].start * prior.hop_length, request, meta, rate)
                labeller.window(row, info, plan[-1].start * prior.hop_length)


def _check_song(row: Any, start: int, request: Request, meta: Mapping[str, Any], rate: int) -> None:
    total, last = int(row[0]), int(row[1]) + start
    if not request.compat and last >= total:
        raise UserError(f"the song of {total / rate:.2f} s ends before the last window starts"
                        f" ({last / rate:.2f} s): ask for a longer song or fewer seconds")  # fmt: skip
