"""Composing together: a few seconds are drawn for every item, a person keeps one, and the next seconds follow it.

Only the top level is drawn; what was kept is upsampled at the end (spec/sampling.md section 2.3, paper section 5).
"""

from __future__ import annotations

from collections.abc import Sequence

from jukebox_jax.sample import sampler, windows
from jukebox_jax.sample.request import Request
from jukebox_jax.sample.source import Source
from jukebox_jax.sample.tape import Tape
from jukebox_jax.types import UserError


def num_codes(source: Source, seconds: float) -> int:
    """Top codes that last ``seconds`` (rounded up): at least one, and no more than one context."""
    hop, context = source.hop(source.top), source.priors[source.top].context_length
    codes = -(-int(seconds * source.vqvae.sample_rate) // hop)
    if not 0 < codes <= context:
        longest = context * hop / source.vqvae.sample_rate
        raise UserError(f"{seconds:g} s at once: must be more than 0 and at most {longest:.2f} s, one context")
    return codes


def extend(
    source: Source,
    request: Request,
    tapes: Sequence[Tape],
    new: int,
    on_step: sampler.OnStep = lambda codes: None,
) -> None:
    """Draw ``new`` top codes more for every item: takes, alike so far and different from here on.

    Items draw from their own keys. For other takes of the same seconds call with another ``request.seed``.
    """
    level = source.top
    context = source.priors[level].context_length
    plans = {row: [windows.extension(int(known), new, context)] for row, known in enumerate(tapes[level].lengths)}
    sampler.draw_windows(source, request, level, tapes, plans, on_step)


def keep(source: Source, tapes: Sequence[Tape], item: int) -> None:
    """Choose a take: every item goes on from this one's top codes."""
    top = tapes[source.top]
    if not 0 <= item < top.items:
        raise UserError(f"take {item} is not among the {top.items}: allowed are 0 to {top.items - 1}")
    top.keep(item)
