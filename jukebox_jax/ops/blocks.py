"""Shape algebra of factored attention: a stream of t codes seen as n blocks of c."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def to_blocks(x: Shaped[Array, "b t S"], num_blocks: int) -> Shaped[Array, "b n c S"]:
    """Cut the stream into ``num_blocks`` blocks of equal length."""
    return x.reshape(x.shape[0], num_blocks, -1, x.shape[-1])


def from_blocks(x: Shaped[Array, "b n c S"]) -> Shaped[Array, "b t S"]:
    """Undo ``to_blocks``."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def previous(x: Shaped[Array, "b n c S"]) -> Shaped[Array, "b n c S"]:
    """Each block's predecessor; zeros before the first block."""
    return jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))


def split_heads(x: Shaped[Array, "*n c S"], num_heads: int) -> Shaped[Array, "*n h c k"]:
    """Heads are contiguous slices of the last axis; move them before the positions."""
    return jnp.swapaxes(x.reshape(*x.shape[:-1], num_heads, -1), -2, -3)


def merge_heads(x: Shaped[Array, "*n h c k"]) -> Shaped[Array, "*n c S"]:
    """Undo ``split_heads``."""
    x = jnp.swapaxes(x, -2, -3)
    return x.reshape(*x.shape[:-2], -1)
