"""Which library multiplies a CPU's matrices.

XLA:CPU has two: YNN, its choice, and Eigen. Convolution stacks and decoding, of wide batches or in lanes, are faster
with Eigen's (benchmarks/README.md), the rest with YNN's. It is a compiler option, so it is for a whole program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from jukebox_jax.parallel.mesh import platform

EIGEN = {"xla_cpu_experimental_ynn_fusion_type": ""}


def by_eigen() -> dict[str, str] | None:
    """Compiler options for Eigen's products: None on other platforms, and where this jaxlib has no such option."""
    return EIGEN if platform() == "cpu" and _known() else None


@functools.cache
def _known() -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=EIGEN).lower().compile()
    except Exception:  # jax's JaxRuntimeError is no public name in all versions
        return False
    return True


def eigen_jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``jax.jit(function, **options)``, on a CPU with Eigen's products."""
    compiled = functools.cache(lambda eigen: jax.jit(function, compiler_options=EIGEN if eigen else None, **options))
    return functools.wraps(function)(lambda *args, **named: compiled(by_eigen() is not None)(*args, **named))
