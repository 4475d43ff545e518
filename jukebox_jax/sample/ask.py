"""From what a person asks for, in seconds and names, to starting codes and a request in samples and levels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from jukebox_jax.data.lyrics import ALPHABETS
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.models.vqvae_stream import encode_long
from jukebox_jax.ops.logits import Settings
from jukebox_jax.parallel.sharding import row_groups
from jukebox_jax.sample import prompts
from jukebox_jax.sample.request import MODES, Request, choose_levels, per_level
from jukebox_jax.sample.source import Source
from jukebox_jax.sample.windows import prompt_samples
from jukebox_jax.types import UserError, choose

SECONDS = 20.0
META = ("artist", "genre", "lyrics", "total_seconds", "offset")


def prepare(
    source: Source,
    *,
    mode: str = "ancestral",
    seconds: float | None = None,
    num_samples: int | None = None,
    metas: Sequence[Mapping[str, Any]] = ({},),
    codes: str | None = None,
    items: Sequence[int] | None = None,
    audio: Sequence[str] = (),
    prompt_seconds: float | None = None,
    prompt_offset: float = 0.0,
    seed: int = 0,
    levels: Sequence[int] | None = None,
    temperature: Sequence[float] = (0.99,),
    top_k: Sequence[int] = (0,),
    top_p: Sequence[float] = (0.0,),
    hop_fraction: Sequence[float] | None = None,
    max_batch_size: Sequence[int] = (16,),
    drop_characters: bool = False,
    order: str = "levels",
    segments: int = 1,
    int8: bool = False,
) -> tuple[prompts.Codes, Request]:
    """Starting codes and request of a mode; the arguments are those of ``jukebox sample``.

    ``metas`` (used in turn by the items) have the keys of ``META``, all optional, times in seconds. Raises
    ``UserError`` for whatever does not fit the mode or the model.
    """
    _require_for(mode, codes, items, audio, prompt_seconds, seconds)
    rate, top_hop, count = source.vqvae.sample_rate, source.hop(source.top), source.vqvae.levels
    asked = None if seconds is None else _samples("seconds", seconds, rate, top_hop)
    if codes is not None:
        start = prompts.load_codes(codes, count, source.vqvae.codebook_size)
        items = tuple(items if items is not None else range(len(start[0])))
        start = prompts.select(start, items)
        if num_samples not in (None, len(items)):
            raise UserError(
                f"--num_samples={num_samples}, but --codes has {len(items)} items: leave it out, or choose --items"
            )
        start = _cut(source, start, mode, prompt_seconds, asked, codes)
        length = asked if asked is not None else start[source.top].shape[1] * top_hop
    else:
        items = tuple(range(1 if num_samples is None else num_samples))
        if not items:
            raise UserError(f"--num_samples={num_samples} must be 1 or more")
        length = asked if asked is not None else _samples("seconds", SECONDS, rate, top_hop)
        start = prompts.empty(len(items), count)
        if mode == "primed":
            samples = _samples("prompt_seconds", prompt_seconds or 0.0, rate, top_hop)
            start = encode(source, prompts.read_prompts(audio, len(items), rate, samples, prompt_offset))
    have = [level for level in range(count) if start[level].shape[1]]
    settings = [
        Settings(*values)
        for values in zip(
            per_level("--temperature", temperature, count), per_level("--top_k", top_k, count),
            per_level("--top_p", top_p, count), strict=True,
        )
    ]  # fmt: skip
    request = Request(
        metas=tuple(label(source, metas[i % len(metas)], length, drop_characters) for i in range(len(items))),
        length=length,
        levels=choose_levels(levels, mode, source.top, have),
        hop_fractions=per_level("--hop_fraction", hop_fraction or [0.5] * (count - 1) + [0.125], count),
        settings=tuple(settings),
        batch_sizes=per_level("--max_batch_size", max_batch_size, count),
        seed=seed,
        items=items,
        order=order,
        segments=segments,
        int8=int8,
    )
    if min(request.batch_sizes) < 1:
        raise UserError(f"--max_batch_size={min(request.batch_sizes)} must be 1 or more")
    return start, request


def label(source: Source, meta: Mapping[str, Any], length: int, drop_characters: bool = False) -> dict[str, Any]:
    """A description in seconds as ``data.labels`` takes it, in samples. The song is at least as long as the result."""
    for key in meta:
        choose("entry of a description", key, META)
    rate, labels = source.vqvae.sample_rate, source.priors[source.top].labels
    offset = int(_number(meta, "offset", 0.0) * rate)
    least = math.ceil((labels.min_duration or 0.0) * labels.sample_rate) if labels else 0
    default = max(offset + length, least)
    given = meta.get("total_seconds")
    total = default if given is None else int(_number(meta, "total_seconds", 0.0) * rate)
    if total < offset + length:
        raise UserError(f"--total_seconds={given:g} is shorter than the result: it ends {(offset + length) / rate:.2f}"
                        " s into the song")  # fmt: skip
    lyrics = meta.get("lyrics") or ""
    found = {"artist": meta.get("artist") or "unknown", "genre": meta.get("genre") or "unknown", "lyrics": lyrics}
    full = found | {"total_length": total, "offset": offset}
    _check_lyrics(source, full, drop_characters)
    return full


def encode(source: Source, audio: Float32[np.ndarray, "b a 1"]) -> prompts.Codes:
    """Codes of every level, one prompt after the other, or as many at once as devices share a batch."""
    model, variables = VQVAE(source.vqvae), source.load("vqvae")
    at_once = row_groups()
    encoded = [encode_long(model, variables, audio[i : i + at_once]) for i in range(0, len(audio), at_once)]
    return [np.concatenate([codes[level] for codes in encoded]) for level in range(source.vqvae.levels)]


def _require_for(mode, codes, items, audio, prompt_seconds, seconds) -> None:
    choose("mode", mode, MODES)
    if (codes is not None) != (mode in ("continue", "upsample")):
        raise UserError(f"--mode={mode} needs --codes=FILE.npz" if codes is None else
                        f"--codes is for --mode=continue and --mode=upsample, not {mode}")  # fmt: skip
    if bool(audio) != (mode == "primed"):
        raise UserError(
            "--mode=primed needs --audio=FILE" if not audio else f"--audio is for --mode=primed, not {mode}"
        )
    if mode == "primed" and prompt_seconds is None:
        raise UserError("--mode=primed needs --prompt_seconds, how much of --audio to begin with")
    if mode not in ("primed", "continue") and prompt_seconds is not None:
        raise UserError(f"--prompt_seconds is for --mode=primed and --mode=continue, not {mode}")
    if items is not None and codes is None:
        raise UserError("--items chooses among the items of --codes; without it, use --num_samples")
    if mode == "continue" and seconds is None:
        raise UserError("--mode=continue needs --seconds, the length of the result with what --codes has")


def _cut(source: Source, start: prompts.Codes, mode: str, prompt_seconds: float | None, asked: int | None, path: str):
    hops, rate = source.vqvae.hop_lengths, source.vqvae.sample_rate
    there = start[source.top].shape[1] * hops[-1]
    if prompt_seconds is not None:
        samples = _samples("prompt_seconds", prompt_seconds, rate, hops[-1])
        if samples > there:
            raise UserError(
                f"--prompt_seconds={prompt_seconds:g}, but {path} has {there / rate:.2f} s of its top level"
            )
        return prompts.cut(start, samples, hops)
    if mode == "upsample" and asked is not None:
        if asked > there:
            raise UserError(f"--seconds={asked / rate:.2f}, but {path} has {there / rate:.2f} s of its top level")
        return prompts.cut(start, asked, hops)
    return start


def _samples(flag: str, seconds: float, rate: int, top_hop: int) -> int:
    samples = prompt_samples(seconds, rate, top_hop) if math.isfinite(seconds) and seconds > 0 else 0
    if not samples:
        raise UserError(f"--{flag}={seconds:g} must be at least {top_hop / rate:.2g} s, one code of the top level")
    return samples


def _number(meta: Mapping[str, Any], key: str, default: float) -> float:
    value = meta.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise UserError(f"{key} must be a number of seconds, not {value!r}")
    return float(value)


def _check_lyrics(source: Source, meta: Mapping[str, Any], drop_characters: bool) -> None:
    labels = source.priors[source.top].labels
    if not isinstance(meta["lyrics"], str) or not meta["lyrics"]:
        return
    if labels is None or not labels.num_lyric_tokens:
        raise UserError(f"model {source.name!r} takes no lyrics")
    dropped = source.labellers[source.top].label(meta)[1]["dropped"]
    if dropped and not drop_characters:
        marks = "".join(c for c in ALPHABETS[labels.version] if c and not c.isalnum()).strip()
        raise UserError(f"the lyrics have characters that the model does not know: {' '.join(map(repr, dropped))};"
                        f" allowed are letters, digits, spaces, line breaks and {marks}"
                        " (--drop_characters leaves the others out)")  # fmt: skip
