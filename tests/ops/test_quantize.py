"""Nearest codes against brute force, the moving average against a transcription in numpy, and draws from the data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jukebox_jax.ops import quantize

RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("shape", [(5,), (300,), (2, 301), (3, 1, 130)])
def test_nearest_is_the_nearest(shape: tuple[int, ...]) -> None:
    x, codebook = normal(*shape, 6), normal(37, 6)
    codes, distance = jax.jit(quantize.nearest_codes)(x, codebook)
    all_distances = np.square(np.asarray(x, np.float64)[..., None, :] - np.asarray(codebook, np.float64)).sum(-1)
    np.testing.assert_array_equal(codes, all_distances.argmin(-1))
    np.testing.assert_allclose(distance, all_distances.min(-1), rtol=1e-4, atol=1e-4)
    assert codes.dtype == jnp.int32


@pytest.mark.parametrize("argmin", [quantize._argmin, quantize._argmin_cpu])
def test_the_first_of_equals(argmin) -> None:
    """Integers: distances are exact, and many are equal."""
    x, codebook = (RNG.integers(0, 2, s).astype(np.float32) for s in ((40, 3), (30, 3)))
    codes, _ = quantize._nearest(jnp.asarray(x), jnp.asarray(codebook), rows=16, argmin=argmin)
    np.testing.assert_array_equal(codes, np.square(x[:, None] - codebook).sum(-1).argmin(-1))


@pytest.mark.parametrize("threshold", [0.0, 0.7, 100.0])
def test_update_is_the_moving_average(threshold: float) -> None:
    rows, size = 20, 12
    x, revival, codes = RNG.standard_normal((rows, 3)), RNG.standard_normal((size, 3)), RNG.integers(0, size, rows)
    old = RNG.standard_normal((size, 3)), RNG.standard_normal((size, 3)), RNG.uniform(0.1, 3, size)
    state = quantize.CodebookState(*(jnp.asarray(a, jnp.float32) for a in old))
    new, metrics = quantize.update(
        state, jnp.asarray(x, jnp.float32), jnp.asarray(codes), jnp.asarray(revival, jnp.float32), 0.9, threshold
    )
    hot = np.eye(size)[codes].T
    total, count = 0.9 * old[1] + 0.1 * hot @ x, 0.9 * old[2] + 0.1 * hot.sum(1)
    alive = count >= threshold
    book = np.where(alive[:, None], total / count[:, None], revival)
    for mine, theirs in zip(new, (book, total, count), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    share = hot.mean(1)
    assert metrics["usage"] == alive.sum() and metrics["used_curr"] == (hot.sum(1) >= threshold).sum()
    np.testing.assert_allclose(metrics["entropy"], -(share * np.log(share + 1e-8)).sum(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["dk"], np.sqrt(np.square(book - old[0]).mean()), rtol=1e-4)


def test_a_code_that_is_never_used_does_not_become_nan() -> None:
    """Its count and sum decay until they are flushed to 0 (spec/vqvae.md 2.5)."""
    state = quantize.init_codebook(normal(4, 2))
    first, x = state.codebook, normal(8, 2)
    codes, revival = jnp.zeros(8, jnp.int32), normal(4, 2)

    def run(threshold: float) -> quantize.CodebookState:
        step = lambda s, _: (quantize.update(s, x, codes, revival, 0.5, threshold)[0], None)  # noqa: E731
        return jax.jit(lambda s: jax.lax.scan(step, s, None, 400)[0])(state)

    kept, revived = run(0.0), run(1.0)
    assert float(kept.count[1]) == 0
    np.testing.assert_allclose(kept.codebook[1:], first[1:], rtol=1e-5)
    np.testing.assert_array_equal(revived.codebook[1:], revival[1:])


def test_candidates_are_distinct_rows() -> None:
    x = normal(100, 4)
    chosen = np.asarray(quantize.candidates(jax.random.key(0), x, 33))
    where = (chosen[:, None] == np.asarray(x)[None]).all(-1)
    assert where.sum() == 33 and where.sum(0).max() == 1
    again = np.asarray(quantize.candidates(jax.random.key(1), x, 33))
    assert (chosen != again).any()
    draw = jax.jit(jax.vmap(lambda rng: quantize.candidates(rng, jnp.arange(7.0)[:, None], 3)[:, 0]))
    counts = np.bincount(np.asarray(draw(jax.random.split(jax.random.key(2), 700)), int).ravel())
    assert counts.min() > 200 and counts.max() < 400  # no row is left out


def test_few_vectors_are_repeated_with_noise() -> None:
    x = normal(5, 4)
    chosen = np.asarray(quantize.candidates(jax.random.key(0), x, 12))
    offsets = chosen[:, None] - np.asarray(x)[None]
    nearest = np.abs(offsets).sum(-1).argmin(1)
    assert np.bincount(nearest, minlength=5).max() <= 3
    noise = offsets[np.arange(12), nearest]
    assert (noise != 0).all() and 0.002 < noise.std() < 0.01  # 0.01 / sqrt(4)


def test_restored_sums_count_no_batch() -> None:
    book = normal(8, 3)
    state = quantize.restore_state(book, 64, 4)
    np.testing.assert_array_equal(state.count, np.full(8, 64 * 4 / 8))
    np.testing.assert_array_equal(state.sum, 32 * book)


def test_vectors_on_eight_devices_are_one_batch() -> None:
    """The sums are over all devices, and the vectors are not gathered on each."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    x, size = normal(16, 64, 4), 8
    state = quantize.init_codebook(normal(size, 4))

    def step(x: jax.Array, rng: jax.Array):
        vectors = x.reshape(-1, 4)
        return quantize.training_step(state, vectors, quantize.draw(rng, vectors, size), 0.9, 1.0)

    rng = jax.random.key(0)
    alone = jax.jit(step)(x, rng)
    compiled = jax.jit(step).lower(jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))), rng).compile()
    together = compiled(jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))), rng)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert "f32[1024,4]" not in compiled.as_text() and "f32[16,64,4]" not in compiled.as_text()
