"""The original's hyperparameters -> presets: the released models exactly, defaults, and what is not supported."""

from __future__ import annotations

import pytest

from jukebox_jax import presets
from jukebox_jax.checkpoint.openai_hps import DEFAULTS, PATTERNS, prior_from_hps, vqvae_from_hps
from jukebox_jax.models import pattern
from jukebox_jax.types import UserError

# spec/models.md sections 2, 3 and 5
VQVAE = dict(
    levels=3, downs_t=(3, 2, 2), strides_t=(2, 2, 2), emb_width=64, l_bins=2048, l_mu=0.99, commit=0.02, spectral=0.0,
    multispectral=1.0, hvqvae_multipliers=(2, 1, 1), width=32, depth=4, m_conv=1.0, dilation_growth_rate=3,
    loss_fn="lmix", lmix_l2=1.0, lmix_linf=0.02,
)  # fmt: skip
SMALL_VQVAE = dict(
    sr=22050, levels=2, downs_t=(5, 3), strides_t=(2, 2), emb_width=64, l_bins=1024, l_mu=0.99, commit=0.02,
    multispectral=1.0, loss_fn="l2", width=32, depth=4, m_conv=1.0, dilation_growth_rate=3,
)  # fmt: skip
_LEVELS = dict(levels=3, downs_t=(3, 2, 2), strides_t=(2, 2, 2), l_bins=2048)
_V2 = dict(labels=True, y_bins=(120, 4111), t_bins=128, max_bow_genre_size=5, n_vocab=80)
_V3 = dict(labels=True, labels_v3=True, y_bins=(604, 7898), t_bins=64, max_bow_genre_size=1, n_vocab=79)
_UPSAMPLER = dict(
    **_LEVELS, **_V2, level=0, n_ctx=8192, prior_width=1920, prior_depth=72, heads=1, attn_order=2, blocks=128,
    init_scale=0.4, cond_width=1024, cond_depth=16, cond_dilation_growth_rate=3, cond_dilation_cycle=8, cond_c_res=1,
)  # fmt: skip
_5B = dict(
    **_LEVELS, **_V2, level=2, n_ctx=8192, prior_width=4800, prior_depth=72, heads=8, attn_order=2, blocks=128,
    init_scale=0.1, merged_decoder=True, min_duration=60.0, max_duration=600.0, fp16_params=True,
)  # fmt: skip
_SMALL = dict(n_ctx=8192, prior_width=1024, prior_depth=48, heads=1, attn_order=2, blocks=64, init_scale=0.7)
_SMALL_LABELS = dict(
    labels=True,
    labels_v3=True,
    y_bins=(10, 100),
    max_bow_genre_size=1,
    min_duration=60.0,
    max_duration=600.0,
    t_bins=64,
)
PRIORS = {
    "upsampler_level_0": _UPSAMPLER,
    "upsampler_level_1": {**_UPSAMPLER, "level": 1, "cond_res_scale": True},
    "prior_5b": _5B,
    "prior_5b_lyrics": {
        **_5B, "prior_depth": 79, "attn_order": 10, "use_tokens": True, "n_tokens": 512, "prime_loss_fraction": 0.4,
        "min_duration": 23.8, "alignment_layer": 68, "alignment_head": 2, "prime_width": 1280, "prime_depth": 18,
        "prime_heads": 4, "prime_attn_order": 2, "prime_blocks": 32, "prime_init_scale": 0.7,
    },
    "prior_1b_lyrics": dict(
        **_LEVELS, **_V3, level=2, n_ctx=6144, prior_width=2048, prior_depth=72, heads=2, attn_order=12, blocks=64,
        init_scale=0.2, use_tokens=True, n_tokens=384, prime_loss_fraction=0.4, single_enc_dec=True,
        min_duration=17.84, max_duration=600.0, alignment_layer=63, alignment_head=0,
    ),
    "small_prior": {**SMALL_VQVAE, **_SMALL, "level": 1, "labels": False},
    "small_upsampler": {
        **SMALL_VQVAE, **_SMALL, "level": 0, "labels": False, "cond_width": 512, "cond_depth": 16,
        "cond_dilation_growth_rate": 3, "cond_dilation_cycle": 8, "cond_c_res": 1,
    },
    "small_labelled_prior": {**_LEVELS, **_SMALL, **_SMALL_LABELS, "level": 2},
    "small_single_enc_dec_prior": {
        **_LEVELS, **_SMALL, **_SMALL_LABELS, "level": 2, "n_ctx": 6144, "heads": 2, "attn_order": 12, "n_tokens": 384,
        "n_vocab": 79, "prime_loss_fraction": 0.4, "single_enc_dec": True,
    },
    "small_sep_enc_dec_prior": {
        **_LEVELS, **_SMALL, **_SMALL_LABELS, "level": 2, "n_ctx": 6144, "prior_depth": 50, "heads": 2, "attn_order": 8,
        "n_tokens": 384, "n_vocab": 79, "use_tokens": True, "prime_loss_fraction": 0.4, "prime_width": 256,
        "prime_depth": 9, "prime_heads": 2, "prime_attn_order": 2, "prime_blocks": 32, "prime_init_scale": 0.7,
    },
}  # fmt: skip


