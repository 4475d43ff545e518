"""The TPU compiler reads ``XLA_FLAGS``, too."""

from __future__ import annotations

import os

import jax
import pytest


@pytest.fixture(autouse=True)
def flags_that_libtpu_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends a process with flags that it does not know; XLA:CPU has read its own by then."""
    jax.devices()
    words = os.environ["XLA_FLAGS"].split()
    monkeypatch.setenv("XLA_FLAGS", " ".join(word for word in words if not word.startswith("--xla_cpu_")))
