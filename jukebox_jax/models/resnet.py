"""Convolutional blocks that the VQ-VAE and the priors' conditioner share (spec/vqvae.md section 1), channels last.

Variable names follow the modules' order in the original checkpoints: ``Resnet1D`` names its blocks by position, so in a
reversed stack ``block_0`` has the largest dilation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jukebox_jax.ops import convolution


def uniform_init(bound: float) -> nn.initializers.Initializer:
    """U(-bound, bound)."""

    def init(rng: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32, **_) -> jax.Array:
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """A convolution with bias, ``padding`` zeros on each side; U(±1/sqrt(fan in)) initial weights and biases."""

    width: int
    size: int
    stride: int = 1
    dilation: int = 1
    padding: int = 0
    zero_init: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b u o"]:
        init = nn.initializers.zeros_init() if self.zero_init else uniform_init(1 / math.sqrt(x.shape[-1] * self.size))
        kernel = self.param("kernel", init, (self.size, x.shape[-1], self.width))
        bias = self.param("bias", init, (self.width,))
        x, kernel, bias = (v.astype(self.dtype) for v in (x, kernel, bias))
        x = convolution.conv(x, kernel, stride=self.stride, dilation=self.dilation, padding=self.padding)
        return x + bias.reshape(1, 1, -1)


class ConvTranspose(nn.Module):
    """A transposed convolution with bias. PyTorch counts its fan in over the output channels; so does this."""

    width: int
    size: int
    stride: int
    padding: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b u o"]:
        init = uniform_init(1 / math.sqrt(self.width * self.size))
        kernel = self.param("kernel", init, (self.size, x.shape[-1], self.width))
        bias = self.param("bias", init, (self.width,))
        x, kernel, bias = (v.astype(self.dtype) for v in (x, kernel, bias))
        return convolution.conv_transpose(x, kernel, stride=self.stride, padding=self.padding) + bias.reshape(1, 1, -1)


def dilations(depth: int, growth: int, cycle: int | None, reverse: bool = False) -> list[int]:
    """Dilation of each residual block, in the order in which they are applied."""
    values = [growth ** (d if cycle is None else d % cycle) for d in range(depth)]
    return values[::-1] if reverse else values


class ResidualBlock(nn.Module):
    """``x + scale * conv1(relu(conv3(relu(x))))``, the width-3 convolution dilated."""

    width: int
    hidden: int
    dilation: int
    scale: float = 1.0
    zero_init: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        h = Conv(self.hidden, 3, 1, self.dilation, self.dilation, dtype=self.dtype, name="conv_0")(nn.relu(x))
        h = Conv(self.width, 1, zero_init=self.zero_init, dtype=self.dtype, name="conv_1")(nn.relu(h))
        return x + (h if self.scale == 1.0 else self.scale * h)


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
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        scale = 1 / math.sqrt(self.depth) if self.residual_scale else 1.0
        hidden = int(self.hidden_ratio * self.width)
        for index, dilation in enumerate(dilations(self.depth, self.growth, self.cycle, self.reverse)):
            block = ResidualBlock(
                self.width, hidden, dilation, scale, self.zero_init, self.dtype, name=f"block_{index}"
            )
            x = block(x)
        return x


class EncoderStage(nn.Module):
    """Halve (for stride 2) the length, then a residual stack."""

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
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b u w"]:
        s = self.stride
        x = Conv(self.width, 2 * s, s, padding=s // 2, dtype=self.dtype, name="downsample")(x)
        return Resnet1D(
            self.width, self.depth, self.hidden_ratio, self.growth, self.cycle, self.residual_scale,
            self.zero_init, self.reverse, self.dtype, name="resnet",
        )(x)  # fmt: skip


class DecoderStage(nn.Module):
    """A residual stack, then ``stride`` times the length."""

    out_dim: int
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
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b u o"]:
        x = Resnet1D(
            self.width, self.depth, self.hidden_ratio, self.growth, self.cycle, self.residual_scale,
            self.zero_init, self.reverse, self.dtype, name="resnet",
        )(x)  # fmt: skip
        s = self.stride
        return ConvTranspose(self.out_dim, 2 * s, s, s // 2, self.dtype, name="upsample")(x)


class EncoderConvBlock(nn.Module):
    """``down_depth`` stages, then a width-3 convolution to ``out_dim``: length / stride ** down_depth.

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
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b u o"]:
        for i in range(self.down_depth):
            x = EncoderStage(
                self.stride, self.width, self.depth, self.hidden_ratio, self.growth, self.cycle, self.residual_scale,
                self.zero_init, self.reverse, self.dtype, name=f"stage_{i}",
            )(x)  # fmt: skip
        return Conv(self.out_dim, 3, padding=1, dtype=self.dtype, name="output")(x) if self.down_depth else x


class DecoderConvBlock(nn.Module):
    """A width-3 convolution to ``width``, then ``down_depth`` stages, the last to ``out_dim``.

    The length grows by ``stride ** down_depth``. Without stages the block is the identity.
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
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b u o"]:
        if not self.down_depth:
            return x
        x = Conv(self.width, 3, padding=1, dtype=self.dtype, name="input")(x)
        for i in range(self.down_depth):
            out_dim = self.out_dim if i == self.down_depth - 1 else self.width
            x = DecoderStage(
                out_dim, self.stride, self.width, self.depth, self.hidden_ratio, self.growth, self.cycle,
                self.residual_scale, self.zero_init, self.reverse, self.dtype, name=f"stage_{i}",
            )(x)  # fmt: skip
        return x
