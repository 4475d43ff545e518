"""One training step: gradients, optimiser, weight average. Pure; ``jit_step`` gives it shardings and donation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from jukebox_jax import presets
from jukebox_jax.parallel.mesh import platform
from jukebox_jax.parallel.products import by_eigen
from jukebox_jax.parallel.sharding import replicated
from jukebox_jax.train.experiment import Experiment
from jukebox_jax.train.optimizer import AdamState, adam, update_ema
from jukebox_jax.train.state import TrainState, shardings

IN_CACHE = 1 << 20  # 4 MiB in float32

Loss = Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], Any]]]


def make_step(
    loss: Loss,
    transform: optax.GradientTransformationExtraArgs,
    *,
    ema_decay: float,
    ema_every: int = 1,
    accumulate: int = 1,
) -> Callable[[TrainState, Any, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """``step(state, frozen, batch, rng) -> (state, metrics)``.

    ``loss`` is a ``Task``'s. ``rng`` is the run's key; the step folds its own number in. With ``accumulate`` the batch
    is cut into that many parts whose gradients are averaged (codebooks are updated by each part in turn). A step whose
    loss or gradients are not finite changes nothing but the step number, so a run that stops there keeps a good state.
    """
    grads_of = jax.value_and_grad(loss, has_aux=True)
    update = make_update(transform, ema_decay=ema_decay, ema_every=ema_every)

    def step(state: TrainState, frozen: Any, batch: Any, rng: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = jax.random.fold_in(rng, state.step)
        if accumulate == 1:
            return update(state, grads_of(state.params, state.model_state, frozen, batch, rng))
        return update(state, _accumulated(grads_of, accumulate, state, frozen, batch, rng))

    return step


def make_update(
    transform: optax.GradientTransformationExtraArgs, *, ema_decay: float, ema_every: int = 1
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """``update(state, ((loss, (metrics, model_state)), grads)) -> (state, metrics)``: the second half of a step.

    Where state and gradients are a part of all, ``norm`` is that of all gradients.
    """

    def update(state: TrainState, found: Any, norm: Any = None) -> tuple[TrainState, dict[str, jax.Array]]:
        (value, (metrics, model_state)), grads = found
        finite = jnp.isfinite(value)
        grads, norm = jax.tree.map(lambda g: jnp.where(finite, g, jnp.nan), (grads, norm))
        updates, changed_state = transform.update(grads, state.optimizer, state.params, norm=norm)
        optimizer = cast(AdamState, changed_state)
        params = optax.apply_updates(state.params, updates)
        changed = optimizer.count != state.optimizer.count
        ema = update_ema(state.ema, params, optimizer.count, ema_decay, ema_every)
        new = TrainState(
            state.step + 1,
            params,
            _select(changed, ema, state.ema),
            optimizer,
            _select(jnp.isfinite(optimizer.grad_norm), model_state, state.model_state),
        )
        report = {"grad_norm": optimizer.grad_norm, "learning_rate": optimizer.learning_rate}
        return new, {"loss": value, **metrics, **report}

    return update


def by_array(update: Callable[..., Any]) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """``make_update``'s result, compiled, an array at a time: a program for each shape, not one for hundreds of arrays.

    It needs the norm. The state is donated.
    """

    @partial(jax.jit, donate_argnums=0)
    def one(arrays: Any, grad: Any, scalars: TrainState, value: Any, norm: Any) -> Any:
        return _arrays(update(_with(scalars, arrays), ((value, ({}, {})), grad), norm)[0])

    scalars_too = jax.jit(update, donate_argnums=0)

    def all_arrays(state: TrainState, found: Any, norm: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        (value, _), grads = found
        leaves, structure = jax.tree.flatten(grads)
        trees = [structure.flatten_up_to(tree) for tree in _arrays(state)]
        rest = _with(state, ({},) * 4)
        scalars = rest._replace(model_state={})
        new = [one(arrays, grad, scalars, value, norm) for grad, *arrays in zip(leaves, *trees, strict=True)]
        rest, metrics = scalars_too(rest, (found[0], {}), norm)
        return _with(rest, [structure.unflatten(tree) for tree in zip(*new, strict=True)]), metrics

    return all_arrays


def _arrays(state: TrainState) -> tuple[Any, Any, Any, Any]:
    """The trees of a state that are like ``params``."""
    return state.params, state.ema, state.optimizer.mean, state.optimizer.variance


def _with(state: TrainState, arrays: Any) -> TrainState:
    params, ema, mean, variance = arrays
    return state._replace(params=params, ema=ema, optimizer=state.optimizer._replace(mean=mean, variance=variance))


def jit_step(
    loss: Loss, experiment: Experiment, where: TrainState, mesh: Mesh | AbstractMesh, gradients: Any = None
) -> Any:
    """The step of an experiment: the state is donated, and the new one lies where the old one did.

    ``where``: the placed abstract state (``state.placed``). ``gradients``: a ``Task``'s; with them a step is many
    programs, none of which can be had ahead of time.
    """
    transform = adam(experiment.optimizer)
    averages = {"ema_decay": experiment.ema_decay, "ema_every": experiment.ema.every}
    parts = parts_of_batch(experiment, mesh)
    if gradients is not None and parts == 1:
        update = by_array(make_update(transform, **averages))

        def step(state: TrainState, frozen: Any, batch: Any, rng: jax.Array) -> Any:
            rng = jax.random.fold_in(rng, state.step)
            return update(state, *gradients(state.params, state.model_state, frozen, batch, rng))

        return step
    options = by_eigen() if isinstance(experiment.model, presets.VQVAE) else None
    whole, places = make_step(loss, transform, accumulate=parts, **averages), (shardings(where), replicated(mesh))
    return jax.jit(whole, donate_argnums=0, out_shardings=places, compiler_options=options)


def parts_of_batch(experiment: Experiment, mesh: Mesh | AbstractMesh) -> int:
    """Parts that a batch is cut into: the experiment's, and on CPUs more for a prior.

    There a part's residual stream has at most ``IN_CACHE`` numbers, if one example's has: a layer's arrays stay in the
    cache, and memory is that of one part. The averaged gradients are the same but for rounding. (A VQ-VAE's codebooks
    would be updated by each part.)
    """
    model, parts = experiment.model, experiment.accumulate
    if not isinstance(model, presets.Prior) or platform() != "cpu":
        return parts
    rows = experiment.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"] * parts)  # of a part on one device
    fitting = max(1, IN_CACHE // (model.transformer.length * model.transformer.width))
    return parts * next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= fitting)


def _accumulated(grads_of: Callable, parts: int, state: TrainState, frozen: Any, batch: Any, rng: jax.Array) -> tuple:
    """Averages over sub-batches. Each takes every ``parts``-th example, so that it is spread over all devices."""
    split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch)

    def body(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        model_state, total = carry
        part, index = inputs
        (value, (metrics, model_state)), grads = grads_of(
            state.params, model_state, frozen, part, jax.random.fold_in(rng, index)
        )
        total = jax.tree.map(lambda t, x: t + x / parts, total, (value, metrics, grads))
        return (model_state, total), None

    first = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(grads_of, state.params, state.model_state, frozen, first, rng)
    (value, (metrics, _)), grads = shapes
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (value, metrics, grads))
    (model_state, (value, metrics, grads)), _ = jax.lax.scan(
        body, (state.model_state, zeros), (split, jnp.arange(parts))
    )
    return (value, (metrics, model_state)), grads


def _select(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
