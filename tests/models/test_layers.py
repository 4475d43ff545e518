"""Parts of a transformer layer."""

import jax
import jax.numpy as jnp
import numpy as np

from jukebox_jax.models.layers import layer_norm, product


def test_norm_of_streams_on_a_cpu_is_that_of_single_positions():
    """Streams take a form of their own on CPUs, with a gradient written by hand; rows take the plain one."""
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(3 + rng.normal(size=(2, 5, 16)), jnp.float32) for _ in range(2))
    weights = {name: jnp.asarray(rng.normal(size=16), jnp.float32) for name in ("scale", "bias")}

    def apply(shape):
        y, pull = jax.vjp(lambda x, w: layer_norm(x.reshape(shape), w).reshape(x.shape), x, weights)
        return y, pull(g)

    stream, rows = apply((2, 5, 16)), apply((10, 16))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), stream, rows)


def test_product_of_streams_on_a_cpu_is_that_of_rows():
    """The same, for the products of ``nn.Dense``."""
    rng = np.random.default_rng(0)
    x, g, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 5, 16), (2, 5, 3), (16, 3)))

    def apply(*shape):
        contract = (((len(shape),), (0,)), ((), ()))
        y, pull = jax.vjp(lambda x, w: product(x.reshape(*shape, 16), w, contract).reshape(g.shape), x, w)
        return y, pull(g)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), apply(2, 5), apply(10))
