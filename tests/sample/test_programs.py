"""Decoding on meshes draws one device's codes, and the programs for absent devices are what decoding runs."""

from __future__ import annotations

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.models.prior import Prior
from jukebox_jax.ops.logits import Settings
from jukebox_jax.parallel.mesh import make_mesh, use
from jukebox_jax.parallel.sharding import shardings_of
from jukebox_jax.sample import decode, programs
from jukebox_jax.types import UserError

LABELS = presets.Labels("v3", 3, 3, 1, 8, 8, 0.01, 100.0, 2000)
LYRICS = presets.Prior(
    1, 16, 16, 4, presets.Transformer(16, 32, 4, 2, 4, "factored_lyrics_4", init_scale=8.0), tied_output=False,
    lyrics=presets.Lyrics("separate", 8, 79, encoder=presets.Transformer(8, 16, 1)), labels=LABELS,
)  # fmt: skip
UPSAMPLER = presets.Prior(
    0, 16, 16, 2, presets.Transformer(16, 32, 2, 1, 4, "block_column", init_scale=8.0), upsampling=2,
    labels=presets.Labels("v3", 3, 3, 1), conditioner=presets.Conditioner(width=4, depth=1, down_depth=1),
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("compile_quickly")


MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]
ALL = "ALL_MESHES" in os.environ  # tests/chaos/all_meshes.py
SOON = MESHES if ALL else MESHES[2:]
DENSE = dataclasses.replace(UPSAMPLER, transformer=presets.Transformer(16, 32, 2, 4, 4, "dense", init_scale=8.0))
CASES = {"lyrics": (LYRICS, SOON, False), "upsampler": (UPSAMPLER, MESHES[2:], False)}
if ALL:
    CASES |= {
        "dense": (DENSE, MESHES, False),
        "lyrics_int8": (LYRICS, MESHES, True),
        "dense_int8": (DENSE, MESHES, True),
    }
rng = np.random.default_rng(0)


@pytest.mark.parametrize("case", CASES)
def test_eight_devices_draw_the_codes_of_one(case: str):
    preset, meshes, int8 = CASES[case]
    model = Prior(preset, scan_layers=True, int8=int8)
    shapes = jax.eval_shape(functools.partial(model.init, method="initialise"), jax.random.key(0))["params"]
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.15, s.shape), s.dtype), shapes)
    assert preset.labels is not None
    y = rng.integers(0, 3, (8, preset.labels.columns)).astype(np.int32)
    y[:, :3] = [2000, 100, preset.window_samples]
    upper = rng.integers(0, 16, (8, 8)).astype(np.int32) if preset.upsampling else None
    codes = rng.integers(0, 16, (8, 6)).astype(np.int32)
    keys = jax.random.split(jax.random.key(1), 8)

    def draw(params) -> decode.Drawn:
        return decode.sample_window(
            model, params, codes, y, upper, keys, start=0, num_steps=8, chunk=8, settings=Settings(), keep_logits=True
        )

    alone = draw(params)
    assert len(np.unique(alone.codes[:, 6:])) > 2
    heads = preset.transformer.num_heads
    for sizes in meshes:
        mesh = make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
        with use(mesh):
            there = draw(jax.device_put(params, shardings_of(params, mesh, heads)))
        np.testing.assert_array_equal(there.codes, alone.codes)
        close = 3e-2 if int8 else 1e-4  # sums in another order may round to the next of 255 steps
        np.testing.assert_allclose(there.logits, alone.logits, rtol=close, atol=close)


@pytest.mark.parametrize("preset", [LYRICS, UPSAMPLER], ids=["lyrics", "upsampler"])
def test_the_program_is_what_decoding_runs(preset: presets.Prior):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    program = programs.decode_program(preset, 8, mesh, jnp.float32, num_steps=4)
    weights, cache, cond, token, *_ = program.args
    assert token.shape == (8,)
    found = [tuple(leaf.sharding.spec) for leaf in jax.tree.leaves(cond.positions)]
    wide = [tuple(table.sharding.spec) for table in weights.get("timing", {}).values()]
    if preset is UPSAMPLER:
        assert found == [(("data", "fsdp"), None, "tensor")] and not wide
    else:  # bins of timing, and tables
        assert found == [(("data", "fsdp"),)] * 3 and wide == [(None, "tensor")] * 3
    split = "tensor" if preset.transformer.num_heads > 1 else None
    first = jax.tree.leaves(cache)[0]
    assert (*first.sharding.spec, None)[:2] == (("data", "fsdp"), split)
    lowered = program.lower()
    donated, _ = lowered.args_info
    assert all(leaf.donated for leaf in jax.tree.leaves(donated[1]))
    tokens, logits, new_cache = lowered.out_info
    assert tokens.shape == (8, 4) and logits is None
    assert [leaf.shape for leaf in jax.tree.leaves(new_cache)] == [leaf.shape for leaf in jax.tree.leaves(cache)]
    found = lowered.compile().output_shardings[2]
    same = jax.tree.map(lambda new, old: new.is_equivalent_to(old.sharding, len(old.shape)), found, cache)
    assert all(jax.tree.leaves(same))


def test_floor_by_hand():
    """prior_5b on eight chips: three matrices' worth of 4800 x 4800 per layer, 256 slots of keys and values."""
    mesh = jax.sharding.AbstractMesh((1, 1, 8), ("data", "fsdp", "tensor"))
    found = programs.decode_floor_bytes(presets.PRIOR_5B, 16, mesh)
    matrices, caches = 72 * 3 * 4800 * 4800 * 2 // 8, 24 * (64 + 64 + 128) * 16 * 2 * 1200 * 2 // 8
    rest = 2048 * 4800 * 2 // 8 + 16 * 2048 * 4
    assert matrices + caches + rest < found < 1.006 * (matrices + caches + rest)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="batch of 6 does not spread over data x fsdp = 4"):
        programs.decode_program(LYRICS, 6, make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))


def test_encode_and_prefill_programs_lower():
    mesh = make_mesh({"data": 8})
    prefill = programs.prefill_program(LYRICS, 8, mesh, jnp.float32)
    (cache, token) = prefill.lower().out_info
    assert token.shape == (8,) and len(cache) == len(programs.decode_program(LYRICS, 8, mesh).args[1])
    vqvae = presets.VQVAE(down_depths=(1, 1), strides=(2, 2), width=4, depth=1, multipliers=None, codebook_size=16)
    encode = programs.encode_program(vqvae, 8, mesh)
    assert encode.extras["samples"] == 8 * 2**18 and encode.lower().out_info[1].dtype == jnp.int32