DEEP: list = []  # nested as deep as a file can ask for
for _ in range(100_000):
    DEEP = [DEEP]


def test_vqvaes():
    assert vqvae_from_hps(VQVAE) == presets.RELEASED_VQVAE
    unused = dict(lmix_l2=1.0, lmix_linf=0.02)  # its loss is l2
    assert vqvae_from_hps({**SMALL_VQVAE, **unused}) == presets.SMALL_VQVAE


@pytest.mark.parametrize("name", presets.PRIORS)
def test_priors(name):
    """Every preset, from the hyperparameters that the specification lists for it. Lists do as well as tuples."""
    assert prior_from_hps(PRIORS[name]) == presets.PRIORS[name]
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in PRIORS[name].items()}
    assert prior_from_hps(lists) == presets.PRIORS[name]


def test_attn_order_is_the_position_in_the_list():
    assert PATTERNS == tuple(pattern.PATTERNS)
    for order, name in enumerate(PATTERNS):
        tops = {"n_tokens": 16, "use_tokens": True, "n_vocab": 9, **_SMALL_LABELS}
        found = prior_from_hps({"level": 1, "attn_order": order, "blocks": 4, "spread": 2, **tops})
        assert found.transformer.pattern == name


def test_defaults_are_the_originals():
    found = prior_from_hps({"level": 1, "labels": False})
    assert (found.context_length, found.codebook_size, found.hop_length) == (1024, 512, 4)
    assert found.transformer == presets.Transformer(1024, 128, 3, 1, None, "dense")
    small = vqvae_from_hps({})
    assert (small.down_depths, small.width, small.depth, small.commitment_weight) == ((1, 1), 128, 3, 1.0)
    assert set(PRIORS["prior_5b_lyrics"]) - set(DEFAULTS) == {"fp16_params"}


def test_what_only_training_uses_is_ignored():
    ignored = dict(attn_dropout=0.1, resid_dropout=0.2, emb_dropout=0.3, c_res=1, cond_c_res=0, lr=1.0, bandwidth={})
    assert prior_from_hps({**PRIORS["prior_5b"], **ignored}) == presets.PRIOR_5B


@pytest.mark.parametrize(
    "change, reason",
    [
        (dict(pos_init=True), "pos_init is True: only False"),
        (dict(copy_input=True), "copy_input"),
        (dict(y_cond_as_bias=True), "y_cond_as_bias"),
        (dict(prime_pos_init=True), "prime_pos_init"),
        (dict(attn_order=13), "attn_order is 13: expected 0 to 12"),
        (dict(attn_order=-1), "attn_order"),
        (dict(level=3), "the VQ-VAE has 3 levels"),
        (dict(levels=4), "must have as many"),
        (dict(cond_levels=[0]), "cond_levels"),
        (dict(blocks=None), "needs blocks"),
        (dict(blocks=7), "must divide the length 8192"),
        (dict(heads=7), "must divide the attention's width 1200"),
        (dict(attn_order=4), "needs spread"),
        (dict(y_bins=0), "labels need"),
        (dict(max_bow_genre_size=None), "max_bow_genre_size"),
        (dict(min_duration=None), "needs min_duration"),
        (dict(n_ctx="8192"), "n_ctx is '8192': expected an integer"),
        (dict(n_ctx=True), "n_ctx is True"),
        (dict(n_ctx=DEEP), "n_ctx is a list: expected"),
        (dict(cond_levels=DEEP), "cond_levels is a list"),
        (dict(y_bins=[DEEP, DEEP]), "y_bins is a list"),
        (dict(n_ctx=1 << 40), "n_ctx"),
        (dict(m_attn=float("nan")), "m_attn"),
        (dict(downs_t=[3, "2", 2]), "downs_t"),
        (dict(downs_t=3), "downs_t"),
        (dict(labels=[]), "labels is"),
        (dict(labels=False), "need labels and n_tokens"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_is_not_supported_is_named(change, reason):
    with pytest.raises(UserError, match=reason):
        prior_from_hps({**PRIORS["prior_5b_lyrics"], **change})


@pytest.mark.parametrize(
    "change, reason",
    [
        (dict(loss_fn="huber"), "loss_fn is 'huber': expected l1"),
        (dict(hvqvae_multipliers=[2, 1]), "one per level"),
        (dict(multispec_loss_n_fft=[1024]), "as many"),
        (dict(strides_t=(2, 2)), "must have as many"),
        (dict(width=0), "width"),
    ],
)
def test_vqvae_settings(change, reason):
    with pytest.raises(UserError, match=reason):
        vqvae_from_hps({**VQVAE, **change})
