"""A stack of convolutions as data: run it whole, or chunk by chunk with the same result and bounded memory.

Every layer pads both ends of its signal with zeros. Chunk by chunk, a layer keeps the last rows of its input, and its
output lags by the context it needs on the right; rows outside the signal are set to zero after every layer, which is
what padding would make of them. No row is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jukebox_jax.ops import convolution

CACHE = 1 << 21  # 8 MiB in float32, a share of a CPU's last cache
START = -(1 << 30)  # the chunk before which no run begins


@jax.tree_util.register_static
@dataclass(frozen=True)
class Layer:
    """What a layer computes.

    ``conv``: kernel, bias. ``up``: a transposed convolution of size ``2 stride``; kernel, bias. ``residual``:
    ``x + scale * conv1(relu(conv3(relu(x))))`` with a dilated convolution of size 3; two kernels and biases.
    """

    kind: str
    size: int = 3
    stride: int = 1
    dilation: int = 1
    scale: float = 1.0

    @property
    def left(self) -> int:
        """Rows of context before a window; also the padding."""
        return {"conv": (self.size - self.stride) // 2, "up": 1, "residual": self.dilation}[self.kind]

    @property
    def right(self) -> int:
        """Rows of context after a window whose length is a multiple of the stride."""
        return self.size - self.stride - self.left if self.kind == "conv" else self.left

    @property
    def up(self) -> int:
        return self.stride if self.kind == "up" else 1

    @property
    def down(self) -> int:
        return self.stride if self.kind == "conv" else 1


# Layers with their arrays: a pytree.
Stack = Sequence[tuple[Layer, tuple[Float[Array, "..."], ...]]]


def out_length(stack: Stack, length: Any) -> Any:
    """Rows of the output for ``length`` rows (an integer or an array)."""
    for layer, _ in stack:
        length = length * layer.up // layer.down
    return length


def whole(stack: Stack, x: Float[Array, "b t d"]) -> Float[Array, "b u o"]:
    """The stack on a whole signal, in XLA's convolutions: the definition, and the form to differentiate."""
    for layer, arrays in stack:
        x = apply(layer, arrays, x, layer.left)
    return x


def apply(layer: Layer, arrays: Sequence[Any], x: Float[Array, "b t d"], padding: int) -> Float[Array, "b u o"]:
    """One layer. ``padding``: ``layer.left``, or 0 if the context is in ``x``."""
    kernel, bias = arrays[0], arrays[1].reshape(1, 1, -1)
    if layer.kind == "conv":
        return convolution.conv(x, kernel, stride=layer.stride, padding=padding) + bias
    if layer.kind == "up":
        cut = layer.stride // 2 + (0 if padding else layer.stride)
        return convolution.conv_transpose(x, kernel, stride=layer.stride, padding=cut) + bias
    h = jax.nn.relu(convolution.conv(jax.nn.relu(x), kernel, dilation=layer.dilation, padding=padding) + bias)
    h = convolution.product(h, arrays[2][0]) + arrays[3].reshape(1, 1, -1)
    return (x if padding else x[:, layer.dilation : -layer.dilation]) + layer.scale * h


def apply_products(layer: Layer, arrays: Sequence[Any], x: Float[Array, "b t d"]) -> Float[Array, "b u o"]:
    """``_apply`` with the context in ``x``, in matrix products."""
    if layer.kind == "conv":
        return convolution.windowed_conv(x, arrays[0], layer.stride) + arrays[1].reshape(1, 1, -1)
    if layer.kind == "up":
        return convolution.windowed_conv_transpose(x, arrays[0]) + arrays[1].reshape(1, 1, -1)
    return convolution.windowed_residual(x, *arrays, dilation=layer.dilation, scale=layer.scale)


class Station(NamedTuple):
    """Where a layer of a chunked run stands."""

    rows_in: int  # per chunk
    rows_out: int
    kept: int  # rows of input kept for the next chunk
    waiting: int  # of these, rows that are of no use before the next chunk
    lag: int  # rows by which the output lags
    unsettled: int  # first rows of output that are wrong where a run begins amid a signal


