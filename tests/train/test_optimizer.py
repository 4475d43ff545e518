"""The optimiser against the formulas of spec/training.md section 3 in float64, the schedules and the weight average."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax import config, presets
from jukebox_jax.train.optimizer import Options, adam, ema_decay, global_norm, learning_rate, update_ema

OPTIONS = Options(**config.prior(presets.PRIOR_5B).optimizer.to_dict())


def reference(params, gradients, options: Options, rates):
    """Adam as the original computes it, one flat float64 vector."""
    p, m, v = params.astype(np.float64), np.zeros_like(params, np.float64), np.zeros_like(params, np.float64)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        g = g.astype(np.float64)
        g = g / max(1.0, np.linalg.norm(g) / options.clip_norm)
        m = options.beta1 * m + (1 - options.beta1) * g
        v = options.beta2 * v + (1 - options.beta2) * g * g
        step = rate * math.sqrt(1 - options.beta2**t) / (1 - options.beta1**t)
        p = p - step * (m / (np.sqrt(v) + options.eps) + options.weight_decay * p)
    return p


@pytest.mark.parametrize(("eps", "decay", "scale"), [(1e-8, 0.0, 1e-3), (1e-2, 0.3, 1.0), (1e-8, 0.01, 1e3)])
def test_adam_is_the_originals(eps: float, decay: float, scale: float):
    rng = np.random.default_rng(0)
    options = dataclasses.replace(OPTIONS, eps=eps, weight_decay=decay, learning_rate=0.05, warmup_steps=3.0)
    start, grads = rng.normal(size=24).astype(np.float32), (rng.normal(size=(9, 24)) * scale).astype(np.float32)
    rates = [0.05 * min(1, t / 3) for t in range(9)]
    params = {"a": jnp.array(start[:4]), "b": {"c": jnp.array(start[4:]).reshape(4, 5)}}
    transform = adam(options)
    state = transform.init(params)
    update = jax.jit(transform.update)
    for g, rate in zip(grads, rates, strict=True):
        grad = {"a": jnp.array(g[:4]), "b": {"c": jnp.array(g[4:]).reshape(4, 5)}}
        updates, state = update(grad, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        np.testing.assert_allclose(state.grad_norm, np.linalg.norm(g), rtol=1e-6)
        np.testing.assert_allclose(state.learning_rate, rate, rtol=1e-6)
    result = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])
    np.testing.assert_allclose(result, reference(start, grads, options, rates), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 50.0])
def test_a_bad_batch_changes_nothing_and_is_not_counted(bad: float):
    transform = adam(dataclasses.replace(OPTIONS, ignore_grad_norm=10.0, warmup_steps=0.0))
    params = {"w": jnp.ones(3)}
    _, state = transform.update({"w": jnp.ones(3)}, transform.init(params), params)
    updates, after = transform.update({"w": jnp.array([1.0, bad, 1.0])}, state, params)
    assert not np.any(updates["w"]) and after.count == state.count == 1
    np.testing.assert_array_equal(after.mean["w"], state.mean["w"])
    np.testing.assert_array_equal(after.variance["w"], state.variance["w"])
    assert not after.grad_norm <= 10


def test_schedules():
    def rates(**changes):
        options = dataclasses.replace(OPTIONS, learning_rate=1.0, warmup_steps=4.0, **changes)
        return [float(learning_rate(options, jnp.int32(s))) for s in range(12)]

    warm = [0, 0.25, 0.5, 0.75]
    np.testing.assert_allclose(rates(), warm + [1] * 8)
    np.testing.assert_allclose(
        rates(decay_steps=5.0, decay_factor=0.5), warm + [1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    )
    linear = rates(decay="linear", decay_start=6.0, decay_steps=4.0)
    np.testing.assert_allclose(linear, warm + [1, 1, 1, 0.75, 0.5, 0.25, 0, 0])
    assert dataclasses.replace(OPTIONS, decay="linear", decay_start=6.0, decay_steps=4.0).last_step == 10
    assert float(learning_rate(dataclasses.replace(OPTIONS, warmup_steps=0.0), jnp.int32(0))) == pytest.approx(3e-4)


def test_weight_average():
    values = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    plain = every = {"w": jnp.zeros(5)}
    for count, value in enumerate(values, 1):
        params = {"w": jnp.array(value)}
        plain = update_ema(plain, params, jnp.int32(count), 0.6)
        every = update_ema(every, params, jnp.int32(count), 0.6, every=2)
    expected, expected_every = np.zeros(5), np.zeros(5)
    for count, value in enumerate(values, 1):
        expected = 0.6 * expected + 0.4 * value
        if count % 2 == 0:
            expected_every = 0.36 * expected_every + 0.64 * value
    np.testing.assert_allclose(plain["w"], expected, rtol=1e-5)
    np.testing.assert_allclose(every["w"], expected_every, rtol=1e-5)


def test_the_norm_is_over_all_leaves():
    tree = {"a": jnp.full((2, 2), 3.0), "b": jnp.array([8.0])}
    assert float(global_norm(tree)) == 10.0
    assert ema_decay(32) == pytest.approx(0.996) and ema_decay(512) == pytest.approx(0.936) and ema_decay(8, 0.9) == 0.9
