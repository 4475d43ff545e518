"""Optimiser steps of a VQ-VAE with injected draws: goldens ``vqvae_train*`` and ``train_ema_vqvae``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jukebox_jax import presets
from jukebox_jax.checkpoint import openai, openai_hps
from jukebox_jax.cli.verify_cases import averages, steps
from jukebox_jax.cli.verify_cases.case import Case
from jukebox_jax.cli.verify_cases.report import Report
from jukebox_jax.cli.verify_cases.vqvae import bandwidth_of
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.models.vqvae_loss import vqvae_loss
from jukebox_jax.ops import quantize
from jukebox_jax.train import state as train_state
from jukebox_jax.train.optimizer import adam, ema_decay
from jukebox_jax.train.step import make_step


def check_vqvae_training(case: Case, report: Report) -> None:
    """Losses, metrics, codebooks, gradients and weights of every step."""
    preset = openai_hps.vqvae_from_hps(case.hps)
    model, options = VQVAE(preset), steps.options_of(case.hps)
    variables = openai.import_vqvae(case.checkpoint("checkpoint_start"), preset)
    length = case.arrays["step0_x"].shape[1]
    variables = {
        "params": variables["params"],
        "codebook": {f"level_{i}": _book(case, report, preset, variables, i, length) for i in range(preset.levels)},
    }
    decay = ema_decay(int(case.hps["bs"]), case.hps.get("mu"))
    bandwidth = bandwidth_of(case)

    def loss(params, model_state, frozen, batch, rng):
        output = vqvae_loss(
            model, {"params": params, **model_state}, batch["audio"], frozen, draws=batch["draws"], rng=None
        )
        return output.loss, ({**output.metrics, "x_out": output.audio}, {"codebook": output.codebook})

    transform = adam(options)
    step = jax.jit(make_step(loss, transform, ema_decay=decay))
    state = train_state.create(variables, transform)
    tracks = averages.Tracks(case, report, preset, options)
    for number in case.steps("x"):
        name, before = f"step{number}", state
        batch = {"audio": jnp.asarray(case.input(f"{name}_x")), "draws": _draws(case, preset, name)}
        state, metrics = step(state, bandwidth, batch, jax.random.key(0))
        _compare_step(case, report, preset, name, state, metrics)
        if number == 0:
            _compare_gradients(case, report, preset, options, before, state, float(metrics["grad_norm"]))
        tracks.add(state)
    tracks.finish()
    tracks.compare_saved()
    _compare_end(case, report, preset, state, options)


def _book(case: Case, report: Report, preset: presets.VQVAE, variables: Any, level: int, length: int) -> dict[str, Any]:
    """The codebook state before the first step: given, or by the rule for restoring, or to be started from data."""
    book = variables["codebook"][f"level_{level}"]["codebook"]
    if case.hps.get("init_mode") == "init" or case.has(f"step0_k_init_l{level}"):
        return jax.tree.map(np.zeros_like, variables["codebook"][f"level_{level}"])
    restored = quantize.restore_state(jnp.asarray(book), length // preset.hop_lengths[level])
    for array, value in zip(("k", "k_sum", "k_elem"), restored, strict=True):
        report.close(f"init_{array}_l{level}", value)
    given = {
        leaf: case.input(f"init_{array}_l{level}") if case.has(f"init_{array}_l{level}") else value
        for (leaf, value), array in zip(restored._asdict().items(), ("k", "k_sum", "k_elem"), strict=True)
    }
    return given


def _draws(case: Case, preset: presets.VQVAE, name: str) -> list[quantize.Draws]:
    """What the original drew. Where nothing was drawn nothing may be restarted, which NaN would show."""
    draws = []
    for level in range(preset.levels):
        nothing = np.full((preset.codebook_size, preset.codebook_dim), np.nan, np.float32)
        arrays = [f"{name}_k_init_l{level}", f"{name}_k_rand_l{level}"]
        init, revival = (case.input(array) if case.has(array) else nothing for array in arrays)
        if case.has(arrays[1]) and not case.has(arrays[0]):
            init = np.zeros_like(nothing)
        draws.append(quantize.Draws(jnp.asarray(init), jnp.asarray(revival)))
    return draws


def _compare_step(case: Case, report: Report, preset: presets.VQVAE, name: str, state: Any, metrics: Any) -> None:
    report.close(f"{name}_loss", metrics["loss"])
    report.close(f"{name}_grad_norm", metrics["grad_norm"])
    report.close(f"{name}_lr", metrics["learning_rate"])
    report.close(f"{name}_x_out", metrics["x_out"])
    for metric, value in metrics.items():
        report.close(f"{name}_metric_{metric}", value)
    for level in range(preset.levels):
        book = state.model_state["codebook"][f"level_{level}"]
        for array, leaf in (("k", "codebook"), ("k_sum", "sum"), ("k_elem", "count")):
            report.close(f"{name}_{array}_l{level}", book[leaf])


def _compare_gradients(
    case: Case, report: Report, preset: presets.VQVAE, options: Any, before: Any, after: Any, norm: float
) -> None:
    """Gradients of the first step, from the first moment that it leaves: (1 - beta1) gradient / clip."""
    if not any(name.startswith("step0_grad/") for name in case.arrays):
        return
    undo = max(1.0, norm / options.clip_norm) / (1 - options.beta1)
    grads = jax.tree.map(lambda mean: np.asarray(mean) * np.float32(undo), after.optimizer.mean)
    for name, grad in steps.named({"params": grads, **before.model_state}, preset).items():
        report.close(f"step0_grad/{name}", grad)


def _compare_end(case: Case, report: Report, preset: presets.VQVAE, state: Any, options: Any) -> None:
    if not (case.folder / "checkpoint_end.pth.tar").exists():
        return
    with report.part("checkpoint_end"):
        checkpoint = case.checkpoint("checkpoint_end")
        ours = steps.named(train_state.variables(state, averaged=False), preset)
        step = options.learning_rate * int(state.step)
        for name, tensor in checkpoint.tensors.items():
            steps.compare_weights(report, f"end {name}", ours[name], tensor.read(), step, None)
        averages.compare_moments(report, checkpoint, preset, state, "", "end")
