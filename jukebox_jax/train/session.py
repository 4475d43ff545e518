"""What happens between steps: batches to devices, metrics back, saving, evaluating, listening."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jukebox_jax import presets
from jukebox_jax.checkpoint import bundle, manager
from jukebox_jax.parallel.sharding import batch_sharding, replicated
from jukebox_jax.train import preflight, reports
from jukebox_jax.train import state as states
from jukebox_jax.train.experiment import Experiment
from jukebox_jax.train.inputs import Inputs
from jukebox_jax.train.metrics import Log
from jukebox_jax.train.state import TrainState
from jukebox_jax.train.task import Task


class Diverged(ArithmeticError):
    """The loss is not finite any more. The message says at which step, and what is left on disk."""


@dataclass
class Session:
    """One run's parts. Every method is called by all processes alike; only the first one writes."""

    experiment: Experiment
    inputs: Inputs
    task: Task
    vqvae: presets.VQVAE
    mesh: Mesh
    workdir: Path
    checkpoints: Any  # orbax CheckpointManager
    log: Log
    sampler: reports.Sampler | None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        loss = self.task.loss

        def evaluate(params: Any, model_state: Any, frozen: Any, batch: Any) -> dict[str, jax.Array]:
            value, (metrics, _) = loss(params, model_state, frozen, batch, None)
            return {"loss": value, **metrics}

        self._evaluate = jax.jit(evaluate, out_shardings=replicated(self.mesh))
        self._heard: Any = None  # the batch that `listen` uses

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows of a batch to the devices that need them."""
        where, rows = batch_sharding(self.mesh), np.asarray(self.inputs.train.rows)
        size = self.experiment.batch_size

        def place(local: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:  # slices of the global array; its rows lie side by side here
                return local[slice(*np.searchsorted(rows, index[0].indices(size)[:2]))]

            return jax.make_array_from_callback((size, *local.shape[1:]), where, part)

        return {name: place(local) for name, local in batch.items()}

    def read(self, step: int, metrics: Mapping[str, jax.Array], show: bool) -> None:
        """Wait for a step's metrics; raise ``Diverged`` if its loss is not finite."""
        values = jax.device_get(dict(metrics))
        self.log.step(step)
        if not math.isfinite(values["loss"]):
            kept = self.checkpoints.latest_step()
            raise Diverged(
                f"the loss is {values['loss']} at step {step}: stopped."
                + (f" The checkpoint of step {kept} is intact." if kept is not None else "")
                + " Try a lower optimizer.learning_rate, or optimizer.ignore_grad_norm to skip batches like this one"
            )
        if show:
            self.log.train(step, values)

    def save(self, step: int, state: TrainState) -> None:
        """Checkpoint the state, and export the averaged weights to the model directory."""
        manager.save(self.checkpoints, step, state, force=True)
        bundle.save_component(
            self.workdir, self.experiment.component, states.variables(state), self.experiment.model,
            provenance=self.provenance | {"steps": step},
        )  # fmt: skip
        self.log.resume_timing(step)

    def evaluate(self, step: int, state: TrainState) -> None:
        """Averages of the loss and its metrics over the first batches of the test split, with averaged weights."""
        if self.inputs.test is None or not self.experiment.evaluate_batches:
            return
        sums: dict[str, float] = defaultdict(float)
        count = min(self.experiment.evaluate_batches, self.inputs.test.steps_per_epoch)
        for index in range(count):
            batch = self.put(self.inputs.test.batch(index))
            values = self._evaluate(state.ema, state.model_state, self.task.frozen, batch)
            for name, value in jax.device_get(values).items():
                sums[name] += float(value) / count
        self.log.evaluation(step, sums)
        self.log.resume_timing(step)

    def listen(self, step: int, state: TrainState) -> None:
        """Audio of the averaged weights to TensorBoard: reconstructions, or samples if there is a sampler."""
        model, everywhere = self.experiment.model, replicated(self.mesh)
        if self._heard is None:
            self._heard = self.put((self.inputs.test or self.inputs.train).batch(0))
        if isinstance(model, presets.VQVAE):
            audio = reports.reconstructions(model, states.variables(state), self._heard, everywhere)
        elif self.sampler is not None:
            audio = reports.samples(
                model, state.ema, self.vqvae, self.task.frozen, self._heard, self.sampler, step, everywhere
            )
        else:
            return
        for name, item in audio.items():
            self.log.audio(step, name, item, self.inputs.sample_rate)
        self.log.resume_timing(step)


def describe(directory: Path, experiment: Experiment, inputs: Inputs) -> dict[str, Any]:
    """Write ``config.json``: resolved config, code, machine and data. Returns the model's provenance."""
    facts = preflight.describe()
    data = {
        "windows": inputs.train.num_items,
        "test_windows": inputs.test.num_items if inputs.test else 0,
        "steps_per_epoch": inputs.train.steps_per_epoch,
    }
    if jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"config": experiment.to_dict(), **facts, "data": data}, indent=1)
        (directory / "config.json").write_text(text + "\n")
    names = ("git_revision", "versions", "command")
    return {"config": experiment.name, "dataset": experiment.dataset, **{name: facts[name] for name in names}}
