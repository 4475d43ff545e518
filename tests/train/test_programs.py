"""The training step as an abstract program: shapes, places, donation; and the operations it should need."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jukebox_jax import config, presets
from jukebox_jax.models.flops import forward_flops, kept_inputs, layer_flops, repeated_flops, train_flops
from jukebox_jax.models.pattern import Kind
from jukebox_jax.parallel.mesh import make_mesh, platform, use
from jukebox_jax.train.experiment import Experiment, from_config
from jukebox_jax.train.programs import train_program
from jukebox_jax.types import UserError


def experiment(name: str, *overrides: str) -> Experiment:
    return from_config(config.load(f"configs/{name}.py:runlocal", [f"--config.{o}" for o in overrides]).to_dict())


@pytest.mark.parametrize("name", ["prior_5b_lyrics", "upsampler_level_1", "vqvae"])
def test_programs_are_the_sharded_step(name):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    small = ["model.depth=1"] if name == "vqvae" else ["model.transformer.depth=3"]
    program = train_program(experiment(name, "batch_size=8", *small), mesh)
    state, _, batch, _ = program.args
    assert all(leaf.sharding.spec[0] == ("data", "fsdp") for leaf in jax.tree.leaves(batch))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(batch)} == {8}
    lowered = program.lower()
    donated = jax.tree.map(lambda info: info.donated, lowered.args_info[0])
    assert all(jax.tree.leaves(donated[0])) and not any(jax.tree.leaves(donated[1:]))
    new_state, metrics = lowered.out_info
    same = jax.tree.map(lambda new, old: new.shape == old.shape and new.dtype == old.dtype, new_state, state)
    assert all(jax.tree.leaves(same)) and metrics["loss"].shape == ()
    if name != "vqvae":
        assert program.extras["tokens"] == 8 * 256 and program.extras["model_flops"] > 0


def test_meshes_that_divide_neither_batch_nor_width_are_refused():
    with pytest.raises(UserError, match="batch_size=6 does not divide over 4 devices"):
        train_program(experiment("prior_5b", "batch_size=6"), make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    with pytest.raises(UserError, match="fsdp=8 does not divide the width 60, .* use 4, and -1"):
        narrow = ["model.transformer.width=60", "model.transformer.num_heads=1"]
        train_program(experiment("prior_5b", "batch_size=8", *narrow), make_mesh({"fsdp": 8}))


def test_the_platform_is_that_of_the_mesh():
    assert platform() == "cpu"
    with use(make_mesh()):
        assert platform() == "cpu"
        assert experiment("prior_5b").compute_dtype == jnp.float32


def test_operations_are_those_of_the_definition():
    """5B by hand: 8192 positions, width 4800, heads 1200 wide in all, an MLP of 4800, 64 x 128 blocks."""
    t = presets.PRIOR_5B.transformer
    products = 2 * 8192 * (4 * 4800 * 1200 + 2 * 4800 * 4800)
    assert layer_flops(Kind.BLOCK, t) == layer_flops(Kind.PREVIOUS, t) == products + 4 * 8192 * 64 * 1200
    assert layer_flops(Kind.COLUMN, t) == products + 4 * 8192 * 128 * 1200
    matrices = 72 * (4 * 4800 * 1200 + 2 * 4800 * 4800) + 2048 * 4800
    attention = 24 * (64 + 128 + 64) * 4 * 8192 * 1200
    assert train_flops(presets.PRIOR_5B) == 6 * matrices * 8192 + 3 * attention
    lyrics = layer_flops(Kind.LYRICS, t, num_lyrics=512)
    assert lyrics == 4 * 4800 * 1200 * (8192 + 512) + 4 * 8192 * 512 * 1200 + 4 * 8192 * 4800**2
    prime = layer_flops(Kind.PRIME, presets.PRIOR_1B_LYRICS.transformer, prefix=448)
    assert prime == 8 * 6528 * 2048 * 512 + 4 * 6528 * 448 * 512 + 4 * 6528 * 2048**2


def test_layers_recomputed_together_keep_fewer_inputs():
    five, lyrics = presets.PRIOR_5B.transformer, presets.PRIOR_5B_LYRICS.transformer
    assert kept_inputs(five) == 72 and kept_inputs(five, (2,)) == 48 and kept_inputs(five, (3,)) == 24
    assert kept_inputs(lyrics) == 79 and kept_inputs(lyrics, (2, 1, 1, 1)) == 3 * 2 + 7 * 8
    last = 2 * 8192 * 4800**2
    more = repeated_flops(presets.PRIOR_5B, True, 1, (3,)) - repeated_flops(presets.PRIOR_5B, True, 1)
    assert more == 48 * last


def test_the_conditioner_counts_at_its_own_lengths():
    c = presets.UPSAMPLER_LEVEL_0
    one = 2 * (3 * 1024 * 1024 + 1024 * 1024)  # a residual block, per position
    up = 2 * 4 * (1024 * 1024 * 2048 + 1024 * 1920 * 4096)  # transposed convolutions of width 4
    conditioner = 2 * 3 * 1920 * 1024 * 2048 + 16 * one * (2048 + 4096) + up
    layers = sum(layer_flops(k, c.transformer) for k in (Kind.BLOCK, Kind.COLUMN, Kind.PREVIOUS)) * 24
    assert forward_flops(c) == conditioner + layers + 2 * 8192 * 1920 * 2048
