"""Every test runs on eight virtual CPU devices, with rank promotion an error. Set before jax is imported."""

from __future__ import annotations

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile hundreds of small programs and run each for a moment: LLVM's expensive passes do not pay.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    f"--xla_llvm_disable_expensive_passes=true {os.environ.get('XLA_FLAGS', '')}"
).strip()
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# The machine decides how long an example takes, so no deadline; the same examples in every run.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("house")


@pytest.fixture
def compile_quickly():
    """For tiny programs: compiling them costs more than running them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
