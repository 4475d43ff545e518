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
MOST_BLOCKS = 8  # per step: more saves PREVIOUS a few bytes, and costs compile time


class Problem(NamedTuple):
    """What is static about one call. ``valid`` positions of each block of ``block_length`` hold keys; the rest is padding."""

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
    """One head of a reference, the neighbours' lanes zero: ``[G, c, lanes]``, or ``[offsets, n, lanes]`` of a COLUMN."""
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


def _gradient(q, k, v, do, scale: float, problem: Problem):
    """Weights and gradient of the scores, in the dtype of q. Neither the output nor its row sums were saved."""
    p = _softmax(q, k, scale, problem)
    dp = _product(do, v, 2, 2)
    ds = p * (dp - jnp.sum(p * dp, axis=-1, keepdims=True)) * scale
    return p.astype(q.dtype), ds.astype(q.dtype)


def _zero_if(condition, x):
    return jnp.where(condition, jnp.zeros_like(x), x)


def _after(first, rest):
    """``first`` (one block), then all but the last of ``rest``."""
    return jnp.concatenate([first, rest[:-1]], axis=0) if rest.shape[0] > 1 else first


def _before(rest, last):
    """All but the first of ``rest``, then ``last`` (one block)."""
    return jnp.concatenate([rest[1:], last], axis=0) if rest.shape[0] > 1 else last


def _forward_kernel(q_ref, k_ref, v_ref, o_ref, *, problem: Problem) -> None:
    windows = head_windows(problem.num_heads, q_ref.shape[-1])
    scale = (windows[0].high - windows[0].low) ** -0.5
    first = pl.program_id(1) == 0
    heads = []
    for window in windows:
        q, k, v = (_load(ref, window, problem) for ref in (q_ref, k_ref, v_ref))
        if problem.kind == "previous":  # the window of the first step could not begin at block -1
            k, v = (jnp.where(first, _after(jnp.zeros_like(x[:1]), x), x) for x in (k, v))
        p = _softmax(q, k, scale, problem)
        heads.append(_product(p.astype(v.dtype), v, 2, 1))
    _store(o_ref, heads, windows, problem)


def _backward_kernel(q_ref, k_ref, v_ref, do_ref, *refs, problem: Problem) -> None:
    *edges, dq_ref, dk_ref, dv_ref = refs
    windows = head_windows(problem.num_heads, q_ref.shape[-1])
    scale = (windows[0].high - windows[0].low) ** -0.5
    first, last = pl.program_id(1) == 0, pl.program_id(1) == pl.num_programs(1) - 1
    gradients = []
    for window in windows:
        q, k, v, do = (_load(ref, window, problem) for ref in (q_ref, k_ref, v_ref, do_ref))
        if problem.kind != "previous":
            p, ds = _gradient(q, k, v, do, scale, problem)
            gradients.append((_product(ds, k, 2, 1), _product(ds, q, 1, 1), _product(p, do, 1, 1)))
            continue
        k_past, v_past, q_next, do_next = (_load(ref, window, problem) for ref in edges)
        k_before, v_before = (_after(_zero_if(first, past), x) for past, x in ((k_past, k), (v_past, v)))
        p, ds = _gradient(q, k_before, v_before, do, scale, problem)
        # The last key block is read by the first query block of the next step.
        p_next, ds_next = _gradient(q_next, k[-1:], v[-1:], _zero_if(last, do_next), scale, problem)
        ds_keys, q_keys = _before(ds, _zero_if(last, ds_next)), _before(q, q_next)
        p_keys, do_keys = _before(p, p_next), _before(do, _zero_if(last, do_next))
        gradients.append((_product(ds, k_before, 2, 1), _product(ds_keys, q_keys, 1, 1), _product(p_keys, do_keys, 1, 1)))
    for ref, heads in zip((dq_ref, dk_ref, dv_ref), zip(*gradients, strict=True), strict=True):
        _store(ref, heads, windows, problem)


# ---- the grid


class Plan(NamedTuple):
    """Blocks (COLUMN: offsets) per grid step, and the VMEM that a step may need, in bytes."""

    group: int
    vmem: int


def make_plan(shape, itemsize: int, problem: Problem, backward: bool) -> Plan:
    """The largest step that the default VMEM grant holds; COLUMN's step is fixed by the layout."""
    _, n, c, width = shape
    if problem.kind == "column":
        group = min(c, SUBLANES)
        return Plan(group, _vmem(n, group, group, n, width, itemsize, problem, backward))
    plans = [
        Plan(g, _vmem(g, c, g, c, width, itemsize, problem, backward))
        for g in range(1, min(n, MOST_BLOCKS) + 1)
        if n % g == 0
    ]
    return max((plan for plan in plans if plan.vmem <= DEFAULT_VMEM), default=plans[0])


