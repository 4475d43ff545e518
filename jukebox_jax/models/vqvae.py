"""The hierarchical VQ-VAE: one encoder, codebook and decoder per level, no level feeding another (spec/vqvae.md)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jukebox_jax.models.resnet import Conv, DecoderConvBlock, EncoderConvBlock
from jukebox_jax.ops import conv_packed, conv_products, conv_stack, quantize
from jukebox_jax.ops.conv_stack import Layer, Stack
from jukebox_jax.parallel.mesh import alone, platform
from jukebox_jax.parallel.sharding import on_rows
from jukebox_jax.presets import VQVAE as Config
from jukebox_jax.types import UserError, choose


class Encoder(nn.Module):
    """Audio to the latents of one level, through the blocks of every level up to it."""

    config: Config
    level: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def stack(self) -> Stack:
        c, layers = self.config, []
        width, depth = c.level_width_depth(self.level)
        for i in range(self.level + 1):
            layers += EncoderConvBlock(
                c.codebook_dim, c.down_depths[i], c.strides[i], width, depth, c.hidden_ratio, c.dilation_growth,
                c.dilation_cycle, dtype=self.dtype, name=f"block_{i}",
            ).stack(c.codebook_dim if i else 1)  # fmt: skip
        return layers


class Decoder(nn.Module):
    """Latents of one level to audio, through the blocks of every level down from it."""

    config: Config
    level: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def stack(self) -> Stack:
        c, layers = self.config, []
        width, depth = c.level_width_depth(self.level)
        for i in reversed(range(self.level + 1)):
            layers += DecoderConvBlock(
                c.codebook_dim, c.down_depths[i], c.strides[i], width, depth, c.hidden_ratio, c.dilation_growth,
                c.dilation_cycle, reverse=c.reverse_decoder_dilation, dtype=self.dtype, name=f"block_{i}",
            ).stack(c.codebook_dim)  # fmt: skip
        return [*layers, (Layer("conv", 3), Conv(1, 3, dtype=self.dtype, name="output")(c.codebook_dim))]


class Codebook(nn.Module):
    """Holds a level's ``CodebookState`` in the collection ``codebook``: no parameter, no gradient."""

    size: int
    width: int

    @nn.compact
    def __call__(self) -> quantize.CodebookState:
        shapes = {"codebook": (self.size, self.width), "sum": (self.size, self.width), "count": (self.size,)}
        return quantize.CodebookState(
            **{n: jnp.asarray(self.variable("codebook", n, jnp.zeros, shape).value) for n, shape in shapes.items()}
        )


class VQVAE(nn.Module):
    """The VQ-VAE of a preset. Variables: ``params`` and ``codebook`` (``level_{i}``: codebook, sum, count).

    ``dtype`` is what the convolutions compute in; parameters, codebook, distances, inputs and outputs are float32. The
    training loss is in ``models/vqvae_loss.py``; signals longer than memory go through ``models/vqvae_stream.py``.
    """

    config: Config
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config
        check(c)
        levels = range(c.levels)
        self.encoders = [Encoder(c, level, self.dtype, name=f"encoder_{level}") for level in levels]
        self.decoders = [Decoder(c, level, self.dtype, name=f"decoder_{level}") for level in levels]
        if c.use_bottleneck:
            self.codebooks = [Codebook(c.codebook_size, c.codebook_dim, name=f"level_{level}") for level in levels]

    def encoder(self, level: int) -> Stack:
        """The layers of the encoder of a level."""
        choose("level", level, range(self.config.levels))
        return self.encoders[level].stack()

    def decoder(self, level: int) -> Stack:
        """The layers of the decoder of a level."""
        choose("level", level, range(self.config.levels))
        return self.decoders[level].stack()

    def codebook(self, level: int) -> quantize.CodebookState:
        """The codebook state of a level."""
        return self.codebooks[level]()

    def latents(self, audio: Float[Array, "b a 1"], level: int) -> Float[Array, "b t e"]:
        """Encoder output of one level, to differentiate: ``t = a // hop``."""
        return whole(self.encoder(level), audio.astype(self.dtype)).astype(jnp.float32)

    def decode_latents(self, latents: Float[Array, "b t e"], level: int) -> Float[Array, "b a 1"]:
        """Decoder output of one level, to differentiate: ``a = t * hop``."""
        return whole(self.decoder(level), latents.astype(self.dtype)).astype(jnp.float32)

    def encode_level(self, audio: Float[Array, "b a 1"], level: int) -> Int[Array, "b t"]:
        """Codes of one level; only its encoder runs."""
        latents = conv_stack.forward(self.encoder(level), audio.astype(self.dtype), form=convolved)
        return quantize.nearest_codes(latents.astype(jnp.float32), self.codebook(level).codebook)[0]

    def encode(self, audio: Float[Array, "b a 1"], levels: Sequence[int] | None = None) -> list[Int[Array, "b t"]]:
        """Codes of the given levels (None: all, bottom first)."""
        return [self.encode_level(audio, level) for level in (range(self.config.levels) if levels is None else levels)]

    def decode(self, codes: Int[Array, "b t"], level: int) -> Float[Array, "b a 1"]:
        """Audio of the codes of one level; only its decoder runs."""
        lookup = partial(quantize.dequantize, codebook=self.codebook(level).codebook.astype(self.dtype))
        return conv_stack.forward(self.decoder(level), codes, lookup, convolved).astype(jnp.float32)

    def __call__(self, audio: Float[Array, "b a 1"]) -> list[Float[Array, "b a 1"]]:
        """Reconstructions from every level, bottom first. Touches every variable, so ``init`` calls it."""
        if not self.config.use_bottleneck:
            return [self.decode_latents(self.latents(audio, level), level) for level in range(self.config.levels)]
        return [self.decode(codes, level) for level, codes in enumerate(self.encode(audio))]


def whole(stack: Stack, x: Float[Array, "b t d"]) -> Float[Array, "b u o"]:
    """A stack on a whole signal, to differentiate: on one CPU in matrix products, one example after the other."""
    return conv_products.whole(stack, x) if alone() and x.dtype == jnp.float32 else convolved(stack, x)


def convolved(stack: Stack, x: Float[Array, "b t d"]) -> Float[Array, "b u o"]:
    """A stack on a whole signal in convolutions, as the platform likes its channels."""
    if platform() != "tpu":
        return conv_stack.whole(stack, x)
    return on_rows(lambda x, stack: conv_packed.whole(stack, x), x, stack)


def check(config: Config) -> None:
    """Raise ``UserError`` where a preset describes no VQ-VAE that encodes and decodes to the same length."""
    for field in ("strides", "multipliers"):
        values = getattr(config, field)
        if values is not None and len(values) != config.levels:
            raise UserError(f"{field} {values}: {config.levels} entries are needed, one per entry of down_depths")
    for stride, depth in zip(config.strides, config.down_depths, strict=True):
        if depth and (stride < 2 or stride % 2):
            raise UserError(
                f"strides {config.strides}: {stride} would not decode to the encoded length; "
                f"only even strides do, the nearest is {max(2, stride + 1)}"
            )
