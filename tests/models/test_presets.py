"""Exact sizes of every released and README model (spec/models.md sections 3-5)."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

from jukebox_jax import presets
from jukebox_jax.models.prior import Prior
from jukebox_jax.types import UserError

PARAMETERS = {
    "upsampler_level_0": 981_298_176,
    "upsampler_level_1": 981_298_176,
    "prior_5b": 5_060_452_800,
    "prior_5b_lyrics": 5_640_506_800,
    "prior_1b_lyrics": 942_643_200,
    "small_prior": 160_814_080,
    "small_upsampler": 218_015_232,
    "small_labelled_prior": 162_170_880,
    "small_single_enc_dec_prior": 160_547_840,
    "small_sep_enc_dec_prior": 168_633_280,
}


def count(preset: presets.Prior) -> int:
    shapes = jax.eval_shape(lambda rng: Prior(preset).init(rng, method="initialise"), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize("name", presets.PRIORS)
def test_parameter_counts(name):
    assert count(presets.PRIORS[name]) == PARAMETERS[name]


def test_small_prior_on_the_released_vqvae():
    assert count(dataclasses.replace(presets.SMALL_PRIOR, codebook_size=2048)) == 161_862_656


def test_derived_sizes_of_the_released_models():
    assert presets.RELEASED_VQVAE.hop_lengths == (8, 32, 128)
    assert presets.SMALL_VQVAE.hop_lengths == (32, 256)
    windows = {name: presets.PRIORS[name].window_samples for name in PARAMETERS if not name.startswith("small")}
    assert windows == {
        "upsampler_level_0": 65_536, "upsampler_level_1": 262_144, "prior_5b": 1_048_576,
        "prior_5b_lyrics": 1_048_576, "prior_1b_lyrics": 786_432,
    }  # fmt: skip
    merged = presets.PRIOR_1B_LYRICS
    assert (merged.vocab_size, merged.transformer.block_length, merged.transformer.head_dim) == (2127, 102, 256)
    assert presets.PRIOR_5B_LYRICS.vocab_size == 2048
    assert presets.PRIOR_5B_LYRICS.labels.columns == 521


@pytest.mark.parametrize("preset", [*presets.PRIORS.values(), *presets.VQVAES.values()])
def test_presets_survive_json(preset):
    values = json.loads(json.dumps(dataclasses.asdict(preset)))
    assert presets.from_dict(type(preset), values) == preset


def test_a_misspelt_field_is_named():
    with pytest.raises(UserError, match="Did you mean 'codebook_size'"):
        presets.from_dict(presets.VQVAE, {"codebok_size": 3})
