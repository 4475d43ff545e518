"""From a request to a program of ``train`` or ``sample``, and the work that it is for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from jukebox_jax import config, presets
from jukebox_jax.certify.certificate import Work
from jukebox_jax.models.flops import stack_flops, step_flops, vqvae_flops, vqvae_train_flops
from jukebox_jax.parallel.mesh import axis_sizes
from jukebox_jax.parallel.program import Program
from jukebox_jax.sample import programs as sampling
from jukebox_jax.train.experiment import Experiment, from_config
from jukebox_jax.train.programs import train_program
from jukebox_jax.types import UserError, choose

PROGRAMS = ("train", "prefill", "decode", "encode")
ROWS = 16  # of a batch that is sampled, unless the user says


class Wanted(NamedTuple):
    """A program and what it runs on, every default filled in."""

    program: str
    model: presets.VQVAE | presets.Prior
    batch_size: int
    mesh: dict[str, int]
    experiment: Experiment | None = None  # of training
    int8: bool = False

    @property
    def sample_rate(self) -> int:
        if isinstance(self.model, presets.VQVAE):
            return self.model.sample_rate
        return self.model.labels.sample_rate if self.model.labels else presets.RELEASED_VQVAE.sample_rate


def resolve(
    spec: str, program: str, num_devices: int, *, batch_size: int | None = None, mesh: Mapping[str, int] | None = None,
    overrides: tuple[str, ...] = (), int8: bool = False,
) -> Wanted:  # fmt: skip
    """Read the config. Training takes batch and mesh from it; a mesh that does not fit the devices gives way to the
    largest ``fsdp`` that does. Sampling has ``ROWS`` rows and splits heads first, a VQ-VAE a row per device.

    Raises:
        UserError: the model has no such program, or the mesh does not fit the devices.
    """
    choose("program", program, PROGRAMS)
    c = config.load(spec, overrides)
    if int8 and (program != "decode" or "labels" not in c.model):
        raise UserError("--int8 is for --program=decode of a prior: nothing else runs in 8 bits")
    if program == "train":
        c.batch_size = batch_size or c.batch_size
        experiment = from_config(c.to_dict())
        sizes = axis_sizes(mesh, num_devices) if mesh else _fitting(experiment, num_devices)
        experiment = _named(experiment)
        return Wanted(program, experiment.model, experiment.batch_size, sizes, experiment)
    return sampled(_named(from_config(c.to_dict())).model, program, num_devices, batch_size, mesh)._replace(int8=int8)


def sampled(
    model: presets.VQVAE | presets.Prior, program: str, num_devices: int, batch_size: int | None = None,
    mesh: Mapping[str, int] | None = None,
) -> Wanted:  # fmt: skip
    """A program of sampling; see ``resolve``."""
    if isinstance(model, presets.VQVAE):
        if program == "prefill":
            raise UserError("prefill is a program of priors: a VQ-VAE has train, encode and decode")
        sizes = axis_sizes({"data": -1} | dict(mesh or {}), num_devices)
        return Wanted(program, model, batch_size or num_devices, sizes)
    if program == "encode":
        raise UserError("encode is a program of VQ-VAEs, such as --config=configs/vqvae.py")
    shape = mesh or {"data": -1, "tensor": math.gcd(model.transformer.num_heads, num_devices)}
    return Wanted(program, model, batch_size or ROWS, axis_sizes(shape, num_devices))


def _fitting(experiment: Experiment, num_devices: int) -> dict[str, int]:
    width = experiment.model.transformer.width if isinstance(experiment.model, presets.Prior) else 1
    try:
        sizes = experiment.mesh_sizes(num_devices)
        if width == 1 or width % sizes["fsdp"] == 0:
            return sizes
    except UserError:
        pass
    return axis_sizes({"data": -1, "fsdp": math.gcd(width, num_devices)}, num_devices)


def _named(experiment: Experiment) -> Experiment:
    """Where the config takes names and durations from a data set, a hundred of each, up to ten minutes, stand in."""
    model = experiment.model
    if isinstance(model, presets.VQVAE) or model.labels is None:
        return experiment
    c = model.labels
    labels = replace(
        c, num_artists=c.num_artists or 100, num_genres=c.num_genres or 100, min_duration=c.min_duration or 0.0,
        max_duration=c.max_duration or 600.0,
    )  # fmt: skip
    return replace(experiment, model=replace(model, labels=labels))


def build(wanted: Wanted, mesh: Any) -> tuple[Program, Work]:
    """The program, over a mesh of ``wanted.mesh``'s sizes, and its work.

    Raises:
        UserError: the mesh does not divide the batch.
    """
    model, rows, rate = wanted.model, wanted.batch_size, wanted.sample_rate
    if isinstance(model, presets.VQVAE):
        return _vqvae(wanted, model, mesh)
    if wanted.program == "train":
        assert wanted.experiment is not None
        made = train_program(wanted.experiment, mesh)
        tokens = made.extras["tokens"]
        gathered = sharded_weights(made.args[0].params, wanted.mesh["tensor"])
        flops = float(made.extras["model_flops"])
        return made, Work("step", 1, tokens, tokens * model.hop_length / rate, flops, weight_bytes=gathered)
    if wanted.program == "prefill":
        made = sampling.prefill_program(model, rows, mesh)
        flops = float(rows * stack_flops(model))
        tokens = rows * model.context_length
        cache = made.extras["cache_bytes"]
        return made, Work("run", 1, tokens, tokens * model.hop_length / rate, flops, cache_bytes=cache)
    made = sampling.decode_program(model, rows, mesh, int8=wanted.int8)
    x = made.extras
    floor, cache = float(x["floor_bytes"]), x["cache_bytes"]
    flops = float(rows * step_flops(model))
    return made, Work("token", x["steps"], rows, rows * model.hop_length / rate, flops, floor, cache)


def _vqvae(wanted: Wanted, model: presets.VQVAE, mesh: Any) -> tuple[Program, Work]:
    rows, rate = wanted.batch_size, model.sample_rate
    if wanted.program == "train":
        assert wanted.experiment is not None
        made = train_program(wanted.experiment, mesh)
        samples = made.extras["tokens"]
        flops = float(rows * vqvae_train_flops(model, wanted.experiment.window_samples))
        return made, Work("step", 1, samples, samples / rate, flops)
    encodes = wanted.program == "encode"
    made = (sampling.encode_program if encodes else sampling.audio_program)(model, rows, mesh)
    samples = made.extras["samples"]
    level = model.levels - 1 if encodes else 0
    one = vqvae_flops(model, samples // rows, (level,))
    flops = float(rows * (one["encoder"] + one["distances"] if encodes else one["decoder"]))
    return made, Work("run", 1, samples, samples / rate, flops)


def sharded_weights(params: Any, tensor: int) -> float:
    """Bytes that a device gathers to see every stacked weight that ``fsdp`` shards once, in bfloat16."""
    total = 0.0
    for leaf in jax.tree.leaves(params):
        axes = str(leaf.sharding.spec)
        if "fsdp" in axes and len(leaf.shape) == 3:
            total += 2 * leaf.size / (tensor if "tensor" in axes else 1)
    return total
