"""From logits to a code: temperature, top-k, top-p, and the draw (spec/sampling.md section 3.3).

Each row has its own typed PRNG key and is drawn from that key and its logits alone, so a code does not depend on what
else stands in the batch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from jukebox_jax.types import UserError


@dataclass(frozen=True)
class Settings:
    """How codes are drawn. Hashable: a static argument of jitted functions.

    Attributes:
      temperature: divides the logits before the filters; 0 takes the most likely code.
      top_k: keep the ``top_k`` most likely codes; 0 keeps all, 1 takes the most likely code.
      top_p: keep the most likely codes until their probability passes ``top_p``; 0 and 1 keep all.
    Raises ``UserError`` for values outside these ranges, or if both filters are on.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}: must be 0 (most likely code) or more")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}: must be 0 (off) or the number of codes to keep")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: must be between 0 (off) and 1")
        if self.top_k and self.top_p:
            raise UserError(f"top_k={self.top_k} and top_p={self.top_p} are both on: choose one, set the other to 0")

    @property
    def greedy(self) -> bool:
        """Whether the most likely code is taken, and no key is used."""
        return self.temperature == 0 or self.top_k == 1


def filter_top_k(logits: Float[Array, "*b v"], top_k: int) -> Float[Array, "*b v"]:
    """Set all but the ``top_k`` largest logits of a row to -inf; equals of the smallest kept one stay. 0 keeps all."""
    if top_k == 0 or top_k >= logits.shape[-1]:
        return logits
    smallest = jax.lax.top_k(logits, top_k)[0][..., -1:]
    return jnp.where(logits >= smallest, logits, -jnp.inf)


def filter_top_p(logits: Float[Array, "*b v"], top_p: float) -> Float[Array, "*b v"]:
    """Keep a row's largest logits until their probability exceeds ``top_p``; the others become -inf.

    A logit goes if the probability of those before it, in descending order, already exceeds ``top_p``; the first never
    goes, and equals of the smallest kept one stay. 0 and 1 keep all (a rounded cumulative sum can pass 1).
    """
    if top_p == 0 or top_p >= 1:
        return logits
    descending = -jnp.sort(-logits, axis=-1)
    before = jnp.cumsum(jax.nn.softmax(descending, axis=-1), axis=-1)[..., :-1]
    kept = jnp.concatenate([jnp.ones_like(before[..., :1], bool), before <= top_p], axis=-1)
    smallest = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= smallest, logits, -jnp.inf)


def sample(
    keys: Key[Array, "b"], logits: Float[Array, "b v"], temperature: float = 1.0, top_k: int = 0, top_p: float = 0.0
) -> Int[Array, "b"]:
    """One code per row: temperature, then a filter, then a categorical draw from the row's own key. int32.

    The arguments after ``logits`` are static numbers, checked as ``Settings`` says.
    """
    settings = Settings(temperature, top_k, top_p)
    return draw(None if settings.greedy else noise(keys, logits.shape[-1]), logits, settings)


def noise(keys: Key[Array, "*b"], size: int, fused: bool = False) -> Float[Array, "*b v"]:
    """What a categorical draw from ``size`` codes adds to each row's logits: Gumbel noise from the row's own key.

    ``jax.random.gumbel``'s numbers. ``fused``: bits and noise are one loop, for CPUs, where jax makes bits in passes
    over whole arrays, three times as slowly.
    """
    if fused and jax.random.key_impl(keys) == "threefry2x32" and jax.config.values["jax_threefry_partitionable"]:
        return _gumbel(_threefry(keys, size))
    one = lambda key: jax.random.gumbel(key, (size,), jnp.float32)  # noqa: E731
    return functools.reduce(lambda f, _: jax.vmap(f), keys.shape, one)(keys)


def _threefry(keys: Key[Array, "*b"], size: int) -> UInt32[Array, "*b v"]:
    """Bits of each key: Threefry-2x32 with 20 rounds (Salmon et al. 2011) of the pairs (0, 0) .. (0, size - 1), each
    pair of results folded by exclusive or."""
    data = jax.random.key_data(keys)[..., None, :]
    a, b = data[..., 0], data[..., 1]
    schedule, shifts = (a, b, a ^ b ^ jnp.uint32(0x1BD11BDA)), ((13, 15, 26, 6), (17, 29, 16, 24))
    x, y = a, b + jnp.arange(size, dtype=jnp.uint32).reshape((1,) * keys.ndim + (size,))
    for i in range(5):
        for shift in shifts[i % 2]:
            x = x + y
            y = x ^ ((y << jnp.uint32(shift)) | (y >> jnp.uint32(32 - shift)))
        x, y = x + schedule[(i + 1) % 3], y + schedule[(i + 2) % 3] + jnp.uint32(i + 1)
    return x ^ y


def _gumbel(bits: UInt32[Array, "*b v"]) -> Float[Array, "*b v"]:
    """Gumbel noise from the upper 23 of 32 random bits, as jax makes it."""
    tiny = jnp.finfo(jnp.float32).tiny
    unit = jax.lax.bitcast_convert_type((bits >> jnp.uint32(9)) | jnp.uint32(0x3F800000), jnp.float32) - 1  # 1 .. 2
    return -jnp.log(-jnp.log(jnp.maximum(tiny, unit * (1 - tiny) + tiny)))


def draw(noise: Float[Array, "b v"] | None, logits: Float[Array, "b v"], settings: Settings) -> Int[Array, "b"]:
    """``sample`` with the noise of its keys; greedy settings take none."""
    logits = logits.astype(jnp.float32)
    if noise is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = filter_top_p(filter_top_k(logits / settings.temperature, settings.top_k), settings.top_p)
    return jnp.argmax(noise + logits, axis=-1).astype(jnp.int32)
