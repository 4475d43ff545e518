"""A convolution stack in matrix products, to be differentiated on a CPU.

There XLA's gradients of convolutions are slow, and fresh memory costs as much as arithmetic. So residual blocks have a
gradient of their own: dilated convolutions and both their gradients by Winograd's F(2, 3) (four products for two rows
instead of six), one example after the other, and of each block only the hidden rows are kept. The backward pass gets a
block's input from its output, ``x = y - scale * conv1(h)``, to a rounding error.

What XLA:CPU shares, repeats and does early decides what is held. Hidden rows end in a concatenation, which it keeps as
one array; a sum after it, or an order of rows that a reshape restores, would be computed and held a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jukebox_jax.ops.conv_stack import Layer, Stack, apply_products
from jukebox_jax.ops.convolution import outer, product


def whole(stack: Stack, x: Float[Array, "b t d"]) -> Float[Array, "b u o"]:
    """``conv_stack.whole`` in matrix products; float32."""
    signal: Any = x
    index = 0
    while index < len(stack):
        layer, arrays = stack[index]
        if layer.kind == "residual":
            run = next((i for i in range(index, len(stack)) if stack[i][0].kind != "residual"), len(stack))
            layers, weights = zip(*stack[index:run], strict=True)
            signal, index = residuals(layers, signal, weights), run
        else:
            signal, index = jax.checkpoint(partial(_resample, layer))(arrays, signal), index + 1
    return signal


def _resample(layer: Layer, arrays: Sequence[Any], x: Float[Array, "b t d"]) -> Float[Array, "b u o"]:
    return apply_products(layer, arrays, jnp.pad(x, ((0, 0), (layer.left, layer.right), (0, 0))))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def residuals(layers: Sequence[Layer], x: Float[Array, "b t d"], weights: Sequence[Any]) -> Float[Array, "b t d"]:
    """Residual blocks one after the other; ``weights``: two kernels and biases each (``conv_stack.Layer``)."""
    return _forward(layers, x, weights)[0]


def _forward(layers: Sequence[Layer], x: Any, weights: Sequence[Any]) -> tuple[Any, Any]:
    def example(_: None, x: Float[Array, "1 t d"]) -> tuple[None, Any]:
        hidden = []
        for layer, arrays in zip(layers, weights, strict=True):
            hidden.append(_hidden(x, arrays[0], arrays[1], layer.dilation))
            change = _merged(product(hidden[-1], arrays[2][0]), layer.dilation, x.shape[1])
            x = x + layer.scale * (change + arrays[3].reshape(1, 1, -1))
        return None, (x, hidden)

    x, hidden = lax.scan(example, None, x[:, None])[1]
    return x[:, 0], (x, hidden, weights)


def _backward(layers: Sequence[Layer], kept: Any, dy: Any) -> tuple[Any, Any]:
    y, hidden, weights = kept

    def example(total: Any, row: Any) -> tuple[Any, Any]:
        x, hidden, dy = row
        gradients = []
        for layer, h, arrays in reversed(list(zip(layers, hidden, weights, strict=True))):
            # + 0 * dy is an order: XLA would multiply all blocks' hidden rows first. - is unlike the forward pass,
            # whose products it would keep.
            second = -arrays[2][0] + 0 * dy[0, 0, 0]
            change = _merged(product(h, second), layer.dilation, x.shape[1])
            x = x + layer.scale * (change - arrays[3].reshape(1, 1, -1))
            dz = _pairs(layer.scale * dy, layer.dilation)
            dh = jnp.where(h > 0, product(dz, arrays[2][0].T), 0)
            dx, kernel = _dilated_gradients(x, arrays[0], dh, layer.dilation)
            dy = dy + dx
            gradients.append((kernel, _total(dh), outer(h, dz)[None], _total(dz)))
        return jax.tree.map(jnp.add, total, tuple(reversed(gradients))), dy

    gradients, dx = lax.scan(example, jax.tree.map(jnp.zeros_like, weights), (y, hidden, dy[:, None]))
    return dx[:, 0], gradients


residuals.defvjp(_forward, _backward)


def _hidden(x: Float[Array, "1 t d"], kernel: Any, bias: Any, dilation: int) -> Float[Array, "u o"]:
    """``relu(conv3(relu(x)))``, padded, in the order of ``_pairs``; of no use where those are filled up."""
    r0, r1, r2, r3 = _inputs(x, dilation)
    even_kernel, odd_kernel = _mixed(kernel)
    even, odd = product(r1 + r2, even_kernel), product(r2 - r1, odd_kernel)
    h0 = product(r0 - r2, kernel[0]) + even + odd
    h1 = even - odd - product(r1 - r3, kernel[2])
    width = bias.size
    return jnp.concatenate([jax.nn.relu(h.reshape(-1, width) + bias.reshape(1, -1)) for h in (h0, h1)])


def _dilated_gradients(x: Float[Array, "1 t d"], kernel: Any, g: Float[Array, "u o"], dilation: int) -> Any:
    """Gradients of ``conv3(relu(x))`` by ``x`` and by the kernel, for the output's gradient as of ``_pairs``."""
    r0, r1, r2, r3 = _inputs(x, dilation)
    g0, g1 = g.reshape(2, *r0.shape[:-1], g.shape[-1])
    g_even, g_odd = g0 + g1, g0 - g1
    even_kernel, odd_kernel = _mixed(kernel)
    p0, p3 = product(g0, kernel[0].T), product(g1, kernel[2].T)
    even, odd = product(g_even, even_kernel.T), product(g_odd, odd_kernel.T)
    here, there = _overlapping(p0, even + odd - p0), _overlapping(even - odd - p3, p3)
    dx = jnp.stack([here, there], axis=2).reshape(1, -1, x.shape[2])[:, r0.shape[2] :][:, : x.shape[1]]
    k_even, k_odd = outer(r1 + r2, g_even) / 2, outer(r2 - r1, g_odd) / 2
    side = k_even + k_odd
    dk = jnp.stack([outer(r0 - r2, g0) + side, k_even - k_odd, side - outer(r1 - r3, g1)])
    return jnp.where(x > 0, dx, 0), dk


