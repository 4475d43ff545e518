"""Each attention kind against softmax over an explicit mask, and the gradient's exact support (spec/prior.md 4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax.ops.attention import KINDS, attend
from jukebox_jax.types import UserError

N, C, HEADS, DIM = 4, 6, 2, 3
T, PREFIX, SPREAD, LYRICS = N * C, 9, 2, 5


def may_look(kind: str) -> tuple[np.ndarray, int]:
    """Mask (queries, keys), and how many zero keys stand beside them."""
    p, j = np.arange(T)[:, None], np.arange(T)[None]
    ends = (j % C >= C - (SPREAD if kind == "spread" else 1)) & (j < (N - 1) * C) & (j <= p)
    return {
        "dense": (j <= p, 0),
        "block": ((j // C == p // C) & (j <= p), 0),
        "column": ((j % C == p % C) & (j <= p), 0),
        "previous": (j // C == p // C - 1, 0),
        "summary": (ends, 1),
        "spread": (ends, SPREAD),
        "lyrics": (np.ones((T, LYRICS), bool), 0),
        "prime": ((j <= p) & (j < PREFIX), 0),
    }[kind]


def oracle(kind, q, k, v):
    mask, zeros = may_look(kind)
    split = lambda x: np.asarray(x).reshape(*x.shape[:2], HEADS, DIM)  # noqa: E731
    scores = np.einsum("bphk,bjhk->bhpj", split(q), split(k)) * DIM**-0.5
    e = np.where(mask, np.exp(scores), 0.0)
    total = e.sum(-1, keepdims=True) + zeros  # a zero key has score 0
    p = np.divide(e, total, out=np.zeros_like(e), where=total > 0)
    return np.einsum("bhpj,bjhk->bphk", p, split(v)).reshape(q.shape)


def inputs(kind):
    rng = np.random.default_rng(0)
    keys = LYRICS if kind == "lyrics" else T
    return [jnp.asarray(rng.normal(size=(2, length, HEADS * DIM)), jnp.float32) for length in (T, keys, keys)]


def run(kind, q, k, v):
    return attend(kind, q, k, v, num_heads=HEADS, num_blocks=N, prefix=PREFIX, spread=SPREAD, implementation="xla")


@pytest.mark.parametrize("kind", KINDS)
def test_equals_softmax_over_the_mask(kind):
    q, k, v = inputs(kind)
    np.testing.assert_allclose(run(kind, q, k, v), oracle(kind, q, k, v), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_exactly_the_visible_keys(kind):
    q, k, v = (x[:1] for x in inputs(kind))
    support = jax.vmap(lambda p: jnp.abs(jax.grad(lambda v: run(kind, q, k, v)[0, p].sum())(v)[0]).sum(-1))(
        jnp.arange(T)
    )
    np.testing.assert_array_equal(np.asarray(support) > 0, may_look(kind)[0])


def test_first_block_of_previous_attention_is_zero():
    q, k, v = inputs("previous")
    assert not np.asarray(run("previous", q, k, v))[:, :C].any()


def test_bad_arguments_are_named():
    q, k, v = inputs("block")
    with pytest.raises(UserError, match="divides 24 positions, not 5"):
        attend("block", q, k, v, num_heads=HEADS, num_blocks=5)
    with pytest.raises(UserError, match="Did you mean 'block'"):
        attend("blok", q, k, v, num_heads=HEADS, num_blocks=4)
