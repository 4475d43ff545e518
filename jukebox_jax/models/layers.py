"""One transformer layer: attention and MLP around pre-layer-norms (spec/prior.md section 3)."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jukebox_jax import presets
from jukebox_jax.models import cache as kv_cache
from jukebox_jax.models.pattern import Kind
from jukebox_jax.ops import attention, attention_xla, blocks
from jukebox_jax.parallel.mesh import platform
from jukebox_jax.parallel.sharding import constrain, per_device

Dtype = Any


def quick_gelu(x: Float[Array, "*b f"]) -> Float[Array, "*b f"]:
    """``x * sigmoid(1.702 x)``: the original's GELU, neither tanh nor erf."""
    return x * jax.nn.sigmoid(1.702 * x)


class LayerNorm(nn.Module):
    """``layer_norm`` with parameters of its own."""

    @nn.compact
    def __call__(self, x):
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        width = (x.shape[-1],)
        return layer_norm(x, {"scale": self.param("scale", ones, width), "bias": self.param("bias", zeros, width)})


def layer_norm(x: Float[Array, "*b d"], weights: Any) -> Float[Array, "*b d"]:
    """Layer norm in float32, returned in the dtype of x (epsilon 1e-5, biased variance). ``weights``: scale, bias."""
    scale, bias = (jnp.expand_dims(weights[name], tuple(range(x.ndim - 1))) for name in ("scale", "bias"))
    y = x.astype(jnp.float32)
    if platform() == "cpu" and x.ndim > 2:  # streams; single positions are too small to matter
        return _norm_by_products(y, scale, bias).astype(x.dtype)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * (jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + 1e-5) * scale)
    return (y + bias).astype(x.dtype)


@jax.custom_vjp
def _norm_by_products(x, scale, bias):
    """``layer_norm`` whose sums, forward and backward, are products with a vector. ``scale``, ``bias``: 1 ... 1 d.

    XLA:CPU's sums of the usual form took a quarter of a prior's training step; products run at full speed.
    """
    return _norm_forward(x, scale, bias)[0]


def _norm_forward(x, scale, bias):
    means = jnp.full((x.shape[-1], 1), 1 / x.shape[-1], x.dtype)
    y = x - x @ means
    inverse = jax.lax.rsqrt(jnp.square(y) @ means + 1e-5)
    y = y * inverse
    return y * scale + bias, (y, inverse, scale)


def _norm_backward(kept, g):
    y, inverse, scale = kept
    weights, gy = scale.reshape(-1, 1) / scale.size, g * y
    dx = inverse * (g * scale - g @ weights - y * (gy @ weights))

    def sums(rows):
        rows = rows.reshape(-1, scale.size)
        return (jnp.ones((1, len(rows)), rows.dtype) @ rows).reshape(scale.shape)

    return dx, sums(gy), sums(g)


_norm_by_products.defvjp(_norm_forward, _norm_backward)


def product(x: Float[Array, "*b d"], w: Float[Array, "d f"], *dimensions: Any, **options: Any) -> Float[Array, "*b f"]:
    """``x @ w``: the ``dot_general`` of ``nn.Dense``. On CPUs a stream's has a gradient of its own."""
    if platform() == "cpu" and x.ndim > 2:
        return _product(x, w)
    return jax.lax.dot_general(x, w, *dimensions, **options)


@jax.custom_vjp
def _product(x, w):
    """The gradient's products as XLA:CPU runs them fastest: of rows as they lie, with weights turned over beforehand.

    From jax's own form XLA would turn whole streams over instead: a sixth of a prior's training step.
    """
    return x @ w


def _product_backward(kept, g):
    (x, w), rows = kept, lambda y: y.reshape(-1, y.shape[-1])
    return g @ jax.lax.optimization_barrier(w.T), rows(x).T @ rows(g)


_product.defvjp(lambda x, w: (x @ w, (x, w)), _product_backward)


