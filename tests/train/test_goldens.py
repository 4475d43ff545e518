"""Steps, weight averages and schedules of the original's trainer (goldens ``train_ema``, ``train_ema_vqvae``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax.checkpoint import openai, openai_hps
from jukebox_jax.checkpoint.torch_reader import open_checkpoint
from jukebox_jax.models.vqvae_loss import Bandwidth
from jukebox_jax.ops.quantize import CodebookState
from jukebox_jax.train import state as states
from jukebox_jax.train.optimizer import Options, adam, ema_decay, update_ema
from jukebox_jax.train.step import make_step
from jukebox_jax.train.task import Task, prior_task, vqvae_task

GOLDEN = Path(__file__).parents[1] / "golden"


def options_of(hps: dict[str, Any]) -> Options:
    return Options(
        learning_rate=hps["lr"], beta1=hps["beta1"], beta2=hps["beta2"], eps=hps["eps"], clip_norm=hps["clip"],
        weight_decay=hps["weight_decay"], ignore_grad_norm=0.0, warmup_steps=hps["lr_warmup"],
        decay="linear" if hps["lr_use_linear_decay"] else "step", decay_start=float(hps["lr_start_linear_decay"]),
        decay_steps=float(hps["lr_decay"]), decay_factor=hps["lr_gamma"],
    )  # fmt: skip


def run(hps: dict[str, Any], task: Task, variables: Any, batches: list[dict], golden: Any) -> list[states.TrainState]:
    """The states after each step; compares loss, gradient norm and rate on the way."""
    transform = adam(options_of(hps))
    step = jax.jit(make_step(task.loss, transform, ema_decay=ema_decay(hps["bs"], hps["mu"])))
    state, after = states.create(variables, transform), []
    for number, batch in enumerate(batches):
        state, metrics = step(state, task.frozen, batch, jax.random.key(0))
        for name, metric in (("loss", "loss"), ("grad_norm", "grad_norm"), ("lr", "learning_rate")):
            np.testing.assert_allclose(metrics[metric], golden[f"step{number}_{name}"], rtol=1e-4, atol=1e-9)
        after.append(state)
    return after


def project(array: np.ndarray) -> float:
    return float(np.sum(np.asarray(array, np.float64).ravel() * np.cos(0.7 * np.arange(array.size) + 0.3)))


def compare_projections(trees: list[Any], export: Any, kind: str, golden: Any, slack: float) -> None:
    """Projections of every parameter after each step. ``slack``: how far the bias of keys may walk."""
    rows: dict[str, list[float]] = {}
    for params in trees:
        for name, tensor in export(params).items():
            rows.setdefault(name, []).append(project(tensor.read()))
    names = {name.partition("/")[2] for name in golden if name.startswith(f"{kind}_proj/")}
    assert names and names <= set(rows)
    for name in names:
        expected = golden[f"{kind}_proj/{name}"]
        room = 2e-4 * np.abs(expected).max() + 2e-5 + (slack if name.endswith("c_attn.b") else 0.0)
        np.testing.assert_allclose(rows[name], expected, rtol=0, atol=room, err_msg=f"{kind} {name}")


def load(case: str) -> tuple[dict, Any, Any]:
    folder = GOLDEN / case
    with np.load(folder / "data.npz") as file:
        arrays = dict(file)
    return json.loads((folder / "hps.json").read_text()), arrays, open_checkpoint(folder / "checkpoint_start.pth.tar")


def test_prior_training_with_weight_averages():
    hps, golden, checkpoint = load("train_ema")
    preset = openai_hps.prior_from_hps(hps)
    variables = jax.tree.map(jnp.asarray, openai.import_prior(checkpoint, preset))
    batches = [
        {"codes": jnp.int32(golden[f"step{i}_z"]), "y": jnp.int32(golden[f"step{i}_y"])} for i in range(hps["n_steps"])
    ]
    after = run(hps, prior_task(preset), variables, batches, golden)
    export = lambda params: openai.export_prior({"params": params}, preset)  # noqa: E731
    slack = hps["n_steps"] * hps["lr"] * preset.transformer.attention_width
    compare_projections([s.params for s in after], export, "raw", golden, slack)
    compare_projections([s.ema for s in after], export, "ema", golden, slack)
    rare, trees = jax.tree.map(jnp.array, variables["params"]), []
    for state in after:
        rare = update_ema(rare, state.params, state.optimizer.count, hps["mu"], hps["cpu_ema_freq"])
        trees.append(rare)
    compare_projections(trees, export, "cpu_ema", golden, slack)
    for row in hps["mu_table"]:
        assert ema_decay(row["bs"] * row["ngpus"], row["mu"]) == pytest.approx(row["result"], abs=1e-12)


def test_vqvae_training_with_weight_averages():
    hps, golden, checkpoint = load("train_ema_vqvae")
    preset = openai_hps.vqvae_from_hps(hps)
    variables = jax.tree.map(jnp.asarray, dict(openai.import_vqvae(checkpoint, preset)))
    variables["codebook"] = {
        f"level_{i}": CodebookState(
            *(jnp.asarray(golden[f"init_{name}_l{i}"]) for name in ("k", "k_sum", "k_elem"))
        )._asdict()
        for i in range(preset.levels)
    }
    width = hps["bandwidth"]
    task = vqvae_task(preset, Bandwidth(width["l1"], width["l2"], width["spec"]))
    batches = [{"audio": jnp.asarray(golden[f"step{i}_x"])} for i in range(hps["n_steps"])]
    after = run(hps, task, variables, batches, golden)
    for number, state in enumerate(after):
        for i in range(preset.levels):
            codebook = state.model_state["codebook"][f"level_{i}"]["codebook"]
            np.testing.assert_allclose(codebook, golden[f"step{number}_k_l{i}"], rtol=1e-4, atol=1e-5)
    export = lambda params: openai.export_vqvae({"params": params, **after[0].model_state}, preset)  # noqa: E731
    compare_projections([s.params for s in after], export, "raw", golden, 0.0)
    compare_projections([s.ema for s in after], export, "ema", golden, 0.0)
