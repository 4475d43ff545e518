"""Filters against the original's, and draws that depend on their own row alone."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax.ops import logits as ops
from jukebox_jax.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "filter_logits"
DATA = dict(np.load(GOLDEN / "data.npz"))
HPS = json.loads((GOLDEN / "hps.json").read_text())


@pytest.mark.parametrize("top_k", HPS["top_k"])
def test_top_k_is_the_original(top_k: int) -> None:
    actual = jax.jit(ops.filter_top_k, static_argnums=1)(jnp.asarray(DATA["logits"]), top_k)
    np.testing.assert_array_equal(actual, DATA[f"top_k_{top_k}"])


@pytest.mark.parametrize("index", range(len(HPS["top_p"])))
def test_top_p_is_the_original(index: int) -> None:
    rows = jnp.asarray(DATA["logits"][DATA["top_p_rows"]])
    actual = jax.jit(ops.filter_top_p, static_argnums=1)(rows, HPS["top_p"][index])
    np.testing.assert_array_equal(actual, DATA[f"top_p_{index}"])


def test_top_p_keeps_the_first_and_its_equals() -> None:
    row = jnp.log(jnp.asarray([0.2, 0.3, 0.3, 0.2]))
    np.testing.assert_array_equal(jnp.isfinite(ops.filter_top_p(row, 0.1)), [False, True, True, False])
    np.testing.assert_array_equal(jnp.isfinite(ops.filter_top_p(row, 0.7)), [True] * 4)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.8}])
def test_a_row_is_drawn_from_its_key_and_logits_alone(settings: dict) -> None:
    logits = 3 * jax.random.normal(jax.random.key(0), (6, 50))
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(6))
    together = ops.sample(keys, logits, **settings)
    order = np.array([4, 1, 3])
    np.testing.assert_array_equal(ops.sample(keys[order], logits[order], **settings), together[order])
    assert len(set(together.tolist())) > 1


def test_draws_follow_the_filtered_distribution() -> None:
    count = 20_000
    logits = jnp.log(jnp.asarray([0.1, 0.2, 0.3, 0.4]))
    keys = jax.random.split(jax.random.key(2), count)
    codes = np.asarray(ops.sample(keys, jnp.tile(logits, (count, 1)), temperature=0.5, top_k=3))
    expected = np.array([0, 4, 9, 16]) / 29  # squares of the kept probabilities
    np.testing.assert_allclose(np.bincount(codes, minlength=4) / count, expected, atol=0.012)  # over 3 standard errors


@pytest.mark.parametrize("greedy", [{"temperature": 0.0}, {"top_k": 1}])
def test_greedy_takes_the_most_likely(greedy: dict) -> None:
    logits = jax.random.normal(jax.random.key(3), (5, 20))
    actual = ops.sample(jax.random.split(jax.random.key(4), 5), logits, **greedy)
    np.testing.assert_array_equal(actual, jnp.argmax(logits, -1))
    assert actual.dtype == jnp.int32


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 1.5}, {"top_k": 5, "top_p": 0.9}],
)
def test_settings_outside_their_range_are_refused(bad: dict) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        ops.Settings(**bad)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_noise_is_jax_s_own(impl: str) -> None:
    keys = jax.random.split(jax.random.key(7, impl=impl), (2, 3))
    expected = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (1025,))))(keys)
    np.testing.assert_array_equal(jax.jit(ops.noise, static_argnums=(1, 2))(keys, 1025, True), expected)