def prime_prefix(prime_length: int, num_blocks: int | None) -> int:
    """Positions that prime attention reaches: past the lyrics, to a block count's multiple (spec/quirks.md A1)."""
    num_blocks = num_blocks or 1
    return (prime_length // num_blocks + 1) * num_blocks


class Layer(nn.Module):
    """``x + s (a + m)`` with ``a = attention(norm(x))`` and ``m = mlp(norm(x + a))``; s is 1 or 1 / depth."""

    config: presets.Transformer
    kind: Kind
    prime_length: int = 0
    num_lyrics: int = 0
    dtype: Dtype = jnp.float32
    implementation: str = "auto"
    padding: int = 0  # positions behind each block that are not there, so that kernels find whole tiles

    def setup(self):
        c = self.config
        normal = nn.initializers.normal(0.02 * c.init_scale)
        zero = c.zero_init or self.kind is Kind.LYRICS
        last = nn.initializers.zeros if zero else normal
        self.attention = _Projections(c.attention_width, c.width, self.dtype, normal, last)
        self.norm_0, self.norm_1 = LayerNorm(), LayerNorm()
        self.mlp = _MLP(c.mlp_dim, c.width, self.dtype, normal, last)

    @property
    def sizes(self) -> kv_cache.Sizes:
        c = self.config
        return kv_cache.Sizes(
            c.length, c.num_blocks or 1, prime_prefix(self.prime_length, c.num_blocks), self.num_lyrics, c.num_heads
        )

    def _finish(self, x, a):
        return self.add(x, a, self.mlp(self.norm_1(x + a)))

    @nn.nowrap
    def add(self, x, a, m):
        """The class's formula, from attention's and the MLP's results."""
        return x + (a + m) / self.config.depth if self.config.residual_scale else x + a + m

    def project(self, h: Float[Array, "b t d"], lyrics: Any = None):
        """Queries, keys and values of a normalised stream (LYRICS: keys and values of the lyric encodings b l d)."""
        if platform() == "cpu" and self.kind is not Kind.LYRICS and not self.is_initializing():
            return tuple(self.attention.joined(h))
        source = lyrics.astype(h.dtype) if self.kind is Kind.LYRICS else h
        return self.attention.query(h), self.attention.key(source), self.attention.value(source)

    def attend(self, q: Float[Array, "b t S"], k: Float[Array, "b s S"], v: Float[Array, "b s S"]):
        """This layer's kind of attention; ``t`` is the context or a prefix of whole blocks."""
        c = self.config
        q, k, v = (constrain(y, "batch", None, "heads", num_heads=c.num_heads) for y in (q, k, v))
        where: dict[str, Any] = dict(
            num_blocks=c.num_blocks and q.shape[1] // (c.block_length + self.padding), platform=platform()
        )
        implementation = attention.resolve(
            self.kind.value, q, num_heads=c.num_heads, implementation=self.implementation, **where
        )

        def run(q, k, v, num_heads):
            return attention.attend(
                self.kind.value, q, k, v, num_heads=num_heads, prefix=self.sizes.prefix, spread=c.spread or 1,
                padding=self.padding, implementation=implementation, **where,
            )  # fmt: skip

        return per_device(run, c.num_heads, q, k, v) if implementation == "pallas" else run(q, k, v, c.num_heads)

    def mix(self, h: Float[Array, "b t d"], lyrics: Any = None) -> Float[Array, "b t d"]:
        """Attention and its projections over a normalised stream: ``a`` of the class's formula."""
        return self.attention.output(self.attend(*self.project(h, lyrics)))

    def __call__(self, x: Float[Array, "b t d"], lyrics: Float[Array, "b l d"] | None = None) -> Float[Array, "b t d"]:
        return self._finish(x, self.mix(self.norm_0(x), lyrics))

    def prefill(self, x: Float[Array, "b t d"], lyrics, known):
        """The same, and this layer's cache for a step at position ``known``. ``t`` must be whole blocks."""
        q, k, v = self.project(self.norm_0(x), lyrics)
        kv = kv_cache.pack(k, v, self.config.num_heads)
        filled = kv_cache.fill(self.kind, kv, self.sizes, known)
        return self._finish(x, self.attention.output(self.attend(q, k, v))), filled

    def lyrics_cache(self, lyrics: Float[Array, "b l d"]):
        """Cache of a LYRICS layer, from the lyric encodings."""
        lyrics = lyrics.astype(self.dtype)
        kv = kv_cache.pack(self.attention.key(lyrics), self.attention.value(lyrics), self.config.num_heads)
        return kv_cache.fill(self.kind, kv, self.sizes, jnp.zeros((), jnp.int32))

    def attention_weights(self, x: Float[Array, "b t d"], lyrics, head: int) -> Float[Array, "b t s"]:
        """Softmax of one head of a LYRICS or PRIME layer over all its keys."""
        q, k, _ = self.project(self.norm_0(x), lyrics)
        mask = None
        if self.kind is Kind.PRIME:
            k = k[:, : self.sizes.prefix]
            mask = np.arange(k.shape[1]) <= np.arange(q.shape[1])[:, None]
        q, k = (blocks.split_heads(y, self.config.num_heads)[:, head : head + 1] for y in (q, k))
        return attention_xla.weights(q, k, mask)[:, 0]

    def initialise(self, row: Float[Array, "b d"]):
        """Touch every parameter with one row: cheap initialisation."""
        q, _, v = self.attention.query(row), self.attention.key(row), self.attention.value(row)
        return self._finish(self.norm_0(row), self.attention.output(q + v))


class _Projections(nn.Module):
    """Queries, keys and values as three matrices: slices of one would need copies on a TPU (spec/tpu_facts.md 3)."""

    attention_width: int
    width: int
    dtype: Dtype
    kernel_init: Any
    output_init: Any

    def setup(self):
        dense = lambda size, init: nn.Dense(size, dtype=self.dtype, kernel_init=init, dot_general=product)  # noqa: E731
        self.query, self.key, self.value = (dense(self.attention_width, self.kernel_init) for _ in range(3))
        self.output = dense(self.width, self.output_init)

    def joined(self, h: Float[Array, "b t d"]) -> list[Float[Array, "b t S"]]:
        """Queries, keys and values from one product: three narrow ones are slow on CPUs, above all their gradients."""
        parts = [self.variables["params"][name] for name in ("query", "key", "value")]
        kernel, bias = (jnp.concatenate([p[n] for p in parts], -1).astype(h.dtype) for n in ("kernel", "bias"))
        return jnp.split(product(h, kernel) + bias[None, None], 3, axis=-1)


class _MLP(nn.Module):
    hidden: int
    width: int
    dtype: Dtype
    kernel_init: Any
    output_init: Any

    @nn.compact
    def __call__(self, x):
        dense = partial(nn.Dense, dtype=self.dtype, dot_general=product)
        h = dense(self.hidden, kernel_init=self.kernel_init, name="in")(x)
        if h.ndim == 3:
            h = constrain(h, "batch", None, "mlp")
        return dense(self.width, kernel_init=self.output_init, name="out")(quick_gelu(h))
