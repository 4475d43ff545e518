"""Vector quantisation: nearest code, moving-average codebook, revival of dead codes (spec/vqvae.md section 2).

Everything is float32. Sums over vectors are plain reductions: under ``jit`` with the vectors sharded over devices they
are sums over all devices, and no collective is written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int


class CodebookState(NamedTuple):
    """A codebook and the running sums it is the ratio of. All counts zero: not initialised yet."""

    codebook: Float[Array, "k e"]
    sum: Float[Array, "k e"]
    count: Float[Array, " k"]


def nearest_codes(
    x: Float[Array, "*b e"], codebook: Float[Array, "k e"]
) -> tuple[Int[Array, "*b"], Float[Array, "*b"]]:
    """Index of the nearest code of each vector (the first of equals) and the squared distance to it.

    ``x`` has at least one leading axis. Distances to all codes exist for a stretch of the last of them at a time.
    """
    in_cache, default = partial(_nearest, rows=256, argmin=_argmin_cpu), partial(_nearest, rows=None, argmin=_argmin)
    return lax.platform_dependent(x.astype(jnp.float32), codebook.astype(jnp.float32), cpu=in_cache, default=default)


def _nearest(x, codebook, *, rows, argmin):
    shape = x.shape[:-1]
    x = x.reshape(-1, *x.shape[-2:])
    batch, length, width = x.shape
    # On a CPU the distances stay in its cache. Elsewhere the batch may be spread over devices: its size does not count.
    stretch = min(length, max(1, rows // batch) if rows else 8192)
    pieces = -(-length // stretch)
    norms = jnp.sum(codebook**2, axis=-1)[:, None, None]

    def nearest(piece: Float[Array, "b s e"]) -> tuple[Int[Array, "b s"], Float[Array, "b s"]]:
        product = jnp.einsum("ke,bse->kbs", codebook, piece, precision=lax.Precision.HIGHEST)
        return argmin(jnp.sum(piece**2, axis=-1)[None] - 2 * product + norms)

    if pieces == 1:
        codes, distance = nearest(x)
    else:
        x = jnp.pad(x, ((0, 0), (0, pieces * stretch - length), (0, 0))).reshape(batch, pieces, stretch, width)
        found = lax.map(nearest, jnp.moveaxis(x, 1, 0))
        codes, distance = (jnp.moveaxis(y, 0, 1).reshape(batch, -1)[:, :length] for y in found)
    return codes.reshape(shape), distance.reshape(shape)


def _argmin(distance):
    return jnp.argmin(distance, axis=0).astype(jnp.int32), jnp.min(distance, axis=0)


def _argmin_cpu(distance):
    """Two plain reductions, which vectorise. The barrier makes both read the same numbers."""
    distance = lax.optimization_barrier(distance)
    least = jnp.min(distance, axis=0)
    last = distance.shape[0] - 1
    index = jnp.arange(last + 1, dtype=jnp.int32).reshape(-1, *[1] * least.ndim)
    return jnp.min(jnp.where(distance == least[None], index, last), axis=0), least


def dequantize(codes: Int[Array, "*b"], codebook: Float[Array, "k e"]) -> Float[Array, "*b e"]:
    """The codebook vectors of the codes."""
    return jnp.take(codebook, codes, axis=0)


def candidates(rng: jax.Array, vectors: Float[Array, "m e"], size: int) -> Float[Array, "{size} e"]:
    """``size`` vectors of the data, to start or revive codes with.

    With fewer vectors than ``size`` they are repeated, with a little noise, N(0, (0.01 / sqrt(e))^2). Otherwise one
    vector is drawn from each of ``size`` equal stretches, in random order: distinct, like the first rows of a
    permutation, without sorting all of them on every device.
    """
    rows, width = vectors.shape
    pick_rng, order_rng, noise_rng = jax.random.split(rng, 3)
    available = rows * -(-size // rows)
    edges = np.arange(size + 1, dtype=np.int64) * available // size
    picks = jax.random.randint(pick_rng, (size,), edges[:-1].astype(np.int32), edges[1:].astype(np.int32))
    chosen = vectors[jax.random.permutation(order_rng, picks) % rows]
    if rows >= size:
        return chosen
    return chosen + 0.01 / math.sqrt(width) * jax.random.normal(noise_rng, chosen.shape)


def init_codebook(candidates: Float[Array, "k e"]) -> CodebookState:
    """The state whose codes are the candidates, each counted once."""
    return CodebookState(candidates, candidates, jnp.ones(candidates.shape[0], candidates.dtype))


def restore_state(codebook: Float[Array, "k e"], length_per_level: int, world_size: int = 1) -> CodebookState:
    """Running sums for a codebook from a checkpoint, which has none: every code counts as used equally often.

    ``length_per_level`` is the number of codes of this level in one training example (batch size is not counted, as in
    the original), ``world_size`` the number of devices.
    """
    expected = length_per_level * world_size / codebook.shape[0]
    return CodebookState(codebook, codebook * expected, jnp.full(codebook.shape[0], expected, codebook.dtype))


def update(
    state: CodebookState,
    vectors: Float[Array, "m e"],
    codes: Int[Array, " m"],
    candidates: Float[Array, "k e"],
    decay: float,
    threshold: float,
) -> tuple[CodebookState, dict[str, Float[Array, ""]]]:
    """One step of the moving average. Codes whose count falls below ``threshold`` become candidates.

    The sums of a revived code are kept, as in the original. Metrics: those of ``usage_metrics``, ``usage`` (codes
    alive) and ``dk`` (root mean square change of the codebook).
    """
    size = state.codebook.shape[0]
    sums = jax.ops.segment_sum(vectors, codes, size)
    counts = code_counts(codes, size)
    new_sum = decay * state.sum + (1 - decay) * sums
    new_count = decay * state.count + (1 - decay) * counts
    alive = new_count >= threshold
    # Selects, not products: a code that is never used decays to 0 / 0, and 0 * nan would stay. Its ratio does not
    # change while it is unused, so before that (threshold 0) it keeps its vector.
    counted = new_count > 1e-30
    mean = jnp.where(counted[:, None], new_sum / jnp.where(counted, new_count, 1)[:, None], state.codebook)
    codebook = jnp.where(alive[:, None], mean, candidates)
    metrics = usage_metrics(counts, threshold) | {
        "usage": jnp.sum(alive).astype(jnp.float32),
        "dk": jnp.sqrt(jnp.mean((codebook - state.codebook) ** 2)),
    }
    return CodebookState(codebook, new_sum, new_count), metrics


def code_counts(codes: Int[Array, " m"], size: int) -> Float[Array, "{size}"]:
    """How often each code occurs."""
    return jax.ops.segment_sum(jnp.ones(codes.shape, jnp.float32), codes, size)


def usage_metrics(counts: Float[Array, " k"], threshold: float) -> dict[str, Float[Array, ""]]:
    """``entropy`` (nats) of a batch's codes; ``used_curr``: how many occur at least ``threshold`` times."""
    share = counts / jnp.sum(counts)
    return {
        "entropy": -jnp.sum(share * jnp.log(share + 1e-8)),
        "used_curr": jnp.sum(counts >= threshold).astype(jnp.float32),
    }


