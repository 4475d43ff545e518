"""The stack of layers, and how its repeats run: scanned or unrolled (spec/prior.md sections 3-5).

Parameters of a segment's repeats are stacked on a leading axis. On a TPU a scan over the stack compiles three bodies
instead of seventy-two and slices weights for nothing; on a CPU the slices are copies, so the repeats are unrolled.
That choice is made here, by ``scan_layers``, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jukebox_jax import presets
from jukebox_jax.models import cache as kv_cache
from jukebox_jax.models.layers import Dtype, Layer
from jukebox_jax.models.pattern import Kind, locate, segments, spans
from jukebox_jax.ops import attention, attention_pallas
from jukebox_jax.parallel.mesh import platform
from jukebox_jax.parallel.sharding import constrain, whole
from jukebox_jax.types import UserError


def scans(wanted: bool | None) -> bool:
    """Whether repeats are scanned: as wanted, or (None) where slicing stacked weights is free; CPUs copy the slices."""
    return platform() != "cpu" if wanted is None else wanted


class Transformer(nn.Module):
    """Layers of one attention pattern over whole streams, prefixes or single positions.

    Input and output are float32; between them the residual stream has ``dtype``. There is no final norm.
    """

    config: presets.Transformer
    prime_length: int = 0  # lyric positions in front of the music
    num_lyrics: int = 0  # lyric encodings of cross attention
    dtype: Dtype = jnp.float32
    remat: bool = False  # keep the input of some layers only, and compute the rest again in the backward pass
    remat_layers: tuple[int, ...] = (1,)  # neighbours in a group that keep one input, in turn: see ``pattern.spans``
    scan_layers: bool | None = None
    implementation: str = "auto"

    def setup(self):
        self.stacks = [self._stack(i, kinds, repeats) for i, (kinds, repeats) in enumerate(self.segments)]

    def _stack(self, index: int, kinds: tuple[Kind, ...], repeats: int) -> Any:
        """Parameters of a segment. Only a missing one traces its initialiser: Flax would do so in every call."""
        name = f"segment_{index}"
        if self.has_variable("params", name):
            return self.get_variable("params", name)
        return self.param(
            name, partial(_init_segment, [self.layer(kind) for kind in kinds], repeats, self.config.width)
        )

    @property
    def segments(self):
        return segments(self.config.pattern, self.config.depth)

    @property
    def scanned(self) -> bool:
        return scans(self.scan_layers)

    @property
    def padding(self) -> int:
        """Positions to add to each block of a whole stream, where that gives the kernels whole tiles."""
        c = self.config
        on_tpu = platform() == "tpu" and self.implementation != "xla"
        return -c.block_length % attention_pallas.ROWS if on_tpu and c.num_blocks else 0

    def layer(self, kind: Kind, padding: int = 0) -> Layer:
        """A layer without parameters of its own: they are passed to ``apply``, sliced from a stack."""
        return Layer(
            self.config, kind, self.prime_length, self.num_lyrics, self.dtype, self.implementation, padding, parent=None
        )

    def __call__(
        self, x: Float[Array, "b t d"], lyrics: Float[Array, "b l d"] | None = None, num_layers: int | None = None
    ):
        """All layers, or only the first ``num_layers``, over a stream of whole blocks."""

        def forward(layer, params, x):
            y = layer.apply({"params": whole(params, self.dtype)}, x, lyrics)
            return constrain(jnp.asarray(y), "batch", "length", None), None

        padding, num_blocks = self.padding, self.config.num_blocks
        if padding:
            x = attention.pad(x.astype(self.dtype), num_blocks, padding)
        x = self._run(forward, x, num_layers, padding)[0]
        return (attention.strip(x, num_blocks, padding) if padding else x).astype(jnp.float32)

    def prefill(self, x: Float[Array, "b t d"], lyrics, known):
        """Forward over a prefix of whole blocks; also the caches for a step at position ``known``."""

        def forward(layer, params, x):
            return layer.apply({"params": params}, x, lyrics, known, method="prefill")

        x, caches = self._run(forward, x)
        return x.astype(jnp.float32), caches

    def _run(self, forward: Callable, x, num_layers: int | None = None, padding: int = 0):
        """Run ``forward(layer, params, x) -> x, y`` through the layers; the ys are stacked as the parameters are."""
        x, ys, left = x.astype(self.dtype), {}, self.config.depth if num_layers is None else num_layers

        def span(layers, params, x):
            y = {}
            for name, layer in layers:
                x, y[name] = forward(layer, params[name], x)
            return x, y

        if self.remat and (self.scanned or platform() != "cpu"):  # unrolled on a CPU it saves nothing
            span = jax.checkpoint(span, static_argnums=0)
        for i, (kinds, repeats) in enumerate(self.segments):

            def group(x, params, kinds=kinds):
                layers = tuple((f"layer_{j}", self.layer(kind, padding)) for j, kind in enumerate(kinds))
                y = {}
                for places in spans(len(layers), self.remat_layers):
                    some = layers[places.start : places.stop]
                    x, more = span(some, {name: params[name] for name, _ in some}, x)
                    y |= more
                return x, y

            whole, rest = divmod(min(left, repeats * len(kinds)), len(kinds))
            left -= whole * len(kinds) + rest
            if whole:
                stack = jax.tree.map(lambda p, n=whole: p[:n], self.stacks[i]) if whole < repeats else self.stacks[i]
                x, ys[f"segment_{i}"] = _repeat(group, x, stack, whole, self.scanned)
            if rest:  # part of a group: only when num_layers ends inside it
                last = jax.tree.map(lambda p, n=whole: p[n], self.stacks[i])
                x, _ = group(x, last, kinds[:rest])
        return x, ys

    def init_cache(self, batch: int, lyrics: Float[Array, "b l d"] | None = None):
        """Empty caches in the compute dtype; cross-attention layers are filled from the lyric encodings."""

        def empty(layer: Layer, params, repeats):
            if layer.kind is Kind.LYRICS:
                return jax.vmap(lambda p: layer.apply({"params": p}, lyrics, method="lyrics_cache"))(params)
            size = kv_cache.shape(layer.kind, layer.sizes, batch, self.config.attention_width)
            return jnp.zeros((repeats, *size), self.dtype)

        return {
            f"segment_{i}": {
                f"layer_{j}": empty(self.layer(kind), self.stacks[i][f"layer_{j}"], repeats)
                for j, kind in enumerate(kinds)
            }
            for i, (kinds, repeats) in enumerate(self.segments)
        }

    def attention_weights(self, x: Float[Array, "b t d"], lyrics, layer: int, head: int) -> Any:
        """Attention probabilities of one head of a cross- or prime-attention layer."""
        segment, repeat, place = locate(self.config.pattern, self.config.depth, layer)
        kind = self.segments[segment].kinds[place]
        if kind not in (Kind.LYRICS, Kind.PRIME):
            raise UserError(f"layer {layer} has {kind.value} attention: only lyrics and prime layers can align lyrics")
        x = jnp.asarray(self(x, lyrics, num_layers=layer), self.dtype)
        params = jax.tree.map(lambda p: p[repeat], self.stacks[segment][f"layer_{place}"])
        return self.layer(kind).apply({"params": params}, x, lyrics, head, method="attention_weights")


def _init_segment(layers, repeats: int, width: int, rng):
    """Parameters of ``repeats`` groups, stacked on a leading axis."""

    def init(layer, rng):
        return layer.init(rng, jnp.zeros((1, width)), method="initialise")["params"]

    rngs = jax.random.split(rng, (len(layers), repeats))
    return {f"layer_{j}": jax.vmap(partial(init, layer))(rngs[j]) for j, layer in enumerate(layers)}


def _repeat(group: Callable, carry, inputs, repeats: int, scanned: bool):
    """``lax.scan`` of ``group`` over the stacked inputs, or the same unrolled with static slices.

    Unrolled, a tuple of ``repeats`` arrays may stand for a stack of them.
    """
    if repeats > 1 and scanned:
        return jax.lax.scan(group, carry, inputs)
    # Split, not indexed: the gradient is then one concatenation, not a sum of padded slices.
    leaves, tree = jax.tree.flatten(inputs, is_leaf=lambda x: isinstance(x, tuple))
    apart = lambda x: x if isinstance(x, tuple) else [part[0] for part in jax.lax.split(x, (1,) * repeats)]  # noqa: E731
    ys = []
    for parts in zip(*map(apart, leaves), strict=True):
        carry, y = group(carry, jax.tree.unflatten(tree, parts))
        ys.append(y)
    return carry, jax.tree.map(lambda *y: jnp.stack(y), *ys)
