"""The alphabet of shapes, and the one error that users are meant to see.

Dimensions, in jaxtyping signatures, comments and einsum alike::

    a  audio samples        b  batch               t  codes (time steps)
    s  keys attended to     n  blocks              c  codes per block
    d  model width          f  MLP width           h  heads
    k  head dimension       S  heads x head dim    v  vocabulary
    e  codebook dimension   l  lyric tokens        g  genres per song

Audio is float32 in [-1, 1] with a trailing channel axis, ``b a 1``. Codes are int32, ``b t``. Level 0 is the
bottom (finest) level, the last level is the top.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The command line prints the message as one line and exits with 2; no traceback."""


def nearest(value: object, allowed: Iterable[object], *, limit: int = 1) -> list[str]:
    """The ``limit`` entries of ``allowed`` that look most like ``value`` (may be empty)."""
    names = {str(a).lower(): str(a) for a in allowed}
    return [names[m] for m in difflib.get_close_matches(str(value).lower(), names, n=limit, cutoff=0.5)]


def choose(what: str, value: object, allowed: Iterable[object]) -> None:
    """Raise ``UserError`` unless ``value`` is one of ``allowed``; the message names the nearest."""
    allowed = list(allowed)
    if value in allowed:
        return
    shown = ", ".join(map(str, allowed[:20])) + (f", ... ({len(allowed)} in all)" if len(allowed) > 20 else "")
    hint = nearest(value, allowed)
    raise UserError(f"unknown {what} {value!r}: allowed are {shown}" + (f". Did you mean {hint[0]!r}?" if hint else ""))
