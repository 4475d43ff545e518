"""The TPU kernels of ``attention_pallas``: ``b n c S`` in and out, heads unrolled inside, one grid step per few blocks.

The three kinds differ by index map and mask only. BLOCK and PREVIOUS take G whole blocks per step; PREVIOUS reads its
keys one block earlier. COLUMN takes 8 offsets of all n blocks from the array as it lies in memory and turns
them over in VMEM. Heads whose width is no multiple of 128 lanes are cut out as aligned windows with the lanes of
their neighbours set to zero, so nothing is padded or moved in HBM.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES, SUBLANES = 128, 8
MASKED = -1e9
MIB = 2**20
DEFAULT_VMEM = 16 * MIB  # what the compiler grants unasked on the smallest chips (v5e, v5p)
MOST_VMEM = 56 * MIB  # v5p and tpu7x have 64 MiB in all
HALO_VMEM = 24 * MIB  # what PREVIOUS may take to read fewer blocks twice
MOST_BLOCKS = 8  # per step: more saves PREVIOUS a few bytes, and costs compile time


class Problem(NamedTuple):
    """What is static about one call. The first ``valid`` positions of each block are real, the rest is padding."""

    kind: str
    num_heads: int
    valid: int


class Window(NamedTuple):
    """Lanes ``start:stop`` hold head ``low:high`` (and parts of its neighbours)."""

    low: int
    high: int
    start: int
    stop: int


def head_windows(num_heads: int, width: int) -> tuple[Window, ...]:
    """The smallest runs of whole lane tiles that contain each head."""
    dim = width // num_heads
    return tuple(
        Window(low, low + dim, low // LANES * LANES, min(-(-(low + dim) // LANES) * LANES, width))
        for low in range(0, width, dim)
    )


# ---- the body: both passes see ``[g, rows, lanes]``, g independent problems


def _load(ref, window: Window, problem: Problem):
    """One head, the neighbours' lanes zero: ``[G, c, lanes]``, or ``[offsets, n, lanes]`` of a COLUMN."""
    x = ref[:, :, window.start : window.stop]
    if problem.kind == "column":
        x = jnp.swapaxes(x, 0, 1)
    if (window.low, window.high) != (window.start, window.stop):
        lane = window.start + jax.lax.broadcasted_iota(jnp.int32, x.shape, 2)
        x = jnp.where((lane >= window.low) & (lane < window.high), x, jnp.zeros_like(x))
    return x


def _store(ref, heads, windows, problem: Problem) -> None:
    """Write float32 heads back; a lane tile that two heads share is their sum."""
    width = ref.shape[-1]
    for start in range(0, width, LANES):
        stop = min(start + LANES, width)
        parts = [
            head[:, :, start - window.start : stop - window.start]
            for head, window in zip(heads, windows, strict=True)
            if window.start <= start < window.stop
        ]
        tile = functools.reduce(jnp.add, parts).astype(ref.dtype)
        ref[:, :, start:stop] = jnp.swapaxes(tile, 0, 1) if problem.kind == "column" else tile


def _product(x, y, axis_x: int, axis_y: int):
    """Batched matrix product over the given axes, float32."""
    return jax.lax.dot_general(x, y, (((axis_x,), (axis_y,)), ((0,), (0,))), preferred_element_type=jnp.float32)


def _softmax(q, k, scale: float, problem: Problem):
    """Weights ``[g, rows, keys]``, float32."""
    scores = _product(q, k, 2, 2) * scale
    key = jax.lax.broadcasted_iota(jnp.int32, (1, *scores.shape[1:]), 2)
    if problem.kind != "previous":
        query = jax.lax.broadcasted_iota(jnp.int32, (1, *scores.shape[1:]), 1)
        scores = jnp.where(key <= query, scores, MASKED)
    elif problem.valid < scores.shape[2]:
        scores = jnp.where(key < problem.valid, scores, MASKED)
    exponent = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return exponent / jnp.sum(exponent, axis=-1, keepdims=True)