def spread(vectors: Float[Array, "*b e"]) -> Float[Array, ""]:
    """``pn``: root mean square deviation of all entries from their common mean."""
    return jnp.sqrt(jnp.mean((vectors - jnp.mean(vectors)) ** 2))


class Draws(NamedTuple):
    """The random part of a training step: vectors to start the codebook with, and to revive codes with."""

    init: Float[Array, "k e"]
    revival: Float[Array, "k e"]


def draw(rng: jax.Array, vectors: Float[Array, "m e"], size: int) -> Draws:
    """Two independent sets of ``size`` candidates."""
    return Draws(*(candidates(r, vectors, size) for r in jax.random.split(rng)))


def training_step(
    state: CodebookState,
    vectors: Float[Array, "*b e"],
    draws: Draws,
    decay: float,
    threshold: float,
    nearest: Callable[[Array, Array], tuple[Array, Array]] = nearest_codes,
) -> tuple[Int[Array, "*b"], Float[Array, "*b e"], CodebookState, dict[str, Float[Array, ""]]]:
    """Codes, their vectors, the new state, and metrics (those of ``update``, and ``fit``, ``pn``).

    A state whose counts are all zero starts from ``draws.init``. Codes and vectors are those of the codebook before the
    update. No gradient passes: the caller adds the straight-through and commitment terms. ``nearest``: what finds them.
    """
    vectors = lax.stop_gradient(vectors)
    ready = jnp.sum(state.count) > 0
    state = jax.tree.map(lambda old, new: jnp.where(ready, old, new), state, init_codebook(draws.init))
    codes, distance = nearest(vectors, state.codebook)
    new_state, metrics = follow(state, vectors, codes, distance, draws.revival, decay, threshold)
    return codes, dequantize(codes, state.codebook), new_state, metrics


def follow(
    state: CodebookState,
    vectors: Float[Array, "*b e"],
    codes: Int[Array, "*b"],
    distance: Float[Array, "*b"],
    candidates: Float[Array, "k e"],
    decay: float,
    threshold: float,
) -> tuple[CodebookState, dict[str, Float[Array, ""]]]:
    """``update`` by a batch's vectors and their nearest codes; also the metrics ``fit`` and ``pn``."""
    metrics = {"fit": jnp.mean(distance), "pn": spread(vectors)}
    flat = vectors.reshape(-1, vectors.shape[-1])
    state, update_metrics = update(state, flat, codes.reshape(-1), candidates, decay, threshold)
    return state, metrics | update_metrics
