"""How well a prior predicts codes, and whether it makes use of the labels: bits per token, right label against wrong.

A wrong label is another artist and genre that the data has; timing, lyrics and the codes of the level above stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jukebox_jax import presets
from jukebox_jax.data.labels import Labeller
from jukebox_jax.data.summary import Song
from jukebox_jax.evaluate import codes
from jukebox_jax.models.prior import Prior

WRONG_LABELS = 32  # at most so many per window; of more, they are drawn


def make_score(config: presets.Prior) -> Callable[..., Any]:
    """``score(params, codes (1, t), y (r, columns) | None, upper_codes (1, u) | None)``: bits per token, one per row.

    The rows of ``y`` differ in artist and genre only, which is all that is computed anew for each; None counts as one
    row. Lyric tokens are not counted. One row after another: memory is that of one window.
    """
    model, lyrics = Prior(config), config.merged_lyrics

    @jax.jit
    def score(
        params: Any, codes: Int[Array, "1 t"], y: Int[Array, "r columns"] | None, upper_codes: Int[Array, "1 u"] | None
    ) -> Float[Array, " r"]:
        def run(method: Any, *args: Any) -> Any:
            return model.apply({"params": params}, *args, method=method)

        cond = run("condition", None if y is None else y[:1], upper_codes)
        targets = codes + config.lyric_vocabulary

        def bits(start: Any) -> Float[Array, ""]:
            logits = run("logits", codes, cond._replace(start=start))[:, lyrics:]
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
            return -jnp.mean(chosen) / np.log(2.0)

        if y is None:
            return bits(None)[None]
        starts = run(lambda prior, y: prior.labels.start(y), y)
        return jax.lax.map(lambda start: bits(start[None]), starts)

    return score


def figures(
    config: presets.Prior,
    params: Any,
    encode: Callable[[Any], Sequence[Any]],
    seen: Iterable[Mapping[str, np.ndarray]],
    scored: Iterable[tuple[int, Mapping[str, np.ndarray]]],
    labels: Int[np.ndarray, "n labels"],
) -> dict[str, Any]:
    """Bits per token of the windows of ``scored`` (number, batch of one), and of a unigram model of those of ``seen``.

    ``encode`` makes codes of audio, of the level above too if this prior needs them. ``labels``: ``label_columns``.
    """
    score, size = make_score(config), config.codebook_size
    seen_counts, counts = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for batch in seen:
        seen_counts += codes.count(np.asarray(encode(batch["audio"])[0]), size)
    bits = []
    for number, batch in scored:
        own, *upper = encode(batch["audio"])
        counts += codes.count(np.asarray(own), size)
        y = with_wrong_labels(batch["y"], labels, number) if "y" in batch else None
        bits.append(np.asarray(score(params, own, y, upper[0] if upper else None), np.float64))
    found = np.stack(bits)
    return {
        "bits_per_token": float(np.mean(found[:, 0])),
        "unigram": codes.unigram_bits(seen_counts, counts),
        "unigram_codes": int(seen_counts.sum()),
        "labels": label_effect(found),
    }


def label_columns(labeller: Labeller | None, songs: Iterable[Song]) -> Int[np.ndarray, "n labels"]:
    """Artist and genres (columns 3 and on of a label row) of these songs, each combination once."""
    if labeller is None or labeller.labels is None:
        return np.zeros((0, 0), np.int64)
    end = 4 + labeller.labels.max_genres
    names = {(song.artist, song.genre): song.total_length for song in songs}
    metas = ({"artist": a, "genre": g, "total_length": length, "offset": 0} for (a, g), length in names.items())
    return np.unique([labeller.label(meta)[0][3:end] for meta in metas], axis=0)


def with_wrong_labels(
    y: Int[np.ndarray, "1 columns"], known: Int[np.ndarray, "n labels"], item: int
) -> Int[np.ndarray, "r columns"]:
    """The label row, then copies of it with the other artists and genres of ``known`` (columns 3 and on of a row).

    ``item`` seeds the draw of ``WRONG_LABELS`` where there are more.
    """
    own = slice(3, 3 + known.shape[1])
    wrong = known[np.any(known != y[:, own], axis=1)]
    if len(wrong) > WRONG_LABELS:
        wrong = wrong[np.random.default_rng(item).choice(len(wrong), WRONG_LABELS, replace=False)]
    rows = np.repeat(y, 1 + len(wrong), axis=0)
    rows[1:, own] = wrong
    return rows


def label_effect(bits: Float[np.ndarray, "n r"]) -> dict[str, int | float] | None:
    """What labels do, from the bits of each window under the right label (first) and wrong ones; None without those.

    ``wrong``: mean bits under a wrong label; ``gain``: by how much the right one is better; ``right_wins``: share of
    the windows that the right label predicts better than the wrong ones do on average; ``right_best``: better than
    any; ``wrong_labels``: how many for each window.
    """
    right, wrong = bits[:, 0], bits[:, 1:]
    if not wrong.size:
        return None
    return {
        "wrong": float(np.mean(wrong)),
        "gain": float(np.mean(np.mean(wrong, axis=1) - right)),
        "right_wins": float(np.mean(right < np.mean(wrong, axis=1))),
        "right_best": float(np.mean(right < np.min(wrong, axis=1))),
        "wrong_labels": wrong.shape[1],
    }
