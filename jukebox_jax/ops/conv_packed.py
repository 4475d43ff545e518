"""A convolution stack with parts of the signal side by side on the channels, for TPUs.

A TPU lays channels on 128 lanes: a signal of 32 channels takes the memory and the matrix unit of 128. Four parts of it
fill them. Kernels become block diagonal, their zeros what the matrix unit would multiply anyway. Every layer gets the
rows beside a part from the part's neighbour. Examples go through a stack one after the other: then what a layer makes
fits a chip's vector memory, and is computed again, in the backward pass, rather than kept in HBM.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jukebox_jax.ops import conv_stack
from jukebox_jax.ops.conv_stack import Stack
from jukebox_jax.ops.convolution import windowed_residual

LANES = 128


def whole(stack: Stack, x: Float[Array, "b t d"]) -> Float[Array, "b u o"]:
    """``conv_stack.whole``, in as many parts as fill the lanes."""
    parts = num_parts(stack, x.shape[1])
    if parts == 1:
        return conv_stack.whole(stack, x)
    if len(x) == 1:
        return packed(stack, x, parts)
    return lax.map(jax.checkpoint(lambda example: packed(stack, example[None], parts)[0], prevent_cse=False), x)


def num_parts(stack: Stack, length: int) -> int:
    """Into how many parts to cut ``length`` rows: as many as fill the lanes, if a part suits every layer.

    Strides must divide it, and it must have the rows that its neighbours need.
    """
    widths = [arrays[0].shape[1] for layer, arrays in stack if layer.kind == "residual"]

    def suits(parts: int) -> bool:
        rows, rest = divmod(length, parts)
        for layer, _ in stack:
            if rest or rows < max(layer.left, layer.right):
                return False
            rows, rest = divmod(rows * layer.up, layer.down)
        return rest == 0

    return next((n for n in range(LANES // min(widths, default=LANES), 1, -1) if suits(n)), 1)


def packed(stack: Stack, x: Float[Array, "b t d"], parts: int) -> Float[Array, "b u o"]:
    """``conv_stack.whole`` in ``parts`` that suit the stack (``num_parts``)."""
    batch, length, width = x.shape
    x = jnp.moveaxis(x.reshape(batch, parts, length // parts, width), 1, 2).reshape(batch, length // parts, -1)
    for layer, arrays in stack:
        x = _beside(x, layer.left, layer.right, arrays[0].shape[1])
        arrays = [_diagonal(a, parts) if a.ndim == 3 else jnp.tile(a, parts) for a in arrays]
        if layer.kind == "residual":  # not by XLA's dilated convolution: it would fold time into the batch and back
            x = windowed_residual(x, *arrays, dilation=layer.dilation, scale=layer.scale, paired=False)
        else:
            x = conv_stack.apply(layer, arrays, x, 0)
    x = x.reshape(*x.shape[:2], parts, -1)
    return jnp.moveaxis(x, 2, 1).reshape(batch, -1, x.shape[-1])


def _beside(x: Float[Array, "b t nd"], left: int, right: int, width: int) -> Float[Array, "b u nd"]:
    """Every part of ``width`` channels with rows of its neighbours before and after it; zeros outside the signal."""
    before = jnp.pad(x[:, x.shape[1] - left :, :-width], ((0, 0), (0, 0), (width, 0)))
    after = jnp.pad(x[:, :right, width:], ((0, 0), (0, 0), (0, width)))
    return jnp.concatenate([before, x, after], axis=1)


def _diagonal(kernel: Float[Array, "k d o"], parts: int) -> Float[Array, "k nd no"]:
    """The kernel of every part, and none between parts."""
    size, width, out = kernel.shape
    blocks = jnp.einsum("kdo,gh->kgdho", kernel, jnp.eye(parts, dtype=kernel.dtype))
    return blocks.reshape(size, parts * width, parts * out)
