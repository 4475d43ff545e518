"""Level by level and example by example: the same loss, gradient and codebooks as of the whole batch at once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.models.vqvae_by_level import gradients
from jukebox_jax.models.vqvae_loss import Bandwidth, vqvae_loss
from jukebox_jax.ops.quantize import init_codebook
from jukebox_jax.parallel.mesh import make_mesh, use
from jukebox_jax.train.optimizer import global_norm
from jukebox_jax.train.task import init_convolutions, vqvae_task
from jukebox_jax.types import UserError

PRESET = presets.VQVAE(
    sample_rate=1000, down_depths=(2, 1), strides=(2, 4), width=4, depth=2, multipliers=(2, 1), codebook_size=16,
    codebook_dim=6, linf_k=64, multispectral_weight=1.0, resolutions=((64, 20, 40), (32, 10, 20)),
)  # fmt: skip
BANDWIDTH = Bandwidth(0.5, 0.3, 2.0)
AUDIO = 0.3 * jax.random.normal(jax.random.key(7), (3, 1280, 1))


@pytest.mark.usefixtures("compile_quickly")
@pytest.mark.parametrize(("loss", "begun"), [("l2", True), ("lmix", False)], ids=["goes on", "starts"])
def test_gradients_are_those_of_the_whole(loss: str, begun: bool) -> None:
    model = VQVAE(dataclasses.replace(PRESET, loss=loss))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 1))))
    variables = {"params": init_convolutions(jax.random.key(0), shapes["params"])}
    state = init_codebook(0.3 * jax.random.normal(jax.random.key(1), (16, 6)))
    if not begun:
        state = jax.tree.map(jnp.zeros_like, state)
    variables["codebook"] = {f"level_{level}": state._asdict() for level in range(2)}

    def whole(params):
        output = vqvae_loss(model, {**variables, "params": params}, AUDIO, BANDWIDTH, rng=jax.random.key(3))
        return output.loss, output

    (_, expected), expected_grads = jax.jit(jax.value_and_grad(whole, has_aux=True))(variables["params"])
    output, grads, norm = gradients(model, variables, AUDIO, BANDWIDTH, jax.random.key(3))
    assert set(output.metrics) == set(expected.metrics)
    assert {"entropy", "fit", "recons_loss_l2", "spectral_convergence"} < set(output.metrics)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(b)))),
        (output._replace(metrics=dict(output.metrics)), grads), (expected, expected_grads),
    )  # fmt: skip
    np.testing.assert_allclose(norm, global_norm(expected_grads), rtol=1e-5)
    assert all(float(jnp.sum(book["count"])) > 0 for book in output.codebook.values())


def test_only_one_cpu_takes_levels_one_by_one() -> None:
    assert vqvae_task(PRESET, BANDWIDTH).gradients is not None
    assert vqvae_task(dataclasses.replace(PRESET, use_bottleneck=False), BANDWIDTH).gradients is None
    with use(make_mesh({"data": 2}, jax.devices()[:2])):
        assert vqvae_task(PRESET, BANDWIDTH).gradients is None


def test_lengths_that_no_hop_divides() -> None:
    with pytest.raises(UserError, match=r"150 samples .* nearest that are: 144 and 160"):
        gradients(VQVAE(PRESET), {}, AUDIO[:, :150], BANDWIDTH, jax.random.key(0))
