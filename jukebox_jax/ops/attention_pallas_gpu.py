"""The GPU kernels of ``attention_pallas``, through Triton: one program per batch row, block (COLUMN: offset) and head.

A program holds one score matrix, so rows and keys are padded to a power of two and masked; head dimensions of any
size are summed in chunks. The three kinds share both bodies and differ by index map: PREVIOUS pairs query block j
with key block j - 1 around a circle, and the pair that closes the circle counts as zero, so that the backward pass
reads and writes every block once.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jukebox_jax.ops.attention_pallas_tpu import MASKED, Problem

MOST_ROWS = 128  # of a score matrix; three float32 ones live in registers in the backward pass
LEAST_TILE, MOST_CHUNK = 16, 64  # of a matrix product; lanes of a head that are loaded at once


def _chunks(head_dim: int) -> tuple[int, list[int]]:
    """Width of a chunk, and where each begins."""
    width = min(max(pl.next_power_of_2(head_dim), LEAST_TILE), MOST_CHUNK)
    return width, list(range(0, head_dim, width))


def _tile(ref, start: int, width: int, rows: int, head_dim: int):
    """A chunk of a padded ``[rows, head_dim]`` reference, and the mask of what exists."""
    row = jnp.arange(ref.shape[0])[:, None] < rows
    lane = start + jnp.arange(width)[None, :] < head_dim
    return ref.at[:, pl.ds(start, width)], row & lane


def _load(ref, start: int, width: int, rows: int, head_dim: int):
    tile, mask = _tile(ref, start, width, rows, head_dim)
    return plgpu.load(tile, mask=mask, other=0.0)


def _store(ref, value, start: int, width: int, rows: int, head_dim: int) -> None:
    tile, mask = _tile(ref, start, width, rows, head_dim)
    plgpu.store(tile, value.astype(ref.dtype), mask=mask)


def _weights(q_ref, k_ref, rows: int, head_dim: int, problem: Problem):
    """Softmax ``[rows, keys]``, float32."""
    width, starts = _chunks(head_dim)
    scores = jnp.zeros((q_ref.shape[0], k_ref.shape[0]), jnp.float32)
    for start in starts:
        q, k = (_load(ref, start, width, rows, head_dim) for ref in (q_ref, k_ref))
        scores += plgpu.dot(q, k, trans_b=True)
    key = jnp.arange(k_ref.shape[0])[None, :]
    seen = key < problem.valid if problem.kind == "previous" else key <= jnp.arange(q_ref.shape[0])[:, None]
    scores = jnp.where(seen, scores * head_dim**-0.5, MASKED)
    exponent = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    return exponent / jnp.sum(exponent, axis=1, keepdims=True)


def _exists(problem: Problem):
    """False for the query block that has no block before it."""
    return (pl.program_id(1) > 0) | (problem.kind != "previous")


def _forward_kernel(q_ref, k_ref, v_ref, o_ref, *, rows: int, head_dim: int, problem: Problem) -> None:
    p = jnp.where(_exists(problem), _weights(q_ref, k_ref, rows, head_dim, problem), 0.0).astype(v_ref.dtype)
    width, starts = _chunks(head_dim)
    for start in starts:
        _store(o_ref, plgpu.dot(p, _load(v_ref, start, width, rows, head_dim)), start, width, rows, head_dim)


def _backward_kernel(
    q_ref, k_ref, v_ref, do_ref, dq_ref, dk_ref, dv_ref, *, rows: int, head_dim: int, problem: Problem
) -> None:
    p = jnp.where(_exists(problem), _weights(q_ref, k_ref, rows, head_dim, problem), 0.0)
    width, starts = _chunks(head_dim)
    dp = jnp.zeros_like(p)
    for start in starts:
        do, v = (_load(ref, start, width, rows, head_dim) for ref in (do_ref, v_ref))
        dp += plgpu.dot(do, v, trans_b=True)
    ds = (p * (dp - jnp.sum(p * dp, axis=1, keepdims=True)) * head_dim**-0.5).astype(q_ref.dtype)
    p = p.astype(q_ref.dtype)
    for start in starts:
        q, k, do = (_load(ref, start, width, rows, head_dim) for ref in (q_ref, k_ref, do_ref))
        _store(dq_ref, plgpu.dot(ds, k), start, width, rows, head_dim)
        _store(dk_ref, plgpu.dot(ds, q, trans_a=True), start, width, rows, head_dim)
        _store(dv_ref, plgpu.dot(p, do, trans_a=True), start, width, rows, head_dim)


def refusal(shape, itemsize: int, problem: Problem) -> str | None:
    """Why the kernels do not take ``b n c S``, or None."""
    rows = shape[1] if problem.kind == "column" else shape[2]
    return f"{rows} keys per query: the GPU kernel takes at most {MOST_ROWS}" if rows > MOST_ROWS else None


def _call(kernel, operands, *, problem: Problem, backward: bool, interpret: bool):
    b, n, c, width = operands[0].shape
    head_dim = width // problem.num_heads
    operands = [x.reshape(b, n, c, problem.num_heads, head_dim) for x in operands]
    rows, programs = (n, c) if problem.kind == "column" else (c, n)
    size = max(pl.next_power_of_2(rows), LEAST_TILE)
    chunk, starts = _chunks(head_dim)
    lanes = chunk * len(starts)
    if problem.kind == "column":
        own = pl.BlockSpec((None, size, None, None, lanes), lambda i, j, h: (i, 0, j, h, 0))
    else:
        own = pl.BlockSpec((None, None, size, None, lanes), lambda i, j, h: (i, j, 0, h, 0))
    keys = own
    if problem.kind == "previous":
        keys = pl.BlockSpec((None, None, size, None, lanes), lambda i, j, h: (i, jnp.where(j > 0, j, n) - 1, 0, h, 0))
    block = b * n * c * width
    outputs = [own, keys, keys] if backward else [own]
    results = pl.pallas_call(
        functools.partial(kernel, rows=rows, head_dim=head_dim, problem=problem),
        grid=(b, programs, problem.num_heads),
        in_specs=[own, keys, keys, own] if backward else [own, keys, keys],
        out_specs=outputs,
        out_shape=[jax.ShapeDtypeStruct(operands[0].shape, operands[0].dtype)] * len(outputs),
        compiler_params=plgpu.CompilerParams(num_warps=8 if size > 64 else 4, num_stages=2),
        cost_estimate=pl.CostEstimate(
            flops=(10 if backward else 4) * block * rows,
            transcendentals=block // head_dim * rows,
            bytes_accessed=(7 if backward else 4) * block * operands[0].dtype.itemsize,
        ),
        name=f"{problem.kind}_attention_{'backward' if backward else 'forward'}",
        interpret=interpret,
    )(*operands)
    return [x.reshape(b, n, c, width) for x in results]


def forward(q, k, v, problem: Problem, interpret: bool):
    """``b n c S`` x 3 -> o."""
    return _call(_forward_kernel, (q, k, v), problem=problem, backward=False, interpret=interpret)[0]


def backward(q, k, v, do, problem: Problem, interpret: bool):
    """``b n c S`` x 4 -> dq, dk, dv; the scores are computed again."""
    return _call(_backward_kernel, (q, k, v, do), problem=problem, backward=True, interpret=interpret)
