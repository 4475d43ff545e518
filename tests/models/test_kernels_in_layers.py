"""The model's own use of the attention kernels: chosen by platform, on meshes, with blocks stored as whole tiles."""

from __future__ import annotations

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.models import transformer as transformers
from jukebox_jax.models.transformer import Transformer
from jukebox_jax.ops import attention
from jukebox_jax.parallel.mesh import make_mesh, use
from jukebox_jax.parallel.sharding import over_rows
from jukebox_jax.types import UserError

rng = np.random.default_rng(0)


def both(config: presets.Transformer, prime_length: int = 0):
    """Transformers that differ in their attention, parameters, and a stream."""
    ours, definition = (
        Transformer(config, prime_length=prime_length, implementation=i, scan_layers=True, remat=True)
        for i in ("pallas", "xla")
    )
    x = jnp.asarray(rng.normal(0, 1, (4, config.length, config.width)), jnp.float32)
    params = definition.init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.3, p.shape), jnp.float32), params)
    return ours, definition, params, x


def loss(model: Transformer):
    return lambda params, x: jnp.mean(jnp.square(jnp.asarray(model.apply({"params": params}, x))))


def agree(actual, expected) -> None:
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5), actual, expected)


def fast(function):
    """Compiled quickly rather than well."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def test_kernels_on_a_mesh_are_the_definition():
    """Two groups of layers, two heads over ``tensor``, gathered weights, recomputed layers: loss and gradients."""
    ours, definition, params, x = both(presets.Transformer(12, 8, 4, 2, 3, "block_column"))
    expected = fast(jax.value_and_grad(loss(definition)))(params, x)
    with use(make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        agree(fast(jax.value_and_grad(lambda p, x: over_rows(loss(ours), p, x, 2)))(params, x), expected)
        agree(fast(loss(ours))(params, x), expected[0])  # as sampling calls it


def test_padded_blocks_are_the_definition(monkeypatch):
    """Blocks of 6 positions stored as 8."""
    ours, definition, params, x = both(presets.Transformer(18, 8, 4, 1, 3, "factored_dense"))
    expected = fast(jax.value_and_grad(loss(definition)))(params, x)
    monkeypatch.setattr(Transformer, "padding", 2)
    agree(fast(jax.value_and_grad(loss(ours)))(params, x), expected)


def test_layers_recomputed_together_are_the_layers():
    config = presets.Transformer(12, 8, 5, 2, 3, "factored_dense")
    _, definition, params, x = both(config)
    expected = fast(jax.value_and_grad(loss(definition)))(params, x)
    agree(fast(jax.value_and_grad(loss(definition.clone(remat_layers=(2, 1)))))(params, x), expected)


@pytest.mark.parametrize("kind", attention.KINDS)
def test_padding_is_seen_by_no_kind(kind):
    q, k, v = (jnp.asarray(rng.normal(0, 1, (2, 24, 8)), jnp.float32) for _ in range(3))
    options = dict(num_heads=2, num_blocks=4, prefix=9, spread=2)
    expected = attention.attend(kind, q, k, v, **options)
    stored = [y if kind == "lyrics" and y is not q else attention.pad(y, 4, 2) for y in (q, k, v)]
    actual = attention.attend(kind, *stored, padding=2, **options)
    assert actual.shape == (2, 32, 8)
    agree(attention.strip(actual, 4, 2), expected)


def test_padding_is_for_kernels_on_tpus(monkeypatch):
    model = Transformer(presets.PRIOR_1B_LYRICS.transformer)
    assert model.padding == 0
    monkeypatch.setattr(transformers, "platform", lambda: "tpu")
    assert model.padding == 2 and Transformer(presets.PRIOR_5B.transformer).padding == 0
    assert Transformer(presets.PRIOR_1B_LYRICS.transformer, implementation="xla").padding == 0


@pytest.mark.parametrize(
    ("kind", "shape", "platform", "implementation", "expected"),
    [
        ("block", (2, 8192, 1200), "tpu", "auto", "pallas"),
        ("block", (2, 8192, 1200), "tpu", "xla", "xla"),
        ("block", (2, 8192, 1200), "gpu", "auto", "pallas"),
        ("block", (2, 8192, 1200), "cpu", "auto", "xla"),
        ("block", (2, 8192, 1200), "cpu", "pallas", "pallas"),
        ("dense", (2, 8192, 1200), "tpu", "auto", "xla"),
        ("column", (2, 128 * 62, 1200), "tpu", "auto", "xla"),
        ("column", (2, 128 * 62, 1200), "gpu", "auto", "pallas"),
    ],
)
def test_auto_knows_the_platform(kind, shape, platform, implementation, expected):
    q = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    options = dict(num_heads=8, num_blocks=128, platform=platform, implementation=implementation)
    assert attention.resolve(kind, q, **options) == expected


def test_auto_moves_no_more_than_xla_in_whole_programs(monkeypatch):
    """Of every program that was compiled both ways (certificates/kernels); and who has kernels is on purpose."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    programs = importlib.import_module("attention_programs")
    picked = {name: programs.picked(name) for name in presets.PRIORS}
    assert {name for name, which in picked.items() if which == "xla"} == {"upsampler_level_0", "upsampler_level_1"}
    assert {row["config"] for row in programs.rows().values()} >= {"upsampler_level_0", "small_prior"}
    assert max(map(programs.excess, programs.rows().values())) <= programs.NOISE


def test_kernels_that_do_not_exist_are_refused():
    q = jax.ShapeDtypeStruct((1, 64, 16), jnp.float16)
    with pytest.raises(UserError, match="'pallas': no kernel for float16; use 'auto' or 'xla'"):
        attention.resolve("block", q, num_heads=2, num_blocks=8, platform="tpu", implementation="pallas")
