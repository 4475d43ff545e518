"""The original's hyperparameters -> presets. Here, and in ``openai.py``, its names are known; nowhere else.

Takes the flat table that the original's trainer saves (and that the cases of ``jukebox verify`` hold). What a table
leaves out has the original's default. Settings that change the computation and that this package does not have are
errors; those that only matter in training (dropout, gradient checkpointing, ...) are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jukebox_jax import presets
from jukebox_jax.types import UserError

# Position in this tuple = attn_order.
PATTERNS = (
    "dense", "block_column", "factored", "block_summary", "block_spread", "block_summary_4", "factored_lyrics_4",
    "factored_lyrics_16", "factored_lyrics_10", "factored_dense", "factored_lyrics", "factored_lyrics_dense",
    "factored_prime",
)  # fmt: skip

_CORE = dict(
    width=128, depth=3, heads=1, attn_order=0, blocks=None, spread=None, m_attn=0.25, m_mlp=1.0, res_scale=False,
    zero_out=False, init_scale=1.0, pos_init=False,
)  # fmt: skip
DEFAULTS: dict[str, Any] = dict(
    # VQ-VAE
    sr=44_100, levels=2, downs_t=(1, 1), strides_t=(2, 2), hvqvae_multipliers=None, emb_width=64, l_bins=512, l_mu=0.99,
    commit=1.0, spectral=0.0, multispectral=1.0, revival_threshold=1.0, loss_fn="l2", linf_k=2048, lmix_l1=0.0,
    lmix_l2=0.0, lmix_linf=0.0, use_bottleneck=True, depth=3, width=128, m_conv=1.0, dilation_growth_rate=1,
    dilation_cycle=None, vqvae_reverse_decoder_dilation=True, use_nonrelative_specloss=True,
    multispec_loss_n_fft=(2048, 1024, 512), multispec_loss_hop_length=(240, 120, 50),
    multispec_loss_window_size=(1200, 600, 240),
    # prior
    level=0, n_ctx=1024, cond_levels=None, merged_decoder=False, single_enc_dec=False, copy_input=False,
    y_cond_as_bias=False, alignment_layer=None, alignment_head=None,
    cond_width=128, cond_depth=3, cond_m_conv=1.0, cond_dilation_growth_rate=1, cond_dilation_cycle=None,
    cond_res_scale=False, cond_zero_out=False,
    # labels and lyrics
    labels=True, labels_v3=False, y_bins=0, max_bow_genre_size=None, t_bins=64, min_duration=None, max_duration=None,
    use_tokens=False, n_tokens=0, n_vocab=0, prime_loss_fraction=0.1,
    **{f"prime_{name}": value for name, value in _CORE.items()},
    **{name: value for name, value in _CORE.items() if name not in ("width", "depth")},
    prior_width=128, prior_depth=3,
)  # fmt: skip


class _Hps:
    """Checked access: the table's value, or the default; ``UserError`` names the entry."""

    def __init__(self, table: Mapping[str, Any]):
        self.table = table

    def fail(self, name: str, value: Any, allowed: str) -> UserError:
        return UserError(f"hyperparameter {name} is {_shown(value)}: {allowed}")

    def get(self, name: str) -> Any:
        return self.table.get(name, DEFAULTS[name])

    def integer(self, name: str, low: int = 1) -> int:
        value = self.get(name)
        if type(value) is not int or not low <= value < 1 << 31:
            raise self.fail(name, value, f"expected an integer from {low}")
        return value

    def number(self, name: str) -> float:
        value = self.get(name)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.fail(name, value, "expected a number")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if type(value) not in (bool, int):
            raise self.fail(name, value, "expected True or False")
        return bool(value)

    def integers(self, name: str, low: int = 1) -> tuple[int, ...]:
        value = self.get(name)
        if not isinstance(value, (list, tuple)) or not all(type(v) is int and low <= v < 1 << 31 for v in value):
            raise self.fail(name, value, f"expected integers from {low}")
        return tuple(value)

    def optional(self, name: str, read: Any) -> Any:
        return None if self.get(name) is None else read(name)

    def refuse(self, name: str, why: str) -> None:
        if self.get(name):
            raise self.fail(name, self.get(name), why)


