"""Window arithmetic against the original's tables, and its mended surprises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, strategies

from jukebox_jax.sample import windows
from jukebox_jax.sample.windows import Window
from jukebox_jax.types import UserError

TABLES = json.loads((Path(__file__).parents[1] / "golden" / "windows" / "windows.json").read_text())


@pytest.mark.parametrize("case", TABLES["get_starts"], ids=str)
def test_starts_are_the_originals(case: dict) -> None:
    assert windows.starts(case["total_length"], case["n_ctx"], case["hop_length"]) == case["starts"]


@pytest.mark.parametrize("case", TABLES["split_chunks"], ids=str)
def test_splits_are_the_originals(case: dict) -> None:
    assert windows.split(case["length"], case["chunk_size"]) == case["chunks"]


@given(
    known=strategies.integers(0, 300), total=strategies.integers(0, 300), context=strategies.integers(1, 80),
    hop=strategies.integers(1, 80), compat=strategies.booleans(),
)  # fmt: skip
def test_windows_draw_every_missing_code_once(known: int, total: int, context: int, hop: int, compat: bool) -> None:
    hop = min(hop, context)
    plan = windows.plan(known, total, context, hop, compat=compat)
    at = known
    for window in plan:
        assert 0 <= window.start <= window.given == at < window.end <= window.start + context
        at = window.end
    wanted = known + total if compat and total < context else max(known, total)
    assert at == wanted


def test_hops_are_whole_codes_of_the_level_above() -> None:
    assert windows.hop_length(0.1, 8192, 4) == 816
    assert windows.hop_length(0.1, 8192, 4, compat=True) == 819
    assert windows.hop_length(0.125, 8192, None) == 1024
    assert windows.hop_length(1.0, 64, 4) == 64


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, 0.01])
def test_hops_outside_the_context_are_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="hop fraction"):
        windows.hop_length(fraction, 64, 4)


def test_short_levels_are_one_window() -> None:
    assert windows.plan(500, 6890, 8192, 1024) == [Window(0, 500, 6890)]
    assert windows.plan(500, 6890, 8192, 1024, compat=True) == [Window(0, 500, 7390)]
    assert windows.plan(4134, 6890, 8192, 1024, compat=True) == [Window(2832, 4134, 11024)]
    assert windows.plan(7000, 6890, 8192, 1024) == []


def test_extensions_keep_as_much_past_as_fits() -> None:
    assert windows.extension(0, 10, 32) == Window(0, 0, 10)
    assert windows.extension(26, 12, 32) == Window(6, 26, 38)
    with pytest.raises(UserError, match="32, the context length"):
        windows.extension(0, 33, 32)


def test_prompts_are_whole_codes_of_the_top() -> None:
    assert windows.prompt_samples(12.0, 44100, 128) == 529152
