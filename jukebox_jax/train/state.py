"""Everything that training changes, as one pytree, and where its arrays live.

The arrays are made where they belong: shapes first (``jax.eval_shape``), shardings from the shapes, then one jitted
``init`` whose outputs have those shardings. No device ever holds more than its share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jukebox_jax.parallel.sharding import shardings_of
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
    return TrainState(jnp.zeros((), jnp.int32), params, ema, transform.init(params), model_state)


def variables(state: TrainState, *, averaged: bool = True) -> dict[str, Any]:
    """The model's variables: averaged weights (what one samples with, and exports) or the raw ones."""
    return {"params": state.ema if averaged else state.params, **state.model_state}


def abstract(init: Callable[..., Any], transform: optax.GradientTransformation, *args: Any) -> TrainState:
    """Shapes and dtypes of the state that ``init(*args)``'s variables make. Nothing is computed."""
    return jax.eval_shape(lambda *a: create(init(*a), transform), *args)


def initialize(
    init: Callable[..., Any], transform: optax.GradientTransformation, mesh: Mesh, *args: Any
) -> tuple[TrainState, Any]:
    """The state, each array made in its place on ``mesh``, and its shardings."""
    shardings = shardings_of(abstract(init, transform, *args), mesh)
    make = jax.jit(lambda *a: create(init(*a), transform), out_shardings=shardings)
    return make(*args), shardings
