"""Whose matrix products a program runs, as compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax.parallel import products


def text(**options) -> str:
    x = jnp.ones((64, 64))
    return str(jax.jit(jnp.matmul, **options).lower(x, x).compile().as_text())


def test_products_are_eigens() -> None:
    assert "ynn" in text()
    assert "ynn" not in text(compiler_options=products.by_eigen())


def test_the_function_and_its_options_stay() -> None:
    @products.eigen_jit
    def double(x):
        """Twice."""
        return 2 * x

    run = products.eigen_jit(lambda x, *, up: x @ x.T + up, static_argnames="up")
    x = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    assert double.__doc__ == "Twice." and double(3) == 6
    np.testing.assert_allclose(run(x, up=1), x @ x.T + 1)


def test_an_option_that_is_gone_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "EIGEN", {"xla_no_such_option": ""})
    products._known.cache_clear()
    try:
        assert products.by_eigen() is None
        np.testing.assert_allclose(products.eigen_jit(lambda x: x @ x)(np.eye(2)), np.eye(2))
    finally:
        products._known.cache_clear()
