"""Key and value caches of cached decoding, one form per attention kind (spec/tpu_facts.md section 4).

A cache is one array per layer place, stacked over the repeats of its segment (leading axis r), with positions before
the batch and keys beside values on the last axis, per head: ``h 2 k`` flattened, 2S in all. Slots that were never
written hold anything: ``visible`` hides them until they are overwritten.

    BLOCK     r c b 2S      slot t % c
    PREVIOUS  r 2 c b 2S    slot (t // c) % 2, t % c; read the other half
    COLUMN    r c n b 2S    slot t % c, t // c; read one column
    DENSE     r 2 b h t/8 8 k   slot t, too large to be pulled apart or copied after it is read (spec/tpu_facts.md
                            section 2): so in eights, a TPU's tiles for numbers of any size
    PRIME     r P+1 b 2S    slot min(t, P): the last slot is a bin for positions that nobody attends to
    LYRICS    r l b 2S      computed once

A CPU reads keys and values faster as two arrays ``b h s k`` per layer (``apart``), behind the axis that PREVIOUS (2)
and COLUMN (c) choose from. Of PREVIOUS it copies the half that is read once a block, not at every step (``hold``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jukebox_jax.models.pattern import Kind
from jukebox_jax.ops.blocks import to_blocks
from jukebox_jax.types import UserError

DECODABLE = (Kind.DENSE, Kind.BLOCK, Kind.COLUMN, Kind.PREVIOUS, Kind.LYRICS, Kind.PRIME)


class Sizes(NamedTuple):
    """What a layer's cache depends on."""

    length: int  # positions of the whole context
    num_blocks: int
    prefix: int  # positions that prime attention sees
    num_lyrics: int
    num_heads: int = 1

    @property
    def block_length(self) -> int:
        return self.length // self.num_blocks


