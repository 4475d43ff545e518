"""Label rows: what a prior is told about a song, as one vector of integers per window.

    [total_length, offset, window length, artist, genre ids (max_genres, -1 padded), lyric tokens]

Lengths are in samples at the model's rate. Source: spec/labels.md sections 4 to 6; ``Vocabulary`` has the names,
``lyrics`` the characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

from jukebox_jax import presets
from jukebox_jax.data import lyrics as text
from jukebox_jax.data.vocabulary import UNKNOWN, Vocabulary, load_ids, normalise
from jukebox_jax.types import UserError

__all__ = ["Labeller", "Vocabulary", "load_ids"]


class Labeller:
    """Turns a song's description into the rows of one prior. ``Labeller(None, None, n)`` makes empty rows.

    A description ("meta") has ``artist, genre, lyrics`` (strings; None or absent: unknown, none) and ``total_length,
    offset`` (samples). ``strict`` refuses unknown artists and genres with the nearest names; otherwise they are id 0.
    ``compat`` does as the original: no fallbacks for invisible marks and the like, and no check of durations here.
    """

    def __init__(
        self,
        labels: presets.Labels | None,
        vocabulary: Vocabulary | None,
        window_samples: int | np.integer,
        *,
        strict: bool = False,
        compat: bool = False,
    ):
        self.labels, self.vocabulary, self.window_samples = labels, vocabulary, int(window_samples)
        self.strict, self.compat = strict, compat
        if labels is None:
            return
        if vocabulary is None or vocabulary.version != labels.version:
            have = "none" if vocabulary is None else vocabulary.version
            raise UserError(f"these labels need a {labels.version} vocabulary; there is {have}")
        for kind, need, rows in (
            ("artist", vocabulary.num_artists, labels.num_artists),
            ("genre", vocabulary.num_genres, labels.num_genres),
        ):
            if need > rows:
                raise UserError(f"the {kind} table goes up to id {need - 1}, but the model has {rows} {kind} rows")

    @property
    def columns(self) -> int:
        """Length of a row."""
        return self.labels.columns if self.labels else 0

    def label(self, meta: Mapping[str, Any]) -> tuple[Int64[np.ndarray, "columns"], dict[str, Any]]:
        """The row of the window at ``meta["offset"]``, and what it was made from.

        info: ``artist, genre`` as given, ``lyrics`` cleaned, ``full_tokens`` of all of them, ``dropped`` (characters
        that cleaning removed) and ``unknown`` (names that became id 0). Raises ``UserError`` for lengths outside what
        the model was made for, for more genre words than it takes, and, if ``strict``, for unknown names.
        """
        if self.labels is None or self.vocabulary is None:
            nothing = {"artist": "n/a", "genre": "n/a", "lyrics": [], "full_tokens": [], "dropped": [], "unknown": []}
            return np.zeros(0, np.int64), nothing
        artist, genre = _string(meta, "artist", UNKNOWN), _string(meta, "genre", UNKNOWN)
        total_length, offset = _whole(meta, "total_length"), _whole(meta, "offset")
        self._check_times(total_length, offset)
        cleaned, tokens, lost = text.encode(_string(meta, "lyrics", ""), self.labels.version)
        row = np.concatenate([
            [total_length, offset, self.window_samples],
            [self.vocabulary.artist_id(artist, strict=self.strict, compat=self.compat)],
            self._genre_columns(genre),
            self._lyric_columns(tokens, total_length, offset, single_precision=False)[0],
        ]).astype(np.int64)  # fmt: skip
        info = {"artist": artist, "genre": genre, "lyrics": cleaned, "full_tokens": list(tokens)}
        return row, info | {"dropped": list(lost), "unknown": self._unknown(artist, genre)}

    def batch(self, metas: Sequence[Mapping[str, Any]]) -> tuple[Int64[np.ndarray, "b columns"], list[dict[str, Any]]]:
        """Rows and infos of several songs."""
        rows, infos = zip(*map(self.label, metas), strict=True) if metas else ((), ())
        return np.stack(rows) if rows else np.zeros((0, self.columns), np.int64), list(infos)

    def window(
        self, y: Int[np.ndarray, "columns"], info: Mapping[str, Any], start_samples: int | np.integer
    ) -> tuple[Int64[np.ndarray, "columns"], Int64[np.ndarray, "l"] | None]:
        """The row when the window starts ``start_samples`` after that of ``y``, the row that ``label`` made.

        Also the index of each lyric token in ``info["full_tokens"]`` (-1: padding), None without lyric tokens. The
        lyrics are placed in float32, as in the original's sampling loop. ``y`` itself stays as it is.
        """
        if self.labels is None:
            return np.array(y, np.int64), None
        row = np.array(y, np.int64)
        row[1] += int(start_samples)
        row[2] = self.window_samples
        self._check_end(int(row[1]))
        if not self.labels.num_lyric_tokens:
            return row, None
        tokens, indices = self._lyric_columns(info["full_tokens"], int(row[0]), int(row[1]), single_precision=True)
        row[-self.labels.num_lyric_tokens :] = tokens
        return row, indices

    def describe(self, y: Int[np.ndarray, "columns"]) -> dict[str, str]:
        """A row in words again: artist, genre, and the lyrics of its window."""
        if self.labels is None or self.vocabulary is None:
            return {"artist": "n/a", "genre": "n/a", "lyrics": ""}
        genres = [int(g) for g in y[4 : 4 + self.labels.max_genres] if g >= 0]
        return {
            "artist": self.vocabulary.name("artist", int(y[3])),
            "genre": "_".join(self.vocabulary.name("genre", g) for g in genres),
            "lyrics": text.decode(y[4 + self.labels.max_genres :], self.labels.version),
        }

    def _genre_columns(self, genre: str) -> list[int]:
        assert self.labels is not None and self.vocabulary is not None
        ids = self.vocabulary.genre_ids(genre, strict=self.strict, compat=self.compat)
        room = self.labels.max_genres
        if len(ids) > room:
            raise UserError(f"genre {genre!r} has {len(ids)} words; this model takes at most {room}")
        return ids + [-1] * (room - len(ids))

    def _lyric_columns(
        self, tokens: Sequence[int], total_length: int, offset: int, *, single_precision: bool
    ) -> tuple[Int64[np.ndarray, "l"], Int64[np.ndarray, "l"]]:
        assert self.labels is not None
        indices = text.lyric_window(
            len(tokens), self.labels.num_lyric_tokens, total_length, offset, self.window_samples,
            single_precision=single_precision,
        )  # fmt: skip
        padded = np.array([*tokens, 0], np.int64)  # index -1 reads the 0
        return padded[indices], indices

    def _unknown(self, artist: str, genre: str) -> list[str]:
        """The normalised names that the tables lack."""
        assert self.vocabulary is not None
        known, version = self.vocabulary.knows, self.vocabulary.version
        artist, genre = normalise(artist, version), normalise(genre, version)
        missing = [] if known("artist", artist, self.compat) else [artist]
        words = genre.split("_") if version == "v2" else [genre]
        missing += [word for word in words if not known("genre", word, self.compat)]
        return [name for name in missing if name not in ("", UNKNOWN)]

    def _check_times(self, total_length: int, offset: int) -> None:
        """What the timing embeddings cover (spec/prior.md 5): the original fails there without a word."""
        assert self.labels is not None
        rate, low, high = self.labels.sample_rate, self.labels.min_duration, self.labels.max_duration
        if not self.compat and low is not None and high is not None and not low * rate <= total_length < high * rate:
            samples = f"{int(np.ceil(low * rate))} to {int(np.ceil(high * rate)) - 1} samples at {rate} Hz"
            raise UserError(
                f"total_length {total_length} samples is {total_length / rate:g} s; this model takes songs of"
                f" {low:g} to {high:g} s ({samples})"
            )
        if not 0 <= offset < total_length:
            raise UserError(f"offset {offset} is outside the song: allowed are 0 to {total_length - 1} samples")
        self._check_end(offset)

    def _check_end(self, offset: int) -> None:
        assert self.labels is not None
        rate, high = self.labels.sample_rate, self.labels.max_duration
        end = offset + self.window_samples
        if not self.compat and high is not None and end > high * rate:
            raise UserError(f"the window ends {end / rate:g} s into the song; this model goes up to {high:g} s")


def _string(meta: Mapping[str, Any], key: str, default: str) -> str:
    value = meta.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise UserError(f"{key} must be text, not {value!r}")
    return value


def _whole(meta: Mapping[str, Any], key: str) -> int:
    if key not in meta:
        raise UserError(f"the description of a song needs {key}, in samples; it has {', '.join(meta)}")
    value = meta[key]
    numeric = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not numeric or not float(value).is_integer():
        raise UserError(f"{key} must be a whole number of samples, not {value!r}")
    return int(value)