def timetable(stack: Stack, rows: int) -> list[Station]:
    """The stations of a run with ``rows`` rows of input per chunk, a multiple of all strides together."""
    stations, lag, unsettled = [], 0, 0
    for layer, _ in stack:
        waiting = -(lag + layer.right) % layer.down  # outputs start at a multiple of the stride
        lag = (lag + layer.right + waiting) * layer.up // layer.down
        rows_out, kept = rows * layer.up // layer.down, layer.left + layer.right + waiting
        unsettled = -(-(unsettled + kept) // layer.down) * layer.up
        stations.append(Station(rows, rows_out, kept, waiting, lag, unsettled))
        rows = rows_out
    return stations


def init_carry(stack: Stack, rows: int, batch: int) -> list[Float[Array, "b _ _"]]:
    """What the layers keep before the first chunk of ``rows`` rows: zeros."""
    stations = timetable(stack, rows)
    return [jnp.zeros((batch, s.kept, w[0].shape[1]), w[0].dtype) for s, (_, w) in zip(stations, stack, strict=True)]


def advance(
    stack: Stack, carry: Sequence[Any], x: Float[Array, "b t d"], index: Any, length: Any, begun: Any = None,
    before: Any = 0,
) -> tuple[list[Float[Array, "b _ _"]], Float[Array, "b u o"]]:  # fmt: skip
    """Chunk ``index`` of a signal of ``length`` rows (either may be traced); rows of input beyond it count as zero.

    The result is rows ``index * u - lag`` onwards of the stack's output (``lag`` of the last station); those outside it
    are zero.

    ``begun``: for a run amid the signal, the chunk where the carry was zeros (``START``: none). From there on, as many
    rows of output as are ``unsettled`` are of no use, and no layer computes chunks that are, or are outside the signal.

    ``before``: rows of nothing before the signal; all strides together divide ``before + length``.
    """
    forms = {"cpu": partial(_advance, products=True), "default": partial(_advance, products=False)}
    return lax.platform_dependent(stack, list(carry), x, index, length, begun, before, **forms)


def _advance(
    stack: Stack, carry: Sequence[Any], x: Any, index: Any, length: Any, begun: Any = None, before: Any = 0, *,
    products: bool,
) -> Any:  # fmt: skip
    kept, end = [], before + length
    x = _inside(x, index * x.shape[1] - before, length)
    for (layer, arrays), station, last in zip(stack, timetable(stack, x.shape[1]), carry, strict=True):
        window = jnp.concatenate([last, x], axis=1)
        kept.append(window[:, station.rows_in :])
        window = window[:, : window.shape[1] - station.waiting]
        length, end = (rows * layer.up // layer.down for rows in (length, end))
        start = index * station.rows_out - station.lag - (end - length)
        output = partial(_output, layer, arrays, start, length, products)
        if begun is None:
            x = output(window)
            continue
        of_use = (start > -station.rows_out) & (start < length)
        of_use &= index - begun >= station.unsettled // station.rows_out
        y = jax.eval_shape(output, window)
        x = lax.cond(of_use, output, lambda _, y=y: jnp.zeros(y.shape, y.dtype), window)
    return kept, x


def _output(layer: Layer, arrays: Sequence[Any], start: Any, length: Any, products: bool, window: Any) -> Any:
    """A layer's output, whose first row is row ``start`` of its signal of ``length`` rows, from a window of input."""
    x = apply_products(layer, arrays, window) if products else apply(layer, arrays, window, 0)
    return _inside(x, start, length)


def _inside(x: Float[Array, "b t d"], start: Any, length: Any) -> Float[Array, "b t d"]:
    """``x`` where its rows, the first of which is row ``start`` of the signal, are within the signal; else zero."""
    position = start + jnp.arange(x.shape[1])
    return jnp.where(((position >= 0) & (position < length))[None, :, None], x, 0)


def backward(stack: Stack) -> Stack:
    """The stack for signals whose rows are in the opposite order."""
    return [(layer, (arrays[0][::-1], *arrays[1:])) for layer, arrays in stack]


def meet(
    stack: Stack, forth: Sequence[Any], back: Sequence[Any], rows: int, index: Any, length: Any
) -> Float[Array, "b u o"]:
    """What is missing where a run and a ``backward`` one have met, from what their layers keep; in matrix products.

    Chunks of ``rows`` rows before ``index`` were the run's, those from there on the other's. The result is ``lag`` rows
    on both sides of row ``index * u`` of the stack's output; those outside it are zero.
    """
    x = forth[0][:, :0]
    for (layer, arrays), station, left, right in zip(stack, timetable(stack, rows), forth, back, strict=True):
        length = length * layer.up // layer.down
        start = index * station.rows_out - station.lag
        x = _output(layer, arrays, start, length, True, jnp.concatenate([left, x, right[:, ::-1]], axis=1))
    return x


def num_chunks(stack: Stack, rows: int, length: int) -> int:
    """Chunks of ``rows`` rows after which the output of ``length`` rows is complete."""
    last = timetable(stack, rows)[-1]
    return max(-(-length // rows), -(-(out_length(stack, length) + last.lag) // last.rows_out))


def chunk_rows(stack: Stack, limit: int) -> int:
    """Rows of input per chunk, at most about ``limit`` rows in any layer, that suit all strides and as many dilations.

    A dilation is suited if the layer's rows are a multiple of twice the dilation (``convolution.windowed_residual``).
    """
    rate, rates = 1.0, [1.0]
    for layer, _ in stack:
        rate = rate * layer.up / layer.down
        rates.append(rate)
    unit = round(1 / min(1.0, *rates))  # rows of input that make a whole number of rows everywhere
    for dilation, here in sorted((layer.dilation, here) for (layer, _), here in zip(stack, rates, strict=False)):
        pairs = round(unit * here)
        suited = unit * (2 * dilation // math.gcd(2 * dilation, pairs))
        if suited * max(rates) <= limit:
            unit = suited
    return unit * max(1, round(limit / (unit * max(rates))))


def cached_rows(stack: Stack, cache: int | None = None) -> int:
    """Rows of input per chunk whose widest layer takes so many numbers of a CPU's cache (None: ``CACHE``)."""
    return chunk_rows(stack, (cache or CACHE) // max(arrays[0].shape[1] for _, arrays in stack))


def forward(
    stack: Stack, x: Array, first: Callable[[Array], Float[Array, "b t d"]] = lambda x: x,
    form: Callable[[Stack, Array], Float[Array, "b u o"]] = whole,
) -> Float[Array, "b u o"]:  # fmt: skip
    """``whole(stack, first(x))``, not to be differentiated: on a CPU a long signal in chunks that fit its cache.

    ``first`` acts on rows, the second axis. ``form``: what to run in place of ``whole``, to the same result.
    """
    rows = cached_rows(stack) if stack else x.shape[1]

    def at_once(stack: Stack, x: Array) -> Float[Array, "b u o"]:
        return form(stack, first(x))

    if x.shape[1] < 4 * rows:
        return at_once(stack, x)
    return lax.platform_dependent(stack, x, cpu=partial(chunked, rows=rows, first=first), default=at_once)


def chunked(
    stack: Stack, x: Array, rows: int, first: Callable[[Array], Float[Array, "b t d"]] = lambda x: x
) -> Float[Array, "b u o"]:
    """``whole(stack, first(x))`` in a scan over chunks of ``rows`` rows, in matrix products."""
    batch, length = x.shape[:2]
    lag, chunks = timetable(stack, rows)[-1].lag, num_chunks(stack, rows, length)
    padding = ((0, 0), (0, chunks * rows - length)) + ((0, 0),) * (x.ndim - 2)
    pieces = jnp.moveaxis(jnp.pad(x, padding).reshape(batch, chunks, rows, *x.shape[2:]), 1, 0)

    def step(carry, piece):
        return _advance(stack, carry, first(piece[1]), piece[0], length, products=True)

    _, y = lax.scan(step, init_carry(stack, rows, batch), (jnp.arange(chunks), pieces))
    y = jnp.moveaxis(y, 0, 1).reshape(batch, -1, y.shape[-1])
    return y[:, lag : lag + out_length(stack, length)]