def _later(x):
    """``x`` one block later, zeros in front."""
    return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]], axis=0)


def _earlier(x):
    """``x`` one block earlier, zeros behind."""
    return jnp.concatenate([x[1:], jnp.zeros_like(x[:1])], axis=0)


def _forward_kernel(q_ref, k_ref, v_ref, o_ref, *, problem: Problem) -> None:
    windows = head_windows(problem.num_heads, q_ref.shape[-1])
    scale = (windows[0].high - windows[0].low) ** -0.5
    first = pl.program_id(1) == 0
    heads = []
    for window in windows:
        q, k, v = (_load(ref, window, problem) for ref in (q_ref, k_ref, v_ref))
        if problem.kind == "previous":  # the first step's keys could not begin before block 0
            k, v = (jnp.where(first, _later(x), x) for x in (k, v))
        p = _softmax(q, k, scale, problem)
        heads.append(_product(p.astype(v.dtype), v, 2, 1))
    _store(o_ref, heads, windows, problem)


def _backward_kernel(q_ref, k_ref, v_ref, do_ref, dq_ref, dk_ref, dv_ref, *, problem: Problem) -> None:
    """PREVIOUS works on G + 1 pairs of (query block j, key block j - 1): G of them end in dq, G in dk and dv."""
    windows = head_windows(problem.num_heads, q_ref.shape[-1])
    scale = (windows[0].high - windows[0].low) ** -0.5
    first, last = pl.program_id(1) == 0, pl.program_id(1) == pl.num_programs(1) - 1
    gradients = []
    for window in windows:
        q, k, v, do = (_load(ref, window, problem) for ref in (q_ref, k_ref, v_ref, do_ref))
        queries = keys = slice(None)
        if problem.kind == "previous":
            k, v = (jnp.where(first, _later(x), x) for x in (k, v))
            q, do = (jnp.where(last, _earlier(x), x) for x in (q, do))
            queries, keys = slice(None, -1), slice(1, None)
        p = _softmax(q, k, scale, problem)
        dp = _product(do, v, 2, 2)
        ds = (p * (dp - jnp.sum(p * dp, axis=-1, keepdims=True)) * scale).astype(q.dtype)
        p = p.astype(q.dtype)
        gradients.append(
            (
                _product(ds[queries], k[queries], 2, 1),
                _product(ds[keys], q[keys], 1, 1),
                _product(p[keys], do[keys], 1, 1),
            )
        )
    for ref, heads in zip((dq_ref, dk_ref, dv_ref), zip(*gradients, strict=True), strict=True):
        _store(ref, heads, windows, problem)


# ---- the grid


class Plan(NamedTuple):
    """Blocks (COLUMN: offsets) per grid step, and the VMEM that a step needs, in bytes."""

    group: int
    vmem: int


def make_plan(shape, itemsize: int, problem: Problem, backward: bool) -> Plan:
    """The largest step that fits; COLUMN's step is fixed by the layout.

    PREVIOUS reads one block more per step in the backward pass, so there it is worth more than the default VMEM.
    """
    _, n, c, _ = shape
    if problem.kind == "column":
        group = min(c, SUBLANES)
        return Plan(group, _vmem(shape, group, itemsize, problem, backward))
    halo = problem.kind == "previous" and backward
    plans = [
        Plan(group, _vmem(shape, group, itemsize, problem, backward))
        for group in range(1, min(n - halo, MOST_BLOCKS) + 1)
        if n % group == 0
    ]
    budget = HALO_VMEM if halo else DEFAULT_VMEM
    return max((plan for plan in plans if plan.vmem <= budget), default=plans[0])


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _vmem(shape, group: int, itemsize: int, problem: Problem, backward: bool) -> int:
    """Bytes that a step needs: two buffers of each operand, and the body's float32 arrays of one head.

    The body's share was fitted from above to what the compiler reports (benchmarks/attention.py), which is
    nearly the same on v5e, v6e, v5p and tpu7x.
    """
    _, n, c, width = shape
    rows, length = (n, n) if problem.kind == "column" else (group, c)
    block = rows * round_up(group if problem.kind == "column" else c, SUBLANES) * round_up(width, LANES) * itemsize
    halo = problem.kind == "previous" and backward
    inputs = (4 if backward else 3) * block * (group + halo) / group
    outputs = (3 if backward else 1) * block
    lanes = max(round_up(w.stop - w.start, LANES) for w in head_windows(problem.num_heads, width))
    problems = group + halo
    scores = problems * round_up(length, SUBLANES) * round_up(length, LANES) * 4
    head = problems * round_up(length, SUBLANES) * lanes * 4
    body = 4 * scores + 3 * head if backward else 2 * scores + 1.5 * head
    return math.ceil(2 * (inputs + outputs) + body + MIB / 2)


