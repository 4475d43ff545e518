"""The trainer, top to bottom: mesh, data, task, shardings, init or restore, steps, save."""

from __future__ import annotations

import dataclasses
import signal
import threading
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jukebox_jax import presets
from jukebox_jax.checkpoint import manager
from jukebox_jax.parallel.mesh import make_mesh, use
from jukebox_jax.parallel.sharding import local_rows, replicated
from jukebox_jax.train import preflight, reports, source
from jukebox_jax.train import state as states
from jukebox_jax.train.experiment import Experiment
from jukebox_jax.train.inputs import Inputs, keep_vocabulary, open_inputs
from jukebox_jax.train.metrics import Log
from jukebox_jax.train.optimizer import adam
from jukebox_jax.train.session import Session, describe
from jukebox_jax.train.state import TrainState
from jukebox_jax.train.step import jit_step
from jukebox_jax.train.task import Task, prior_task, vqvae_task


def train(experiment: Experiment, workdir: Path, sampler: reports.Sampler | None = None) -> TrainState:
    """Train in ``workdir``, from its last checkpoint if it has one; returns the final state.

    ``workdir`` is the model directory: averaged weights are exported to it at every save. State, logs and TensorBoard
    files go to ``workdir/train/COMPONENT``. SIGTERM or Ctrl-C saves and returns. ``sampler`` draws codes to listen to.
    Raises ``UserError`` for data or directories that do not fit, ``Diverged`` if the loss is not finite.
    """
    greeting = preflight.greet()
    mesh = make_mesh(experiment.mesh_sizes(jax.device_count()))
    experiment, vqvae = source.with_source(experiment, workdir)
    at_once = experiment.check_mesh(mesh)
    inputs = open_inputs(experiment, vqvae.sample_rate, local_rows(mesh, experiment.batch_size))
    experiment = dataclasses.replace(experiment, model=inputs.model)
    directory = workdir / "train" / experiment.component
    preflight.check_shared(directory)
    with use(mesh):
        task = make_task(experiment, vqvae, workdir, mesh, at_once)
        transform = adam(experiment.optimizer)
        rng = jax.device_put(jax.random.key(experiment.seed), replicated(mesh))
        where = states.placed(states.abstract(task.init, transform, rng), mesh, experiment.num_heads)
        checkpoints = manager.make_manager(
            directory / "checkpoints", save_every=experiment.save_every, keep=experiment.keep
        )
        restored = manager.restore_latest(checkpoints, where)
        if restored is not None:
            state, start = restored
        elif experiment.init_from:
            state, start = states.from_variables(source.fine_tuned(experiment, where), transform, where), 0
        else:
            state, start = states.initialize(task.init, transform, rng, where), 0
        step = jit_step(task.loss, experiment, where, mesh, task.gradients)
        if inputs.vocabulary is not None and jax.process_index() == 0:
            keep_vocabulary(inputs.vocabulary, workdir)
        log = Log(directory, start, experiment.last_step, _audio_seconds(experiment, inputs), jax.process_index() == 0)
        provenance = describe(directory, experiment, inputs)
        run = Session(experiment, inputs, task, vqvae, mesh, workdir, checkpoints, log, sampler, provenance)
        with log, checkpoints, Stop() as stop:
            log.say(f"{greeting}\n{_introduction(experiment, inputs, state, start)}")
            pending = None
            batches = inputs.train.iterate(start)
            for done in range(start + 1, experiment.last_step + 1):
                state, metrics = step(state, task.frozen, run.put(next(batches)), rng)
                if pending is not None:  # the step before, while this one runs
                    run.read(*pending)
                pending = (done, metrics, done % experiment.log_every == 0)
                last = done == experiment.last_step
                stopping = stop(done)
                if last or stopping or done % experiment.save_every == 0:
                    run.read(*pending)
                    pending = None
                    run.save(done, state)
                if stopping:
                    log.say(f"stopped after step {done}: saved; the same command goes on from here")
                    break
                if last or done % experiment.evaluate_every == 0:
                    run.evaluate(done, state)
                if experiment.sample_every and done % experiment.sample_every == 0:
                    run.listen(done, state)
        return state


def make_task(experiment: Experiment, vqvae: presets.VQVAE, workdir: Path, mesh: Mesh, at_once: int) -> Task:
    """The task of an experiment, its frozen arrays on every device of ``mesh``."""
    model, dtype = experiment.model, experiment.compute_dtype
    if isinstance(model, presets.VQVAE):
        bandwidth = source.measured_bandwidth(experiment, workdir / "train" / experiment.component)
        return vqvae_task(model, jax.device_put(bandwidth, replicated(mesh)), dtype=dtype)
    frozen = source.load_vqvae(experiment, workdir, mesh)
    return prior_task(model, vqvae, frozen, dtype=dtype, at_once=at_once, **experiment.memory_options)


class Stop:
    """Whether to stop after a step: asked for by SIGTERM or Ctrl-C; on many processes, agreed on by all.

    A second signal acts as if this were not here.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        # With several processes jax's own handler of SIGTERM spreads the word.
        numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, *_: object) -> None:
        self.asked = True
        self.__exit__()
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)

    def __call__(self, step: int) -> bool:
        if jax.process_count() > 1:
            self.asked = multihost_utils.reached_preemption_sync_point(step)
        return self.asked


def _audio_seconds(experiment: Experiment, inputs: Inputs) -> float:
    window = (
        experiment.model.window_samples if isinstance(experiment.model, presets.Prior) else experiment.window_samples
    )
    return experiment.batch_size * window / inputs.sample_rate


def _introduction(experiment: Experiment, inputs: Inputs, state: TrainState, start: int) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    seconds = inputs.train.num_items * _audio_seconds(experiment, inputs) / experiment.batch_size
    epochs = experiment.last_step / inputs.train.steps_per_epoch
    lines = [
        f"{experiment.component} of {experiment.name}: {count:,} parameters",
        f"{inputs.train.num_items} windows, {seconds / 60:.1f} min of audio; {epochs:.3g} passes over it in"
        f" {experiment.last_step} steps of {experiment.batch_size}",
    ]
    if inputs.test is None:
        lines.append("no test split with songs of one window: nothing is evaluated")
    if start:
        lines.append(f"resumed from step {start}" + ("; nothing left to do" if start >= experiment.last_step else ""))
    return "\n".join(lines)
