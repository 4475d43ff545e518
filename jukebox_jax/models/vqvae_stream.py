"""Encode and decode signals of any length in bounded memory, with the codes and the audio of one go.

The device holds one chunk and the last rows of every layer (``ops/conv_stack.py``); nothing is computed twice, and all
lengths share one compiled program. On a mesh (``mesh.use``) each device has its own rows of the batch. One CPU's cores
work at once, in chunks that fit a core's own cache: they encode a signal from both its ends, and decode a segment each,
where the context between segments is computed twice.
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
from jukebox_jax.parallel.lanes import LANES, at_once, own_cache
from jukebox_jax.parallel.mesh import alone, platform
from jukebox_jax.parallel.products import eigen_jit
from jukebox_jax.parallel.sharding import spread
from jukebox_jax.types import UserError

CHUNK = 1 << 18  # samples at once, about: 6 s at 44.1 kHz; on a CPU what suits its cache
SEGMENT = 1 << 20  # samples that a CPU's core has before it, at most, about
LARGE = own_cache() >= 1 << 20  # else a chunk lives in the cache that all cores share, and Eigen multiplies faster
NUMBERS = 370_000 if LARGE else 1 << 20  # of a chunk's widest layer there: 1.4 MiB, 4 MiB


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
    if chunk is None and alone():
        items = [audio[i : i + 1] for i in range(audio.shape[0])]
        return [np.concatenate([_from_both_ends(model, variables, x, level) for x in items]) for level in levels]
    return [np.concatenate(list(_pieces(model, variables, audio, level, chunk, False)), axis=1) for level in levels]


def decode_long(
    model: VQVAE, variables: Mapping[str, Any], codes: Int[np.ndarray, "b t"], level: int, *, chunk: int | None = None
) -> Iterator[Float[np.ndarray, "b p 1"]]:
    """Audio of the codes of a level in pieces, ``t * hop`` samples together. ``chunk``: samples at once."""
    if chunk is None and alone():
        return _segments(model, variables, codes.astype(np.int32), level)
    return _pieces(model, variables, codes.astype(np.int32), level, chunk, True)


def _pieces(
    model: VQVAE, variables: Any, signal: np.ndarray, level: int, chunk: int | None, decode: bool
) -> Iterator[np.ndarray]:
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


def _from_both_ends(model: VQVAE, variables: Any, audio: np.ndarray, level: int) -> np.ndarray:
    """Codes of a level, on one CPU: one thread from the start and one from the end, then what is between them."""
    stack, length = _stack(model, level, False, variables), audio.shape[1]
    codebook = variables["codebook"][f"level_{level}"]["codebook"]
    rows = conv_stack.cached_rows(stack, NUMBERS)
    chunks, most, last = -(-length // rows), max(1, SEGMENT // rows), conv_stack.timetable(stack, rows)[-1]
    counts, empty = (chunks - chunks // 2, chunks // 2), chunks * rows - length
    audio = np.pad(audio, ((0, 0), (0, empty), (0, 0)))
    ways = (stack, audio, 0), (_backward(stack), audio[:, ::-1], empty)
    kept, found = [_init_carry(stack, rows, 1)] * 2, ([], [])
    for first in range(0, counts[0], most):
        calls, steps = [], [min(max(0, count - first), most) for count in counts]
        for (layers, signal, before), carry, count in zip(ways, kept, steps, strict=True):
            piece = signal[:, first * rows : (first + most) * rows]
            piece = np.pad(piece, ((0, 0), (0, most * rows - piece.shape[1]), (0, 0)))
            numbers = np.array([first, conv_stack.START, count, length, before], np.int32)
            calls.append((layers, codebook, carry, piece, numbers, rows, False))
        kept, codes = zip(*at_once(_encoded, calls), strict=True)
        for way, y, count in zip(found, codes, steps, strict=True):
            way.append(np.asarray(y)[:, : count * last.rows_out])
    middle = _between(stack, codebook, *kept, np.int32(counts[0]), np.int32(length), rows=rows)
    codes = np.concatenate([*found[0], middle, *(y[:, ::-1] for y in reversed(found[1]))], axis=1)
    return codes[:, last.lag : last.lag + conv_stack.out_length(stack, length)]


def _segments(model: VQVAE, variables: Any, codes: np.ndarray, level: int) -> Iterator[np.ndarray]:
    """Audio of codes on one CPU, segment by segment of the items, as many at once as there are lanes."""
    stack, (batch, length) = _stack(model, level, True, variables), codes.shape
    codebook = variables["codebook"][f"level_{level}"]["codebook"]
    rows = conv_stack.cached_rows(stack, NUMBERS)
    last, chunks = conv_stack.timetable(stack, rows)[-1], conv_stack.num_chunks(stack, rows, length)
    early = -(-last.unsettled // last.rows_out)  # chunks before those that a segment is for; the first has none
    most = max(SEGMENT // (rows * model.config.hop_lengths[level]), 2 * early + 1)
    segments = max(1, -(-(chunks - early) // (most - early)))
    if segments * batch % LANES and chunks > 2 * early:
        segments += 1
    count = -(-(chunks + (segments - 1) * early) // segments)
    end, carry = conv_stack.out_length(stack, length), _init_carry(stack, rows, 1)
    for group in range(0, segments, LANES):
        calls, parts = [], []
        for first in (index * (count - early) for index in range(group, min(group + LANES, segments))):
            pieces = codes[:, first * rows : (first + count) * rows]
            pieces = np.pad(pieces, ((0, 0), (0, most * rows - pieces.shape[1])))
            numbers = np.array([first, first or conv_stack.START, count, length, 0], np.int32)
            calls += [(stack, codebook, carry, piece[None], numbers, rows, True) for piece in pieces]
            position = first * last.rows_out - last.lag  # of the result's first row
            begin = max((early if first else 0) * last.rows_out, -position)
            parts.append(slice(begin, max(begin, min(count * last.rows_out, end - position))))
        found = at_once(_decoded, calls)
        for i, part in enumerate(parts):
            yield np.concatenate([np.asarray(y)[:, part] for _, y in found[i * batch : (i + 1) * batch]])


def _run(
    stack: conv_stack.Stack, codebook: Any, carry: Any, signal: jax.Array, numbers: Any, rows: int, decode: bool
) -> tuple[Any, jax.Array]:
    """The carry after a part of a signal, ``[1, t]``, in chunks of ``rows`` rows, and its codes or audio. ``numbers``:
    its first chunk, where the run began, chunks to run, the whole signal's length, ``before`` (``conv_stack.advance``).
    """
    first, begun, count, length, before = numbers
    step = partial(advance, stack, codebook, decode=decode)

    def add(i: Any, state: Any) -> Any:
        piece = lax.dynamic_slice_in_dim(signal, i * rows, rows, axis=1)
        carry, y = step(state[0], piece, first + i, length, begun, before)
        return carry, lax.dynamic_update_slice_in_dim(state[1], y, i * y.shape[1], axis=1)

    y = jax.eval_shape(step, carry, signal[:, :rows], first, length)[1]
    found = jnp.zeros((1, signal.shape[1] // rows * y.shape[1], *y.shape[2:]), y.dtype)
    return lax.fori_loop(0, count, add, (carry, found))


def _codes_between(
    stack: conv_stack.Stack, codebook: Any, forth: Any, back: Any, index: Any, length: Any, rows: int
) -> jax.Array:
    latents = conv_stack.meet(stack, forth, back, rows, index, length)
    return quantize.nearest_codes(latents.astype(jnp.float32), codebook)[0]


_encoded = eigen_jit(_run, static_argnums=(5, 6))
_decoded = jax.jit(_run, static_argnums=(5, 6)) if LARGE else _encoded  # benchmarks/README.md
_between, _backward = eigen_jit(_codes_between, static_argnames="rows"), jax.jit(conv_stack.backward)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _stack(model: VQVAE, level: int, decode: bool, variables: Any) -> Any:
    return model.apply(variables, level, method="decoder" if decode else "encoder")


_init_carry = jax.jit(conv_stack.init_carry, static_argnums=(1, 2))


def advance(
    stack: conv_stack.Stack, codebook: Any, carry: Any, piece: jax.Array, index: Any, length: Any,
    begun: Any = None, before: Any = 0, *, decode: bool,
) -> tuple[Any, jax.Array]:  # fmt: skip
    """Chunk number ``index`` of a signal of ``length`` rows through the stack: the new carry, and audio or codes."""
    dtype = stack[0][1][0].dtype
    x = quantize.dequantize(piece, codebook) if decode else piece
    carry, y = conv_stack.advance(stack, carry, x.astype(dtype), index, length, begun, before)
    y = y.astype(jnp.float32)
    return carry, y if decode else quantize.nearest_codes(y, codebook)[0]


_advance = eigen_jit(advance, static_argnames="decode", donate_argnames="carry")
