"""Which lyrics are sung when: attention of the top prior from music to lyrics (spec/sampling.md section 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int, Int64, UInt8

from jukebox_jax.models.prior import Prior
from jukebox_jax.sample import windows
from jukebox_jax.sample.request import Request
from jukebox_jax.sample.source import Source


def available(source: Source) -> bool:
    """Whether the top prior reads lyrics and says which attention head follows them."""
    prior = source.priors[source.top]
    has_head = prior.alignment_layer is not None and prior.alignment_head is not None
    return prior.lyrics is not None and prior.labels is not None and has_head


def align(source: Source, request: Request, codes: Int[np.ndarray, "b t"]) -> list[Float32[np.ndarray, "t l"]]:
    """Per item, attention of each top code to each character of the cleaned lyrics. Loads the top prior.

    ``codes`` are the top level's; an item without lyrics gets zero columns.
    """
    level = source.top
    prior = source.priors[level]
    model, params = Prior(prior, source.dtype), source.load(f"prior_level_{level}")["params"]
    labeller = source.labellers[level]
    rows, infos = labeller.batch(request.metas)
    maps = []
    for item, (y, info) in enumerate(zip(rows, infos, strict=True)):

        def attention(start: int, y=y, info=info, item=item) -> tuple[np.ndarray, np.ndarray]:
            row, indices = labeller.window(y, info, start * prior.hop_length)
            window = _padded(codes[item], prior.context_length)[start : start + prior.context_length]
            weights = _weights(model, params, jnp.asarray(window[None]), jnp.asarray(row[None], jnp.int32))
            assert indices is not None
            return np.asarray(weights[0]), indices

        hop = request.hop(source, level)
        maps.append(stitch(attention, len(codes[item]), len(info["full_tokens"]), prior.context_length, hop))
    return maps


def stitch(
    attention: Callable[[int], tuple[Float32[np.ndarray, "c w"], Int64[np.ndarray, "w"]]],
    length: int,
    characters: int,
    context: int,
    hop: int,
) -> Float32[np.ndarray, "t l"]:
    """One map over the song from the maps of its windows; where windows overlap, the earliest counts.

    ``attention(start)`` gives a window's map and the character of each of its columns (-1: padding, left out).
    """
    padded = max(length, context)
    full = np.zeros((padded, characters + 1), np.float32)
    for start in reversed(windows.starts(padded, context, hop)):
        weights, indices = attention(start)
        full[start : start + context, indices] = weights
    return full[:length, :-1]


def times(alignment: Float32[np.ndarray, "t l"], seconds_per_code: float) -> list[float | None]:
    """When each character gets the most attention, in seconds; None for one that gets none at all."""
    peaks = alignment.argmax(axis=0) if len(alignment) else np.zeros(alignment.shape[1], int)
    heard = alignment.max(axis=0, initial=0) > 0
    return [round(float(p * seconds_per_code), 3) if h else None for p, h in zip(peaks, heard, strict=True)]


def picture(alignment: Float32[np.ndarray, "t l"], rows: int) -> UInt8[np.ndarray, "r _"]:
    """At most ``rows`` time steps, smoothed a little, 255 for full attention; ends at the last heard character."""
    heard = np.flatnonzero(alignment.max(axis=0, initial=0) > 0)
    seen = alignment[:, : int(heard[-1]) + 1 if len(heard) else 0]
    edges = np.linspace(0, len(seen), min(rows, len(seen)) + 1).astype(int)
    pooled = np.add.reduceat(seen, edges[:-1], axis=0) / np.diff(edges)[:, None] if seen.size else seen[:1]
    ends = np.concatenate([pooled[:1], pooled, pooled[-1:]])
    smooth = (ends[:-2] + 2 * ends[1:-1] + ends[2:]) / 4
    return np.round(255 * smooth).astype(np.uint8)


def _padded(codes: Int[np.ndarray, "t"], context: int) -> Int[np.ndarray, "c"]:
    return np.pad(np.asarray(codes, np.int32), (0, max(0, context - len(codes))))


@jax.jit(static_argnums=0)
def _weights(model: Prior, params: Any, codes: jax.Array, y: jax.Array) -> Any:
    return model.apply({"params": params}, codes, y, method="alignment")
