"""The training step as a program for devices that need not be here (``jukebox certify``)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from jukebox_jax import presets
from jukebox_jax.models.flops import train_flops
from jukebox_jax.models.vqvae_loss import Bandwidth
from jukebox_jax.parallel.mesh import use
from jukebox_jax.parallel.program import Program
from jukebox_jax.parallel.sharding import batch_sharding, placed, replicated
from jukebox_jax.train import state as states
from jukebox_jax.train.experiment import Experiment
from jukebox_jax.train.optimizer import adam
from jukebox_jax.train.step import jit_step
from jukebox_jax.train.task import prior_task, vqvae_task


def train_program(experiment: Experiment, mesh: Mesh | AbstractMesh) -> Program:
    """The step that ``loop.train`` runs, on batches of stored codes (a prior) or audio (a VQ-VAE).

    ``experiment``: from ``experiment.from_config``; its batch size counts, its mesh does not. ``extras``: ``tokens``
    (codes, or audio samples) per step, and of a prior ``model_flops``, of all devices together.

    Raises:
        UserError: the mesh does not divide the batch.
    """
    experiment.check_mesh(mesh)
    model, rows = experiment.model, experiment.batch_size
    with use(mesh):
        task, frozen = _task(experiment)
        rng = jax.eval_shape(lambda: jax.random.key(0))
        state = states.abstract(task.init, adam(experiment.optimizer), rng)
        where = states.placed(state, mesh, experiment.num_heads)
        step = jit_step(task.loss, experiment, where, mesh)
        everywhere, split = replicated(mesh), batch_sharding(mesh)
        args = (where, placed(frozen, everywhere), placed(batch_shapes(experiment), split), placed(rng, everywhere))
    if isinstance(model, presets.VQVAE):
        return Program(step, args, mesh, {"tokens": rows * experiment.window_samples})
    return Program(step, args, mesh, {"tokens": rows * model.context_length, "model_flops": rows * train_flops(model)})


def batch_shapes(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of codes and labels, or of audio."""
    model, rows = experiment.model, experiment.batch_size
    if isinstance(model, presets.VQVAE):
        return {"audio": jax.ShapeDtypeStruct((rows, experiment.window_samples, 1), jnp.float32)}
    sizes = {"codes": model.context_length}
    if model.labels is not None:
        sizes["y"] = model.labels.columns
    if model.upsampling:
        sizes["upper_codes"] = model.context_length // model.upsampling
    return {name: jax.ShapeDtypeStruct((rows, size), jnp.int32) for name, size in sizes.items()}


def _task(experiment: Experiment) -> tuple[Any, Any]:
    model, dtype = experiment.model, experiment.compute_dtype
    if isinstance(model, presets.VQVAE):
        task = vqvae_task(model, Bandwidth(), dtype=dtype)
        return task, jax.tree.map(lambda _: jax.ShapeDtypeStruct((), jnp.float32), task.frozen)
    return prior_task(model, dtype=dtype, **experiment.memory_options), None
