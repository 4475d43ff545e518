"""The original's Adam, its learning rate schedules and its weight averaging (spec/training.md sections 3, 5 and 6).

Three things differ from ``optax.adam``: epsilon is added to the root of the *uncorrected* second moment, the bias
correction is folded into the step size, and weight decay is multiplied by that corrected step size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jukebox_jax.types import UserError, choose


@dataclass(frozen=True)
class Options:
    """What the optimiser does. Defaults are in ``config.py``."""

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_norm: float  # gradients are divided by max(1, norm / clip_norm)
    ignore_grad_norm: float  # > 0: a batch whose gradient norm exceeds it is skipped
    warmup_steps: float
    decay: str  # step: times decay_factor every decay_steps; linear: from decay_start to zero in decay_steps
    decay_start: float
    decay_steps: float
    decay_factor: float

    def __post_init__(self) -> None:
        choose("optimizer.decay", self.decay, ("step", "linear"))
        for name in ("learning_rate", "eps", "clip_norm", "decay_steps"):
            if not getattr(self, name) > 0:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}: it must be above 0")
        for name in ("beta1", "beta2"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}: it must lie between 0 and 1")

    @property
    def last_step(self) -> float:
        """Steps after which the learning rate is zero for good (infinite unless it decays linearly)."""
        return self.decay_start + self.decay_steps if self.decay == "linear" else math.inf


class AdamState(NamedTuple):
    """``count`` successful steps, the two moments, and what the last step did."""

    count: jax.Array
    mean: Any
    variance: Any
    grad_norm: jax.Array  # before clipping
    learning_rate: jax.Array  # of the last successful step


def learning_rate(options: Options, step: jax.Array) -> jax.Array:
    """The rate of a step, counted from 0 in successful steps. The first step's is 0 (unless there is no warm-up)."""
    step = step.astype(jnp.float32)
    warmup = jnp.minimum(1.0, step / options.warmup_steps) if options.warmup_steps > 0 else 1.0
    rate = options.learning_rate * warmup
    if options.decay == "linear":
        return rate * jnp.maximum(0.0, 1 - jnp.maximum(0.0, step - options.decay_start) / options.decay_steps)
    return jnp.float32(rate) * options.decay_factor ** jnp.floor(step / options.decay_steps)


def global_norm(tree: Any) -> jax.Array:
    """L2 norm over all leaves, in float32."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))


def adam(options: Options) -> optax.GradientTransformationExtraArgs:
    """Clipping, Adam and decoupled decay in one transformation; its state reports the gradient norm and the rate.

    A batch whose gradient norm is not finite, or exceeds ``ignore_grad_norm``, changes nothing and is not counted.
    ``update`` is told the norm where its gradients are only a part of all.
    """

    def init(params: Any) -> AdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        zero = jnp.zeros((), jnp.float32)
        return AdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros), zero, zero)

    def update(grads: Any, state: AdamState, params: Any = None, *, norm: Any = None) -> tuple[Any, AdamState]:
        norm = global_norm(grads) if norm is None else norm
        good = jnp.isfinite(norm)
        if options.ignore_grad_norm > 0:
            good &= norm <= options.ignore_grad_norm
        rate = learning_rate(options, state.count)
        step_size = rate * _bias_correction(state.count + 1, options.beta1, options.beta2)
        clip = jnp.maximum(1.0, norm / options.clip_norm)

        def leaf(grad: jax.Array, mean: jax.Array, variance: jax.Array, param: jax.Array) -> tuple[jax.Array, ...]:
            grad = grad / clip
            new_mean = options.beta1 * mean + (1 - options.beta1) * grad
            new_variance = options.beta2 * variance + (1 - options.beta2) * jnp.square(grad)
            change = new_mean / (jnp.sqrt(new_variance) + options.eps) + options.weight_decay * param
            # Selects, not products: 0 * nan would stay.
            return (
                jnp.where(good, -step_size * change, 0),
                jnp.where(good, new_mean, mean),
                jnp.where(good, new_variance, variance),
            )

        structure = jax.tree.structure(grads)
        trees = (structure.flatten_up_to(tree) for tree in (grads, state.mean, state.variance, params))
        results = [leaf(*arrays) for arrays in zip(*trees, strict=True)]
        updates, mean, variance = (structure.unflatten([result[i] for result in results]) for i in range(3))
        count = state.count + good.astype(jnp.int32)
        return updates, AdamState(count, mean, variance, norm, jnp.where(good, rate, state.learning_rate))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _bias_correction(count: jax.Array, beta1: float, beta2: float) -> jax.Array:
    """sqrt(1 - beta2^t) / (1 - beta1^t). ``expm1`` keeps the digits that 1 - 0.999 would lose in float32."""
    t = count.astype(jnp.float32)
    return jnp.sqrt(-jnp.expm1(t * math.log(beta2))) / -jnp.expm1(t * math.log(beta1))


def ema_decay(batch_size: int, decay: float | None = None) -> float:
    """The decay of the weight average: given, or 1 - batch / 8 / 1000 with the global batch size."""
    return decay or 1 - batch_size / 8 / 1000


def update_ema(ema: Any, params: Any, count: jax.Array, decay: float, every: int = 1) -> Any:
    """decay * ema + (1 - decay) * params in float32, after every ``every``-th step with decay ** every."""
    decay = decay**every
    due = count % every == 0

    def leaf(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(due, decay * old + (1 - decay) * new.astype(jnp.float32), old)

    return jax.tree.map(leaf, ema, params)
