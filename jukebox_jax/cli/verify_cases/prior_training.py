"""Optimiser steps of a prior with weight averages: golden ``train_ema``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jukebox_jax.checkpoint import openai, openai_hps
from jukebox_jax.cli.verify_cases import averages, steps
from jukebox_jax.cli.verify_cases.case import Case
from jukebox_jax.cli.verify_cases.report import Report
from jukebox_jax.models.prior import Prior
from jukebox_jax.train import state as train_state
from jukebox_jax.train.optimizer import adam, ema_decay
from jukebox_jax.train.step import make_step
from jukebox_jax.train.task import prior_task


def check_prior_training(case: Case, report: Report) -> None:
    """Loss, norm and rate of every step, weights and averages, and the checkpoint that the trainer saved."""
    preset = openai_hps.prior_from_hps(case.hps)
    start = case.checkpoint("checkpoint_start")
    options = steps.options_of(case.hps)
    task, transform = prior_task(preset), adam(options)
    decay = ema_decay(int(case.hps["bs"]), case.hps.get("mu"))
    step = jax.jit(make_step(task.loss, transform, ema_decay=decay))
    state = train_state.create(openai.import_prior(start, preset), transform)
    tracks = averages.Tracks(case, report, preset, options, openai.residual_naming(start.tensors))
    tracks.start(state)
    for number in case.steps("z"):
        name = f"step{number}"
        batch = {"codes": case.codes(f"{name}_z"), "y": case.codes(f"{name}_y")}
        batch |= {"upper_codes": case.codes(f"{name}_z_cond")}
        given = {key: value for key, value in batch.items() if value is not None}
        state, metrics = step(state, task.frozen, given, jax.random.key(0))
        for array, metric in (("loss", "loss"), ("grad_norm", "grad_norm"), ("lr", "learning_rate")):
            report.close(f"{name}_{array}", metrics[metric])
        tracks.add(state)
    tracks.finish()
    tracks.compare_saved()
    _evaluate(case, report, tracks)


def _evaluate(case: Case, report: Report, tracks: averages.Tracks) -> None:
    """The first batch with the weights that were saved, and with the raw ones of that step."""
    saved = tracks.saved()
    if saved is None:
        return
    checkpoint, state = saved
    preset: Any = tracks.preset
    model = Prior(preset)
    inputs = [case.codes(f"step0_{name}") for name in ("z", "y", "z_cond")]

    @jax.jit
    def forward(params: Any, z, y, z_cond):
        cond = model.apply({"params": params}, y, z_cond, method="condition")
        return model.apply({"params": params}, z, cond, method="logits"), model.apply(
            {"params": params}, z, y, z_cond, method="loss"
        )[0]  # fmt: skip

    preds, loss = forward(jax.tree.map(jnp.asarray, openai.import_prior(checkpoint, preset)["params"]), *inputs)
    report.close("ema_eval_preds", preds)
    report.close("ema_eval_loss", loss)
    report.close("raw_eval_loss", forward(state.params, *inputs)[1])
