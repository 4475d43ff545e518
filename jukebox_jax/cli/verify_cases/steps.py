"""The optimiser of a case's hyperparameters, and parameters under the original's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jukebox_jax import presets
from jukebox_jax.checkpoint import openai
from jukebox_jax.cli.verify_cases.report import TOLERANCE, Report
from jukebox_jax.models.pattern import Kind, layer_kinds
from jukebox_jax.train.optimizer import Options


def options_of(hps: Mapping[str, Any]) -> Options:
    """Adam, clipping and schedule."""
    linear = bool(hps.get("lr_use_linear_decay"))
    number = lambda name, default: float(hps.get(name, default))  # noqa: E731  JSON has 0 where the original has 0.0
    return Options(
        learning_rate=number("lr", 3e-4) * number("lr_scale", 1), beta1=number("beta1", 0.9),
        beta2=number("beta2", 0.999), eps=number("eps", 1e-8), weight_decay=number("weight_decay", 0),
        clip_norm=number("clip", 1),
        ignore_grad_norm=number("ignore_grad_norm", 0), warmup_steps=number("lr_warmup", 100),
        decay="linear" if linear else "step", decay_start=number("lr_start_linear_decay", 0),
        decay_steps=number("lr_decay", 1e10), decay_factor=number("lr_gamma", 1),
    )  # fmt: skip


def projection(values: np.ndarray) -> float:
    """Dot product of the flattened values with ``cos(0.7 i + 0.3)``: one number that most errors change."""
    return float(np.sum(np.asarray(values, np.float64).ravel() * wave(np.size(values))))


def wave(size: int) -> np.ndarray:
    return np.cos(0.7 * np.arange(size) + 0.3)


def named(variables: dict[str, Any], preset: presets.VQVAE | presets.Prior, residuals: str = "") -> dict[str, Any]:
    """Parameters (or gradients, ...) of ours under the original's names, a tied one once."""
    if isinstance(preset, presets.VQVAE):
        tensors, entries = openai.export_vqvae(variables, preset), openai.vqvae_entries(preset)
    else:
        tensors, entries = openai.export_prior(variables, preset, residuals), openai.prior_entries(preset, residuals)
    tied = {entry.name for entry in entries if entry.same_as}
    return {name: tensor.read() for name, tensor in tensors.items() if name not in tied}


def unsteady(preset: presets.VQVAE | presets.Prior) -> dict[str, slice]:
    """Parameters, and which of their columns, whose gradient is zero up to rounding: biases of keys.

    A softmax does not change when all its scores move together. Adam divides rounding noise by its own size, so these
    parameters walk at random, by at most the learning rate in every step.
    """
    found = {}
    transformers = []
    if isinstance(preset, presets.Prior):
        transformers.append(("prior", preset.transformer))
        if preset.lyrics is not None and preset.lyrics.encoder is not None:
            transformers.append(("prime_prior", preset.lyrics.encoder))
    for name, t in transformers:
        width = t.attention_width
        for n, kind in enumerate(layer_kinds(t.pattern, t.depth)):
            cross = kind is Kind.LYRICS
            columns = slice(0, width) if cross else slice(width, 2 * width)
            found[f"{name}.transformer._attn_mods.{n}.attn.{'c_enc_kv' if cross else 'c_attn'}.b"] = columns
    return found


def compare_weights(
    report: Report, row: str, actual: np.ndarray, expected: np.ndarray, step: float, columns: slice | None
) -> None:
    """Weights after some optimiser steps that moved them by ``step`` at most.

    All but a hundredth must be as close as other arrays; the others, and the columns that walk at random, within
    ``2 * step``: Adam turns a gradient of nearly zero into a step of the full size (README of the goldens).
    """
    expected = np.asarray(expected, np.float64)
    near = TOLERANCE * (np.abs(expected) + np.abs(expected).max(initial=0.0))
    allowed = np.broadcast_to(near, expected.shape).copy()
    if columns is not None:
        allowed[..., columns] = 2 * step
    before = len(report.rows)
    report.compare(row, actual, expected, allowed, "1e-04", outliers=0.01)
    if report.rows[before].passed and report.rows[before].absolute > 2 * step + near.max(initial=0.0):
        report.rows.pop()
        report.compare(row, actual, expected, near + 2 * step, "2 steps")
