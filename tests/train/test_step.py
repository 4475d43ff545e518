"""The step on a task that a person can check: accumulation, bad batches, random numbers, donation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax import config, presets
from jukebox_jax.parallel.mesh import abstract_mesh, make_mesh, use
from jukebox_jax.train import state as states
from jukebox_jax.train.experiment import from_config
from jukebox_jax.train.optimizer import Options, adam, global_norm
from jukebox_jax.train.step import by_array, make_step, make_update, parts_of_batch

OPTIONS = dataclasses.replace(
    Options(**config.vqvae(presets.SMALL_VQVAE).optimizer.to_dict()), warmup_steps=0.0, learning_rate=0.1
)
RNG = jax.random.key(0)


def init(rng: jax.Array) -> dict:
    return {"params": {"embedding": jax.random.normal(rng, (8, 4))}, "seen": jnp.zeros(())}


def loss(params, model_state, frozen, batch, rng):
    """Mean squared error of rows to their targets; counts rows; reports its random number."""
    error = params["embedding"][batch["row"]] * frozen - batch["target"]
    value = jnp.mean(jnp.square(error))
    model_state = {"seen": model_state["seen"] + batch["row"].size}
    return value, ({"drawn": jax.random.uniform(rng), "mean": jnp.mean(batch["target"])}, model_state)


def batch_of(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {"row": jnp.array(rng.integers(0, 8, 16)), "target": jnp.array(rng.normal(size=(16, 4)), jnp.float32)}


def start(options: Options = OPTIONS):
    transform = adam(options)
    return transform, states.create(init(RNG), transform)


def test_accumulated_parts_average_to_the_whole_batch():
    transform, state = start()
    whole, whole_metrics = jax.jit(make_step(loss, transform, ema_decay=0.9))(state, 2.0, batch_of(1), RNG)
    parts, metrics = jax.jit(make_step(loss, transform, ema_decay=0.9, accumulate=4))(state, 2.0, batch_of(1), RNG)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, parts)
    assert whole.model_state["seen"] == 16
    for name in ("loss", "mean", "grad_norm", "learning_rate"):
        np.testing.assert_allclose(metrics[name], whole_metrics[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [1.0, np.nan, np.inf])
def test_arrays_one_by_one_are_updated_like_all_together(value: float):
    """Also where the loss or a gradient is not finite."""
    options = dataclasses.replace(OPTIONS, clip_norm=0.5, weight_decay=0.1)
    rng = np.random.default_rng(0)
    params = {"a": {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}, "b": rng.normal(size=2)}
    params = jax.tree.map(jnp.float32, params)
    transform = adam(options)
    update = make_update(transform, ema_decay=0.9, ema_every=2)

    def run(step, finite: bool):
        state, reports = states.create({"params": jax.tree.map(jnp.copy, params), "seen": jnp.zeros(())}, transform), []
        for i in range(4):
            grads = jax.tree.map(lambda p, i=i: jnp.sin(p + i), params)
            if i == 2 and not finite:
                grads["b"] = grads["b"].at[0].set(jnp.nan)
            found = (jnp.float32(value if i == 1 else 1.0), ({"x": jnp.float32(i)}, {"seen": jnp.float32(i)})), grads
            state, report = step(state, found, global_norm(grads))
            reports.append(report)
        return state, reports

    for finite in (True, False):
        expected = run(jax.jit(lambda state, found, norm: update(state, found)), finite)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), run(by_array(update), finite), expected
        )
        assert int(expected[0].optimizer.count) == 4 - (not np.isfinite(value)) - (not finite)


def test_a_batch_that_is_not_finite_changes_only_the_step_number():
    transform, state = start()
    step = jax.jit(make_step(loss, transform, ema_decay=0.9))
    state, _ = step(state, 2.0, batch_of(1), RNG)
    bad = batch_of(2)
    bad["target"] = bad["target"].at[3, 1].set(jnp.nan)
    after, metrics = step(state, 2.0, bad, RNG)
    assert not np.isfinite(metrics["loss"]) and after.step == 2 and after.optimizer.count == 1
    kept = after._replace(step=state.step, optimizer=after.optimizer._replace(grad_norm=state.optimizer.grad_norm))
    jax.tree.map(np.testing.assert_array_equal, kept, state)


def test_a_batch_above_ignore_grad_norm_is_skipped_and_not_averaged():
    transform, state = start(dataclasses.replace(OPTIONS, ignore_grad_norm=1e-3))
    after, metrics = jax.jit(make_step(loss, transform, ema_decay=0.5))(state, 2.0, batch_of(1), RNG)
    assert metrics["grad_norm"] > 1e-3 and after.optimizer.count == 0
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.ema), (state.params, state.ema))
    assert after.model_state["seen"] == 16  # the forward pass did happen


def test_random_numbers_depend_on_seed_and_step_alone():
    transform, state = start()
    step = jax.jit(make_step(loss, transform, ema_decay=0.9))
    second, first_metrics = step(state, 2.0, batch_of(1), RNG)
    _, second_metrics = step(second, 2.0, batch_of(1), RNG)
    _, again = step(second, 2.0, batch_of(3), RNG)
    assert first_metrics["drawn"] != second_metrics["drawn"] == again["drawn"]


def test_average_follows_the_weights():
    transform, state = start()
    after, _ = jax.jit(make_step(loss, transform, ema_decay=0.9))(state, 2.0, batch_of(1), RNG)
    expected = 0.9 * state.params["embedding"] + 0.1 * after.params["embedding"]
    np.testing.assert_allclose(after.ema["embedding"], expected, rtol=1e-6)
    assert states.variables(after)["params"] is after.ema
    assert states.variables(after, averaged=False)["params"] is after.params


@pytest.mark.parametrize("shape", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_the_state_is_made_in_its_place_and_donated(shape: dict):
    transform, mesh = adam(OPTIONS), make_mesh(shape)
    where = states.placed(states.abstract(init, transform, RNG), mesh)
    state = states.initialize(init, transform, RNG, where)
    assert all(jax.tree.leaves(jax.tree.map(lambda leaf, place: leaf.sharding == place.sharding, state, where)))
    tables = (state.params, state.ema, state.optimizer.mean, state.optimizer.variance)
    if "tensor" in shape:
        assert {t["embedding"].sharding.spec for t in tables} == {jax.P("tensor", "fsdp")}
        assert state.params["embedding"].addressable_shards[0].data.shape == (4, 2)
    _, plain = start()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, plain)
    step = jax.jit(
        make_step(loss, transform, ema_decay=0.9), donate_argnums=0, out_shardings=(states.shardings(where), None)
    )
    after, _ = step(state, 2.0, batch_of(1), RNG)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(tables))
    expected, _ = jax.jit(make_step(loss, transform, ema_decay=0.9))(plain, 2.0, batch_of(1), RNG)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after, expected)


def test_a_cpu_takes_a_prior_in_parts_that_fit_its_cache():
    def experiment_of(width: int, **changes):
        transformer = presets.Transformer(2048, width, 2, 1, 32, "factored")
        c = config.prior(presets.Prior(0, 2048, 64, 8, transformer))
        c.update({"batch_size": 8, **changes})
        return from_config(c.to_dict())

    mesh, two = (make_mesh({"data": n}, jax.devices()[:n]) for n in (1, 2))
    assert parts_of_batch(experiment_of(512), mesh) == 8
    assert parts_of_batch(experiment_of(512), two) == 4
    assert parts_of_batch(experiment_of(512, accumulate=2), mesh) == 8
    assert parts_of_batch(experiment_of(1024), mesh) == 8
    assert parts_of_batch(experiment_of(128), mesh) == 2
    assert parts_of_batch(experiment_of(16), mesh) == 1
    with use(abstract_mesh({"data": 1}, 1, "tpu")):
        assert parts_of_batch(experiment_of(512, accumulate=2), mesh) == 2
    vqvae = config.vqvae(presets.SMALL_VQVAE)
    assert parts_of_batch(from_config(vqvae.to_dict()), mesh) == 1
