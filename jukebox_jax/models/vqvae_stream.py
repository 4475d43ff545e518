"""Encode and decode signals of any length in bounded memory, with the codes and the audio of one go.

The device holds one chunk and the last rows of every layer (``ops/conv_stack.py``); nothing is computed twice, and all
lengths share one compiled program. On a mesh (``mesh.use``) each device has its own rows of the batch. One CPU's cores
work on a segment each, in chunks that fit a core's own cache; there the context between segments is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.ops import conv_stack, quantize
from jukebox_jax.parallel.lanes import LANES, at_once
from jukebox_jax.parallel.mesh import alone, platform
from jukebox_jax.parallel.products import eigen_jit
from jukebox_jax.parallel.sharding import spread
from jukebox_jax.types import UserError

CHUNK = 1 << 18  # samples at once, about: 6 s at 44.1 kHz; on a CPU what suits its cache
SEGMENT = 1 << 20  # samples that a CPU's core has before it, at most, about
OWN_CACHE = 370_000  # numbers of a chunk's widest layer there: 1.4 MiB, a share of a core's own cache


def encode_long(
    model: VQVAE,
    variables: Mapping[str, Any],
    audio: Float[np.ndarray, "b a 1"],
    levels: Sequence[int] | None = None,
    *,
    chunk: int | None = None,
) -> list[Int[np.ndarray, "b t"]]:
    """Codes of the given levels (None: all, bottom first): ``t = a // hop``, int32. ``chunk``: samples at once.

    Raises ``UserError`` for audio shorter than one code.
    """
    levels = range(model.config.levels) if levels is None else levels
    hops = [model.config.hop_lengths[level] for level in levels]
    if audio.shape[1] < max(hops):
        raise UserError(f"{audio.shape[1]} samples are less than one code: at least {max(hops)} are needed")
    return [np.concatenate(list(_pieces(model, variables, audio, level, chunk, False)), axis=1) for level in levels]


def decode_long(
    model: VQVAE, variables: Mapping[str, Any], codes: Int[np.ndarray, "b t"], level: int, *, chunk: int | None = None
) -> Iterator[Float[np.ndarray, "b p 1"]]:
    """Audio of the codes of a level in pieces, ``t * hop`` samples together. ``chunk``: samples at once."""
    return _pieces(model, variables, codes.astype(np.int32), level, chunk, True)


def _pieces(
    model: VQVAE, variables: Any, signal: np.ndarray, level: int, chunk: int | None, decode: bool
) -> Iterator[np.ndarray]:
    if chunk is None and alone():
        yield from _segments(model, variables, signal, level, decode)
        return
    hop = model.config.hop_lengths[level]
    stack = _stack(model, level, decode, variables)
    if chunk is None and platform() == "cpu":
        rows = conv_stack.cached_rows(stack)
    else:
        rows = max(1, (chunk or CHUNK) // hop) * (1 if decode else hop)
    codebook = variables["codebook"][f"level_{level}"]["codebook"]
    batch, length = signal.shape[:2]
    carry = spread(_init_carry(stack, rows, batch))
    position, end = -conv_stack.timetable(stack, rows)[-1].lag, conv_stack.out_length(stack, length)
    for index in range(conv_stack.num_chunks(stack, rows, length)):
        piece = signal[:, index * rows : (index + 1) * rows]
        missing = ((0, 0), (0, rows - piece.shape[1])) + ((0, 0),) * (signal.ndim - 2)
        step = spread(jnp.asarray(np.pad(piece, missing))), jnp.int32(index), jnp.int32(length)
        carry, y = _advance(stack, codebook, carry, *step, decode=decode)
        start, position = position, position + y.shape[1]
        if position > 0:
            yield np.asarray(y)[:, max(0, -start) : end - start]


def _segments(model: VQVAE, variables: Any, signal: np.ndarray, level: int, decode: bool) -> Iterator[np.ndarray]:
    """``_pieces`` on one CPU: segments of the items, as many at once as there are lanes."""
    stack, (batch, length) = _stack(model, level, decode, variables), signal.shape[:2]
    codebook = variables["codebook"][f"level_{level}"]["codebook"]
    rows = conv_stack.cached_rows(stack, OWN_CACHE)
    last, chunks = conv_stack.timetable(stack, rows)[-1], conv_stack.num_chunks(stack, rows, length)
    early = -(-last.unsettled // last.rows_out)  # chunks before those that a segment is for; the first has none
    most = max(SEGMENT // (rows * (model.config.hop_lengths[level] if decode else 1)), 2 * early + 1)
    segments = max(1, -(-(chunks - early) // (most - early)))
    if segments * batch % LANES and chunks > 2 * early:
        segments += 1
    count = -(-(chunks + (segments - 1) * early) // segments)
    end, padding = conv_stack.out_length(stack, length), [(0, 0)] * (signal.ndim - 2)
    for group in range(0, segments, LANES):
        calls, parts = [], []
        for first in (index * (count - early) for index in range(group, min(group + LANES, segments))):
            pieces = signal[:, first * rows : (first + count) * rows]
            pieces = np.pad(pieces, [(0, 0), (0, most * rows - pieces.shape[1]), *padding])
            numbers = np.array([first, first or conv_stack.START, count, length], np.int32)
            calls += [(stack, codebook, piece[None], numbers, rows, decode) for piece in pieces]
            position = first * last.rows_out - last.lag  # of the result's first row
            begin = max((early if first else 0) * last.rows_out, -position)
            parts.append(slice(begin, max(begin, min(count * last.rows_out, end - position))))
        found = at_once(_decoded if decode else _encoded, calls)
        for i, part in enumerate(parts):
            yield np.concatenate([np.asarray(y)[:, part] for y in found[i * batch : (i + 1) * batch]])


def _segment(
    stack: conv_stack.Stack, codebook: Any, signal: jax.Array, numbers: Any, rows: int, decode: bool
) -> jax.Array:
    """Audio or codes of a segment ``[1, t]`` in chunks of ``rows`` rows. ``numbers``: its first chunk, where that run
    began (``conv_stack.advance``), how many chunks to run, and the length of the whole signal."""
    first, begun, count, length = numbers
    carry, step = conv_stack.init_carry(stack, rows, 1), partial(advance, stack, codebook, decode=decode)

    def add(i: Any, state: Any) -> Any:
        piece = lax.dynamic_slice_in_dim(signal, i * rows, rows, axis=1)
        carry, y = step(state[0], piece, first + i, length, begun)
        return carry, lax.dynamic_update_slice_in_dim(state[1], y, i * y.shape[1], axis=1)

    y = jax.eval_shape(step, carry, signal[:, :rows], first, length)[1]
    found = jnp.zeros((1, signal.shape[1] // rows * y.shape[1], *y.shape[2:]), y.dtype)
    return lax.fori_loop(0, count, add, (carry, found))[1]


_encoded, _decoded = (make(_segment, static_argnums=(4, 5)) for make in (eigen_jit, jax.jit))  # benchmarks/README.md


@partial(jax.jit, static_argnums=(0, 1, 2))
def _stack(model: VQVAE, level: int, decode: bool, variables: Any) -> Any:
    return model.apply(variables, level, method="decoder" if decode else "encoder")


_init_carry = jax.jit(conv_stack.init_carry, static_argnums=(1, 2))


def advance(
    stack: conv_stack.Stack, codebook: Any, carry: Any, piece: jax.Array, index: Any, length: Any,
    begun: Any = None, *, decode: bool,
) -> tuple[Any, jax.Array]:  # fmt: skip
    """Chunk number ``index`` of a signal of ``length`` rows through the stack: the new carry, and audio or codes."""
    dtype = stack[0][1][0].dtype
    x = quantize.dequantize(piece, codebook) if decode else piece
    carry, y = conv_stack.advance(stack, carry, x.astype(dtype), index, length, begun)
    y = y.astype(jnp.float32)
    return carry, y if decode else quantize.nearest_codes(y, codebook)[0]


_advance = eigen_jit(advance, static_argnames="decode", donate_argnames="carry")