def shape(kind: Kind, sizes: Sizes, batch: int, width: int) -> tuple[int, ...]:
    """Shape of one layer's cache, without the leading axis. ``width`` is S."""
    if kind not in DECODABLE:
        raise UserError(f"{kind.value} attention has no cached decoding (the original could not sample it either)")
    c = sizes.block_length
    if kind is Kind.DENSE:
        return (2, batch, sizes.num_heads, -(-sizes.length // 8), 8, width // sizes.num_heads)
    positions = {
        Kind.BLOCK: (c,),
        Kind.PREVIOUS: (2, c),
        Kind.COLUMN: (c, sizes.num_blocks),
        Kind.PRIME: (min(sizes.prefix, sizes.length) + 1,),
        Kind.LYRICS: (sizes.num_lyrics,),
    }[kind]
    return (*positions, batch, 2 * width)


Cache = Any  # one stacked array, or the arrays of ``apart``, perhaps of ``hold``; or a dictionary of int8.py


def axes(kind: Kind, cache: Cache) -> Any:
    """Logical axes of a cache, or of a pair's arrays."""
    if isinstance(cache, dict):  # int8.py
        scale = (*(None,) * (len(cache["scale"].shape) - 3), "heads", "batch", None)
        return {"kv": axes(kind, cache["kv"]), "scale": scale}
    if isinstance(cache, tuple):
        return tuple((*(None,) * (x.ndim - 4), "batch", "heads", None, None) for x in cache)
    if kind is Kind.DENSE:
        return (None, None, "batch", "heads", None, None, None)
    return (*(None,) * (len(cache.shape) - 2), "batch", "qkv")


def apart(kind: Kind, cache: Num[Array, "1 ..."], sizes: Sizes) -> tuple[Array, Array]:
    """Keys and values of one layer as two arrays ``b h s k``."""
    kv = cache[0]
    if kind is Kind.DENSE:
        kv = by_eights(kv)
    else:
        kv = kv.reshape(*kv.shape[:-1], sizes.num_heads, 2, -1)  # ... s b h 2 k
        kv = jnp.moveaxis(jnp.moveaxis(kv, -2, 0), -4, -2)
    return kv[0], kv[1]


def hold(kind: Kind, cache: Cache, sizes: Sizes, t: Array) -> Cache:
    """A pair of ``apart`` with what the steps of t's block read, where that is the same for all of them, behind it."""
    if kind is not Kind.PREVIOUS or not isinstance(cache, tuple):
        return cache
    return (*cache[:2], *read(kind, cache[:2], sizes, 0, t))


def release(cache: Cache) -> Cache:
    """The cache without what ``hold`` has put there."""
    return cache[:2] if isinstance(cache, tuple) else cache


def by_eights(x: Num[Array, "... eights 8 k"]) -> Num[Array, "... t k"]:
    """DENSE's positions on one axis."""
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def pack(k: Float[Array, "*b S"], v: Float[Array, "*b S"], num_heads: int) -> Float[Array, "*b SS"]:
    """Keys beside values, per head."""
    heads = [x.reshape(*x.shape[:-1], num_heads, 1, -1) for x in (k, v)]
    return jnp.concatenate(heads, axis=-2).reshape(*k.shape[:-1], -1)


def fill(kind: Kind, kv: Float[Array, "b t SS"], sizes: Sizes, known: Array) -> Float[Array, "..."]:
    """One layer's cache after a forward pass over a prefix of the context.

    ``kv`` holds whole blocks of positions 0..t-1, of which the first ``known`` are real (LYRICS: the lyric positions).
    The next step runs at position ``known``.
    """
    by_position = jnp.swapaxes(kv, 0, 1)  # t b 2S
    if kind is Kind.LYRICS:
        return by_position
    if kind is Kind.DENSE:
        pairs = kv.reshape(*kv.shape[:2], sizes.num_heads, 2, -1).transpose(3, 0, 2, 1, 4)  # 2 b h t k
        whole = shape(kind, sizes, kv.shape[0], kv.shape[2] // 2)
        return jnp.pad(pairs, ((0, 0),) * 3 + ((0, whole[3] * 8 - kv.shape[1]), (0, 0))).reshape(whole)
    if kind is Kind.PRIME:
        slots = min(sizes.prefix, sizes.length) + 1
        return jnp.pad(by_position, ((0, max(0, slots - kv.shape[1])), (0, 0), (0, 0)))[:slots]
    blocks = jnp.moveaxis(to_blocks(kv, kv.shape[1] // sizes.block_length), 0, 2)  # n c b 2S
    if kind is Kind.COLUMN:
        blocks = jnp.pad(blocks, ((0, sizes.num_blocks - blocks.shape[0]), (0, 0), (0, 0), (0, 0)))
        return jnp.swapaxes(blocks, 0, 1)
    current = known // sizes.block_length  # past the last one if all positions are known: overwritten before read
    if kind is Kind.BLOCK:
        return blocks[jnp.minimum(current, blocks.shape[0] - 1)]
    pair = jnp.stack([blocks[jnp.minimum(current, blocks.shape[0] - 1)], blocks[jnp.maximum(current - 1, 0)]])
    return jnp.where(current % 2 == 0, pair, pair[::-1])


def slot(kind: Kind, sizes: Sizes, t: Array) -> tuple[Array, ...]:
    """Where position t is written."""
    row, offset = t // sizes.block_length, t % sizes.block_length
    return {
        Kind.BLOCK: (offset,),
        Kind.PREVIOUS: (row % 2, offset),
        Kind.COLUMN: (offset, row),
        Kind.PRIME: (jnp.minimum(t, min(sizes.prefix, sizes.length)),),
        Kind.DENSE: (t,),
    }[kind]


def write(kind: Kind, cache: Cache, kv: Num[Array, "b h 2 k"], sizes: Sizes, index, t: Array):
    """Put position t of repeat ``index`` in place."""
    if kind is Kind.LYRICS:
        return cache
    if isinstance(cache, tuple):
        *lead, at = slot(kind, sizes, t)
        new = jnp.expand_dims(kv, tuple(range(len(lead))))
        where = (*lead, 0, 0, at, 0)
        place = lambda x, i: jax.lax.dynamic_update_slice(x, new[..., i : i + 1, :].astype(x.dtype), where)  # noqa: E731
        return place(cache[0], 0), place(cache[1], 1), *cache[2:]
    if kind is Kind.DENSE:
        new, where = jnp.moveaxis(kv, 2, 0)[:, :, :, None, None], (index, 0, 0, 0, t // 8, t % 8, 0)
        return jax.lax.dynamic_update_slice(cache, new[None].astype(cache.dtype), where)
    where = (index, *slot(kind, sizes, t), 0, 0)
    new = kv.reshape((1,) * (cache.ndim - 2) + (kv.shape[0], -1))
    return jax.lax.dynamic_update_slice(cache, new.astype(cache.dtype), where)


def read(
    kind: Kind, cache: Cache, sizes: Sizes, index, t: Array
) -> tuple[Num[Array, "b h s x"], Num[Array, "b h s x"]]:
    """The keys and values that position t may look at; ``visible`` says which of them.

    Keys beside values come as the same array twice, x = 2 k: taken apart, a TPU would write them. Not so columns,
    whose blocks it keeps on the lanes.
    """
    at = chosen(kind, sizes, t)
    if isinstance(cache, tuple):
        if len(cache) > 2:
            return cache[2:]
        k, v = (jax.lax.dynamic_index_in_dim(x, *at, keepdims=False) if at else x for x in cache)
        return k, v
    lead = (index, *at)
    rest = cache.shape[len(lead) :]
    kv = jax.lax.dynamic_slice(cache, (*lead, *(0 for _ in rest)), (1,) * len(lead) + rest).reshape(rest)
    if kind is Kind.DENSE:
        return by_eights(kv[0]), by_eights(kv[1])
    if kind is Kind.COLUMN:
        kv = kv.reshape(*kv.shape[:2], sizes.num_heads, 2, -1).transpose(3, 1, 2, 0, 4)  # from s b h 2 k
        return kv[0], kv[1]
    kv = kv.reshape(*kv.shape[:2], sizes.num_heads, -1).transpose(1, 2, 0, 3)  # from s b h 2k
    return kv, kv


def chosen(kind: Kind, sizes: Sizes, t: Array) -> tuple[Array, ...]:
    """Which column, or which of two blocks, position t reads."""
    row, offset = t // sizes.block_length, t % sizes.block_length
    return {Kind.COLUMN: (offset,), Kind.PREVIOUS: (1 - row % 2,)}.get(kind, ())


def visible(kind: Kind, sizes: Sizes, t: Array, slots: int) -> Array:
    """Boolean (slots,): which of the read slots position t attends to."""
    at = jnp.arange(slots)
    if kind is Kind.BLOCK:
        return at <= t % sizes.block_length
    if kind is Kind.COLUMN:
        return at <= t // sizes.block_length
    if kind is Kind.DENSE:
        return at <= t
    if kind is Kind.PRIME:
        return at <= jnp.minimum(t, slots - 2)
    return jnp.ones(slots, bool)
