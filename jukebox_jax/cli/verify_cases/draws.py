"""Cached sampling of one window by a prior: ancestral, partial and primed runs of goldens ``prior_*``."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jukebox_jax.cli.verify_cases.case import Case
from jukebox_jax.cli.verify_cases.report import Report
from jukebox_jax.models.prior import Prior
from jukebox_jax.ops.logits import Settings
from jukebox_jax.sample.decode import Drawn, sample_window


def check_draws(case: Case, report: Report, model: Prior, params: Any, inputs: tuple) -> None:
    """The most likely code at every position, and the logits that it was taken from.

    The chunk sizes of the primed runs only matter in the original: here a prefix is read at once.
    """
    z = inputs[0]
    runs = {"sample": ("sample_argmax", 0), "sample_partial": ("sample_argmax_partial", 0)}
    primes: Any = case.input("primes").tolist() if case.has("primes") else ()
    for i, (known, _) in enumerate(primes):
        runs[f"primed{i}"] = (f"primed{i}_argmax", known)
        if i == 0:
            runs["primed_partial"] = ("primed_partial_argmax", known)
    for run, (array, known) in runs.items():
        if not case.has(array):
            continue
        with report.part(run):
            steps = case.arrays[array].shape[1] - known
            drawn = _draw(model, params, z[:, :known], inputs, steps)
            report.equal(array, drawn.codes)
            report.equal(f"{run}_raw_tokens", drawn.raw)
            report.close(f"{run}_logits", drawn.logits)


def _draw(model: Prior, params: Any, known: Any, inputs: tuple, num_steps: int) -> Drawn:
    keys = jax.random.split(jax.random.key(0), len(known))
    # Small chunks: runs of different lengths share one compiled loop.
    return sample_window(
        model, params, known, inputs[1], inputs[2], keys, start=np.zeros(len(known), np.int32), num_steps=num_steps,
        settings=Settings(temperature=0.0), keep_logits=True, chunk=4,
    )  # fmt: skip
