"""Matrices of one-token steps, and products with them.

A matrix is a ``kernel``, as the layers have it, or ``rows``, turned over so that each has an output. Queries, keys and
values are turned: a chip's share of outputs (150 for 5B on eight chips) would otherwise be padded to whole lanes of
128 (spec/tpu_facts.md section 4). On a CPU all are, and are the left factor of their products: as the right one, YNN
would copy them into an order of its own. Where a CPU draws batches in lanes (``parallel/lanes.py``), in float32, none
is: Eigen, on one core, takes them as they are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jukebox_jax.models import int8
from jukebox_jax.parallel.mesh import alone, platform

ALL = ("qkv", "output", "in", "out")  # of a layer


def output_first(part: dict[str, Array]) -> dict[str, Array]:
    """A product's weights, its (stacked) matrix with an output to a row."""
    return {"rows": jnp.swapaxes(part["kernel"], -1, -2), "bias": part["bias"]}


def kernel(part: dict[str, Array]) -> Float[Array, "d f"]:
    """The matrix of a layer that stands alone, as ``Layer`` has it."""
    return part["kernel"][0] if "kernel" in part else part["rows"][0].T


def plain(weights: Any) -> bool:
    """Whether ``decode_form.prepare`` has turned no matrix over."""
    return "kernel" in weights


def eight_bits(layer: dict[str, Any]) -> dict[str, Any]:
    """A (stacked) layer's weights, its matrices in 8 bits."""

    def matrices(part: dict[str, Array]) -> dict[str, Array]:
        name = next((name for name in ("kernel", "rows") if name in part), None)
        return part | int8.matrix(part[name], name, -2 if name == "rows" else -1) if name else part

    return {name: matrices(part) for name, part in layer.items()}


def dense(x: Float[Array, "b d"], weights: Any) -> Float[Array, "b f"]:
    """A layer's product, with its bias."""
    return int8.scaled(product(x, weights, x.dtype), weights).astype(x.dtype) + weights["bias"][None]


def product(x: Float[Array, "b d"], weights: Any, dtype: Any, rows: str = "rows") -> Float[Array, "b f"]:
    """``x`` times the matrix of ``weights``: its ``kernel``, or ``rows`` with an output each."""
    if rows in weights:
        return _by_rows(x, weights[rows].astype(x.dtype), dtype)
    matrix = weights["kernel"].astype(x.dtype)
    if not alone() or len(x) > 1 or len(matrix) % 2:
        return jnp.matmul(x, matrix, preferred_element_type=dtype)
    # Two products for two cores: XLA:CPU deems a whole one of medium size too small for that.
    halves = x.reshape(2, -1), matrix.reshape(2, -1, matrix.shape[1])
    return jnp.sum(jnp.einsum("pd,pdf->pf", *halves, preferred_element_type=dtype), 0, keepdims=True)


def _by_rows(x: Float[Array, "b d"], rows: Num[Array, "f d"], dtype: Any) -> Float[Array, "b f"]:
    """``x rows^T``."""
    if platform() != "cpu" or len(x) == 1:
        return jnp.einsum("bd,fd->bf", x, rows, preferred_element_type=dtype)
    product = jax.lax.dot_general(rows, x, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
    return jax.lax.optimization_barrier(product).T  # or the compiler would exchange the factors
