"""Whole runs over all levels: goldens ``pipeline_*``."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from jukebox_jax import presets
from jukebox_jax.checkpoint import openai, openai_hps
from jukebox_jax.cli.verify_cases.case import Case
from jukebox_jax.cli.verify_cases.report import Report
from jukebox_jax.data.labels import Labeller, Vocabulary
from jukebox_jax.data.vocabulary import normalise
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.sample import align, prompts, sampler, takes
from jukebox_jax.sample.request import Request, Settings
from jukebox_jax.sample.source import Source
from jukebox_jax.sample.tape import Tape

MODES = ("ancestral", "primed", "continue", "upsample", "short")


def check_pipeline(case: Case, report: Report) -> None:
    """Label rows, prompts, audio, and the codes and lyric alignments of every mode that the case has."""
    source, request = _source(case), _request(case)
    with report.part("labels"):
        for level, labeller in source.labellers.items():
            report.equal(f"y_l{level}", labeller.batch(request.metas)[0])
    with report.part("audio"):
        _check_audio(case, report, source)
    for mode in MODES:
        if any(name.startswith(f"{mode}_zs_l") for name in case.arrays):
            with report.part(mode):
                _check_mode(case, report, source, request, mode)
    with report.part("compose"):
        if case.has("compose_steps"):
            _check_composing(case, report, source, request)


def _source(case: Case) -> Source:
    vqvae = openai_hps.vqvae_from_hps(case.hps["vqvae"])
    priors = {level: openai_hps.prior_from_hps(values) for level, values in enumerate(case.hps["priors"])}

    @functools.cache
    def load(component: str) -> dict[str, Any]:
        checkpoint = case.checkpoint(component)
        if component == "vqvae":
            return openai.import_vqvae(checkpoint, vqvae)
        return openai.import_prior(checkpoint, priors[int(component.rpartition("_")[2])])

    labellers = {level: _labeller(case, prior) for level, prior in priors.items()}
    return Source(case.folder.name, vqvae, priors, labellers, load)


def _request(case: Case) -> Request:
    levels = len(case.hps["priors"])
    sizes = [int(kwargs.get("max_batch_size") or case.hps["n_samples"]) for kwargs in case.hps["sampling_kwargs"]]
    return Request(
        metas=tuple(case.hps["metas"]), length=case.hps["sample_length"], levels=tuple(reversed(range(levels))),
        settings=(Settings(temperature=0.0),) * levels, hop_fractions=tuple(case.hps["hop_fraction"]), compat=True,
        batch_sizes=tuple(sizes),
    )  # fmt: skip


def _labeller(case: Case, prior: presets.Prior) -> Labeller:
    labels = prior.labels
    if labels is None:
        return Labeller(None, None, prior.window_samples)
    if (tables := case.tables()) is None:
        return Labeller(labels, _names_in_rows(case, prior, labels), prior.window_samples, compat=True)
    full = Vocabulary.load(tables, labels.version)
    # The case's embedding tables may be smaller than the id tables.
    artists = {name: row for name, row in full.artists.items() if row < labels.num_artists}
    genres = {name: row for name, row in full.genres.items() if row < labels.num_genres}
    return Labeller(labels, Vocabulary(full.version, artists, genres), prior.window_samples, compat=True)


def _names_in_rows(case: Case, prior: presets.Prior, labels: presets.Labels) -> Vocabulary:
    """Without id tables: the ids that the case's own label rows give to its names."""
    artists, genres = {"unknown": 0}, {"unknown": 0}
    for meta, row in zip(case.hps["metas"], case.arrays[f"y_l{prior.level}"].tolist(), strict=True):
        artists[normalise(meta["artist"], labels.version)] = row[3]
        genre = normalise(meta["genre"], labels.version)
        words = genre.split("_") if labels.version == "v2" else [genre]
        genres |= dict(zip(words, row[4 : 4 + len(words)], strict=True))
    return Vocabulary(labels.version, artists, genres)


def _check_audio(case: Case, report: Report, source: Source) -> None:
    model, variables = VQVAE(source.vqvae), source.load("vqvae")
    for level in range(source.top + 1):
        if case.has("prompt_x"):
            encode = jax.jit(lambda v, x, level=level: model.apply(v, x, level, method="encode_level"))
            report.equal(f"prompt_zs_l{level}", encode(variables, case.input("prompt_x")))
        for mode in MODES:
            if case.has(f"{mode}_x_l{level}"):
                decode = jax.jit(lambda v, codes, level=level: model.apply(v, codes, level, method="decode"))
                report.close(f"{mode}_x_l{level}", decode(variables, case.codes(f"{mode}_zs_l{level}")))


def _check_mode(case: Case, report: Report, source: Source, request: Request, mode: str) -> None:
    codes, request = _start(case, source, request, mode)
    tapes = [Tape(len(request.metas), level) for level in codes]
    sampler.sample(source, request, tapes)
    for level, tape in enumerate(tapes):
        report.equal(f"{mode}_zs_l{level}", tape.array())
    _check_alignment(report, source, request, mode, tapes)


def _start(case: Case, source: Source, request: Request, mode: str) -> tuple[prompts.Codes, Request]:
    """The codes that a mode starts from, and its levels and length."""
    levels = source.top + 1
    codes = prompts.empty(len(request.metas), levels)
    if mode == "primed":
        codes = [case.input(f"prompt_zs_l{level}").astype(np.int32) for level in range(levels)]
    elif mode == "continue":
        in_samples = case.has("continue_samples")
        samples = case.number("continue_samples") if in_samples else case.number("continue_top_tokens") * source.hop(-1)
        drawn = [case.input(f"ancestral_zs_l{level}").astype(np.int32) for level in range(levels)]
        codes = prompts.cut(drawn, samples, source.vqvae.hop_lengths)
    elif mode in ("upsample", "short"):
        codes[-1] = case.input(f"{mode}_top_codes").astype(np.int32)
        request = dataclasses.replace(request, levels=request.levels[1:])
    if case.has(f"{mode}_sample_length"):
        request = dataclasses.replace(request, length=case.number(f"{mode}_sample_length"))
    return codes, request


def _check_alignment(report: Report, source: Source, request: Request, mode: str, tapes: list[Tape]) -> None:
    if not report.case.has(f"{mode}_alignment_0"):
        return
    with report.part(f"{mode} alignment"):
        for item, weights in enumerate(align.align(source, request, tapes[-1].array())):
            report.close(f"{mode}_alignment_{item}", weights)


def _check_composing(case: Case, report: Report, source: Source, request: Request) -> None:
    """Steps of the top level, each followed by a choice; then the levels below."""
    tapes = [Tape(len(request.metas)) for _ in source.priors]
    for step, (new, kept) in enumerate(case.input("compose_steps").tolist()):
        takes.extend(source, request, tapes, new)
        report.equal(f"compose{step}_z", tapes[-1].array())
        if kept >= 0:
            takes.keep(source, tapes, kept)
    report.equal("compose_z", tapes[-1].array())
    length = int(tapes[-1].lengths[0]) * source.hop(-1)
    request = dataclasses.replace(request, levels=request.levels[1:], length=length)
    sampler.sample(source, request, tapes)
    for level, tape in enumerate(tapes):
        report.equal(f"compose_zs_l{level}", tape.array())
    _check_alignment(report, source, request, "compose", tapes)
