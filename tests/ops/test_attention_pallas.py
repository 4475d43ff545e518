"""Kernels against a dense-mask oracle, forward and gradient; what they may see; what they refuse; that they lower."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jukebox_jax.ops import attention_pallas, attention_xla
from jukebox_jax.ops.attention_pallas_tpu import Problem, head_windows, make_plan

KINDS = attention_pallas.KINDS
PLATFORMS = ("tpu", "gpu")
# Heads and head dimension of 5B, the upsamplers, 1B with lyrics, the lyrics encoder; few blocks.
LAYOUTS = {"5b": (3, 16, 8, 150), "upsampler": (4, 8, 1, 480), "1b": (2, 13, 2, 256), "lyrics": (4, 16, 4, 80)}


def mask(kind: str, n: int, c: int) -> np.ndarray:
    """Which of t positions each of t positions sees."""
    block, offset = np.divmod(np.arange(n * c), c)
    query, key = (block[:, None], offset[:, None]), (block[None], offset[None])
    if kind == "block":
        return (query[0] == key[0]) & (query[1] >= key[1])
    if kind == "column":
        return (query[1] == key[1]) & (query[0] >= key[0])
    return query[0] == key[0] + 1


def dense(kind: str, num_heads: int, q, k, v):
    """The oracle: every score of the stream, most of them masked."""
    b, n, c, s = q.shape
    q, k, v = (x.astype(jnp.float32).reshape(b, n * c, num_heads, -1) for x in (q, k, v))
    seen = mask(kind, n, c)
    scores = jnp.where(seen, jnp.einsum("bqhk,bshk->bhqs", q, k) * q.shape[-1] ** -0.5, -jnp.inf)
    weights = jnp.where(seen.any(1)[:, None], jax.nn.softmax(jnp.where(seen.any(1)[:, None], scores, 0.0)), 0.0)
    return jnp.einsum("bhqs,bshk->bqhk", weights, v).reshape(b, n, c, s)


def kernel(kind: str, num_heads: int, platform: str, **options):
    return functools.partial(
        attention_pallas.factored_attention,
        kind=kind, num_heads=num_heads, platform=platform, interpret=True, **options,
    )  # fmt: skip


def draw(shape: tuple[int, ...], dtype=jnp.float32, seed: int = 0, count: int = 4) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(count)]


def agree(actual, expected, tolerance: float) -> None:
    """Within ``tolerance`` of the largest expected value."""
    for a, e in zip(actual, expected, strict=True):
        a, e = (np.asarray(x, np.float32) for x in (a, e))
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(1.0, float(np.abs(e).max())))


def with_gradients(function, q, k, v, do):
    """``(o, dq, dk, dv)``, compiled quickly rather than well."""

    def both(q, k, v, do):
        o, pull = jax.vjp(function, q, k, v)
        return o, *pull(do.astype(o.dtype))

    return jax.jit(both, compiler_options={"xla_backend_optimization_level": 0})(q, k, v, do)


def check(kind: str, platform: str, shape, num_heads: int, dtype, tolerance: float, seed: int = 0) -> None:
    operands = draw(shape, dtype, seed)
    ours = with_gradients(kernel(kind, num_heads, platform), *operands)
    oracle = with_gradients(functools.partial(dense, kind, num_heads), *operands)
    assert all(x.dtype == dtype and x.shape == shape for x in ours)
    agree(ours, oracle, tolerance)


@pytest.mark.parametrize("platform", PLATFORMS)
@settings(max_examples=5)
@given(
    kind=st.sampled_from(KINDS),
    b=st.integers(1, 2),
    n=st.integers(2, 9),
    c=st.integers(1, 13),
    num_heads=st.sampled_from((1, 3)),
    head_dim=st.sampled_from((1, 6, 50)),
    dtype=st.sampled_from((jnp.float32, jnp.bfloat16)),
    seed=st.integers(0, 99),
)
def test_any_shape_is_the_oracle(platform, kind, b, n, c, num_heads, head_dim, dtype, seed):
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    check(kind, platform, (b, n, c, num_heads * head_dim), num_heads, dtype, tolerance, seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_head_layouts_are_the_oracle(layout, kind):
    n, c, num_heads, head_dim = LAYOUTS[layout]
    # The heads of 5B share lane tiles, where the casts could go wrong too.
    dtype, tolerance = (jnp.bfloat16, 2e-2) if (layout, kind) == ("5b", "column") else (jnp.float32, 1e-5)
    check(kind, "tpu", (1, n, c, num_heads * head_dim), num_heads, dtype, tolerance)


@pytest.mark.parametrize(("layout", "kind"), [("5b", "previous"), ("upsampler", "block"), ("1b", "column")])
def test_chunked_heads_are_the_oracle(layout, kind):
    n, c, num_heads, head_dim = LAYOUTS[layout]
    check(kind, "gpu", (1, n, c, num_heads * head_dim), num_heads, jnp.float32, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_several_grid_steps_are_xla(kind):
    """Steps of eight blocks (offsets), so that windows of PREVIOUS cross steps and the last offsets are a part."""
    b, n, c, num_heads, width = 2, 24, 20, 2, 20
    assert make_plan((b, n, c, width), 4, Problem(kind, num_heads, c), True).group == 8
    operands = draw((b, n, c, width))
    definition = {
        "block": attention_xla.block,
        "column": attention_xla.column,
        "previous": attention_xla.previous_block,
    }

    def stream(q, k, v):
        q, k, v = (x.reshape(b, n * c, width) for x in (q, k, v))
        return definition[kind](q, k, v, num_heads=num_heads, num_blocks=n).reshape(b, n, c, width)

    agree(with_gradients(kernel(kind, num_heads, "tpu"), *operands), with_gradients(stream, *operands), 1e-5)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_first_block_of_previous_is_exactly_zero(platform):
    o, dq, dk, dv = with_gradients(kernel("previous", 2, platform), *draw((2, 16, 5, 12)))
    assert not o[:, 0].any() and not dq[:, 0].any()
    assert not dk[:, -1].any() and not dv[:, -1].any()
    assert o[:, 1:].all() and dq[:, 1:].any() and dk[:, :-1].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_gradients_reach_exactly_what_is_seen(platform, kind):
    n, c = 4, 3
    q, k, v = draw((1, n, c, 2), count=3)

    def outputs(k, v):
        return kernel(kind, 1, platform)(q, k, v)[0, :, :, 0].reshape(n * c)

    for gradient in jax.jacrev(outputs, argnums=(0, 1))(k, v):
        reached = np.abs(np.asarray(gradient)).reshape(n * c, n * c, 2).max(-1) > 0
        seen = mask(kind, n, c)
        if gradient.shape and kind != "previous":  # a single key's score has no gradient: its weight is 1
            alone = seen.sum(1) == 1
            reached, seen = reached[~alone], seen[~alone]
        np.testing.assert_array_equal(reached, seen)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_padding_is_not_seen(platform, kind):
    """Blocks of 5 stored as 8: the same outputs and gradients at the real positions, whatever the padding holds."""
    n, c, stored, num_heads, width = 9, 5, 8, 2, 12
    q, k, v, do = draw((2, n, stored, width))
    ours = with_gradients(kernel(kind, num_heads, platform, valid=c), q, k, v, do.at[:, :, c:].set(0.0))
    expected = with_gradients(kernel(kind, num_heads, platform), *(x[:, :, :c] for x in (q, k, v, do)))
    agree([x[:, :, :c] for x in ours], expected, 1e-5)
    assert all(not x[:, :, c:].any() for x in ours[2:])


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "num_heads", "platform", "part"),
    [
        ((1, 4, 8, 16), jnp.float16, "block", 2, "tpu", "float16"),
        ((1, 4, 8, 16), jnp.bfloat16, "dense", 2, "tpu", "dense"),
        ((1, 4, 8, 16), jnp.bfloat16, "block", 3, "tpu", "3 heads"),
        ((1, 4, 8, 16), jnp.bfloat16, "block", 2, "cpu", "cpu"),
        ((1, 1, 8, 16), jnp.bfloat16, "previous", 2, "tpu", "zero"),
        ((1, 4096, 64, 1200), jnp.bfloat16, "column", 8, "tpu", "VMEM"),
        ((1, 4, 256, 16), jnp.bfloat16, "block", 2, "gpu", "256 keys"),
    ],
)
def test_refusals_say_why(shape, dtype, kind, num_heads, platform, part):
    options = dict(kind=kind, num_heads=num_heads, platform=platform)
    assert part in (attention_pallas.refusal(shape, dtype, **options) or "")
    assert not attention_pallas.supported(shape, dtype, **options)
    x = jax.ShapeDtypeStruct(shape, dtype)
    with pytest.raises(ValueError, match=part):
        jax.eval_shape(functools.partial(attention_pallas.factored_attention, **options), x, x, x)


RELEASED = {
    "5b": (128, 64, 8, 150), "upsampler": (128, 64, 1, 480), "1b": (64, 104, 2, 256), "small": (64, 128, 1, 256),
    "lyrics": (32, 16, 4, 80),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", RELEASED)
def test_released_layers_lower_for_every_platform(model, kind):
    n, c, num_heads, head_dim = RELEASED[model]
    x = jax.ShapeDtypeStruct((2, n, c, num_heads * head_dim), jnp.bfloat16)
    for platform, target, call in (("tpu", "tpu", "tpu_custom_call"), ("gpu", "cuda", "triton")):
        attention = functools.partial(
            attention_pallas.factored_attention, kind=kind, num_heads=num_heads, platform=platform
        )
        both = jax.jit(lambda q, k, v, do, f=attention: jax.vjp(f, q, k, v)[1](do))
        text = both.trace(x, x, x, x).lower(lowering_platforms=(target,)).as_text()
        assert text.count(f"{kind}_attention_backward") >= 1 and call in text


def test_windows_are_whole_tiles_around_each_head():
    for num_heads, width in ((8, 1200), (1, 480), (2, 512), (4, 320), (2, 64)):
        windows = head_windows(num_heads, width)
        assert [(w.low, w.high) for w in windows] == [
            (h * width // num_heads, (h + 1) * width // num_heads) for h in range(num_heads)
        ]
        for w in windows:
            assert w.start % 128 == 0 and (w.stop % 128 == 0 or w.stop == width)
            assert w.start <= w.low < w.start + 128 and w.high <= w.stop < w.high + 128
