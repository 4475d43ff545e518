"""The eight attentions in plain XLA: the definition, and the oracle of the kernels (spec/prior.md section 4).

Queries, keys and values are ``b t S`` with S = heads x head dim, as the projections leave them. Scores are scaled by
``head_dim ** -0.5``, masked with -1e9 and normalised in float32; zero keys have score 0 and value 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jukebox_jax.ops.blocks import from_blocks, merge_heads, previous, split_heads, to_blocks

MASKED = -1e9


def weights(q: Float[Array, "*n h c k"], k: Float[Array, "*n h s k"], mask=None) -> Float[Array, "*n h c s"]:
    """Softmax of the scaled scores, float32. ``mask`` (broadcast to ``... c s``) is True where a query may look."""
    scores = jnp.einsum("...ck,...sk->...cs", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(jnp.expand_dims(mask, tuple(range(scores.ndim - mask.ndim))), scores, MASKED)
    return jax.nn.softmax(scores, axis=-1)


def _attend(q, k, v, num_heads: int, mask=None):
    q, k, v = (split_heads(x, num_heads) for x in (q, k, v))
    return merge_heads(jnp.einsum("...cs,...sk->...ck", weights(q, k, mask).astype(v.dtype), v))


def _causal(length: int) -> np.ndarray:
    return np.tril(np.ones((length, length), bool))


def block(q, k, v, *, num_heads: int, num_blocks: int):
    """Positions of the query's own block, up to it."""
    q, k, v = (to_blocks(x, num_blocks) for x in (q, k, v))
    return from_blocks(_attend(q, k, v, num_heads, _causal(q.shape[2])))


def column(q, k, v, *, num_heads: int, num_blocks: int):
    """Positions at the query's offset, in its own and earlier blocks."""
    q, k, v = (jnp.swapaxes(to_blocks(x, num_blocks), 1, 2) for x in (q, k, v))  # b c n S
    return from_blocks(jnp.swapaxes(_attend(q, k, v, num_heads, _causal(num_blocks)), 1, 2))


def previous_block(q, k, v, *, num_heads: int, num_blocks: int):
    """All positions of the block before the query's, unmasked; zero keys and values before the first block."""
    q, k, v = (to_blocks(x, num_blocks) for x in (q, k, v))
    return from_blocks(_attend(q, previous(k), previous(v), num_heads))


def dense(q, k, v, *, num_heads: int):
    """Every position up to the query."""
    return _attend(q, k, v, num_heads, _causal(q.shape[1]))


def cross(q, k, v, *, num_heads: int):
    """Every key, unmasked: k and v come from the lyric encodings."""
    return _attend(q, k, v, num_heads)


def prime(q, k, v, *, num_heads: int, prefix: int):
    """Positions of the first ``prefix`` up to the query."""
    prefix = min(prefix, k.shape[1])
    mask = np.arange(prefix) <= np.arange(q.shape[1])[:, None]
    return _attend(q, k[:, :prefix], v[:, :prefix], num_heads, mask)


def spread(q, k, v, *, num_heads: int, num_blocks: int, count: int = 1):
    """The last ``count`` positions of the blocks but the final one, if not after the query, and ``count`` zero keys.

    ``count=1`` is the original's summary attention.
    """
    length, c = q.shape[1], q.shape[1] // num_blocks
    ends = (np.arange(num_blocks - 1)[:, None] * c + np.arange(c - count, c)).reshape(-1)
    ends = np.concatenate([np.full(count, -1), ends])  # the zero keys stand before everything
    k, v = (
        jnp.pad(
            to_blocks(x, num_blocks)[:, :-1, -count:].reshape(x.shape[0], -1, x.shape[-1]), ((0, 0), (count, 0), (0, 0))
        )
        for x in (k, v)
    )
    return _attend(q, k, v, num_heads, ends <= np.arange(length)[:, None])
