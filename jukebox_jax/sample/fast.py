"""Approximate sampling (``jukebox sample --fast``): a level is cut into segments that are drawn side by side.

An upsampled level follows the codes above it, so a segment can begin without the codes before it. What that costs is
continuity at the seams. The first codes behind each seam are therefore drawn again, now after the codes before it, and
what follows them is measured: bits per code behind the seams, beside the same in the middle of the segments, where
codes were drawn in order. The first segment has the exact codes of the serial order, the others have not.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from jukebox_jax.models.prior import Prior
from jukebox_jax.sample import sampler, windows
from jukebox_jax.sample.request import Request
from jukebox_jax.sample.source import Source
from jukebox_jax.sample.tape import Tape


class Seams(NamedTuple):
    """What ``sample_level`` did. ``seam_bits`` close to ``serial_bits``: the seams are as likely as any other place."""

    segments: int
    redrawn: int  # codes behind each seam that were drawn twice
    seam_bits: float  # bits per code, behind what was redrawn
    serial_bits: float  # bits per code, in the middle of the segments
    steps: int  # decode steps


def sample_level(
    source: Source, request: Request, level: int, tapes: Sequence[Tape], on_step: sampler.OnStep = lambda codes: None
) -> Seams | None:
    """Complete an upsampled level in ``request.segments`` segments, each at least one context long.

    None: it was drawn in order, because it is the top level, too short, or the items stand at different places.
    """
    prior, lengths = source.priors[level], tapes[level].lengths
    known, total = int(lengths[0]), request.length // source.hop(level)
    segments = min(request.segments, (total - known) // prior.context_length)
    if prior.upsampling is None or segments < 2 or (lengths != known).any():
        sampler.sample_level(source, request, level, tapes, on_step)
        return None
    factor = prior.upsampling
    seams = [(known + s * (total - known) // segments) // factor * factor for s in range(1, segments)]
    work = _Work(source, request, level, tapes, on_step)
    edges = [0, *seams, total]
    hop = request.hop(source, level)
    plans = [
        windows.plan(known if begin == 0 else 0, end - begin, prior.context_length, hop)
        for begin, end in zip(edges, edges[1:], strict=False)
    ]
    before = tapes[level].array()
    pieces = work.draw(edges[:-1], plans, lambda row, begin: before[row] if begin == 0 else before[row, :0], 0)
    codes = np.stack([np.concatenate(row) for row in pieces])
    context = prior.context_length
    redrawn = max(factor, context // 8 // factor * factor)
    starts = [work.start(seam) for seam in seams]
    again = [[windows.Window(0, seam - at, seam - at + redrawn)] for seam, at in zip(seams, starts, strict=True)]
    given = {at: seam for seam, at in zip(seams, starts, strict=True)}
    work.on_step = lambda codes: None  # these are no new codes
    for row, drawn in enumerate(work.draw(starts, again, lambda row, at: codes[row, at : given[at]], segments)):
        for seam, values in zip(seams, drawn, strict=True):
            codes[row, seam : seam + redrawn] = values[len(values) - redrawn :]
    middles = [(begin + end) // 2 for begin, end in zip(edges, edges[1:], strict=False)]
    behind = [seam + redrawn for seam in seams]
    tapes[level].append(range(len(codes)), codes[:, known:])
    return Seams(segments, redrawn, work.bits(codes, behind), work.bits(codes, middles), work.steps)


class _Work:
    """Pieces of a level as items of their own: one per item and place."""

    def __init__(self, source: Source, request: Request, level: int, tapes: Sequence[Tape], on_step: sampler.OnStep):
        self.source, self.request, self.level, self.on_step = source, request, level, on_step
        self.prior, self.upper = source.priors[level], tapes[level + 1].array()
        self.steps = 0

    def start(self, place: int) -> int:
        """Where a window starts that has ``place`` in its middle, as far as the song's ends allow."""
        factor, context = self.prior.upsampling or 1, self.prior.context_length
        last = self.request.length // self.source.hop(self.level) - context
        return max(0, min(place - context // 2, last)) // factor * factor

    def draw(self, begins: Sequence[int], plans: Sequence[Sequence[windows.Window]], given: Any, keys: int) -> list:
        """Per item, the codes from each beginning. ``given(row, begin)``: what is known."""
        # ``keys`` sets the draws of one call apart from those of another.
        rows = [(row, place) for row in range(len(self.request.metas)) for place in range(len(begins))]
        samples, factor = self.source.hop(self.level), self.prior.upsampling or 1
        metas = [
            {**self.request.metas[row], "offset": self.request.metas[row]["offset"] + begins[place] * samples}
            for row, place in rows
        ]
        items = tuple(self.request.items[row] + ((keys + place) << 20) for row, place in rows)
        request = dataclasses.replace(self.request, metas=tuple(metas), items=items)
        tapes = {self.level: Tape(len(rows)), self.level + 1: Tape(len(rows))}
        for i, (row, place) in enumerate(rows):
            tapes[self.level].append([i], given(row, begins[place])[None])
            tapes[self.level + 1].append([i], self.upper[row : row + 1, begins[place] // factor :])
        queues = {i: plans[place] for i, (_, place) in enumerate(rows)}
        ordered = [tapes.get(level, Tape(len(rows))) for level in range(self.level + 2)]
        self.steps += sampler.draw_windows(self.source, request, self.level, ordered, queues, self.on_step)
        tape, each = tapes[self.level], len(begins)
        found = [tape.window([i], 0, int(tape.lengths[i]))[0] for i in range(len(rows))]
        return [found[i : i + each] for i in range(0, len(rows), each)]

    def bits(self, codes: Int32[np.ndarray, "b t"], places: Sequence[int]) -> float:
        """Mean bits per code over the eighth of a context behind each place, given what stands before it."""
        params = self.source.load(f"prior_level_{self.level}")["params"]
        model, context = Prior(self.prior, self.source.dtype), self.prior.context_length
        labels = self.source.labellers[self.level].batch(self.request.metas) if self.prior.labels else None
        tapes = [Tape(len(codes))] * (self.level + 1) + [Tape(len(codes), self.upper)]
        found = []
        for row in range(len(codes)):
            for place in places:
                at = self.start(place)
                y = sampler.label_rows(self.source, self.level, labels, [row], [at])
                upper = sampler.upper_codes(self.source, self.level, tapes, [row], [at])
                each = np.asarray(_bits(model, params, jnp.asarray(codes[row : row + 1, at : at + context]), y, upper))
                found.append(each[0, place - at : place - at + max(1, context // 8)].mean())
        return float(np.mean(found))


@functools.partial(jax.jit, static_argnums=0)
def _bits(model: Prior, params: Any, codes: jax.Array, y: Any, upper: Any) -> Float[jax.Array, "b t"]:
    cond: Any = model.apply({"params": params}, y, upper, method="condition")
    logits: Any = model.apply({"params": params}, codes, cond, method="logits")
    p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(p, codes[..., None], axis=-1)[..., 0] / np.log(2.0)
