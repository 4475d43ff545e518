"""One door to attention: which kind, and which implementation.

``implementation="auto"`` takes the Pallas kernel where there is one for this kind, shape and platform, else XLA.
"""

from __future__ import annotations

from jukebox_jax.ops import attention_xla as xla
from jukebox_jax.types import UserError, choose

KINDS = ("dense", "block", "column", "previous", "summary", "spread", "lyrics", "prime")
IMPLEMENTATIONS = ("auto", "xla", "pallas")


def attend(kind, q, k, v, *, num_heads, num_blocks=None, prefix=0, spread=1, implementation="auto"):
    """Attention of one layer over a whole stream.

    Args:
        kind: one of ``KINDS``.
        q, k, v: ``b t S`` with S = heads x head dim (``lyrics``: k and v are ``b l S``).
        num_heads: heads side by side in S.
        num_blocks: blocks that t is cut into (all kinds but dense and lyrics).
        prefix: positions that ``prime`` attends to.
        spread: positions per block that ``spread`` attends to.
        implementation: one of ``IMPLEMENTATIONS``.

    Returns:
        ``b t S`` in the dtype of v.
    """
    choose("attention kind", kind, KINDS)
    choose("attention implementation", implementation, IMPLEMENTATIONS)
    if kind == "dense":
        return xla.dense(q, k, v, num_heads=num_heads)
    if kind == "lyrics":
        return xla.cross(q, k, v, num_heads=num_heads)
    if kind == "prime":
        return xla.prime(q, k, v, num_heads=num_heads, prefix=prefix)
    if num_blocks is None or q.shape[1] % num_blocks:
        raise UserError(f"{kind} attention needs num_blocks that divides {q.shape[1]} positions, not {num_blocks}")
    if kind == "block":
        return xla.block(q, k, v, num_heads=num_heads, num_blocks=num_blocks)
    if kind == "column":
        return xla.column(q, k, v, num_heads=num_heads, num_blocks=num_blocks)
    if kind == "previous":
        return xla.previous_block(q, k, v, num_heads=num_heads, num_blocks=num_blocks)
    return xla.spread(q, k, v, num_heads=num_heads, num_blocks=num_blocks, count=spread if kind == "spread" else 1)