def vqvae_from_hps(hps: Mapping[str, Any]) -> presets.VQVAE:
    """The preset of a VQ-VAE's hyperparameters."""
    h = _Hps(hps)
    levels, downs, strides = _levels(h)
    multipliers = h.optional("hvqvae_multipliers", h.integers)
    if multipliers is not None and len(multipliers) < levels:
        raise h.fail("hvqvae_multipliers", multipliers, f"expected one per level ({levels})")
    if h.get("loss_fn") not in ("l1", "l2", "linf", "lmix"):
        raise h.fail("loss_fn", h.get("loss_fn"), "expected l1, l2, linf or lmix")
    spectra = [h.integers(f"multispec_loss_{name}") for name in ("n_fft", "hop_length", "window_size")]
    if len({len(values) for values in spectra}) != 1:
        raise h.fail("multispec_loss_n_fft", spectra[0], "expected as many as of hop_length and window_size")
    return presets.VQVAE(
        sample_rate=h.integer("sr"), down_depths=downs, strides=strides, width=h.integer("width"),
        depth=h.integer("depth"), multipliers=multipliers[:levels] if multipliers else None,
        hidden_ratio=h.number("m_conv"), dilation_growth=h.integer("dilation_growth_rate"),
        dilation_cycle=h.optional("dilation_cycle", h.integer),
        reverse_decoder_dilation=h.flag("vqvae_reverse_decoder_dilation"), codebook_size=h.integer("l_bins"),
        codebook_dim=h.integer("emb_width"), use_bottleneck=h.flag("use_bottleneck"), codebook_decay=h.number("l_mu"),
        revival_threshold=h.number("revival_threshold"), commitment_weight=h.number("commit"),
        spectral_weight=h.number("spectral"), multispectral_weight=h.number("multispectral"), loss=h.get("loss_fn"),
        lmix_l1=h.number("lmix_l1"), lmix_l2=h.number("lmix_l2"), lmix_linf=h.number("lmix_linf"),
        linf_k=h.integer("linf_k"), nonrelative_spectral=h.flag("use_nonrelative_specloss"),
        resolutions=tuple(zip(*spectra, strict=True)),
    )  # fmt: skip


def prior_from_hps(hps: Mapping[str, Any]) -> presets.Prior:
    """The preset of a prior's hyperparameters (which include those of its VQ-VAE)."""
    h = _Hps(hps)
    for name in ("pos_init", "copy_input", "y_cond_as_bias"):
        h.refuse(name, "only False is supported")
    levels, downs, strides = _levels(h)
    level = h.integer("level", 0)
    if level >= levels:
        raise h.fail("level", level, f"the VQ-VAE has {levels} levels")
    if h.get("cond_levels") not in (None, (level + 1,), [level + 1]):
        raise h.fail("cond_levels", h.get("cond_levels"), "a prior is conditioned on the one level above")
    ratios = [stride**down for stride, down in zip(strides, downs, strict=True)]
    has_labels, top = h.flag("labels"), level == levels - 1
    context, tokens = h.integer("n_ctx"), h.integer("n_tokens", 0)
    merged = h.flag("single_enc_dec")
    separate = not merged and h.flag("use_tokens") and tokens > 0
    if (merged or separate) and not (has_labels and tokens):
        raise UserError("hyperparameters with lyrics (single_enc_dec or use_tokens) need labels and n_tokens")
    lyrics = None
    if merged or separate:
        h.refuse("prime_pos_init", "only False is supported")
        encoder = _transformer(h, "prime_", tokens) if separate else None
        kind = "separate" if separate else "merged"
        lyrics = presets.Lyrics(kind, tokens, h.integer("n_vocab"), h.number("prime_loss_fraction"), encoder)
    return presets.Prior(
        level=level, context_length=context, codebook_size=h.integer("l_bins"),
        hop_length=math.prod(ratios[: level + 1]),
        transformer=_transformer(h, "", context + (tokens if merged else 0)),
        tied_output=merged or not h.flag("merged_decoder"), upsampling=None if top else ratios[level + 1],
        conditioner=None if top else _conditioner(h, downs[level + 1], strides[level + 1]),
        labels=_labels(h, tokens, top) if has_labels else None, lyrics=lyrics,
        alignment_layer=h.optional("alignment_layer", lambda name: h.integer(name, 0)),
        alignment_head=h.optional("alignment_head", lambda name: h.integer(name, 0)),
    )  # fmt: skip


