"""Cached decoding of one window: a prefill, then a scan over tokens in chunks of a fixed size.

The draw at music position p of the level (window start + place in the window) uses ``fold_in(key of the item, p)``: a
sample depends on its own key and conditioning only, not on the batch it stands in, nor on how the work is cut.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jukebox_jax.models import decode_form, step_products
from jukebox_jax.models.prior import POSITIONS, Conditioning, Prior
from jukebox_jax.ops.logits import Settings, draw, noise
from jukebox_jax.parallel.lanes import at_once, in_lanes, joined
from jukebox_jax.parallel.mesh import platform
from jukebox_jax.parallel.products import eigen_jit
from jukebox_jax.parallel.sharding import constrain, fetch, put, spread
from jukebox_jax.types import UserError

CHUNK = 64  # tokens per compiled loop; a shorter rest runs past the end of the window and is cut off, except on a CPU
WIDE = 16  # rows of a call from which on, on a CPU, steps are faster with Eigen's products (benchmarks/README.md)

_PLAIN = Settings()
_prepare = jax.jit(decode_form.prepare, static_argnums=0)


class Drawn(NamedTuple):
    """Result of ``sample_window``."""

    codes: Int[np.ndarray, "b t"]  # given and new codes of the window
    raw: Int[np.ndarray, "b m"]  # the new draws in the model's vocabulary (merged lyrics: may be lyric ids)
    logits: Any  # Float[np.ndarray, "b m v"], what each new draw saw; None unless asked for


@functools.partial(jax.jit, static_argnums=0)
def condition(model: Prior, params, y, upper_codes) -> Any:
    """The conditioning of one window; see ``Prior.condition``. On a mesh a step reads a part of a row's width."""
    cond: Any = model.apply({"params": params}, y, upper_codes, method="condition")
    if model.config.conditioner is None:
        return cond
    return cond._replace(positions=constrain(cond.positions, *POSITIONS))


def weights(model: Prior, params) -> Any:
    """Decoding's form of a prior's parameters, where it belongs on the mesh in use. Make it once for many windows."""
    prepared, mesh = _prepare(model, params), jax.sharding.get_mesh()
    return prepared if mesh.empty else put(prepared, decode_form.places(model, prepared, mesh))


@functools.partial(jax.jit, static_argnums=(0, 1))
def empty_cache(model: Prior, batch: int, params, cond: Conditioning):
    """Caches before position 0."""
    return decode_form.init_cache(model, params, batch, cond)


def prefill(model: Prior, params, codes: Int[Array, "b t"], cond: Conditioning, given, prepared=None):
    """Caches for the position after the first ``given`` codes, and the token there, after one forward.

    ``codes`` are the first t of the context, as ``prefix`` says or more; what stands behind ``given`` does not matter.
    ``prepared``: ``weights(model, params)``, if they are there.
    """
    tokens = jnp.asarray(model.apply({"params": params}, codes, cond, method="sequence"))
    known = given + model.config.merged_lyrics
    cache = decode_form.prefill(model, params, tokens, cond, known, prepared)
    return cache, jax.lax.dynamic_index_in_dim(tokens, known - 1, axis=1, keepdims=False)


_prefill = jax.jit(prefill, static_argnums=0)


