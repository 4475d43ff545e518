"""Attention patterns against the tables of spec/prior.md section 5, and the folding of layers into segments."""

from __future__ import annotations

import pytest

from jukebox_jax.models.pattern import PATTERNS, Kind, layer_kinds, locate, segments
from jukebox_jax.types import UserError

ORDER = (Kind.DENSE, Kind.BLOCK, Kind.COLUMN, Kind.PREVIOUS, Kind.SUMMARY, Kind.SPREAD, Kind.LYRICS, Kind.PRIME)
DIGIT = {kind: str(i) for i, kind in enumerate(ORDER)}
LAYERS_0_TO_78 = {
    "factored": "1231231231231231231231231231231231231231231231231231231231231231231231231231231",
    "factored_lyrics_10": "1231231236123123123612312312361231231236123123123612312312361231231236123123123",
    "factored_lyrics": "1231231231231231236123123123612312312361231231236123123123612312312361231231236",
    "factored_lyrics_dense": "1231231231231236231231231231231631231231231231201231231231231236231231231231231",
    "factored_prime": "1231231231231237231231231231231731231231231231201231231231231237231231231231231",
}


@pytest.mark.parametrize("pattern", LAYERS_0_TO_78)
def test_layers_follow_the_published_tables(pattern):
    assert "".join(DIGIT[k] for k in layer_kinds(pattern, 79)) == LAYERS_0_TO_78[pattern]


def test_special_layers_of_the_released_models():
    lyrics = [i for i, k in enumerate(layer_kinds("factored_lyrics", 79)) if k is Kind.LYRICS]
    assert lyrics == [18, 28, 38, 48, 58, 68, 78]
    kinds = layer_kinds("factored_prime", 72)
    assert [i for i, k in enumerate(kinds) if k is Kind.PRIME] == [15, 31, 63]
    assert [i for i, k in enumerate(kinds) if k is Kind.DENSE] == [47]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("depth", [1, 2, 9, 16, 50, 72, 79])
def test_segments_unfold_to_the_layers(pattern, depth):
    folded = segments(pattern, depth)
    unfolded = tuple(kind for kinds, repeats in folded for _ in range(repeats) for kind in kinds)
    assert unfolded == layer_kinds(pattern, depth)
    for layer, kind in enumerate(unfolded):
        segment, repeat, place = locate(pattern, depth, layer)
        assert repeat < folded[segment].repeats
        assert folded[segment].kinds[place] is kind


def test_few_bodies_compile():
    assert segments("factored", 72) == (((Kind.BLOCK, Kind.COLUMN, Kind.PREVIOUS), 24),)
    assert sum(len(kinds) for kinds, _ in segments("factored_lyrics", 79)) == 13
    assert sum(len(kinds) for kinds, _ in segments("factored_prime", 72)) <= 21


def test_layers_outside_are_refused():
    with pytest.raises(IndexError, match="layer 9"):
        locate("factored", 9, 9)
    with pytest.raises(UserError, match="unknown attention pattern 'factord'"):
        segments("factord", 3)
