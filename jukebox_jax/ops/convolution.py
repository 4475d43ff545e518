"""One-dimensional convolutions, channels last. Kernels are ``(k, in, out)``, padding is zeros on both sides.

Two forms. The plain one is XLA's convolution. The ``windowed`` one takes the context as rows of its argument and
computes with matrix products only, the dilated convolution with a third fewer of them (Winograd's F(2, 3)): faster on a
CPU, where windows fit its cache. float32 means float32: matrix units that would round float32 operands (TPU,
TensorFloat-32) are told not to.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_DIMENSIONS = ("NHC", "HIO", "NHC")


def precision(dtype: jnp.dtype) -> lax.Precision:
    """HIGHEST for float32, the backend's default below."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT


def conv(
    x: Float[Array, "b t d"], kernel: Float[Array, "k d o"], *, stride: int = 1, dilation: int = 1, padding: int = 0
) -> Float[Array, "b u o"]:
    """Cross-correlation: ``u = (t + 2 padding - dilation (k - 1) - 1) // stride + 1``."""
    if stride == 1 and padding >= x.shape[1] and kernel.shape[0] == 3 and padding == dilation:
        kernel, dilation, padding = kernel[1:2], 1, 0  # both side taps only meet zeros
    return lax.conv_general_dilated(
        x, kernel, (stride,), [(padding, padding)], rhs_dilation=(dilation,),
        dimension_numbers=_DIMENSIONS, precision=precision(x.dtype),
    )  # fmt: skip


def conv_transpose(
    x: Float[Array, "b t d"], kernel: Float[Array, "k d o"], *, stride: int, padding: int
) -> Float[Array, "b u o"]:
    """Gradient of a strided convolution: frame ``i`` adds ``x[i] @ kernel`` at ``stride i - padding``.

    ``u = (t - 1) stride - 2 padding + k``.
    """
    side = kernel.shape[0] - 1 - padding
    return lax.conv_general_dilated(
        x, kernel[::-1], (1,), [(side, side)], lhs_dilation=(stride,),
        dimension_numbers=_DIMENSIONS, precision=precision(x.dtype),
    )  # fmt: skip


def windowed_conv(x: Float[Array, "b t d"], kernel: Float[Array, "k d o"], stride: int) -> Float[Array, "b u o"]:
    """``conv`` without padding, as few, wide products."""
    size, width, out = kernel.shape
    length = (x.shape[1] - size) // stride + 1
    if size % stride:
        return conv(x, kernel, stride=stride)
    taps = size // stride
    if out == 1 and stride == 1:  # one product for all taps, then shifted sums
        y = row_product(x, kernel[:, :, 0].T)
        return reduce(jnp.add, [y[:, i : i + length, i : i + 1] for i in range(taps)])
    rows = x[:, : (length - 1 + taps) * stride].reshape(x.shape[0], -1, stride * width)
    shifted = [rows[:, i : i + length] for i in range(taps)]
    if width == 1:  # too few inputs for a product of their own
        return row_product(jnp.concatenate(shifted, axis=-1), kernel.reshape(size, out))
    kernel = kernel.reshape(taps, stride * width, out)
    return reduce(jnp.add, [row_product(shifted[i], kernel[i]) for i in range(taps)])


def windowed_conv_transpose(x: Float[Array, "b t d"], kernel: Float[Array, "k d o"]) -> Float[Array, "b u o"]:
    """``conv_transpose`` of kernel size 2 stride and padding stride / 2, of the inner ``t - 2`` frames of ``x``.

    Sample ``r`` of a frame is its own product and one neighbour's: the left one's in the first half, the right one's in
    the second.
    """
    size, width, out = kernel.shape
    quarter = size // 4 * out
    taps = jnp.swapaxes(kernel, 0, 1).reshape(width, size * out)
    own = row_product(x[:, 1:-1], taps[:, quarter : 3 * quarter])
    left, right = row_product(x[:, :-2], taps[:, 3 * quarter :]), row_product(x[:, 2:], taps[:, :quarter])
    return (own + jnp.concatenate([left, right], axis=-1)).reshape(x.shape[0], -1, out)


def windowed_residual(
    x: Float[Array, "b t d"],
    kernel: Float[Array, "3 d o"],
    bias: Float[Array, " o"],
    out_kernel: Float[Array, "1 o d"],
    out_bias: Float[Array, " d"],
    dilation: int,
    scale: float,
    paired: bool = True,
) -> Float[Array, "b u d"]:
    """``x + scale * conv1(relu(conv3(relu(x))))`` of the inner ``u = t - 2 dilation`` rows.

    ``paired``: if ``u`` is a multiple of ``2 dilation``, rows ``i`` and ``i + dilation`` of the dilated convolution
    come from four products instead of six; the difference is a rounding error. Else it is a product per tap.
    """

    batch, rows, width = x.shape
    length, hidden = rows - 2 * dilation, kernel.shape[2]
    if not paired or length % (2 * dilation):
        shifted = [jax.nn.relu(x[:, i * dilation : i * dilation + length]) for i in range(3)]
        h = product(shifted[0], kernel[0]) + product(shifted[1], kernel[1]) + product(shifted[2], kernel[2])
    else:
        pairs = jax.nn.relu(x).reshape(batch, -1, 2, dilation, width)
        r0, r1, r2, r3 = pairs[:, :-1, 0], pairs[:, :-1, 1], pairs[:, 1:, 0], pairs[:, 1:, 1]
        k0, k1, k2 = kernel
        even, odd = product(r1 + r2, (k0 + k1 + k2) / 2), product(r2 - r1, (k0 - k1 + k2) / 2)
        both = product(r0 - r2, k0) + even + odd, even - odd - product(r1 - r3, k2)
        h = jnp.stack(both, axis=2).reshape(batch, length, hidden)
    h = jax.nn.relu(h + bias.reshape(1, 1, -1))
    return x[:, dilation:-dilation] + scale * (product(h, out_kernel[0]) + out_bias.reshape(1, 1, -1))


def product(x: Float[Array, "*b d"], matrix: Float[Array, "d o"]) -> Float[Array, "*b o"]:
    """A matrix product over the last axis, in full precision if float32."""
    return jnp.matmul(x, matrix, precision=precision(x.dtype))


@jax.custom_vjp
def row_product(x: Float[Array, "*b d"], matrix: Float[Array, "d o"]) -> Float[Array, "*b o"]:
    """``product``; its gradient by the matrix is one that XLA:CPU does not lay its factors out anew for."""
    return product(x, matrix)


def _row_product_gradients(kept: Any, g: Float[Array, "*b o"]) -> tuple[Any, Any]:
    x, matrix = kept
    return product(g, matrix.T), outer(x, g)


row_product.defvjp(lambda x, matrix: (product(x, matrix), (x, matrix)), _row_product_gradients)


def outer(x: Float[Array, "*b d"], g: Float[Array, "*b o"]) -> Float[Array, "d o"]:
    """``x^T g`` over all rows."""
    x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    return lax.dot_general(x, g, (((0,), (0,)), ((), ())), precision=precision(x.dtype))
