"""Training checkpoints: the interval, what is kept, exact resumption into shardings, and a readable mismatch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jukebox_jax.checkpoint import manager as m
from jukebox_jax.types import UserError


def state_at(step: int, width: int = 8):
    params = {"w": jnp.full((width, 2), float(step)), "b": jnp.arange(3.0)}
    return {
        "params": params,
        "opt": optax.adam(1e-3).init(params),
        "rng": jax.random.key(step),
        "step": jnp.int32(step),
    }


def abstract(state, sharding):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)


def raw(tree):
    return jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)


def test_interval_retention_and_exact_resume(tmp_path):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.NamedSharding(mesh, jax.P())
    with m.make_manager(tmp_path, save_every=2, keep=2) as manager:
        assert m.restore_latest(manager, abstract(state_at(0), whole)) is None
        assert [m.save(manager, step, state_at(step)) for step in range(7)] == [True, False] * 3 + [True]
        assert m.save(manager, 7, state_at(7), force=True)
        assert not m.save(manager, 7, state_at(7), force=True)  # already there
    with m.make_manager(tmp_path, save_every=2, keep=2) as manager:
        assert manager.all_steps() == [6, 7]
        target = abstract(state_at(0), whole)
        target["params"]["w"] = jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P("x")))
        found = m.restore_latest(manager, target)
    assert found is not None
    restored, step = found
    assert step == 7
    assert jax.tree.structure(restored) == jax.tree.structure(target)  # optax's tuples come back as such
    assert restored["params"]["w"].sharding.spec == jax.P("x")
    jax.tree.map(np.testing.assert_array_equal, raw(restored), raw(state_at(7)))


def test_another_config_is_a_user_error(tmp_path):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with m.make_manager(tmp_path, save_every=1, background=False) as manager:
        m.save(manager, 3, state_at(3))
        with pytest.raises(
            UserError, match=r"(?s)0 missing, 0 extra, 3 of another shape.*another --workdir.*opt/0/mu/w"
        ):
            m.restore_latest(manager, abstract(state_at(3, width=9), sharding))
        other = {"params": {}, "other": jax.ShapeDtypeStruct((2,), jnp.float32, sharding=sharding)}
        with pytest.raises(UserError, match=r"(?s)missing +other.*extra +opt/0/count"):
            m.restore_latest(manager, other)
    with pytest.raises(UserError, match="save_every"):
        m.make_manager(tmp_path, save_every=0)
