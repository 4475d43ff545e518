"""Meshes and the sharding table on eight virtual devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jukebox_jax import presets
from jukebox_jax.models.prior import Prior
from jukebox_jax.parallel.mesh import make_mesh, parse_mesh, use
from jukebox_jax.parallel.sharding import constrain, map_with_shardings, over_rows, replicated, shardings_of, whole
from jukebox_jax.types import UserError


def specs(preset: presets.Prior, **shape: int) -> dict[str, P]:
    tree = jax.eval_shape(lambda rng: Prior(preset).init(rng, method="initialise"), jax.random.key(0))
    shardings = shardings_of(tree["params"], make_mesh(shape), preset.transformer.num_heads)
    return {
        jax.tree_util.keystr(p, simple=True, separator="/"): s.spec
        for p, s in jax.tree_util.tree_leaves_with_path(shardings)
    }


def test_layers_are_sharded_over_fsdp_and_tensor():
    s = specs(presets.PRIOR_5B, fsdp=2, tensor=4)
    layer = "transformer/segment_0/layer_1"
    assert s[f"{layer}/attention/query/kernel"] == P(None, "fsdp", "tensor")
    assert s[f"{layer}/attention/query/bias"] == P(None, "tensor")
    assert s[f"{layer}/attention/output/kernel"] == P(None, "tensor", "fsdp")
    assert s[f"{layer}/mlp/in/kernel"] == P(None, "fsdp", "tensor")
    assert s[f"{layer}/mlp/out/kernel"] == P(None, "tensor", "fsdp")
    assert s[f"{layer}/norm_0/scale"] == P()
    assert s["embedding"] == s["output"] == P("tensor", "fsdp")


def test_one_head_is_never_split():
    s = specs(presets.UPSAMPLER_LEVEL_0, fsdp=2, tensor=4)
    assert s["transformer/segment_0/layer_0/attention/query/kernel"] == P(None, "fsdp")
    assert s["transformer/segment_0/layer_0/attention/output/kernel"] == P(None, None, "fsdp")
    assert s["transformer/segment_0/layer_0/mlp/in/kernel"] == P(None, "fsdp", "tensor")


def test_what_does_not_divide_stays_whole():
    s = specs(presets.PRIOR_1B_LYRICS, fsdp=4, tensor=2)
    assert s["embedding"] == P(None, "fsdp")  # 2127 ids
    assert s["transformer/segment_0/layer_0/attention/query/kernel"] == P(None, "fsdp", "tensor")


def test_arrays_are_made_in_their_place():
    made = map_with_shardings(
        lambda: {"mlp": {"in": {"kernel": jnp.ones((8, 16))}}}, make_mesh({"fsdp": 4, "tensor": 2})
    )
    kernel = made["mlp"]["in"]["kernel"]
    assert kernel.sharding.spec == P("fsdp", "tensor")
    assert kernel.addressable_shards[0].data.shape == (2, 8)


def test_constrain_follows_the_mesh_in_use():
    x = jnp.zeros((8, 6, 4))
    assert constrain(x, "batch", "length", "embed") is x
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with use(mesh):
        hidden = jax.jit(lambda x: constrain(x, "batch", None, "mlp"))(x)
        stream = jax.jit(lambda x: constrain(x, "batch", "length", None))(x)
    assert hidden.sharding.spec == P(("data", "fsdp"), None, "tensor")
    assert stream.sharding.spec == P(("data", "fsdp"), "tensor")


@pytest.mark.parametrize("shape", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 8}, {"tensor": 8}])
def test_means_over_rows_gather_weights_and_scatter_gradients(shape):
    """A stack of two layers and a table: the mean and its gradients of one device, each gradient in its place."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(0, 1, shape), jnp.float32)  # noqa: E731
    params = {"segment": {"mlp": {"in": {"kernel": draw(2, 16, 16), "bias": draw(2, 16)}}}, "embedding": draw(8, 16)}
    tokens = jnp.asarray(rng.integers(0, 8, (8, 3)))

    def mean(params, tokens):
        x = params["embedding"][tokens]
        for i in range(2):
            layer = whole(jax.tree.map(lambda p, i=i: p[i], params["segment"]["mlp"]["in"]), jnp.float32)
            x = jnp.sin(constrain(x @ layer["kernel"] + layer["bias"][None, None], "batch", None, "mlp"))
        return jnp.mean(x**2)

    mesh = make_mesh(shape)
    places = shardings_of(params, mesh)
    gradient = jax.value_and_grad(lambda p, t: over_rows(mean, p, t))
    with use(mesh):
        where = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, places)
        lowered = jax.jit(gradient, out_shardings=(replicated(mesh), places)).lower(where, tokens)
        value, gradients = lowered.compile()(jax.device_put(params, places), tokens)
    expected = jax.value_and_grad(mean)(params, tokens)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), (value, gradients), expected)
    text = lowered.as_text()
    found = [text.count(f'"stablehlo.{kind}"(') for kind in ("all_gather", "reduce_scatter")]
    assert found == [3 if mesh.shape["fsdp"] > 1 else 0] * 2


def test_meshes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="data=3 x fsdp=1 x tensor=1 does not fit 8 devices"):
        make_mesh({"data": 3})
    with pytest.raises(UserError, match="unknown mesh axis 'model'"):
        make_mesh({"model": 8})


def test_meshes_in_words():
    assert parse_mesh("data=4,fsdp=64") == {"data": 4, "fsdp": 64, "tensor": 1}
    assert parse_mesh(None) is None
    for text in ("4x64", "pipe=2", "data=two"):
        with pytest.raises(UserError, match="write sizes of data, fsdp and tensor"):
            parse_mesh(text)