def prefix(model: Prior, known: int) -> int:
    """Positions of the forward that takes in ``known`` ones: whole blocks, i eighths of the context rounded up (i = 1
    .. 8), so that at most eight programs serve every prompt. Without blocks: single positions in place of them."""
    t = model.config.transformer
    n, c = (t.num_blocks, t.block_length) if t.num_blocks else (t.length, 1)
    i = (-(-known // c) - 1) * 8 // n + 1  # the least with ceil(i n / 8) >= ceil(known / c)
    return -(-i * n // 8) * c


def decode(
    model: Prior, num_steps: int, settings: Settings, keep_logits: bool,
    weights, cache, cond: Conditioning, token: Int[Array, " b"], keys, offset, position, end=None,
):  # fmt: skip
    """Draw ``num_steps`` tokens from sequence position ``position`` on.

    ``weights``: from ``weights``. ``offset`` (b,) or scalar: what to add to a sequence position to get the position
    that the key is folded with. Returns the drawn tokens (b, num_steps), their logits (or None) and the caches.
    ``end``: stop after that many steps, a traced number; what is not drawn is zero.
    """

    positions, draws = position + jnp.arange(num_steps), None
    if not settings.greedy:  # all of the chunk's at once: they depend on keys and positions only
        at = positions[:, None] + jnp.broadcast_to(offset, token.shape)[None]
        folded = jax.vmap(jax.vmap(jax.random.fold_in), (None, 0))(keys, at)
        draws = noise(folded, model.config.vocab_size, fused=platform() == "cpu")

    def step(carry, inputs):
        (cache, token), (t, drawn) = carry, inputs
        logits, cache = decode_form.step(model, weights, token, cond, cache, t)
        token = draw(drawn, logits, settings)
        return (cache, token), (token, logits if keep_logits else None)

    if end is None:
        (cache, _), (tokens, logits) = jax.lax.scan(step, (cache, token), (positions, draws))
    else:
        (cache, _), (tokens, logits) = _by_blocks(model, end, step, (cache, token), (positions, draws))
    return tokens.T, None if logits is None else jnp.swapaxes(logits, 0, 1), cache


def _by_blocks(model: Prior, end, step, carry, inputs):
    """``lax.scan`` over the first ``end`` inputs, a block of positions after the other; other outputs are zero."""
    at = lambda i: jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), inputs)  # noqa: E731
    outputs = jax.tree.map(
        lambda y: jnp.zeros((len(inputs[0]), *y.shape), y.dtype), jax.eval_shape(step, carry, at(0))[1]
    )
    t = model.config.transformer
    length = t.block_length if t.num_blocks else t.length

    def one(i, state):
        carry, new = step(state[0], at(i))
        return carry, jax.tree.map(lambda y, x: jax.lax.dynamic_update_index_in_dim(y, x, i, 0), state[1], new)

    def block(state):
        i, ((cache, token), outputs) = state
        position = inputs[0][i]
        last = jnp.minimum(end, i + length - position % length)
        held = decode_form.hold(model, cache, position)
        (cache, token), outputs = jax.lax.fori_loop(i, last, one, ((held, token), outputs))
        return last, ((decode_form.release(cache), token), outputs)

    return jax.lax.while_loop(lambda state: state[0] < end, block, (jnp.int32(0), (carry, outputs)))[1]


_decode = jax.jit(decode, static_argnums=(0, 1, 2, 3), donate_argnums=5)
_decode_wide = eigen_jit(decode, static_argnums=(0, 1, 2, 3), donate_argnums=5)


def sample_window(
    model: Prior, params, codes: Int[Array | np.ndarray, "b p"], y, upper_codes, keys, *, start, num_steps: int,
    settings: Settings = _PLAIN, progress: Callable[[int], None] | None = None, keep_logits: bool = False,
    chunk: int = CHUNK, prepared: Any = None,
) -> Drawn:  # fmt: skip
    """Continue the codes of one window.

    Args:
        codes: the window's codes that are known already (p may be 0).
        y: label rows (b, cols) of this window, or None for a model without labels.
        upper_codes: codes (b, u) of the level above for the whole window, or None at the top.
        keys: one typed PRNG key per item (b,).
        start: position of the window in its level, scalar or per item: where the draws' keys are counted from.
        num_steps: new codes to draw; given and new codes must fit the context.
        progress: called with the number of codes drawn so far after every chunk.
        prepared: ``weights(model, params)``, if they are there already.

    Raises:
        UserError: the window is too long for the context.
    """
    config = model.config
    batch, given = codes.shape
    if given + num_steps > config.context_length:
        raise UserError(f"{given} + {num_steps} codes do not fit a context of {config.context_length}")
    codes, start = np.asarray(codes, np.int32), np.broadcast_to(np.asarray(start, np.int32), batch)
    prepared = weights(model, params) if prepared is None else prepared
    inputs = in_lanes((codes, y, upper_codes, keys, start), batch, prepared)
    lanes = [_begin(model, params, prepared, *rows) for rows in inputs]
    step = _decode_wide if step_products.plain(prepared) or len(lanes[0].token) >= WIDE else _decode
    known, chunk, drawn, logits = config.merged_lyrics + given, min(chunk, config.context_length), [], []
    same = model, chunk, settings, keep_logits, prepared
    for done in range(0, num_steps, chunk):
        # Only a CPU can end early for nothing: a GPU would have to ask its host after every step.
        end = np.int32(min(chunk, num_steps - done)) if platform() == "cpu" else None
        calls = [(*same, *lane, np.int32(known + done), end) for lane in lanes]
        tokens, seen, caches = zip(*at_once(step, calls), strict=True)
        lanes = [
            lane._replace(cache=cache, token=spread(new[:, -1]))
            for lane, cache, new in zip(lanes, caches, tokens, strict=True)
        ]
        drawn.append(joined(tokens, batch))
        logits.append(joined(seen, batch) if keep_logits else None)
        if progress is not None:
            jax.block_until_ready(tokens)
            progress(min(done + chunk, num_steps))
    drawn = fetch(drawn)
    raw = np.concatenate(drawn, axis=1)[:, :num_steps] if drawn else np.zeros((batch, 0), np.int32)
    music = np.maximum(raw - config.lyric_vocabulary, 0)
    seen = np.concatenate(fetch(logits), axis=1)[:, :num_steps] if keep_logits and logits else None
    return Drawn(np.concatenate([codes, music], axis=1), raw, seen)


class _Lane(NamedTuple):
    """Rows of a batch that are drawn in one call, before the next token: ``decode``'s arguments that are theirs."""

    cache: Any
    cond: Any
    token: Any
    keys: Any
    offset: Any


def _begin(
    model: Prior, params: Any, prepared: Any, codes: np.ndarray, y: Any, upper_codes: Any, keys: Any, start: Any
) -> _Lane:
    """Before the first new code of these rows; the arguments are ``sample_window``'s."""
    (batch, given), lyrics = codes.shape, model.config.merged_lyrics
    y, upper_codes, keys = spread((y, upper_codes, keys))
    cond = condition(model, params, y, upper_codes)
    if known := lyrics + given:
        padded = spread(np.pad(codes, ((0, 0), (0, prefix(model, known) - known))))
        cache, token = _prefill(model, params, padded, cond, given, prepared)
    else:
        cache, token = empty_cache(model, batch, params, cond), np.zeros(batch, np.int32)
    offset, token = spread((start - np.int32(lyrics), token))
    return _Lane(cache, cond, token, keys, offset)
