"""The convolutional blocks: order of the dilations, scales, names, and PyTorch's initial values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jukebox_jax.models.resnet import DecoderConvBlock, EncoderConvBlock, Resnet1D
from jukebox_jax.types import UserError


def init(module, x: jax.Array, seed: int = 0):
    return module.init(jax.random.key(seed), x)


def names(variables) -> list[str]:
    return sorted(traverse_util.flatten_dict(variables["params"], sep="/"))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cycle", [None, 2])
def test_dilations_in_order(reverse: bool, cycle: int | None) -> None:
    """With all but one block silent, the reach of an impulse is that block's dilation."""
    module = Resnet1D(2, 3, growth=3, cycle=cycle, reverse=reverse)
    x = jnp.ones((1, 41, 2))
    variables = init(module, x)
    expected = [1, 3, 9] if cycle is None else [1, 3, 1]
    for block, dilation in enumerate(reversed(expected) if reverse else expected):
        p = jax.tree.map(jnp.zeros_like, variables)
        p["params"][f"block_{block}"] = jax.tree.map(jnp.ones_like, variables["params"][f"block_{block}"])
        touched = np.flatnonzero(
            np.abs(np.asarray(module.apply(p, x.at[0, 20, 0].set(2.0)) - module.apply(p, x)))[0, :, 1]
        )
        assert touched.tolist() == [20 - dilation, 20, 20 + dilation]


def test_residual_scale_is_the_root_of_the_depth() -> None:
    x = jnp.ones((1, 5, 3))
    plain, scaled = (Resnet1D(3, 4, residual_scale=s) for s in (False, True))
    variables = init(plain, x)
    only = jax.tree.map(jnp.zeros_like, variables)
    only["params"]["block_2"] = variables["params"]["block_2"]
    np.testing.assert_allclose(scaled.apply(only, x) - x, (plain.apply(only, x) - x) / 2, rtol=1e-5, atol=1e-6)
    zero = Resnet1D(3, 4, zero_init=True)
    np.testing.assert_array_equal(zero.apply(init(zero, x), x), x)


def test_blocks_names_and_lengths() -> None:
    encoder = EncoderConvBlock(5, 2, 4, width=3, depth=1, hidden_ratio=1.5)
    decoder = DecoderConvBlock(5, 2, 4, width=3, depth=1)
    x = jnp.ones((2, 33, 1))
    variables = init(encoder, x)
    assert encoder.apply(variables, x).shape == (2, 2, 5)
    resnet = [f"stage_{i}/resnet/block_0/conv_{c}" for i in range(2) for c in range(2)]
    layers = sorted([*resnet, "stage_0/downsample", "stage_1/downsample", "output"])
    assert names(variables) == sorted(f"{layer}/{leaf}" for layer in layers for leaf in ("bias", "kernel"))
    assert variables["params"]["stage_0"]["resnet"]["block_0"]["conv_0"]["kernel"].shape == (3, 3, 4)
    z = jnp.ones((2, 3, 5))
    variables = init(decoder, z)
    assert decoder.apply(variables, z).shape == (2, 48, 5)
    layers = sorted([*resnet, "stage_0/upsample", "stage_1/upsample", "input"])
    assert names(variables) == sorted(f"{layer}/{leaf}" for layer in layers for leaf in ("bias", "kernel"))


def test_initial_values_are_pytorch_s() -> None:
    """U(+-1/sqrt(fan in)) for weights and biases; a transposed convolution's fan in is of its output channels."""
    p = init(DecoderConvBlock(40, 1, 2, width=20, depth=1), jnp.ones((1, 4, 30)))["params"]
    for layer, fan_in in (
        (p["input"], 90),
        (p["stage_0"]["upsample"], 160),
        (p["stage_0"]["resnet"]["block_0"]["conv_1"], 20),
    ):
        for leaf in layer.values():
            largest = float(jnp.max(jnp.abs(leaf)))
            assert 0.85 / np.sqrt(fan_in) < largest <= 1 / np.sqrt(fan_in) * 1.0001
            assert leaf.dtype == jnp.float32


def test_identity_without_stages_and_odd_strides() -> None:
    x = jnp.ones((1, 8, 3))
    for block in (EncoderConvBlock(5, 0, 2, 3, 1), DecoderConvBlock(5, 0, 2, 3, 1)):
        np.testing.assert_array_equal(block.apply({}, x), x)
    with pytest.raises(UserError, match="stride 3: lengths would not match"):
        init(DecoderConvBlock(5, 1, 3, 3, 1), x)


def test_bfloat16_computes_in_bfloat16() -> None:
    x = jax.random.normal(jax.random.key(1), (1, 32, 4))
    exact, rounded = (EncoderConvBlock(6, 2, 2, 8, 2, growth=3, dtype=d) for d in (jnp.float32, jnp.bfloat16))
    variables = init(exact, x)
    y = rounded.apply(variables, x)
    assert y.dtype == jnp.bfloat16
    reference = exact.apply(variables, x)
    assert float(jnp.max(jnp.abs(y - reference))) < 0.03 * float(jnp.max(jnp.abs(reference)))
