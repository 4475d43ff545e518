"""Draws the codes of all levels, from the top down, window after window (spec/sampling.md section 2).

The four modes are four sets of starting codes (prompts.py): none, a prompt's, saved ones of every level, saved ones of
the top. Whichever items have equally many given and new codes in their next window are drawn together; what an item
gets depends on its own key, labels and codes only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jukebox_jax.models.prior import Prior
from jukebox_jax.sample import decode, windows
from jukebox_jax.sample.decode import sample_window
from jukebox_jax.sample.request import Request
from jukebox_jax.sample.source import Source
from jukebox_jax.sample.tape import Tape
from jukebox_jax.types import UserError

OnStep = Callable[[int], Any]  # codes drawn since the last call, over all items


def sample(source: Source, request: Request, tapes: Sequence[Tape], on_step: OnStep = lambda codes: None) -> int:
    """Draw every level of the request into ``tapes`` (one per level, bottom first). Returns the decode steps taken."""
    return sum(sample_level(source, request, level, tapes, on_step) for level in request.levels)


def sample_level(
    source: Source, request: Request, level: int, tapes: Sequence[Tape], on_step: OnStep = lambda codes: None
) -> int:
    """Complete one level. Nothing is loaded if nothing is missing. Returns the decode steps taken."""
    plans = missing(source, request, level, tapes)
    return draw_windows(source, request, level, tapes, plans, on_step) if any(plans.values()) else 0


def wavefront(
    source: Source,
    request: Request,
    tapes: Sequence[Tape],
    on_step: OnStep = lambda codes: None,
    seconds: dict[int, float] | None = None,
) -> int:
    """The codes of ``sample``, with every level in memory and windows drawn as soon as the codes above them are there.

    Of the levels that can go on, the one with the most rows in its next batch does, so that songs that stand at
    different places wait for each other; then the lowest, so that the beginning is finished first. ``seconds`` gets
    the time spent per level. Returns the decode steps taken.
    """
    plans = {level: missing(source, request, level, tapes) for level in request.levels}
    levels = [
        _Level(source, request, level, tapes, plans[level], on_step) for level in plans if any(plans[level].values())
    ]
    while waiting := [level for level in levels if level.queues]:
        batches = [(len(level.next_batch(ready=True)), -level.level, level) for level in waiting]
        size, _, level = max(batches, key=lambda batch: batch[:2])
        began = time.perf_counter()
        level.draw(level.next_batch(ready=size > 0))  # if none is ready, this one says which codes are missing
        if seconds is not None:
            seconds[level.level] = seconds.get(level.level, 0.0) + time.perf_counter() - began
    return sum(level.steps for level in levels)


def missing(source: Source, request: Request, level: int, tapes: Sequence[Tape]) -> dict[int, list[windows.Window]]:
    """The windows that each item (row) still needs."""
    return {row: request.plan(source, level, int(known)) for row, known in enumerate(tapes[level].lengths)}


def draw_windows(
    source: Source,
    request: Request,
    level: int,
    tapes: Sequence[Tape],
    plans: Mapping[int, Sequence[windows.Window]],
    on_step: OnStep = lambda codes: None,
) -> int:
    """Draw the planned windows of each item (row) of a level, in order. Returns the decode steps taken."""
    drawn = _Level(source, request, level, tapes, plans, on_step)
    while drawn.queues:
        drawn.draw(drawn.next_batch())
    return drawn.steps


class _Level:
    """One level while it is drawn: its weights, and per row the windows that are still to come."""

    def __init__(
        self,
        source: Source,
        request: Request,
        level: int,
        tapes: Sequence[Tape],
        plans: Mapping[int, Sequence[windows.Window]],
        on_step: OnStep,
    ):
        self.source, self.request, self.level, self.tapes, self.on_step = source, request, level, tapes, on_step
        self.prior = source.priors[level]
        self.queues = {row: list(plan) for row, plan in plans.items() if plan}
        self.steps = 0
        self._model = Prior(self.prior, source.dtype, int8=request.int8)
        self._params = source.load(f"prior_level_{level}")["params"]
        self._prepared = decode.weights(self._model, self._params)
        self._labels = source.labellers[level].batch(request.metas)
        self._keys = item_keys(request.seed, request.items, level)

    def next_batch(self, *, ready: bool = False) -> list[int]:
        """Rows whose next window is like the earliest one's in given and new codes. ``ready``: of those that can go."""
        queues = {row: queue for row, queue in self.queues.items() if not ready or self._ready(row, queue[0])}
        if not queues:
            return []
        first = min(queues, key=lambda row: (queues[row][0].start, row))
        shape = lambda window: (window.given - window.start, window.end - window.given)  # noqa: E731
        alike = [row for row in sorted(queues) if shape(queues[row][0]) == shape(queues[first][0])]
        return alike[: self.request.batch_sizes[self.level]]

    def draw(self, rows: Sequence[int]) -> None:
        """Draw the next window of these rows, which must be alike."""
        batch = [self.queues[row].pop(0) for row in rows]
        self.queues = {row: queue for row, queue in self.queues.items() if queue}
        given, new = batch[0].given - batch[0].start, batch[0].end - batch[0].given
        tape = self.tapes[self.level]
        past = [tape.window([row], window.start, window.given) for row, window in zip(rows, batch, strict=True)]
        drawn = sample_window(
            self._model,
            self._params,
            jnp.asarray(np.concatenate(past)),
            label_rows(self.source, self.level, self._labels, rows, [window.start for window in batch]),
            upper_codes(self.source, self.level, self.tapes, rows, [window.start for window in batch]),
            self._keys[np.asarray(rows)],
            start=np.asarray([window.start for window in batch], np.int32),
            num_steps=new,
            settings=self.request.settings[self.level],
            progress=_increments(self.on_step, len(rows)),
            prepared=self._prepared,
        )
        tape.append(rows, np.asarray(drawn.codes)[:, given:])
        self.steps += new

    def _ready(self, row: int, window: windows.Window) -> bool:
        if self.prior.upsampling is None:
            return True
        needed = (window.start + self.prior.context_length) // self.prior.upsampling
        return bool(self.tapes[self.level + 1].lengths[row] >= needed)


def label_rows(source: Source, level: int, labels: Any, rows: Sequence[int], starts: Sequence[int]) -> Any:
    """Label rows of windows, int32 [b, columns]; None without labels. ``labels``: ``labeller.batch``'s of all items."""
    prior, labeller = source.priors[level], source.labellers[level]
    if prior.labels is None:
        return None
    y, infos = labels
    at = [start * prior.hop_length for start in starts]
    windowed = [labeller.window(y[row], infos[row], start)[0] for row, start in zip(rows, at, strict=True)]
    return jnp.asarray(np.stack(windowed), jnp.int32)


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
