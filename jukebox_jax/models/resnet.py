"""Convolutional blocks that the VQ-VAE and the priors' conditioner share (spec/vqvae.md section 1), channels last.

Modules own the variables and say which layers they are made of (``stack``); ``ops/conv_stack.py`` computes. Variable
names follow the modules' order in the original checkpoints: ``Resnet1D`` names its blocks by position, so in a reversed
stack ``block_0`` has the largest dilation.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jukebox_jax.ops import conv_stack
from jukebox_jax.ops.conv_stack import Layer, Stack
from jukebox_jax.types import UserError


def uniform_init(bound: float) -> nn.initializers.Initializer:
    """U(-bound, bound)."""
    return lambda rng, shape, dtype=jnp.float32, **_: jax.random.uniform(rng, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """Kernel and bias of a convolution, U(+-1/sqrt(fan in)) at first.

    The fan in of a ``transposed`` one is counted over its outputs, as PyTorch does.
    """

    width: int
    size: int
    transposed: bool = False
    zero_init: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Float[Array, "k d o"], Float[Array, " o"]]:
        bound = 1 / math.sqrt((self.width if self.transposed else inputs) * self.size)
        init = nn.initializers.zeros_init() if self.zero_init else uniform_init(bound)
        kernel = self.param("kernel", init, (self.size, inputs, self.width))
        bias = self.param("bias", init, (self.width,))
        return jnp.asarray(kernel, self.dtype), jnp.asarray(bias, self.dtype)


def dilations(depth: int, growth: int, cycle: int | None, reverse: bool = False) -> list[int]:
    """Dilation of each residual block, in the order in which they are applied."""
    values = [growth ** (d if cycle is None else d % cycle) for d in range(depth)]
    return values[::-1] if reverse else values


class ResidualBlock(nn.Module):
    """Arrays of ``x + scale * conv1(relu(conv3(relu(x))))``."""

    width: int
    hidden: int
    zero_init: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "..."], ...]:
        first = Conv(self.hidden, 3, dtype=self.dtype, name="conv_0")(self.width)
        return first + Conv(self.width, 1, zero_init=self.zero_init, dtype=self.dtype, name="conv_1")(self.hidden)


class Resnet1D(nn.Module):
    """A stack of residual blocks with growing (``reverse``: shrinking) dilation; same length, same width."""

    width: int
    depth: int
    hidden_ratio: float = 1.0
    growth: int = 1
    cycle: int | None = None
    residual_scale: bool = False  # 1 / sqrt(depth) per block
    zero_init: bool = False  # the last convolution of every block starts at zero
    reverse: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def stack(self) -> Stack:
        """The layers, for ``width`` channels."""
        scale = 1 / math.sqrt(self.depth) if self.residual_scale else 1.0
        hidden = int(self.hidden_ratio * self.width)
        layers = []
        for i, dilation in enumerate(dilations(self.depth, self.growth, self.cycle, self.reverse)):
            arrays = ResidualBlock(self.width, hidden, self.zero_init, self.dtype, name=f"block_{i}")()
            layers.append((Layer("residual", dilation=dilation, scale=scale), arrays))
        return layers

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return conv_stack.whole(self.stack(), x.astype(self.dtype))


class Stage(nn.Module):
    """A residual stack with a strided convolution before it, or (``upsample``) a transposed one after it."""

    upsample: bool
    out_dim: int  # of the strided or transposed convolution
    stride: int
    width: int
    depth: int
    hidden_ratio: float
    growth: int
    cycle: int | None
    residual_scale: bool
    zero_init: bool
    reverse: bool
    dtype: jnp.dtype

    @nn.compact
    def stack(self, inputs: int) -> Stack:
        """The layers, for ``inputs`` channels."""
        if self.stride < 2 or self.stride % 2:
            raise UserError(f"stride {self.stride}: lengths would not match; only even strides are allowed, such as 2")
        name, size = "upsample" if self.upsample else "downsample", 2 * self.stride
        conv = Conv(self.out_dim, size, self.upsample, dtype=self.dtype, name=name)(inputs)
        layers = Resnet1D(
            self.width, self.depth, self.hidden_ratio, self.growth, self.cycle, self.residual_scale,
            self.zero_init, self.reverse, self.dtype, name="resnet",
        ).stack()  # fmt: skip
        if self.upsample:
            return [*layers, (Layer("up", size, self.stride), conv)]
        return [(Layer("conv", size, self.stride), conv), *layers]


class EncoderConvBlock(nn.Module):
    """``down_depth`` stages, each ``stride`` times shorter, then a width-3 convolution to ``out_dim``.

    Without stages (``down_depth=0``) the block is the identity, as in the original.
    """

    out_dim: int
    down_depth: int
    stride: int
    width: int
    depth: int
    hidden_ratio: float = 1.0
    growth: int = 1
    cycle: int | None = None
    residual_scale: bool = False
    zero_init: bool = False
    reverse: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def stack(self, inputs: int) -> Stack:
        """The layers, for ``inputs`` channels."""
        layers = []
        for i in range(self.down_depth):
            stage = Stage(
                False, self.width, self.stride, self.width, self.depth, self.hidden_ratio, self.growth, self.cycle,
                self.residual_scale, self.zero_init, self.reverse, self.dtype, name=f"stage_{i}",
            )  # fmt: skip
            layers += stage.stack(self.width if i else inputs)
        if self.down_depth:
            layers.append((Layer("conv", 3), Conv(self.out_dim, 3, dtype=self.dtype, name="output")(self.width)))
        return layers

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b u o"]:
        return conv_stack.whole(self.stack(x.shape[-1]), x.astype(self.dtype))


class DecoderConvBlock(nn.Module):
    """A width-3 convolution to ``width``, then ``down_depth`` stages, each ``stride`` times longer.

    The last stage ends in ``out_dim`` channels. Without stages the block is the identity.
    """

    out_dim: int
    down_depth: int
    stride: int
    width: int
    depth: int
    hidden_ratio: float = 1.0
    growth: int = 1
    cycle: int | None = None
    residual_scale: bool = False
    zero_init: bool = False
    reverse: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def stack(self, inputs: int) -> Stack:
        """The layers, for ``inputs`` channels."""
        layers = []
        if self.down_depth:
            layers.append((Layer("conv", 3), Conv(self.width, 3, dtype=self.dtype, name="input")(inputs)))
        for i in range(self.down_depth):
            out_dim = self.out_dim if i == self.down_depth - 1 else self.width
            stage = Stage(
                True, out_dim, self.stride, self.width, self.depth, self.hidden_ratio, self.growth, self.cycle,
                self.residual_scale, self.zero_init, self.reverse, self.dtype, name=f"stage_{i}",
            )  # fmt: skip
            layers += stage.stack(self.width)
        return layers

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b u o"]:
        return conv_stack.whole(self.stack(x.shape[-1]), x.astype(self.dtype))