def refusal(shape, itemsize: int, problem: Problem) -> str | None:
    """Why the kernels do not take ``b n c S``, or None."""
    if problem.kind == "previous" and shape[1] < 2:
        return "previous-block attention of one block is zero"
    need = max(make_plan(shape, itemsize, problem, backward).vmem for backward in (False, True))
    return (
        f"needs {need / MIB:.0f} MiB of VMEM; {MOST_VMEM / MIB:.0f} are safe on every chip"
        if need > MOST_VMEM
        else None
    )


def _call(kernel, operands, *, problem: Problem, backward: bool, interpret: bool):
    """Run a kernel over the grid (batch, groups of blocks)."""
    shape, dtype = operands[0].shape, operands[0].dtype
    b, n, c, width = shape
    group, vmem = make_plan(shape, dtype.itemsize, problem, backward)
    steps = pl.cdiv(c, group) if problem.kind == "column" else n // group
    if problem.kind == "column":
        block = pl.BlockSpec((None, n, group, width), lambda i, j: (i, 0, j, 0))
    else:
        block = pl.BlockSpec((None, group, c, width), lambda i, j: (i, j, 0, 0))
    queries = keys = block
    halo = problem.kind == "previous" and backward
    if problem.kind == "previous":
        window = (pl.Squeezed(), pl.Element(group + halo), pl.Element(c), pl.Element(width))
        keys = pl.BlockSpec(window, lambda i, j: (i, jnp.maximum(j * group - 1, 0), 0, 0))
        if backward:
            queries = pl.BlockSpec(window, lambda i, j: (i, jnp.minimum(j * group, n - group - 1), 0, 0))
    size, length = b * n * c * width, n if problem.kind == "column" else c
    pairs = size + halo * size // group  # a step's extra pair is computed, and its blocks are read, twice
    return pl.pallas_call(
        functools.partial(kernel, problem=problem),
        grid=(b, steps),
        in_specs=[queries, keys, keys, queries] if backward else [queries, keys, keys],
        out_specs=[block] * (3 if backward else 1),
        out_shape=[jax.ShapeDtypeStruct(shape, dtype)] * (3 if backward else 1),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=vmem if vmem > DEFAULT_VMEM else None
        ),
        cost_estimate=pl.CostEstimate(
            flops=length * (4 * pairs + 6 * size if backward else 4 * size),
            transcendentals=pairs * problem.num_heads // width * length,
            bytes_accessed=(4 * pairs + 3 * size if backward else 4 * size) * dtype.itemsize,
        ),
        name=f"{problem.kind}_attention_{'backward' if backward else 'forward'}",
        interpret=interpret,
    )(*operands)


def forward(q, k, v, problem: Problem, interpret: bool):
    """``b n c S`` x 3 -> o."""
    return _call(_forward_kernel, (q, k, v), problem=problem, backward=False, interpret=interpret)[0]


def backward(q, k, v, do, problem: Problem, interpret: bool):
    """``b n c S`` x 4 -> dq, dk, dv; the scores are computed again."""
    return _call(_backward_kernel, (q, k, v, do), problem=problem, backward=True, interpret=interpret)
