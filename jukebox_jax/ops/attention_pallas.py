"""Factored attention as fused kernels: each pass reads its inputs and writes its outputs once.

Nothing but q, k and v is saved for the backward pass. It computes the scores again, and needs no output either,
because ``rowsum(do * o) = rowsum(p * dp)``. No ``b h n c c`` array exists in HBM.

Chips differ in a body (``attention_pallas_tpu`` through Mosaic, ``attention_pallas_gpu`` through Triton) and agree
on this door. ``attention_xla`` is the definition.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jukebox_jax.ops import attention_pallas_gpu as gpu
from jukebox_jax.ops import attention_pallas_tpu as tpu
from jukebox_jax.ops.attention_pallas_tpu import Problem

KINDS = ("block", "column", "previous")
ROWS = tpu.SUBLANES  # on a TPU blocks of a multiple of this many positions lie in memory as the stream does
BODIES = {"tpu": tpu, "gpu": gpu}


def refusal(shape: tuple[int, ...], dtype, *, kind: str, num_heads: int, platform: str) -> str | None:
    """Why there is no kernel for ``b n c S`` operands, in words, or None if there is one."""
    if platform not in BODIES:
        return f"no kernel for platform {platform!r}"
    if kind not in KINDS:
        return f"no kernel for {kind} attention"
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"no kernel for {jnp.dtype(dtype).name}"
    if shape[-1] % num_heads:
        return f"{num_heads} heads do not divide the width {shape[-1]}"
    return BODIES[platform].refusal(shape, jnp.dtype(dtype).itemsize, Problem(kind, num_heads, shape[2]))


def supported(shape: tuple[int, ...], dtype, *, kind: str, num_heads: int, platform: str) -> bool:
    """Whether ``factored_attention`` takes ``b n c S`` operands of this dtype on ``"tpu"`` or ``"gpu"``."""
    return refusal(shape, dtype, kind=kind, num_heads=num_heads, platform=platform) is None


def factored_attention(
    q: Float[Array, "b n c S"],
    k: Float[Array, "b n c S"],
    v: Float[Array, "b n c S"],
    *,
    kind: str,
    num_heads: int,
    platform: str,
    valid: int | None = None,
    interpret: bool = False,
) -> Float[Array, "b n c S"]:
    """Block, column or previous-block attention of one layer (spec/prior.md section 4), differentiable.

    Args:
        q, k, v: bfloat16 or float32; S = heads x head dim, heads contiguous.
        kind: ``"block"`` (causal within the block), ``"column"`` (causal over blocks, same offset) or ``"previous"``
            (the whole block before; zero for the first block).
        num_heads: heads in S.
        platform: ``"tpu"`` or ``"gpu"``, where the program will run.
        valid: positions of each block that are real; the rest pads the block to whole tiles, must be finite, and is
            attended to by no real position. Its own outputs mean nothing: give them no cotangent. None: all.
        interpret: run the kernel's Python on any backend, for tests.

    Returns:
        The dtype of q.

    Raises:
        ValueError: no kernel takes these operands; ``refusal`` says why without raising.
    """
    reason = refusal(q.shape, q.dtype, kind=kind, num_heads=num_heads, platform=platform)
    if reason:
        raise ValueError(reason)
    return _attention(q, k, v, Problem(kind, num_heads, valid or q.shape[2]), platform, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attention(q, k, v, problem: Problem, platform: str, interpret: bool):
    return BODIES[platform].forward(q, k, v, problem, interpret)


def _attention_forward(q, k, v, problem: Problem, platform: str, interpret: bool):
    return _attention(q, k, v, problem, platform, interpret), (q, k, v)


def _attention_backward(problem: Problem, platform: str, interpret: bool, saved, do):
    return tuple(BODIES[platform].backward(*saved, do, problem, interpret))


_attention.defvjp(_attention_forward, _attention_backward)
