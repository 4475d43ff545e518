"""Encoding, decoding and evaluation losses of a VQ-VAE: goldens ``vqvae*``."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jukebox_jax.checkpoint import openai, openai_hps
from jukebox_jax.cli.verify_cases.case import Case
from jukebox_jax.cli.verify_cases.report import Report
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.models.vqvae_loss import Bandwidth, losses, reconstruct

LOSSES = ("lmix", "l1", "l2", "linf")


def bandwidth_of(case: Case) -> Bandwidth:
    """The normalisers in the hyperparameters."""
    values = case.hps.get("bandwidth") or {}
    return Bandwidth(*(float(values.get(name, 1.0)) for name in ("l1", "l2", "spec")))


def check_vqvae(case: Case, report: Report) -> None:
    """All levels' latents, codes and audio, and the evaluation forward with every loss."""
    preset = openai_hps.vqvae_from_hps(case.hps)
    variables = openai.import_vqvae(case.checkpoint(), preset)
    model = VQVAE(preset)
    for level in range(preset.levels):
        with report.part(f"level {level}"):
            _check_level(case, report, model, variables, level)
    with report.part("evaluation"):
        if case.has("x"):
            _check_losses(case, report, model, variables)


def _check_level(case: Case, report: Report, model: VQVAE, variables: dict[str, Any], level: int) -> None:
    channels_first = lambda x: jnp.swapaxes(x, 1, 2)  # noqa: E731
    book = variables["codebook"][f"level_{level}"]["codebook"] if "codebook" in variables else None
    if case.has("x"):

        @jax.jit
        def encode(variables, audio):
            latents = model.apply(variables, audio, level, method="latents")
            return latents, model.apply(variables, audio, level, method="encode_level")

        latents, codes = encode(variables, case.input("x"))
        report.close(f"latent_l{level}", channels_first(latents))
        report.equal(f"codes_l{level}", codes, margin=f"margin_l{level}")
        if case.has(f"margin_l{level}") and book is not None:
            report.close(f"margin_l{level}", _margin(latents, book), scale=float(jnp.max(latents**2)))
    decode = jax.jit(lambda variables, codes: model.apply(variables, codes, level, method="decode"))
    if case.has(f"codes_l{level}"):
        codes = case.codes(f"codes_l{level}")
        report.close(f"decode_l{level}", decode(variables, codes))
        if book is not None:
            report.close(f"dequant_l{level}", channels_first(jnp.take(book, codes, axis=0)))
    if case.has(f"random_codes_l{level}"):
        report.close(f"random_decode_l{level}", decode(variables, case.codes(f"random_codes_l{level}")))


def _margin(latents, book):
    distance = jnp.sum((latents[:, :, None] - book[None, None]) ** 2, -1)
    nearest = -jax.lax.top_k(-distance, 2)[0]
    return nearest[..., 1] - nearest[..., 0]


def _check_losses(case: Case, report: Report, model: VQVAE, variables: dict[str, Any]) -> None:
    names = [name for name in LOSSES if case.has(f"eval_{name}_loss")]

    @jax.jit
    def evaluate(variables, audio):
        found = reconstruct(model, variables, audio)
        variants = {name: dataclasses.replace(model.config, loss=name) for name in names}
        return found.audio[0], {name: losses(c, audio, found, bandwidth_of(case)) for name, c in variants.items()}

    audio, found = evaluate(variables, case.input("x"))
    for name, (loss, metrics) in found.items():
        report.close(f"eval_{name}_loss", loss)
        for metric, value in metrics.items():
            report.close(f"eval_{name}_metric_{metric}", value)
        if name == names[0]:
            report.close("eval_x_out", audio)
