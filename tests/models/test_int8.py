"""Weights and caches of 8 bits: what they hold is within half a step of what they came from, in every form."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.models import cache as kv_cache
from jukebox_jax.models import decode_form, int8
from jukebox_jax.models.cache import DECODABLE, Sizes
from jukebox_jax.models.pattern import Kind
from jukebox_jax.models.prior import Prior
from jukebox_jax.ops.logits import Settings
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.sample import decode, programs

SIZES = Sizes(length=12, num_blocks=4, prefix=5, num_lyrics=5, num_heads=2)
BATCH, HEAD = 3, 4
PRESET = presets.Prior(
    level=0, context_length=12, codebook_size=9, hop_length=4,
    transformer=presets.Transformer(12, 16, 3, 2, 4, attention_ratio=0.5, init_scale=10.0),
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.mark.parametrize("outputs", [-1, -2])
def test_a_matrix_has_a_scale_per_output(outputs: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 6)) * np.array([1e-3, 1, 10, 0, 1, 100])
    x = np.float32(x if outputs == -1 else x.swapaxes(1, 2))
    found = jax.jit(lambda x: int8.matrix(x, "kernel", outputs))(x)
    scale = np.expand_dims(found["scale"], -3 - outputs)
    assert found["kernel"].dtype == jnp.int8 and found["scale"].shape == (2, 6)
    assert np.all(np.abs(found["kernel"] * scale - x) <= 0.5001 * scale)
    largest = np.abs(found["kernel"]).max(axis=-3 - outputs)
    np.testing.assert_array_equal(largest, np.broadcast_to([127, 127, 127, 0, 127, 127], (2, 6)))


@pytest.mark.parametrize("form", ["stacked", "apart"])
def test_a_cache_reads_as_it_was_written(form: str) -> None:
    rng = np.random.default_rng(1)
    repeats, index = (2, 1) if form == "stacked" else (1, 0)
    shapes = [(repeats, *kv_cache.shape(kind, SIZES, BATCH, 2 * HEAD)) for kind in DECODABLE]
    plain = [rng.normal(size=shape).astype(np.float32) * 3 for shape in shapes]
    kv = rng.normal(size=(BATCH, 2, 2, HEAD)).astype(np.float32)

    @jax.jit
    def run(plain, kv, t):
        """What both forms read, before and after they are written."""
        reads = []
        for kind, cache in zip(DECODABLE, plain, strict=True):
            packed = int8.pack(kind, cache, SIZES.num_heads)
            if form == "apart":
                cache, packed["kv"] = (kv_cache.apart(kind, x, SIZES) for x in (cache, packed["kv"]))
            for _ in range(2):
                expected = kv_cache.read(kind, cache, SIZES, index, t)
                reads.append((expected, int8.read(kind, packed, SIZES, index, t)))
                cache = kv_cache.write(kind, cache, kv, SIZES, index, t)
                packed = int8.write(kind, packed, kv, SIZES, index, t)
        return reads

    reads = run(plain, kv, 7)
    assert len(reads) == 2 * len(DECODABLE)
    for expected, (*found, scale) in jax.tree.map(np.asarray, reads):
        for i, (x, y) in enumerate(zip(found, expected, strict=True)):
            assert x.dtype == np.int8 and scale.shape == (2, *x.shape[:3])
            own = slice(None) if y.shape[-1] == HEAD else slice(i * HEAD, (i + 1) * HEAD)  # keys beside values
            assert np.all(np.abs(x * scale[i, ..., None] - y)[..., own] <= 0.5001 * scale[i, ..., None])


def test_a_window_is_as_likely() -> None:
    model = Prior(PRESET, scan_layers=True)
    params = jax.jit(functools.partial(model.init, method="initialise"))(jax.random.key(0))["params"]
    codes = np.random.default_rng(2).integers(0, 9, (2, 7)).astype(np.int32)
    drawn = [
        decode.sample_window(
            model, params, codes, None, None, jax.random.split(jax.random.key(1), 2), start=0, num_steps=5, chunk=5,
            settings=Settings(), keep_logits=True,
        ).logits[:, 0]
        for model in (model, dataclasses.replace(model, int8=True))
    ]  # fmt: skip
    assert 0 < np.abs(drawn[1] - drawn[0]).max() < 0.05 * drawn[0].std()


def test_prefilled_caches_are_those_of_steps() -> None:
    """Seven positions at once, with the full weights, and one by one in 8 bits: the same to a few steps of 127."""
    t = dataclasses.replace(PRESET.transformer, pattern="factored_dense", depth=4)
    model = Prior(dataclasses.replace(PRESET, transformer=t), scan_layers=True, int8=True)
    params = jax.jit(functools.partial(model.init, method="initialise"))(jax.random.key(0))["params"]
    codes = jnp.asarray(np.random.default_rng(2).integers(0, 9, (2, 12)), jnp.int32)
    kinds = [kind for group in decode_form.groups(model) for kind in group.kinds]
    assert {Kind.DENSE, Kind.COLUMN, Kind.PREVIOUS, Kind.BLOCK} == set(kinds)

    @jax.jit
    def run(params, codes):
        cond = decode.condition(model, params, None, None)
        filled, _ = decode.prefill(model, params, codes, cond, jnp.int32(7))
        weights, cache = decode_form.prepare(model, params), decode_form.init_cache(model, params, 2, cond)

        def one(cache, t):
            token = jax.lax.dynamic_index_in_dim(codes, jnp.maximum(t - 1, 0), axis=1, keepdims=False)
            return decode_form.step(model, weights, token, cond, cache, t)[::-1]

        cache, _ = jax.lax.scan(one, cache, jnp.arange(7))

        def read(caches):
            out = []
            sizes = decode_form._layer(model, Kind.DENSE).sizes
            for kind, cache in zip(kinds, (cache for group in caches for cache in group), strict=True):
                k, v, scale = int8.read(kind, cache, sizes, 0, jnp.int32(6))
                seen = kv_cache.visible(kind, sizes, jnp.int32(6), k.shape[2])[None, None, :, None]
                out += [jnp.where(seen, x * s[..., None], 0) for x, s in zip((k, v), scale, strict=True)]
            return out

        return read(filled), read(cache)

    for found, expected in zip(*jax.tree.map(np.asarray, run(params, codes)), strict=True):
        np.testing.assert_allclose(found, expected, atol=8 / 127 * np.abs(expected).max())


def test_a_program_holds_half_the_bytes() -> None:
    wide = dataclasses.replace(PRESET, transformer=dataclasses.replace(PRESET.transformer, width=512))
    bytes_of = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 2}, jax.devices()[:2])
    plain, eight = [programs.decode_program(wide, 2, mesh, int8=eight).args[:2] for eight in (False, True)]
    assert bytes_of(eight[0]) < 0.55 * bytes_of(plain[0])
    integers = [x for x in jax.tree.leaves(eight[1]) if x.dtype == jnp.int8]
    assert 2 * bytes_of(integers) == bytes_of(plain[1])  # scales are padded to 128 positions: not of this short context
