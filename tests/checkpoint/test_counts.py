"""Tensors and elements of every checkpoint that the specification lists (models.md sections 4, 5 and 7)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.checkpoint import openai
from jukebox_jax.checkpoint.mapping import leaf_shapes
from jukebox_jax.checkpoint.source import MODELS, PRESETS

# name: unique parameters, elements of the state dict, tensors, bytes
RELEASED = {
    "vqvae": (1_485_763, 1_878_979, 669, 7_515_916),
    "upsampler_level_0": (981_298_176, 985_230_336, 1006, 3_940_921_344),
    "upsampler_level_1": (981_298_176, 985_230_336, 1006, 3_940_921_344),
    "prior_5b": (5_060_452_800, 5_060_452_800, 872, 10_288_531_200),
    "prior_5b_lyrics": (5_640_506_800, 5_640_506_800, 1194, 11_451_832_000),
    "prior_1b_lyrics": (942_643_200, 946_999_296, 872, 3_787_997_184),
}
SMALL = {
    "small_vqvae": 586_050,
    "small_prior": 160_814_080,
    "small_upsampler": 218_015_232,
    "small_labelled_prior": 162_170_880,
    "small_single_enc_dec_prior": 160_547_840,
    "small_sep_enc_dec_prior": 168_633_280,
}
HALF = ("prior_5b", "prior_5b_lyrics")  # whose Conv1D.w are fp16 in the released files


def entries(name):
    preset = PRESETS[name]
    return openai.vqvae_entries(preset) if isinstance(preset, presets.VQVAE) else openai.prior_entries(preset)


def unique(table):
    return sum(entry.size for entry in table if entry.parts and entry.parts[0].path[0] == "params")


@pytest.mark.parametrize("name", RELEASED)
def test_released(name):
    table, (parameters, elements, tensors, size) = entries(name), RELEASED[name]
    assert unique(table) == parameters
    assert sum(entry.size for entry in table) == elements
    assert len(table) == len({entry.name for entry in table}) == tensors
    half = [entry for entry in table if entry.name.endswith(".w")] if name in HALF else []
    assert 4 * elements - 2 * sum(entry.size for entry in half) == size


@pytest.mark.parametrize("name", SMALL)
def test_small(name):
    assert unique(entries(name)) == SMALL[name]


def test_every_preset_is_counted():
    assert set(PRESETS) == {*RELEASED, *SMALL}
    assert {part for parts in MODELS.values() for part in parts} == set(RELEASED)


def test_breakdown_of_5b_lyrics():
    groups = {"y_emb": 22_152_000, "prime_prior": 89_411_200, "prime_state_proj": 6_148_800, "prime_state_ln": 9_600,
              "prime_x_out": 384_000, "prior": 5_522_401_200}  # fmt: skip
    found = dict.fromkeys(groups, 0)
    for entry in entries("prior_5b_lyrics"):
        found[entry.name.partition(".")[0]] += entry.size
    assert found == groups


def test_breakdown_of_an_upsampler():
    found = {"conditioner_blocks": 0, "y_emb": 0, "prior": 0}
    for entry in entries("upsampler_level_1"):
        found[entry.name.partition(".")[0]] += entry.size if not entry.same_as else 0
    assert found == {"conditioner_blocks": 156_180_096, "y_emb": 8_123_520, "prior": 816_994_560}


@pytest.mark.parametrize("name", PRESETS)
def test_every_element_goes_to_one_place(name):
    table = entries(name)
    leaves = leaf_shapes(table)
    assert sum(math.prod(shape) for shape in leaves.values()) == sum(e.size for e in table if e.parts)
    for entry in table:  # the parts of a tensor are its columns, side by side
        if len(entry.parts) > 1:
            spans = np.array([part.columns for part in entry.parts])
            assert spans[0, 0] == 0 and spans[-1, 1] == entry.shape[-1] and (spans[1:, 0] == spans[:-1, 1]).all()


@pytest.mark.parametrize(
    "model, name, shape",
    [
        ("vqvae", "encoders.0.level_blocks.0.model.0.0.weight", (64, 1, 4)),
        ("vqvae", "encoders.2.level_blocks.2.model.1.1.model.3.model.1.weight", (32, 32, 3)),
        ("vqvae", "encoders.1.level_blocks.0.model.3.weight", (64, 32, 3)),
        ("vqvae", "decoders.2.level_blocks.1.model.2.1.weight", (32, 64, 4)),
        ("vqvae", "decoders.0.level_blocks.0.model.1.0.model.7.model.3.bias", (64,)),
        ("vqvae", "decoders.2.out.weight", (1, 64, 3)),
        ("vqvae", "bottleneck.level_blocks.2.k", (2048, 64)),
        ("upsampler_level_0", "conditioner_blocks.0.cond.model.2.0.blocks.15.model.1.weight", (1024, 1024, 3)),
        ("upsampler_level_0", "conditioner_blocks.0.cond.model.2.1.weight", (1024, 1920, 4)),
        ("upsampler_level_0", "prior.transformer._attn_mods.71.attn.c_attn.w", (1920, 1440)),
        ("prior_5b", "y_emb.relative_pos_emb.emb.weight", (128, 4800)),
        ("prior_5b_lyrics", "prior.transformer._attn_mods.78.attn.c_enc_kv.w", (4800, 2400)),
        ("prior_5b_lyrics", "prior.transformer._attn_mods.68.attn.c_attn.w", (4800, 1200)),
        ("prior_5b_lyrics", "prime_prior.start_token", (1, 1280)),
        ("prior_1b_lyrics", "prior.x_out.weight", (2127, 2048)),
        ("prior_1b_lyrics", "prior.pos_emb.pos_emb", (6528, 2048)),
    ],
)
def test_shapes_of_the_tables(model, name, shape):
    assert {entry.name: entry.shape for entry in entries(model)}[name] == shape
