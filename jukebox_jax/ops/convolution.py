"""One-dimensional convolutions, channels last: the one place that decides which form a backend gets.

Kernels are ``(k, in, out)``. Padding is zeros on both sides. float32 means float32: matrix units that would round
float32 operands (TPU, TensorFloat-32) are told not to.
"""

from __future__ import annotations

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
    """Cross-correlation with ``padding`` zeros on each side: ``u = (t + 2 p - dilation (k - 1) - 1) // stride + 1``."""
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
