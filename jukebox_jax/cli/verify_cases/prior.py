"""Conditioning, logits, losses and gradients of a prior: goldens ``prior_*``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jukebox_jax import presets
from jukebox_jax.checkpoint import openai, openai_hps
from jukebox_jax.cli.verify_cases import attention, draws, steps
from jukebox_jax.cli.verify_cases.case import Case
from jukebox_jax.cli.verify_cases.report import TOLERANCE, Report
from jukebox_jax.models.pattern import layer_kinds
from jukebox_jax.models.prior import Prior

HALF = 1e-3  # gradients of half-precision weights are half precision in the original


def check_prior(case: Case, report: Report) -> None:
    """Everything that a prior computes: see the module's text and ``draws``."""
    preset = openai_hps.prior_from_hps(case.hps)
    checkpoint = case.checkpoint()
    params = openai.import_prior(checkpoint, preset)["params"]
    params = jax.tree.map(jnp.asarray, params)
    model = Prior(preset, scan_layers=True)  # fewer bodies to compile; the same numbers
    y = case.codes("y") if preset.labels is not None else None
    inputs = case.codes("z"), y, case.codes("z_cond") if preset.conditioner is not None else None
    with report.part("derived sizes"):
        _check_derived(case, report, preset)
    with report.part("forward"):
        _check_forward(case, report, model, params, inputs)
    with report.part("losses"):
        _check_losses(case, report, model, params, inputs, checkpoint)
    with report.part("alignment"):
        if case.has("alignment_w"):
            align = jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs, method="alignment"))
            report.close("alignment_w", align(params, *inputs))
    with report.part("sampling"):
        draws.check_draws(case, report, model, params, inputs)


def _check_derived(case: Case, report: Report, preset: presets.Prior) -> None:
    t, hops = preset.transformer, openai_hps.vqvae_from_hps(case.hps).hop_lengths
    ours = {
        "attn_funcs": [attention.FUNCTIONS.index(kind) for kind in layer_kinds(t.pattern, t.depth)],
        "batch": len(case.arrays["z"]), "cond_downsample": preset.upsampling, "n_ctx": preset.context_length,
        "raw_to_tokens": preset.hop_length, "sample_length": preset.window_samples,
        "z_shapes": [[preset.window_samples // hop] for hop in hops],
    }  # fmt: skip
    for name, expected in case.hps.get("derived", {}).items():
        if name in ours:
            report.same(f"derived {name}", ours[name], expected)


def _check_forward(case: Case, report: Report, model: Prior, params: Any, inputs: tuple) -> None:
    preset = model.config
    separate = preset.lyrics is not None and not preset.merged_lyrics

    @jax.jit
    def forward(params, z, y, z_cond):
        apply = lambda *args, method: model.apply({"params": params}, *args, method=method)  # noqa: E731
        cond: Any = apply(y, z_cond, method="condition")
        encode = lambda model, tokens: model.lyrics_encoder(tokens)  # noqa: E731
        return (
            cond,
            apply(cond, method="positions") if cond.positions is not None else None,
            apply(z, cond, method="logits"),
            apply(cond.lyric_tokens, method=encode) if separate else None,
            apply(cond, method="lyric_logits") if separate else None,
        )

    cond, positions, preds, encoded, lyric_logits = forward(params, *inputs)
    if positions is not None:
        report.close("x_cond", positions[:, preset.merged_lyrics :])
        if preset.conditioner is None:
            report.close("y_pos", positions[:, preset.merged_lyrics :])
    if cond.start is not None:
        report.close("y_cond", cond.start[:, None])
    if separate:
        report.close("prime_acts", encoded)
        report.close("encoder_kv", cond.lyrics)
        report.close("prime_preds", lyric_logits)
    report.close("preds", preds)


def _check_losses(case: Case, report: Report, model: Prior, params: Any, inputs: tuple, checkpoint: Any) -> None:
    """Losses, which do not differ between training and evaluation (there is no dropout), and their gradients."""
    wanted = any(name.startswith("grad") for name in case.arrays)

    @jax.jit
    def losses(params, *inputs):
        loss = lambda p: model.apply({"params": p}, *inputs, method="loss")  # noqa: E731
        return jax.value_and_grad(loss, has_aux=True)(params) if wanted else (loss(params), None)

    (loss, metrics), grads = losses(params, *inputs)
    for name in ("loss", "train_loss"):
        report.close(name, loss)
    report.close("bpd", metrics["bits_per_token"])
    report.close("gen_loss", metrics["gen_loss"])
    report.close("prime_loss", metrics.get("prime_loss", 0.0))
    if grads is not None:
        _check_gradients(report, model.config, grads, checkpoint)


def _check_gradients(report: Report, preset: presets.Prior, grads: Any, checkpoint: Any) -> None:
    named = steps.named({"params": grads}, preset, openai.residual_naming(checkpoint.tensors))
    norms = {name: float(np.linalg.norm(np.asarray(grad, np.float64).ravel())) for name, grad in named.items()}
    total = float(np.sqrt(sum(norm**2 for norm in norms.values())))
    half = any(tensor.dtype == np.float16 for tensor in checkpoint.tensors.values())
    report.close("grad_norm", total, rtol=HALF if half else TOLERANCE)
    for name, grad in named.items():
        rtol = HALF if checkpoint.tensors[name].dtype == np.float16 else TOLERANCE
        # Rounding in float32 depends on the size of all gradients, not on this one's.
        report.close(f"gradnorm/{name}", norms[name], rtol=rtol, scale=1e-3 * total)
        report.close(f"gradproj/{name}", steps.projection(grad), rtol=rtol, scale=max(norms[name], 1e-3 * total))