def _vmem(rows, sublanes, problems, length, width, itemsize, problem: Problem, backward: bool) -> int:
    """Bytes of a step: two buffers of each operand block, and the body's arrays of one head (fitted to compiled kernels)."""
    lanes = -(-width // LANES) * LANES
    tile = SUBLANES * 4 // itemsize
    block = rows * -(-sublanes // SUBLANES) * SUBLANES * lanes * itemsize
    arrays = 7 if backward else 4
    edges = 4 / rows if problem.kind == "previous" and backward else 0
    scores = problems * (-(-length // SUBLANES) * SUBLANES) * (-(-length // LANES) * LANES) * 4
    del tile
    return math.ceil(2 * (arrays + edges) * block + (4 if backward else 2) * scores + (3 if backward else 1) * block * 4 / itemsize)


def _estimate(shape, itemsize: int, problem: Problem, plan: Plan, backward: bool) -> pl.CostEstimate:
    """What one call computes and moves, re-read edge blocks included."""
    b, n, c, width = shape
    keys = n if problem.kind == "column" else c
    steps = 0 if problem.kind != "previous" or not backward else n // plan.group
    block = b * c * width
    return pl.CostEstimate(
        flops=(10 if backward else 4) * block * n * keys + 4 * block * steps * keys,
        transcendentals=b * problem.num_heads * c * keys * (n + steps),
        bytes_accessed=((7 if backward else 4) * n + 4 * steps) * block * itemsize,
    )


def _call(kernel, operands, *, problem: Problem, backward: bool, interpret: bool):
    """Run a kernel over the grid (batch, groups of blocks)."""
    shape, dtype = operands[0].shape, operands[0].dtype
    b, n, c, width = shape
    plan = make_plan(shape, dtype.itemsize, problem, backward)
    group = plan.group
    if problem.kind == "column":
        grid = (b, pl.cdiv(c, group))
        block = pl.BlockSpec((None, n, group, width), lambda i, j: (i, 0, j, 0))
    else:
        grid = (b, n // group)
        block = pl.BlockSpec((None, group, c, width), lambda i, j: (i, j, 0, 0))
    in_specs = [block] * len(operands)
    if problem.kind == "previous" and backward:
        past = pl.BlockSpec((None, 1, c, width), lambda i, j: (i, jnp.maximum(j * group - 1, 0), 0, 0))
        following = pl.BlockSpec((None, 1, c, width), lambda i, j: (i, jnp.minimum(j * group + group, n - 1), 0, 0))
        q, k, v, do = operands
        operands, in_specs = (*operands, k, v, q, do), [*in_specs, past, past, following, following]
    elif problem.kind == "previous":
        earlier = pl.BlockSpec(
            (pl.Squeezed(), pl.Element(group), pl.Element(c), pl.Element(width)),
            lambda i, j: (i, jnp.maximum(j * group - 1, 0), 0, 0),
        )
        in_specs[1:] = [earlier, earlier]
    return pl.pallas_call(
        functools.partial(kernel, problem=problem),
        grid=grid,
        in_specs=in_specs,
        out_specs=[block] * (3 if backward else 1),
        out_shape=[jax.ShapeDtypeStruct(shape, dtype)] * (3 if backward else 1),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"),
            vmem_limit_bytes=plan.vmem if plan.vmem > DEFAULT_VMEM else None,
        ),
        cost_estimate=_estimate(shape, dtype.itemsize, problem, plan, backward),
        name=f"{problem.kind}_attention_{'backward' if backward else 'forward'}",
        interpret=interpret,
    )(*operands)


def forward(q, k, v, problem: Problem, interpret: bool):
    """``b n c S`` x 3 -> o."""
    return _call(_forward_kernel, (q, k, v), problem=problem, backward=False, interpret=interpret)[0]


def backward(q, k, v, do, problem: Problem, interpret: bool):
    """``b n c S`` x 4 -> dq, dk, dv; the scores are computed again."""
    return _call(_backward_kernel, (q, k, v, do), problem=problem, backward=True, interpret=interpret)


def refusal(shape, itemsize: int, problem: Problem) -> str | None:
    """Why the kernels do not take ``b n c S``, or None."""
    need = max(make_plan(shape, itemsize, problem, backward).vmem for backward in (False, True))
    return f"needs {need / MIB:.0f} MiB of VMEM; {MOST_VMEM / MIB:.0f} are safe on every chip" if need > MOST_VMEM else None
