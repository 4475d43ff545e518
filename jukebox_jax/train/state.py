"""Everything that training changes, as one pytree, and where its arrays live.

The arrays are made where they belong: shapes first (``jax.eval_shape``), shardings from the shapes, then one jitted
``init`` whose outputs have those shardings. No device ever holds more than its share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from jukebox_jax.parallel import sharding
from jukebox_jax.train.optimizer import AdamState


class TrainState(NamedTuple):
    """``step`` counts batches; ``optimizer.count`` those that changed the weights."""

    step: jax.Array
    params: Any
    ema: Any  # average of params, float32
    optimizer: AdamState
    model_state: Any  # what the loss changes by itself: the VQ-VAE's codebooks


def create(variables: dict[str, Any], transform: optax.GradientTransformation) -> TrainState:
    """The state before the first step, of ``{"params": ..., **model_state}``."""
    model_state = {name: value for name, value in variables.items() if name != "params"}
    params = variables["params"]
    ema = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)  # its own buffers: both are donated
    optimizer = cast(AdamState, transform.init(params))
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer, model_state)


def variables(state: TrainState, *, averaged: bool = True) -> dict[str, Any]:
    """The model's variables: averaged weights (what one samples with, and exports) or the raw ones."""
    return {"params": state.ema if averaged else state.params, **state.model_state}


def abstract(init: Callable[..., Any], transform: optax.GradientTransformation, rng: Any) -> TrainState:
    """Shapes and dtypes of the state that ``init(rng)``'s variables make. Nothing is computed."""
    return jax.eval_shape(lambda rng: create(init(rng), transform), rng)


def placed(state: TrainState, mesh: Mesh | AbstractMesh, num_heads: int | None = None) -> TrainState:
    """An abstract state whose leaves know their shardings: what to restore into, or to lower a step for."""
    return sharding.placed(state, sharding.shardings_of(state, mesh, num_heads))


def shardings(state: TrainState) -> TrainState:
    """The sharding of each leaf of a (placed abstract) state."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def initialize(
    init: Callable[..., Any], transform: optax.GradientTransformation, rng: jax.Array, where: TrainState
) -> TrainState:
    """The state, each array made in its place; ``where`` is the ``placed`` abstract one."""
    places = shardings(where)
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None  # it runs once
    init = jax.jit(init, out_shardings={"params": places.params, **places.model_state}, compiler_options=options)
    return from_variables(init(rng), transform, where)


def from_variables(variables: dict[str, Any], transform: optax.GradientTransformation, where: TrainState) -> TrainState:
    """The state before the first step on placed ``variables``.

    Array by array: moments and averages lie where their parameters do, and a program that makes a thousand arrays at
    once takes longer to compile than to run.
    """
    return jax.device_put(create(variables, transform), shardings(where))
