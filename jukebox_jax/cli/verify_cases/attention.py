"""Single attention layers, and stacks of every pattern: goldens ``attention`` and ``transformer_orders``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jukebox_jax import presets
from jukebox_jax.checkpoint import mapping, openai
from jukebox_jax.checkpoint.openai_hps import PATTERNS
from jukebox_jax.cli.verify_cases.case import Case
from jukebox_jax.cli.verify_cases.report import Report
from jukebox_jax.models import cache as kv_cache
from jukebox_jax.models.decode_form import attention_weights, mix_step
from jukebox_jax.models.layers import Layer, prime_prefix
from jukebox_jax.models.pattern import Kind, layer_kinds
from jukebox_jax.models.transformer import Transformer

# Position in this tuple = attn_func.
FUNCTIONS = (
    Kind.DENSE, Kind.BLOCK, Kind.COLUMN, Kind.PREVIOUS, Kind.SUMMARY, Kind.SPREAD, Kind.LYRICS, Kind.PRIME,
)  # fmt: skip


def check_attention(case: Case, report: Report) -> None:
    """Projections, attention, output and cached output of one layer per function."""
    for function, hps in sorted(case.hps.items(), key=lambda item: int(item[0])):
        name = f"f{function}"
        if not case.has(f"{name}_x"):
            continue
        with report.part(name):
            _check_function(case, report, name, FUNCTIONS[int(function)], hps)


def _check_function(case: Case, report: Report, name: str, kind: Kind, hps: dict[str, Any]) -> None:
    config = presets.Transformer(
        length=hps["n_ctx"], width=hps["n_in"], depth=1, num_heads=hps["n_head"], num_blocks=hps["blocks"],
        attention_ratio=(hps["n_state"] + 0.5) / hps["n_in"], spread=hps["spread"],
    )  # fmt: skip
    layer = Layer(config, kind, hps["prime_len"] or 0, hps["encoder_dims"] or 0)
    params = {"attention": _projections(case, f"{name}_w", kind)}
    x = jnp.asarray(case.input(f"{name}_x"))
    lyrics = jnp.asarray(case.input(f"{name}_encoder_kv")) if kind is Kind.LYRICS else None

    @jax.jit
    def forward(params, x, lyrics):
        q, k, v = tuple(layer.apply({"params": params}, x, lyrics, method="project"))
        attended = layer.apply({"params": params}, q, k, v, method="attend")
        return q, k, v, attended, layer.apply({"params": params}, x, lyrics, method="mix")

    for part, actual in zip(("q", "k", "v", "attn", "out"), forward(params, x, lyrics), strict=True):
        report.close(f"{name}_{part}", actual)
    if kind is Kind.PRIME:
        rounded = min(prime_prefix(hps["prime_len"], hps["blocks"]), hps["n_ctx"])
        report.same(f"{name} prime_len_rounded", rounded, hps["prime_len_rounded"])
    if case.has(f"{name}_cached_out"):
        report.close(f"{name}_cached_out", _cached(layer, params, x, lyrics))


@jax.jit(static_argnums=0)
def _cached(layer: Layer, params, x, lyrics):
    """The layer's output, one position at a time."""
    if layer.kind is Kind.LYRICS:
        cache = jnp.asarray(layer.apply({"params": params}, lyrics, method="lyrics_cache"))
    else:
        cache = jnp.zeros(kv_cache.shape(layer.kind, layer.sizes, x.shape[0], layer.config.attention_width))

    heads = layer.config.num_heads
    weights = attention_weights(layer.kind, params["attention"], heads, jnp.float32)

    def step(cache, inputs):
        row, t = inputs
        out, cache = mix_step(layer, weights, row, cache, 0, t)
        return cache, out

    _, out = jax.lax.scan(step, cache[None], (jnp.swapaxes(x, 0, 1), jnp.arange(x.shape[1])))
    return jnp.swapaxes(out, 0, 1)


def _projections(case: Case, prefix: str, kind: Kind) -> dict[str, Any]:
    weights = {leaf: {n: case.input(f"{prefix}/{leaf}.{n}") for n in ("w", "b")} for leaf in _leaves(case, prefix)}
    sides = ("c_attn", "c_attn", "c_attn") if kind is not Kind.LYRICS else ("c_attn", "c_enc_kv", "c_enc_kv")
    width = weights["c_proj"]["w"].shape[0]
    starts = (0, width, 2 * width) if kind is not Kind.LYRICS else (0, 0, width)
    params = {
        part: {"kernel": weights[side]["w"][:, at : at + width], "bias": weights[side]["b"][at : at + width]}
        for part, side, at in zip(("query", "key", "value"), sides, starts, strict=True)
    }
    return params | {"output": {"kernel": weights["c_proj"]["w"], "bias": weights["c_proj"]["b"]}}


def _leaves(case: Case, prefix: str) -> set[str]:
    return {name.removeprefix(f"{prefix}/").rpartition(".")[0] for name in case.arrays if name.startswith(f"{prefix}/")}


def check_orders(case: Case, report: Report) -> None:
    """The output of a transformer of every pattern, and the kinds of its layers."""
    tensors = case.checkpoint().tensors
    for order, hps in sorted(case.hps.items(), key=lambda item: int(item[0])):
        with report.part(f"order {order}"):
            _check_order(case, report, order, hps, tensors)


def _check_order(case: Case, report: Report, order: str, hps: dict[str, Any], tensors: Any) -> None:
    config = presets.Transformer(
        length=hps["n_ctx"], width=hps["n_in"], depth=hps["n_depth"], num_heads=hps["n_head"],
        num_blocks=hps["blocks"], pattern=PATTERNS[hps["attn_order"]], attention_ratio=hps["m_attn"],
        mlp_ratio=hps["m_mlp"], spread=hps["spread"], residual_scale=hps["res_scale"],
    )  # fmt: skip
    kinds = layer_kinds(config.pattern, config.depth)
    report.same(f"order {order} funcs", [FUNCTIONS.index(kind) for kind in kinds], hps["funcs"])
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(f"order{order}.")}
    entries = openai.transformer_entries(config, f"order{order}", ("params",))
    variables = mapping.read_all(mapping.import_tensors(f"order {order}", own, entries))
    model = Transformer(config, hps["prime_len"] or 0, hps["encoder_dims"] or 0, scan_layers=True)
    lyrics = case.input(f"o{order}_encoder_kv") if case.has(f"o{order}_encoder_kv") else None
    lyrics = lyrics if Kind.LYRICS in kinds else None
    report.close(f"o{order}_out", jax.jit(model.apply)(variables, case.input(f"o{order}_x"), lyrics))