def _levels(h: _Hps) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    levels, downs, strides = h.integer("levels"), h.integers("downs_t", 0), h.integers("strides_t")
    if min(len(downs), len(strides)) < levels:
        raise h.fail("levels", levels, f"downs_t {downs} and strides_t {strides} must have as many")
    return levels, downs[:levels], strides[:levels]


def _transformer(h: _Hps, prefix: str, length: int) -> presets.Transformer:
    order = h.integer(f"{prefix}attn_order", 0)
    if order >= len(PATTERNS):
        raise h.fail(f"{prefix}attn_order", order, f"expected 0 to {len(PATTERNS) - 1}")
    own = "prime_" if prefix else "prior_"
    t = presets.Transformer(
        length=length, width=h.integer(f"{own}width"), depth=h.integer(f"{own}depth"),
        num_heads=h.integer(f"{prefix}heads"), num_blocks=h.optional(f"{prefix}blocks", h.integer),
        pattern=PATTERNS[order], attention_ratio=h.number(f"{prefix}m_attn"), mlp_ratio=h.number(f"{prefix}m_mlp"),
        spread=h.optional(f"{prefix}spread", h.integer), residual_scale=h.flag(f"{prefix}res_scale"),
        init_scale=h.number(f"{prefix}init_scale"), zero_init=h.flag(f"{prefix}zero_out"),
    )  # fmt: skip
    if t.num_blocks is None and order != 0:
        raise h.fail(f"{prefix}blocks", None, f"attn_order {order} needs blocks")
    if t.num_blocks and length % t.num_blocks:
        raise h.fail(f"{prefix}blocks", t.num_blocks, f"it must divide the length {length}")
    if t.attention_width < t.num_heads or t.attention_width % t.num_heads or t.mlp_dim < 1:
        raise h.fail(f"{prefix}heads", t.num_heads, f"it must divide the attention's width {t.attention_width}")
    if PATTERNS[order] == "block_spread" and t.spread is None:
        raise h.fail(f"{prefix}spread", None, f"attn_order {order} needs spread")
    return t


def _conditioner(h: _Hps, down_depth: int, stride: int) -> presets.Conditioner:
    return presets.Conditioner(
        width=h.integer("cond_width"), depth=h.integer("cond_depth"), down_depth=down_depth, stride=stride,
        hidden_ratio=h.number("cond_m_conv"), dilation_growth=h.integer("cond_dilation_growth_rate"),
        dilation_cycle=h.optional("cond_dilation_cycle", h.integer), residual_scale=h.flag("cond_res_scale"),
        zero_init=h.flag("cond_zero_out"),
    )  # fmt: skip


def _labels(h: _Hps, tokens: int, timing: bool) -> presets.Labels:
    bins = h.get("y_bins")
    if not isinstance(bins, (list, tuple)) or len(bins) != 2:
        raise h.fail("y_bins", bins, "labels need (genres, artists)")
    genres, artists = h.integers("y_bins")
    durations = [h.optional(name, h.number) for name in ("min_duration", "max_duration")]
    if timing and None in durations:
        raise h.fail("min_duration", durations, "a top prior with labels needs min_duration and max_duration")
    return presets.Labels(
        version="v3" if h.flag("labels_v3") else "v2", num_artists=artists, num_genres=genres,
        max_genres=h.integer("max_bow_genre_size"), num_lyric_tokens=tokens, time_bins=h.integer("t_bins"),
        min_duration=durations[0], max_duration=durations[1], sample_rate=h.integer("sr"),
    )  # fmt: skip


def _shown(value: Any) -> str:
    """A value for a message: a file can hold lists of any length and depth."""
    scalars = (str, int, float, bool, type(None))
    if isinstance(value, (list, tuple)) and len(value) <= 9 and all(isinstance(v, scalars) for v in value):
        return f"({', '.join(_shown(v) for v in value)})"
    return repr(value)[:80] if isinstance(value, scalars) else f"a {type(value).__name__}"
