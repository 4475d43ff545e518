"""What a prior is conditioned on: labels and timing, and the codes of the level above (spec/prior.md 6-7)."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jukebox_jax import presets
from jukebox_jax.models.layers import LayerNorm
from jukebox_jax.models.resnet import DecoderConvBlock


class UpperCodes(nn.Module):
    """Codes of the level above, upsampled by a WaveNet-like stack to one vector per code of this level. float32."""

    config: presets.Conditioner
    codebook_size: int
    width: int
    init_scale: float

    @nn.compact
    def __call__(self, codes: Int[Array, "b u"]) -> Float[Array, "b t d"]:
        c = self.config
        table = self.param(
            "embedding", nn.initializers.normal(0.02 * self.init_scale), (self.codebook_size, self.width)
        )
        x = DecoderConvBlock(
            out_dim=self.width, down_depth=c.down_depth, stride=c.stride, width=c.width, depth=c.depth,
            hidden_ratio=c.hidden_ratio, growth=c.dilation_growth, cycle=c.dilation_cycle,
            residual_scale=c.residual_scale, zero_init=c.zero_init, reverse=False, name="upsampler",
        )(table[codes])  # fmt: skip
        return LayerNorm(name="norm")(x)


class LabelEmbedding(nn.Module):
    """Artist and summed genre vectors (the start token); at the top level also a timing vector per position."""

    config: presets.Labels
    width: int
    init_scale: float
    timing: bool

    def setup(self):
        init = nn.initializers.normal(0.01 * self.init_scale)
        c, table = self.config, lambda name, rows: self.param(name, init, (rows, self.width))
        self.genre, self.artist = table("genre", c.num_genres), table("artist", c.num_artists)
        if self.timing:
            self.timing_tables = {name: table(name, c.time_bins) for name in Timing._fields}

    def start(self, y: Int[Array, "b cols"]) -> Float[Array, "b d"]:
        """Artist vector plus the sum (not the mean) of the vectors of the genres that are there."""
        genres = y[:, 4 : 4 + self.config.max_genres]
        present = (genres >= 0)[..., None]
        return self.artist[y[:, 3]] + jnp.sum(jnp.where(present, self.genre[jnp.maximum(genres, 0)], 0.0), axis=1)


class Timing(NamedTuple):
    """Bins of a window's timing; the fields have the names of the tables that they are looked up in."""

    total_length: Any  # Int[Array, "b 1"]
    absolute_position: Any  # Int[Array, "b t"]
    relative_position: Any  # Int[Array, "b t"]


def timing_vectors(tables: Any, timing: Timing) -> Float[Array, "*b d"]:
    """What is added at every position that ``timing`` has bins of, by tables (bins, d) of its fields' names."""
    total, absolute, relative = (tables[name][bins] for name, bins in timing._asdict().items())
    return total + absolute + relative


def vectors_at(positions: Timing | Float[Array, "b t d"], tables: Any, at: Array) -> Float[Array, "b d"]:
    """What is added at one position: timing's vectors, from ``timing_tables``, or the upper level's."""
    pick = lambda x: jax.lax.dynamic_index_in_dim(x, at, axis=1, keepdims=False)  # noqa: E731
    if not isinstance(positions, Timing):
        return pick(positions)
    total, *bins = positions
    return timing_vectors(tables, Timing(total[:, 0], *map(pick, bins)))


def timing_bins(config: presets.Labels, y: Int[Array, "b cols"], num_positions: int) -> Timing:
    """Timing of every position of the window: spec/prior.md section 7.

    Every float32 operation is rounded as the original's, which decides at bin edges. So the compiler may neither
    contract a product and a sum (``_spread``) nor multiply by a reciprocal (``_bins``).
    """
    assert config.min_duration is not None and config.max_duration is not None, "timing needs the range of durations"
    low, high = config.min_duration * config.sample_rate, config.max_duration * config.sample_rate
    total = y[:, :1].astype(jnp.float32)
    start, end = y[:, 1:2].astype(jnp.float32), (y[:, 1:2] + y[:, 2:3]).astype(jnp.float32)
    zero = jnp.minimum(y[:, :1], 0)  # a length is not negative, but the compiler does not know it
    relative = _spread(start / total, jnp.clip(end / total, 0.0, 1.0), num_positions, zero)
    bins = config.time_bins
    return Timing(
        _bins(total, low, high, bins),
        _bins(_spread(start, end, num_positions, zero), 0.0, high, bins),
        _bins(relative, 0.0, 1.0, bins),
    )


def _spread(start: Float[Array, "b 1"], end: Float[Array, "b 1"], count: int, zero: Int[Array, "b 1"]):
    """``count`` positions from ``start`` to before ``end`` (b, count)."""
    if count == 1:
        return start
    fraction = np.arange(count, dtype=np.float32) / np.float32(count)
    bits = jax.lax.bitcast_convert_type((end - start) * fraction[None], jnp.int32)
    return start + jax.lax.bitcast_convert_type(bits | zero, jnp.float32)  # no fused multiply-add over an integer


def _bins(position: Float[Array, "b t"], low: float, high: float, count: int) -> Int[Array, "b t"]:
    width = jnp.float32(high - low) + jnp.minimum(position, 0.0)  # not one number for all rows: no reciprocal
    return jnp.clip(jnp.floor(count * ((position - jnp.float32(low)) / width)).astype(jnp.int32), 0, count - 1)
