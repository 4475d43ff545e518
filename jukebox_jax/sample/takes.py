"""Composing together: a few seconds are drawn for every item, a person keeps one, and the next seconds follow it.

Only the top level is drawn; what was kept is upsampled at the end (spec/sampling.md section 2.3, paper section 5).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from jukebox_jax.sample import prompts, record, run, sampler, windows
from jukebox_jax.sample.request import Request, check
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


class Session:
    """A piece that grows take by take, saved in a folder after every step and loaded from there again.

    ``kept`` are the top codes so far; ``takes`` (items x codes) go on from them, or are None before a draw.
    """

    def __init__(self, source: Source, request: Request, folder: Path, start: Int32[np.ndarray, "t"], command: str):
        self.source, self.request, self.folder, self.command = source, request, folder, command
        self.kept, self.takes, self.steps, self.draws = start.astype(np.int32), None, [], 0
        identity = {"model": source.name, "request": request.describe(), "start": start.tolist(), "mode": "compose"}
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        saved = record.read(folder / "compose.json")
        if saved is not None:
            record.require_same(saved, self._identity, folder)
            self.steps, self.draws = saved["steps"], saved["draws"]
            codes = prompts.load_codes(folder / "takes.npz", source.vqvae.levels, source.vqvae.codebook_size)[
                source.top
            ]
            self.kept = codes[0, : saved["kept"]]
            self.takes = codes if codes.shape[1] > saved["kept"] else None

    @property
    def step_folder(self) -> Path:
        """Where the present takes can be heard."""
        return self.folder / f"step_{len(self.steps) + 1}"

    @property
    def final(self) -> str:
        """Folder of the upsampled result of the last choice."""
        return f"final_{self.draws}_{self.steps[-1]['take']}"

    def draw(self, new: int) -> None:
        """Draw takes of ``new`` codes after what was kept; every call gives others."""
        request = dataclasses.replace(self.request, seed=(self.request.seed + self.draws) % 2**32)
        tapes = [Tape(len(request.items)) for _ in range(self.source.vqvae.levels)]
        tapes[self.source.top] = Tape(len(request.items), np.tile(self.kept, (len(request.items), 1)))
        seconds = new * self.source.hop(self.source.top) / self.source.vqvae.sample_rate
        with run.progress(f"{len(request.items)} takes", new * len(request.items), seconds) as bar:
            extend(self.source, request, tapes, new, bar.update)
        self.takes = tapes[self.source.top].array()
        self.draws += 1
        self.save()
        self._listen(request, tapes)

    def keep(self, take: int) -> None:
        """Choose a take."""
        if self.takes is None:
            raise UserError("there are no takes to choose from: draw some first")
        if not 0 <= take < len(self.takes):
            raise UserError(f"take {take} is not among the {len(self.takes)}: allowed are 0 to {len(self.takes) - 1}")
        self.steps.append({"codes": self.takes.shape[1] - len(self.kept), "take": take})
        self.kept, self.takes = self.takes[take], None
        self.save()

    def back(self) -> None:
        """Forget the last choice."""
        if not self.steps:
            raise UserError("there is no choice to take back")
        self.kept, self.takes = self.kept[: len(self.kept) - self.steps.pop()["codes"]], None
        self.save()

    def save(self) -> None:
        """Write what is needed to go on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        codes = prompts.empty(len(self.request.items), self.source.vqvae.levels)
        codes[self.source.top] = np.tile(self.kept, (len(codes[0]), 1)) if self.takes is None else self.takes
        prompts.save_codes(self.folder / "takes.npz", codes, self.request.items)
        state = {"kept": len(self.kept), "steps": self.steps, "draws": self.draws}
        record.write(self.folder / "compose.json", {"format": record.FORMAT} | self._identity | state)

    def finish(self) -> run.Run:
        """Upsample what was kept, into the folder ``final``, named after the draw and the take."""
        codes = prompts.empty(1, self.source.vqvae.levels)
        codes[self.source.top] = self.kept[None]
        length = len(self.kept) * self.source.hop(self.source.top)
        levels, first = tuple(range(self.source.top - 1, -1, -1)), self.request
        request = dataclasses.replace(first, metas=first.metas[:1], items=first.items[:1], length=length, levels=levels)
        check(self.source, request, [len(row[0]) for row in codes])
        about = {"mode": "upsample", "command": self.command, "model_directory": self.source.name}
        return run.generate(self.source, request, self.folder / self.final, codes, about)

    def _listen(self, request: Request, tapes: list[Tape]) -> None:
        top = self.source.top
        request = dataclasses.replace(request, levels=(top,), length=tapes[top].array().shape[1] * self.source.hop(top))
        about = {"mode": f"takes, step {len(self.steps) + 1}", "command": self.command}
        takes = run.Run(self.step_folder, self.source, request, tapes, record.begin(self.source, request, about))
        takes.stats(top)["windows"] = 1
        run.decode_level(takes, top)
        run.write_page(takes)
