"""Whole runs of the original, through the public path: every code equal, audio and lyric alignment close.

The draws are argmax, ``compat`` is on, and weights come from the original's checkpoints.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from jukebox_jax.checkpoint import openai, openai_hps
from jukebox_jax.checkpoint.torch_reader import open_checkpoint
from jukebox_jax.data.labels import Labeller, Vocabulary
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.sample import align, prompts, sampler, takes
from jukebox_jax.sample.request import Request, Settings
from jukebox_jax.sample.source import Source
from jukebox_jax.sample.tape import Tape

GOLDEN = Path(__file__).parents[1] / "golden"
PARTIAL = ("pipeline_partial", "pipeline_partial_1b_lyrics")
CASES = ("pipeline_5b_lyrics", *PARTIAL)


class Case(NamedTuple):
    source: Source
    request: Request
    data: dict[str, np.ndarray]

    @property
    def items(self) -> int:
        return len(self.request.metas)


@functools.cache
def load_case(name: str) -> Case:
    folder = GOLDEN / name
    hps = json.loads((folder / "hps.json").read_text())
    vqvae = openai_hps.vqvae_from_hps(hps["vqvae"])
    priors = {level: openai_hps.prior_from_hps(values) for level, values in enumerate(hps["priors"])}

    @functools.cache
    def load(component: str) -> dict[str, Any]:
        checkpoint = open_checkpoint(folder / f"{component}.pth.tar")
        if component == "vqvae":
            return openai.import_vqvae(checkpoint, vqvae)
        return openai.import_prior(checkpoint, priors[int(component[-1])])

    source = Source(name, vqvae, priors, {level: labeller(prior) for level, prior in priors.items()}, load)
    request = Request(
        metas=tuple(hps["metas"]), length=hps["sample_length"], levels=(2, 1, 0), settings=(Settings(0.0),) * 3,
        hop_fractions=tuple(hps["hop_fraction"]), compat=True,
        batch_sizes=tuple(level["max_batch_size"] for level in hps["sampling_kwargs"]),
    )  # fmt: skip
    return Case(source, request, dict(np.load(folder / "data.npz")))


def labeller(prior) -> Labeller:
    """The case's id tables, less the names whose ids its small embedding tables do not have."""
    full = Vocabulary.load(GOLDEN / "labeller" / "ids", prior.labels.version)
    artists = {name: row for name, row in full.artists.items() if row < prior.labels.num_artists}
    genres = {name: row for name, row in full.genres.items() if row < prior.labels.num_genres}
    return Labeller(prior.labels, Vocabulary(full.version, artists, genres), prior.window_samples, compat=True)


def start_of(case: Case, mode: str) -> tuple[prompts.Codes, Request]:
    """The starting codes of a mode, and the request with its levels and length."""
    source, request, data = case
    start = prompts.empty(case.items, 3)
    if mode == "primed":
        return [data[f"prompt_zs_l{level}"].astype(np.int32) for level in range(3)], request
    if mode == "continue":
        top_hop = source.hop(2)
        samples = data["continue_samples"] if "continue_samples" in data else data["continue_top_tokens"] * top_hop
        drawn = [data[f"ancestral_zs_l{level}"].astype(np.int32) for level in range(3)]
        return prompts.cut(drawn, int(samples), source.vqvae.hop_lengths), request
    if mode in ("upsample", "short"):
        start[2] = data[f"{mode}_top_codes"].astype(np.int32)
        length = int(data["short_sample_length"]) if mode == "short" else request.length
        return start, dataclasses.replace(request, levels=(1, 0), length=length)
    return start, request


MODES = [
    (case, mode)
    for case in CASES
    for mode in ("ancestral", "primed", "continue", "short" if case in PARTIAL else "upsample")
]


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_a_run_is_the_originals(name: str, mode: str) -> None:
    case = load_case(name)
    start, request = start_of(case, mode)
    tapes = [Tape(case.items, codes) for codes in start]
    sampler.sample(case.source, request, tapes)
    for level in range(3):
        np.testing.assert_array_equal(tapes[level].array(), case.data[f"{mode}_zs_l{level}"])
    maps = align.align(case.source, request, tapes[2].array())
    for item in range(case.items):
        np.testing.assert_allclose(maps[item], case.data[f"{mode}_alignment_{item}"], rtol=1e-4, atol=1e-6)


def test_audio_is_the_originals() -> None:
    source, _, data = load_case("pipeline_5b_lyrics")
    model, variables = VQVAE(source.vqvae), source.load("vqvae")
    prompt = jax.jit(lambda x: model.apply(variables, x, method="encode"))(data["prompt_x"])
    for level in range(3):
        np.testing.assert_array_equal(prompt[level], data[f"prompt_zs_l{level}"])
        decode = jax.jit(lambda codes, level=level: model.apply(variables, codes, level, method="decode"))
        expected = data[f"ancestral_x_l{level}"]
        actual = decode(data[f"ancestral_zs_l{level}"].astype(np.int32))
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_composing_is_the_originals() -> None:
    case = load_case("pipeline_partial")
    tapes = [Tape(case.items) for _ in range(3)]
    for step, (new, kept) in enumerate(case.data["compose_steps"].tolist()):
        takes.extend(case.source, case.request, tapes, new)
        np.testing.assert_array_equal(tapes[2].array(), case.data[f"compose{step}_z"])
        if kept >= 0:
            takes.keep(case.source, tapes, kept)
    length = int(tapes[2].lengths[0]) * case.source.hop(2)
    sampler.sample(case.source, dataclasses.replace(case.request, levels=(1, 0), length=length), tapes)
    for level in range(3):
        np.testing.assert_array_equal(tapes[level].array(), case.data[f"compose_zs_l{level}"])


def test_the_end_of_a_level_is_not_repeated_without_compat() -> None:
    """The mended partial window ends where it was asked to, with the codes that the original begins with."""
    case = load_case("pipeline_partial")
    start, request = start_of(case, "primed")
    tapes = [Tape(case.items, codes) for codes in start]
    sampler.sample_level(case.source, dataclasses.replace(request, compat=False), 2, tapes)
    np.testing.assert_array_equal(tapes[2].array(), case.data["primed_zs_l2"][:, :20])
