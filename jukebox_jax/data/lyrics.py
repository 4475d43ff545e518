"""Lyrics as characters: the alphabets, cleaning, and the window of characters that a stretch of audio sees.

Source: spec/labels.md sections 3 and 4 (paper section 4.3: lyrics are spread evenly over the song).
"""

from __future__ import annotations

import functools
import re
import string

import numpy as np
from unidecode import unidecode

from jukebox_jax.types import UserError

_LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
_MARKS = {"v2": ".,:;!?-+'\"()[] \t\n", "v3": ".,:;!?-'\"()[] \t\n"}
# The position in the alphabet is the token; token 0 is padding and stands for no character.
ALPHABETS = {version: ("", *_LETTERS, *marks) for version, marks in _MARKS.items()}
_TOKENS = {version: {c: i for i, c in enumerate(alphabet) if c} for version, alphabet in ALPHABETS.items()}
_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: str, version: str) -> str:
    """Transliterate to ASCII, turn backslashes into line breaks, and drop what the alphabet lacks."""
    ascii_text = unidecode(_SURROGATES.sub("", text)).replace("\\", "\n")
    return "".join(c for c in ascii_text if c in _TOKENS[version])


def dropped(text: str, version: str) -> list[str]:
    """The characters of ``text`` that ``clean`` removes, wholly or in part, once each in order of appearance."""
    lost = []
    for c in dict.fromkeys(text):
        plain = "" if _SURROGATES.match(c) else unidecode(c).replace("\\", "\n")
        if c != "\r" and (not plain or any(p not in _TOKENS[version] for p in plain)):
            lost.append(c)
    return lost


@functools.lru_cache(maxsize=256)
def encode(text: str, version: str) -> tuple[str, tuple[int, ...], tuple[str, ...]]:
    """``(cleaned text, its tokens, dropped characters)``: one token per character of the cleaned text."""
    cleaned = clean(text, version)
    return cleaned, tuple(_TOKENS[version][c] for c in cleaned), tuple(dropped(text, version))


def decode(tokens: np.ndarray | list[int] | tuple[int, ...], version: str) -> str:
    """The characters of ``tokens``; padding (0) is no character."""
    return "".join(ALPHABETS[version][int(t)] for t in tokens)


def lyric_window(
    num_characters: int,
    num_tokens: int,
    total_length: int,
    offset: int,
    duration: int,
    *,
    single_precision: bool = False,
) -> np.ndarray:
    """Which characters of the lyrics go with ``duration`` samples from ``offset`` of a song of ``total_length``.

    Returns int64 indices ``[num_tokens]``, -1 for padding. Too few characters are padded on the left; otherwise the
    window is centred where the middle of the audio falls if the lyrics are spread evenly over the song. Training labels
    compute that in float64; sampling windows, like the original's tensors, in float32 with every operation rounded.
    Raises ``UserError`` where ``offset`` is outside the song (only if the lyrics fill the window, as in the original).
    """
    if num_tokens % 2:
        raise UserError(f"the number of lyric tokens must be even, not {num_tokens}")
    if num_characters < num_tokens:
        padding = np.full(num_tokens - num_characters, -1, np.int64)
        return np.concatenate([padding, np.arange(num_characters, dtype=np.int64)])
    if not 0 <= offset < total_length:
        raise UserError(f"the window starts at sample {offset}, outside the song (0 to {total_length - 1})")
    real = np.float32 if single_precision else np.float64
    middle = int(real(num_characters) * (real(offset) + real(duration) / real(2)) / real(total_length))
    half = num_tokens // 2
    middle = min(max(middle, half), num_characters - half)
    return np.arange(middle - half, middle + half, dtype=np.int64)
