"""Draws the codes of all levels, from the top down, window after window (spec/sampling.md section 2).

The four modes are four sets of starting codes (prompts.py): none, a prompt's, saved ones of every level, saved ones of
the top. Whichever items have equally many given and new codes in their next window are drawn together; what an item
gets depends on its own key, labels and codes only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jukebox_jax.models.prior import Prior
from jukebox_jax.sample import windows
from jukebox_jax.sample.decode import sample_window
from jukebox_jax.sample.request import Request
from jukebox_jax.sample.source import Source
from jukebox_jax.sample.tape import Tape
from jukebox_jax.types import UserError

OnStep = Callable[[int], Any]  # codes drawn since the last call, over all items


def sample(source: Source, request: Request, tapes: Sequence[Tape], on_step: OnStep = lambda codes: None) -> None:
    """Draw every level of the request into ``tapes`` (one per level, bottom first)."""
    for level in request.levels:
        sample_level(source, request, level, tapes, on_step)


def sample_level(
    source: Source, request: Request, level: int, tapes: Sequence[Tape], on_step: OnStep = lambda codes: None
) -> None:
    """Complete one level. Nothing is loaded if nothing is missing."""
    plans = {row: request.plan(source, level, int(known)) for row, known in enumerate(tapes[level].lengths)}
    if any(plans.values()):
        draw_windows(source, request, level, tapes, plans, on_step)


def draw_windows(
    source: Source,
    request: Request,
    level: int,
    tapes: Sequence[Tape],
    plans: Mapping[int, Sequence[windows.Window]],
    on_step: OnStep = lambda codes: None,
) -> None:
    """Draw the planned windows of each item (row) of a level, in order."""
    prior = source.priors[level]
    model = Prior(prior, source.dtype)
    params = source.load(f"prior_level_{level}")["params"]
    rows_y, infos = source.labellers[level].batch(request.metas)
    keys = item_keys(request.seed, request.items, level)
    queues = {row: list(plan) for row, plan in plans.items() if plan}
    while queues:
        rows = next_batch(queues, request.batch_sizes[level])
        batch = [queues[row].pop(0) for row in rows]
        queues = {row: queue for row, queue in queues.items() if queue}
        given, new = batch[0].given - batch[0].start, batch[0].end - batch[0].given
        past = [tapes[level].window([row], window.start, window.given) for row, window in zip(rows, batch, strict=True)]
        labels = [
            source.labellers[level].window(rows_y[row], infos[row], window.start * prior.hop_length)[0]
            for row, window in zip(rows, batch, strict=True)
        ]
        drawn = sample_window(
            model,
            params,
            jnp.asarray(np.concatenate(past)),
            jnp.asarray(np.stack(labels), jnp.int32) if prior.labels else None,
            upper_codes(source, level, tapes, rows, [window.start for window in batch]),
            keys[np.asarray(rows)],
            start=np.asarray([window.start for window in batch], np.int32),
            num_steps=new,
            settings=request.settings[level],
            progress=_increments(on_step, len(rows)),
        )
        tapes[level].append(rows, np.asarray(drawn.codes)[:, given:])


def next_batch(queues: Mapping[int, Sequence[windows.Window]], size: int) -> list[int]:
    """The rows to draw next: those whose next window has as many given and new codes as the earliest one's."""
    first = min(queues, key=lambda row: (queues[row][0].start, row))
    shape = lambda window: (window.given - window.start, window.end - window.given)  # noqa: E731
    return [row for row in sorted(queues) if shape(queues[row][0]) == shape(queues[first][0])][:size]


def upper_codes(source: Source, level: int, tapes: Sequence[Tape], rows: Sequence[int], starts: Sequence[int]) -> Any:
    """The codes of the level above under one context per row: int32 [b, context / upsampling], None at the top."""
    prior = source.priors[level]
    if prior.upsampling is None:
        return None
    factor, contexts = prior.upsampling, []
    for row, start in zip(rows, starts, strict=True):
        end = start + prior.context_length
        if start % factor or end % factor:
            raise UserError(f"a window of level {level} would start at code {start}, inside a code of level"
                            f" {level + 1}: hops must be multiples of {factor} codes")  # fmt: skip
        there = int(tapes[level + 1].lengths[row])
        if there < end // factor:
            raise UserError(f"level {level} needs {end // factor} codes of level {level + 1} for the window at {start};"
                            f" there are {there}")  # fmt: skip
        contexts.append(tapes[level + 1].window([row], start // factor, end // factor))
    return jnp.asarray(np.concatenate(contexts))


def item_keys(seed: int, items: Sequence[int], level: int) -> jax.Array:
    """One typed key per item, from seed, item number and level."""
    fold = jax.vmap(lambda item: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), item), level))
    return fold(jnp.asarray(items, jnp.uint32))


def _increments(on_step: OnStep, rows: int) -> Callable[[int], None]:
    """``sample_window`` counts from the window's beginning; ``on_step`` wants what is new."""
    before = 0

    def progress(done: int) -> None:
        nonlocal before
        on_step((done - before) * rows)
        before = done

    return progress
