"""One door to attention: which kind, and which implementation.

``implementation="auto"`` takes the Pallas kernel where there is one for this kind, shape and platform and it spares
memory traffic (``pays``), else XLA.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jukebox_jax.ops import attention_pallas as pallas
from jukebox_jax.ops import attention_xla as xla
from jukebox_jax.ops.blocks import from_blocks, to_blocks
from jukebox_jax.types import UserError, choose

KINDS = ("dense", "block", "column", "previous", "summary", "spread", "lyrics", "prime")
IMPLEMENTATIONS = ("auto", "xla", "pallas")


def resolve(kind, q, *, num_heads, num_blocks, platform, implementation="auto") -> str:
    """``"pallas"`` or ``"xla"``: what ``attend`` should run for queries q (``b t S``) on a platform.

    ``"pallas"`` insists on kernels for the kinds that have one, interpreted on CPUs (slow: for tests).
    """
    choose("attention implementation", implementation, IMPLEMENTATIONS)
    if implementation == "xla" or kind not in pallas.KINDS or not num_blocks:
        return "xla"
    length = q.shape[1] // num_blocks
    shape = (q.shape[0], num_blocks, length, q.shape[2])
    body = "tpu" if platform == "cpu" and implementation == "pallas" else platform
    reason = pallas.refusal(shape, q.dtype, kind=kind, num_heads=num_heads, platform=body)
    if implementation == "pallas":
        if reason:
            raise UserError(f"attention implementation 'pallas': {reason}; use 'auto' or 'xla'")
        return "pallas"
    # On a TPU blocks that are no whole tiles would have to be copied: the caller stores them padded.
    spares = platform != "tpu" or (length % pallas.ROWS == 0 and pays(shape, num_heads))
    return "pallas" if spares and not reason else "xla"


def pays(shape: tuple[int, ...], num_heads: int) -> bool:
    """Whether whole programs for TPUs move fewer HBM bytes with kernels for ``b n c S`` than with XLA's attention.

    With several heads XLA turns queries, keys and values over. With one it need not; then a kernel spares scores, which
    grow with the keys, and costs other layouts of its operands, which grow with the width. As compiled
    (certificates/kernels/README.md) one head of 256 pays with 128 or 64 keys: training moves 0.9 % less, a prefill
    7.7 %. One of 480 with 64 or 128 keys does not: a prefill moves 2.2 % more, training 0.7 % less.
    """
    _, num_blocks, length, width = shape
    return num_heads > 1 or width <= 2 * max(num_blocks, length)


def attend(
    kind, q, k, v, *, num_heads, num_blocks=None, prefix=0, spread=1, padding=0, platform="cpu", implementation="auto"
):
    """Attention of one layer over a whole stream.

    Args:
        kind: one of ``KINDS``.
        q, k, v: ``b t S`` with S = heads x head dim (``lyrics``: k and v are ``b l S``).
        num_heads: heads side by side in S.
        num_blocks: blocks that t is cut into (all kinds but dense and lyrics).
        prefix: positions that ``prime`` attends to.
        spread: positions per block that ``spread`` attends to.
        padding: positions at the end of each block that are not there: nothing real attends to them, and what comes out
            of them means nothing.
        platform: ``"cpu"``, ``"tpu"`` or ``"gpu"``, where the program will run.
        implementation: one of ``IMPLEMENTATIONS``.

    Returns:
        ``b t S`` in the dtype of v.
    """
    choose("attention kind", kind, KINDS)
    options: dict[str, Any] = dict(num_heads=num_heads, num_blocks=num_blocks)
    if kind not in ("dense", "lyrics", "prime") and (num_blocks is None or q.shape[1] % num_blocks):
        raise UserError(f"{kind} attention needs num_blocks that divides {q.shape[1]} positions, not {num_blocks}")
    if resolve(kind, q, platform=platform, implementation=implementation, **options) == "pallas":
        q, k, v = (to_blocks(x, num_blocks or 1) for x in (q, k, v))
        valid, interpret = q.shape[2] - padding, platform == "cpu"
        o = pallas.factored_attention(
            q, k, v, kind=kind, num_heads=num_heads, platform="tpu" if interpret else platform, valid=valid,
            interpret=interpret,
        )  # fmt: skip
        return from_blocks(o)
    if padding:
        q, k, v = (x if kind == "lyrics" and x is not q else strip(x, num_blocks, padding) for x in (q, k, v))
        o = attend(kind, q, k, v, prefix=prefix, spread=spread, implementation="xla", **options)
        return pad(o, num_blocks, padding)
    if kind == "dense":
        return xla.dense(q, k, v, num_heads=num_heads)
    if kind == "lyrics":
        return xla.cross(q, k, v, num_heads=num_heads)
    if kind == "prime":
        return xla.prime(q, k, v, num_heads=num_heads, prefix=prefix)
    if kind == "block":
        return xla.block(q, k, v, **options)
    if kind == "column":
        return xla.column(q, k, v, **options)
    if kind == "previous":
        return xla.previous_block(q, k, v, **options)
    return xla.spread(q, k, v, count=spread if kind == "spread" else 1, **options)


def pad(x, num_blocks, padding):
    """``b t d`` with ``padding`` zeros after each block."""
    return from_blocks(jnp.pad(to_blocks(x, num_blocks), ((0, 0), (0, 0), (0, padding), (0, 0))))


def strip(x, num_blocks, padding):
    """Undo ``pad``."""
    return from_blocks(to_blocks(x, num_blocks)[:, :, :-padding])