def _inputs(x: Float[Array, "b t d"], dilation: int) -> tuple[Float[Array, "b n k d"], ...]:
    """``relu(x)`` at -1, 0, 1 and 2 dilations from the first row of every pair of rows ``(i, i + dilation)``."""
    batch, rows, width = x.shape
    dilation = min(dilation, rows)  # beyond, the side taps only meet zeros
    pairs = -(-rows // (2 * dilation))
    padding = (0, 0), (dilation, (2 * pairs + 1) * dilation - rows), (0, 0)
    r = jnp.pad(jax.nn.relu(x), padding).reshape(batch, pairs + 1, 2, dilation, width)
    return r[:, :-1, 0], r[:, :-1, 1], r[:, 1:, 0], r[:, 1:, 1]


def _mixed(kernel: Float[Array, "3 d o"]) -> tuple[Float[Array, "d o"], Float[Array, "d o"]]:
    sides = (kernel[0] + kernel[2]) / 2
    return sides + kernel[1] / 2, sides - kernel[1] / 2


def _pairs(x: Float[Array, "1 t d"], dilation: int) -> Float[Array, "u d"]:
    """The firsts of all pairs of rows ``(i, i + dilation)``, then the seconds, with zeros behind the end."""
    _, rows, width = x.shape
    dilation = min(dilation, rows)
    pairs = -(-rows // (2 * dilation))
    x = jnp.pad(x, ((0, 0), (0, 2 * pairs * dilation - rows), (0, 0))).reshape(pairs, 2, dilation, width)
    return jnp.concatenate([x[:, 0].reshape(-1, width), x[:, 1].reshape(-1, width)])


def _merged(x: Float[Array, "u d"], dilation: int, rows: int) -> Float[Array, "1 t d"]:
    """What ``_pairs`` makes this of."""
    dilation = min(dilation, rows)
    return jnp.swapaxes(x.reshape(2, -1, dilation, x.shape[-1]), 0, 1).reshape(1, -1, x.shape[-1])[:, :rows]


def _overlapping(here: Float[Array, "b n k d"], next_one: Float[Array, "b n k d"]) -> Float[Array, "b m k d"]:
    """``here[i] + next_one[i - 1]``."""
    zero = jnp.zeros_like(here[:, :1])
    return jnp.concatenate([here, zero], axis=1) + jnp.concatenate([zero, next_one], axis=1)


def _total(x: Float[Array, "u d"]) -> Float[Array, " d"]:
    """The sum of all rows, as a product: XLA:CPU sums in a tree of many small steps."""
    return product(jnp.ones((1, len(x)), x.dtype), x)[0]
