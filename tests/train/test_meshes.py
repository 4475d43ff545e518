"""Two steps on eight devices give what one gives: VQ-VAE, lyrics prior and upsampler, each array in its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax import config, presets
from jukebox_jax.models.vqvae_loss import Bandwidth
from jukebox_jax.parallel.mesh import make_mesh, use
from jukebox_jax.parallel.sharding import batch_sharding, replicated
from jukebox_jax.train import state as states
from jukebox_jax.train.optimizer import Options, adam
from jukebox_jax.train.step import make_step
from jukebox_jax.train.task import Task, encode_batch, prior_task, vqvae_task

# A large eps: gradients that are zero but for rounding (of keys' biases) must not become whole steps.
OPTIONS = dataclasses.replace(
    Options(**config.prior(presets.PRIOR_5B).optimizer.to_dict()), warmup_steps=0.0, learning_rate=1e-2, eps=1e-2
)
VQVAE = presets.VQVAE(
    sample_rate=2000, down_depths=(1, 1), strides=(2, 2), width=4, depth=1, multipliers=None, codebook_size=16,
    codebook_dim=4, loss="l2", linf_k=64, resolutions=((64, 16, 32),),
)  # fmt: skip
LYRICS = presets.Prior(
    1, 24, 16, 4, presets.Transformer(32, 32, 4, 2, 4, "factored_dense"), lyrics=presets.Lyrics("merged", 8, 79),
    labels=presets.Labels("v3", 3, 3, 1, 8, 8, 0.01, 100.0, 2000),
)  # fmt: skip
UPSAMPLER = presets.Prior(
    0, 32, 16, 2, presets.Transformer(32, 32, 3, 1, 4, "factored"), upsampling=2, labels=presets.Labels("v3", 3, 3, 1),
    conditioner=presets.Conditioner(width=4, depth=1, down_depth=1),
)  # fmt: skip
rng = np.random.default_rng(0)


def rows(preset: presets.Prior) -> dict[str, np.ndarray]:
    """A batch of random codes and labels."""
    assert preset.labels is not None
    y = rng.integers(0, 3, (8, preset.labels.columns))
    y[:, :3] = [2000, 100, preset.window_samples]
    batch = {"codes": rng.integers(0, 16, (8, preset.context_length)), "y": y}
    if preset.upsampling:
        batch["upper_codes"] = rng.integers(0, 16, (8, preset.context_length // preset.upsampling))
    return {name: array.astype(np.int32) for name, array in batch.items()}


def case(part: str) -> tuple[Task, dict[str, np.ndarray], int | None, str, jax.P]:
    """Task, batch, heads, and one parameter with its placement on a mesh of 2 x 2 x 2."""
    if part == "vqvae":
        audio = rng.normal(0, 0.1, (8, 2048, 1)).astype(np.float32)
        return vqvae_task(VQVAE, Bandwidth(0.1, 0.01, 9.0)), {"audio": audio}, None, "encoder_0", jax.P()
    preset = LYRICS if part == "lyrics" else UPSAMPLER
    heads = preset.transformer.num_heads
    place = jax.P(None, "fsdp", "tensor") if heads > 1 else jax.P(None, "fsdp")
    return prior_task(preset), rows(preset), heads, "segment_0/layer_0/attention/query/kernel", place


def run(task: Task, batch: dict, heads: int | None, shape: dict[str, int] | None):
    """Two steps; on one device without a shape."""
    transform, key = adam(OPTIONS), jax.random.key(0)
    make: Callable = make_step(task.loss, transform, ema_decay=0.9)
    mesh = make_mesh(shape, None if shape else jax.devices()[:1])
    with use(mesh):
        where = states.placed(states.abstract(task.init, transform, key), mesh, heads)
        state = states.initialize(task.init, transform, key, where)
        step = jax.jit(make, donate_argnums=0, out_shardings=(states.shardings(where), replicated(mesh)))
        losses = []
        for _ in range(2):
            state, metrics = step(state, task.frozen, jax.device_put(batch, batch_sharding(mesh)), key)
            losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.parametrize("part", ["vqvae", "lyrics", "upsampler"])
def test_eight_devices_are_one(part: str):
    task, batch, heads, name, place = case(part)
    expected, expected_losses = run(task, batch, heads, None)
    state, losses = run(task, batch, heads, {"data": 2, "fsdp": 2, "tensor": 2})
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    # A vector halfway between two codes may go to either: one of them then counts (1 - decay) more or less.
    close = lambda atol: lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)  # noqa: E731
    jax.tree.map(close(0.02), state.model_state, expected.model_state)
    jax.tree.map(close(2e-6), state._replace(model_state={}), expected._replace(model_state={}))
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.ema, state.optimizer.mean))
    }
    matches = [spec for path, spec in found.items() if name in path]
    assert len(matches) >= 3 and set(matches) == {place}


def test_codes_do_not_depend_on_how_a_batch_is_spread():
    shapes = jax.eval_shape(vqvae_task(VQVAE, Bandwidth()).init, jax.random.key(0))
    variables = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), s.dtype), shapes)
    audio = jnp.asarray(rng.normal(0, 0.3, (8, 256, 1)), jnp.float32)
    alone = [encode_batch(VQVAE, variables, audio[i : i + 1], (0, 1)) for i in range(8)]
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with use(mesh):
        encode = jax.jit(lambda a: encode_batch(VQVAE, variables, a, (0, 1), 4))
        spread = encode(jax.device_put(audio, batch_sharding(mesh)))
    for level in (0, 1):
        np.testing.assert_array_equal(spread[level], np.concatenate([codes[level] for codes in alone]))
        assert len(np.unique(spread[level])) > 2
