"""What a program will need and take, by arithmetic: no compiler, a few seconds for any model.

Arguments are summed from the real program's shapes and shardings. FLOPs are those of the definition plus what
rematerialisation repeats. Temporaries of a training step are modelled; the constants at the top say how, and
``tests/certify/test_plan.py`` holds the model against every certificate in ``certificates/``.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh

from jukebox_jax import presets
from jukebox_jax.certify.certificate import Work
from jukebox_jax.certify.programs import Wanted, build
from jukebox_jax.certify.roofline import Roofline
from jukebox_jax.certify.topology import Topology
from jukebox_jax.models.flops import kept_inputs, repeated_flops
from jukebox_jax.models.pattern import Kind, segments, spans
from jukebox_jax.ops.attention_pallas_tpu import LANES, SUBLANES, round_up
from jukebox_jax.parallel.mesh import abstract_mesh
from jukebox_jax.parallel.program import Program
from jukebox_jax.parallel.sharding import logical, names_of
from jukebox_jax.train.experiment import Experiment

STREAMS = 8.4  # activations of one layer in work at a time, in streams
FURTHER = 2.3  # of each further layer that is recomputed with it
CONDITIONER = 4.0  # activations kept of each of an upsampler's residual blocks, which are not recomputed
# Arrays of cross attention's scores, which no kernel spares: the compiler keeps more of them where HBM has room.
SCORES = {"v5e": 3.8, "v6e": 6.8, "v5p": 10.7, "tpu7x": 7.3}


class Prediction(NamedTuple):
    """Of one device. ``memory`` is None where only a compiler can say."""

    arguments: int
    temporaries: int | None
    limit: int
    flops: float  # per unit
    roofline: Roofline  # of one unit
    work: Work

    @property
    def peak(self) -> int | None:
        return None if self.temporaries is None else self.arguments + self.temporaries

    @property
    def fits(self) -> bool | None:
        """None where the memory is not predicted."""
        return None if self.peak is None else self.peak <= self.limit


def predict(wanted: Wanted, where: Topology) -> Prediction:
    """One program on ``where``.

    Raises:
        UserError: the mesh does not divide the batch.
    """
    mesh = abstract_mesh(wanted.mesh, where.num_devices, "tpu")
    program, work = build(wanted, mesh)
    arguments = sum(map(physical, jax.tree.leaves(_read(wanted, program))))
    if wanted.program == "train" and isinstance(wanted.model, presets.Prior):
        temporaries, flops, hbm = _training(wanted, wanted.model, program, work, SCORES[where.chip.kind])
    elif wanted.program == "decode" and isinstance(wanted.model, presets.Prior):
        temporaries, flops, hbm = _draws(wanted.model, mesh, work), work.model_flops or 0.0, work.floor_bytes or 0.0
    else:
        temporaries, flops, hbm = None, work.model_flops or 0.0, float(arguments)
    flops /= where.num_devices
    share = where.chip.devices
    ici, dcn = _transfers(wanted, where, program, work)
    bound = Roofline(
        flops * share / where.chip.flops, hbm * share / where.chip.hbm, ici * share / where.chip.ici,
        dcn * share / where.chip.dcn, 0.0,
    )  # fmt: skip
    return Prediction(arguments, temporaries, where.chip.hbm_limit, flops, bound, work)


def _draws(model: presets.Prior, mesh: AbstractMesh, work: Work) -> int:
    """A chunk's random numbers, made before its loop: bits, uniform and Gumbel numbers of every step, item and code."""
    items = int(work.tokens) // (mesh.shape["data"] * mesh.shape["fsdp"])
    return 3 * 4 * work.units * items * model.vocab_size


def _read(wanted: Wanted, program: Program) -> Any:
    """The arguments that the program reads: jit drops the rest. A step finds the lyrics in its caches."""
    if wanted.program != "decode" or isinstance(wanted.model, presets.VQVAE):
        return program.args
    weights, cache, cond, *rest = program.args
    return weights, cache, cond._replace(lyrics=None, lyric_tokens=None), rest


def physical(leaf: Any) -> int:
    """Bytes of one device's share of an argument, in the layout that pads least: two axes are cut into tiles."""
    shape = leaf.sharding.shard_shape(leaf.shape)
    size = leaf.dtype.itemsize
    if len(shape) < 2:
        return math.prod(shape) * size
    return size * min(
        math.prod(
            round_up(n, LANES) if i == minor else round_up(n, SUBLANES) if i == second else n
            for i, n in enumerate(shape)
        )
        for minor, second in itertools.permutations(range(len(shape)), 2)
    )


