"""Which codes are drawn in which window: a level longer than the context is drawn in overlapping windows.

All lengths are in codes of the level, unless a name says samples or seconds. Source: spec/sampling.md section 2;
``compat`` keeps two surprises of the original that are mended here otherwise (spec/quirks.md B3 and B6).
"""

from __future__ import annotations

from typing import NamedTuple

from jukebox_jax.types import UserError


class Window(NamedTuple):
    """Codes ``[given, end)`` are drawn after ``[start, given)``, at positions ``0 ..`` of the context."""

    start: int
    given: int
    end: int


def starts(total: int, context: int, hop: int) -> list[int]:
    """Where windows of ``context`` codes start, ``hop`` apart; the last one ends at ``total`` (>= context)."""
    return [min(start, total - context) for start in range(0, total - context + hop, hop)]


def split(length: int, size: int) -> list[int]:
    """``length`` in pieces of ``size``; the last one has what is left."""
    return [min(size, length - done) for done in range(0, length, size)]


def hop_length(fraction: float, context: int, multiple: int | None, *, compat: bool = False) -> int:
    """A fraction of the context, in whole codes of the level above (``multiple`` of this level's per code of that).

    ``compat`` does not round: the original stops at the second window then. Raises ``UserError`` for a fraction outside
    (0, 1], or one so small that no hop is left.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"hop fraction {fraction} must be more than 0 and at most 1")
    exact = int(fraction * context)
    hop = exact if compat else exact // (multiple or 1) * (multiple or 1)
    if hop == 0:
        least = (multiple or 1) / context
        raise UserError(f"hop fraction {fraction} of {context} codes is less than one step: at least {least:.4g}")
    return hop


def extension(known: int, new: int, context: int) -> Window:
    """``new`` codes after ``known`` ones in one window, with as much of the past as fits. ``new <= context``."""
    if not 0 < new <= context:
        raise UserError(f"{new} new codes at once: must be 1 to {context}, the context length")
    return Window(max(0, known + new - context), known, known + new)


def plan(known: int, total: int, context: int, hop: int, *, compat: bool = False) -> list[Window]:
    """The windows that take a level from ``known`` codes to ``total``. Windows with nothing to draw are left out.

    A level shorter than the context is one window. With ``compat`` that window adds ``total`` new codes to the known
    ones, as in the original, instead of those that are missing.
    """
    if total >= context:
        windows = []
        for start in starts(total, context, hop):
            if start + context > known:
                windows.append(Window(start, known, start + context))
                known = start + context
        return windows
    if compat:
        return [extension(known, total, context)] if total else []
    return [Window(0, known, total)] if known < total else []


def prompt_samples(seconds: float, sample_rate: int, top_hop: int) -> int:
    """Samples of a duration, in whole codes of the top level."""
    return int(seconds * sample_rate) // top_hop * top_hop
