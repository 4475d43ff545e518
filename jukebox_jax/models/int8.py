"""Weights and caches of decoding in 8 bits: symmetric, rounded to nearest, the largest magnitude at 127.

A matrix has a scale per output, so that a product is scaled behind it and reads 8 bits; keys and values have one per
position and head, which scale scores and probabilities. Nothing is calibrated. Norms, biases, embeddings and the
residual stream stay as they are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int8

from jukebox_jax.models import cache as kv_cache
from jukebox_jax.models.pattern import Kind

LANES = 128


def quantise(x: Float[Array, "..."], axis: int) -> tuple[Int8[Array, "..."], Float[Array, "..."]]:
    """8-bit integers, and the float32 scale of each slice along ``axis`` (kept, of size 1): x is their product."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=axis, keepdims=True), 1e-20) / 127
    return jnp.round(x / scale).astype(jnp.int8), scale


def matrix(x: Float[Array, "*r i o"], name: str = "kernel", outputs: int = -1) -> dict[str, Array]:
    """A (stacked) matrix as ``name`` and ``scale``. ``outputs``: the axis, -1 or -2, of its outputs."""
    inputs = -3 - outputs
    integers, scale = quantise(x, inputs)
    return {name: integers, "scale": jnp.squeeze(scale, inputs)}


def scaled(y: Float[Array, "b o"], weights: Any) -> Float[Array, "b o"]:
    """A product with a matrix of ``weights``: by its scale, if it has one."""
    return y * weights["scale"][None] if "scale" in weights else y


def pack(kind: Kind, cache: Float[Array, "r ..."], num_heads: int) -> dict[str, Array]:
    """A stacked cache (cache.py) as integers ``kv`` of the same form, and ``scale``: ``r ... 2 h b s``, where the dots
    are what PREVIOUS (2) and COLUMN (c) choose from."""
    cache = jax.lax.optimization_barrier(cache)  # or the compiler would fold an empty one, number by number
    if kind is Kind.DENSE:
        integers, scale = quantise(cache, -1)
        return {"kv": integers, "scale": _lanes(jnp.swapaxes(kv_cache.by_eights(scale)[..., 0], 2, 3))}
    heads = cache.reshape(*cache.shape[:-1], num_heads, 2, -1)
    integers, scale = quantise(heads, -1)  # r ... s b h 2 k
    lead = range(scale.ndim - 5)
    return {
        "kv": integers.reshape(cache.shape),
        "scale": _lanes(scale[..., 0].transpose(*lead, *range(scale.ndim - 2, scale.ndim - 6, -1))),
    }


def _lanes(scale: Float[Array, "... s"]) -> Float[Array, "... lanes"]:
    """Positions filled up to whole lanes, as a TPU holds them anyway: else its default order of axes, of least padding,
    is not the one that steps want, and every chunk begins and ends with copies."""
    return jnp.pad(scale, ((0, 0),) * (scale.ndim - 1) + ((0, -scale.shape[-1] % LANES),))


def write(kind: Kind, cache: Any, kv: Float[Array, "b h 2 k"], sizes: kv_cache.Sizes, index: Any, t: Array) -> Any:
    """``kv_cache.write`` of a cache in either form."""
    if not isinstance(cache, dict) or kind is Kind.LYRICS:
        return kv_cache.write(kind, cache, kv, sizes, index, t)
    integers, scale = quantise(kv, -1)
    *lead, at = kv_cache.slot(kind, sizes, t)
    new = jnp.expand_dims(scale.transpose(2, 1, 0, 3), tuple(range(1 + len(lead))))
    where = (index, *lead, 0, 0, 0, at)
    written = jax.lax.dynamic_update_slice(cache["scale"], new, where)
    written = with_layout_constraint(written, Layout(tuple(range(written.ndim))))
    return {"kv": kv_cache.write(kind, cache["kv"], integers, sizes, index, t), "scale": written}


def read(kind: Kind, cache: Any, sizes: kv_cache.Sizes, index: Any, t: Array) -> tuple[Array, Array, Any]:
    """``kv_cache.read`` of a cache in either form, and the scales ``2 b h s`` of keys and values, or None."""
    if not isinstance(cache, dict):
        return *kv_cache.read(kind, cache, sizes, index, t), None
    lead = (index, *kv_cache.chosen(kind, sizes, t))
    scale, rest = cache["scale"], cache["scale"].shape[len(lead) :]
    scale = jax.lax.dynamic_slice(scale, (*lead, *(0 for _ in rest)), (1,) * len(lead) + rest).reshape(rest)
    k, v = kv_cache.read(kind, cache["kv"], sizes, index, t)
    return k, v, jnp.swapaxes(scale, 1, 2)[..., : k.shape[2]]
