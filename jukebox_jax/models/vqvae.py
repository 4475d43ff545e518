"""The hierarchical VQ-VAE: one encoder, codebook and decoder per level, no level feeding another (spec/vqvae.md)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jukebox_jax.models.resnet import Conv, DecoderConvBlock, EncoderConvBlock
from jukebox_jax.ops import quantize
from jukebox_jax.presets import VQVAE as Config
from jukebox_jax.types import UserError, choose


class Encoder(nn.Module):
    """Audio to the latents of one level, through the blocks of every level up to it."""

    config: Config
    level: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, audio: Float[Array, "b a 1"]) -> Float[Array, "b t e"]:
        c = self.config
        width, depth = c.level_width_depth(self.level)
        x = audio.astype(self.dtype)
        for i in range(self.level + 1):
            x = EncoderConvBlock(
                c.codebook_dim, c.down_depths[i], c.strides[i], width, depth, c.hidden_ratio, c.dilation_growth,
                c.dilation_cycle, dtype=self.dtype, name=f"block_{i}",
            )(x)  # fmt: skip
        return x.astype(jnp.float32)


class Decoder(nn.Module):
    """Latents of one level to audio."""

    config: Config
    level: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, latents: Float[Array, "b t e"]) -> Float[Array, "b a 1"]:
        c = self.config
        width, depth = c.level_width_depth(self.level)
        x = latents.astype(self.dtype)
        for i in reversed(range(self.level + 1)):
            x = DecoderConvBlock(
                c.codebook_dim, c.down_depths[i], c.strides[i], width, depth, c.hidden_ratio, c.dilation_growth,
                c.dilation_cycle, reverse=c.reverse_decoder_dilation, dtype=self.dtype, name=f"block_{i}",
            )(x)  # fmt: skip
        return Conv(1, 3, padding=1, dtype=self.dtype, name="output")(x).astype(jnp.float32)


class Codebook(nn.Module):
    """Holds a level's ``CodebookState`` in the collection ``codebook``: no parameter, no gradient."""

    size: int
    width: int

    @nn.compact
    def __call__(self) -> quantize.CodebookState:
        shapes = {"codebook": (self.size, self.width), "sum": (self.size, self.width), "count": (self.size,)}
        return quantize.CodebookState(
            **{name: self.variable("codebook", name, jnp.zeros, shape).value for name, shape in shapes.items()}
        )


class VQVAE(nn.Module):
    """The VQ-VAE of a preset. Variables: ``params`` and ``codebook`` (``level_{i}``: codebook, sum, count).

    ``dtype`` is what the convolutions compute in; parameters, codebook, distances, inputs and outputs are float32.
    The training forward is ``models/vqvae_loss.py``; long audio is ``models/vqvae_stream.py``.
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

    def latents(self, audio: Float[Array, "b a 1"], level: int) -> Float[Array, "b t e"]:
        """Encoder output of one level: ``t = a // hop``."""
        choose("level", level, range(self.config.levels))
        return self.encoders[level](audio)

    def codebook(self, level: int) -> quantize.CodebookState:
        """The codebook state of one level."""
        return self.codebooks[level]()

    def encode_level(self, audio: Float[Array, "b a 1"], level: int) -> Int[Array, "b t"]:
        """Codes of one level; only its encoder runs."""
        x = self.latents(audio, level)
        codes, _ = quantize.nearest_codes(x.reshape(-1, x.shape[-1]), self.codebook(level).codebook)
        return codes.reshape(x.shape[:2])

    def encode(self, audio: Float[Array, "b a 1"], levels: Sequence[int] | None = None) -> list[Int[Array, "b t"]]:
        """Codes of the given levels (None: all, bottom first)."""
        return [self.encode_level(audio, level) for level in (range(self.config.levels) if levels is None else levels)]

    def decode_latents(self, latents: Float[Array, "b t e"], level: int) -> Float[Array, "b a 1"]:
        """Decoder output of one level: ``a = t * hop``."""
        choose("level", level, range(self.config.levels))
        return self.decoders[level](latents)

    def decode(self, codes: Int[Array, "b t"], level: int) -> Float[Array, "b a 1"]:
        """Audio of the codes of one level; only its decoder runs."""
        return self.decode_latents(quantize.dequantize(codes, self.codebook(level).codebook), level)

    def __call__(self, audio: Float[Array, "b a 1"]) -> list[Float[Array, "b a 1"]]:
        """Reconstructions from every level, bottom first. Touches every variable, so ``init`` calls it."""
        if not self.config.use_bottleneck:
            return [self.decode_latents(self.latents(audio, level), level) for level in range(self.config.levels)]
        return [self.decode(codes, level) for level, codes in enumerate(self.encode(audio))]


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