def _training(
    wanted: Wanted, model: presets.Prior, program: Program, work: Work, scores: float
) -> tuple[int | None, float, float]:
    """Temporaries, FLOPs of all devices, a floor of HBM bytes: state read and written, activations kept and read."""
    experiment = wanted.experiment
    assert experiment is not None
    rows = wanted.batch_size // (wanted.mesh["data"] * wanted.mesh["fsdp"]) // experiment.accumulate
    repeated = repeated_flops(model, experiment.remat, experiment.loss_chunks, experiment.remat_layers)
    flops = (work.model_flops or 0.0) + wanted.batch_size * repeated
    state, t = program.args[0], model.transformer
    kept = rows * kept_inputs(t, experiment.remat_layers) * stream(t)
    hbm = 2.0 * sum(map(physical, jax.tree.leaves(state))) + 2 * experiment.accumulate * kept
    if not experiment.remat:
        return None, flops, hbm
    return _temporaries(experiment, model, state.params, rows, kept, scores), flops, hbm


def stream(t: presets.Transformer) -> int:
    """Bytes of one row's activations between two layers, bfloat16."""
    return 2 * t.length * round_up(t.width, LANES)


def _temporaries(experiment: Experiment, model: presets.Prior, params: Any, rows: int, kept: int, scores: float) -> int:
    """Of a step that recomputes every layer but for ``kept`` bytes of inputs: see the constants."""
    t = model.transformer
    gradients = sum(map(physical, jax.tree.leaves(params)))
    tables = sum(4 * leaf.size * _whole(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params))
    logits = 4 * rows * t.length // experiment.loss_chunks * round_up(model.vocab_size, LANES)
    spent = STREAMS * rows * stream(t) + _span(model, experiment.remat_layers, rows, scores)
    return round(kept + gradients + tables + spent + logits + CONDITIONER * rows * _conditioner(model))


def _span(model: presets.Prior, remat_layers: tuple[int, ...], rows: int, scores: float) -> float:
    """What the largest span of layers that are recomputed together needs beyond a plain layer."""
    t = model.transformer
    scores *= 4 * rows * t.num_heads * t.length * model.num_lyrics
    return max(
        FURTHER * (len(span) - 1) * rows * stream(t) + scores * (Kind.LYRICS in kinds[span.start : span.stop])
        for kinds, _ in segments(t.pattern, t.depth)
        for span in spans(len(kinds), remat_layers)
    )


def _whole(path: Any, leaf: Any) -> int:
    """How many copies of a parameter a step has whole: of tables one, of an upsampler's kernels their gradients too."""
    names = names_of(path)
    return 0 if logical(names, len(leaf.shape))[:1] == ("layers",) else 2 if "conditioner" in names else 1


def _conditioner(model: presets.Prior) -> int:
    """Bytes that all residual blocks of an upsampler's conditioner make of one row, bfloat16."""
    c = model.conditioner
    if c is None:
        return 0
    rows = model.context_length // (model.upsampling or 1) * sum(c.stride**stage for stage in range(c.down_depth))
    return 2 * c.depth * c.width * rows


def _transfers(wanted: Wanted, where: Topology, program: Program, work: Work) -> tuple[float, float]:
    """Bytes that one device sends per unit, within a slice and between slices."""
    if wanted.program != "train" or isinstance(wanted.model, presets.VQVAE):
        return 0.0, 0.0
    fsdp, tensor = wanted.mesh["fsdp"], wanted.mesh["tensor"]
    weights = work.weight_bytes or 0.0
    ici = 3 * weights * (fsdp - 1) / fsdp  # gathered forward and backward, gradients scattered
    model, rows = wanted.model, wanted.batch_size // (wanted.mesh["data"] * fsdp)
    if tensor > 1:  # activations are summed after attention and MLP: forward, again, and backward
        ici += 6 * rows * model.transformer.depth * stream(model.transformer) * 2 * (tensor - 1) / tensor
    slices = where.num_slices
    dcn = 2 * (slices - 1) / slices * 2 * sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(program.args[0].params)
    )  # fmt: skip
    return ici, float(dcn)
