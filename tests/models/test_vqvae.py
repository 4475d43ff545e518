"""The VQ-VAE: shapes, one level at a time, long signals, and what the loss does besides the original's numbers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.models import vqvae_stream
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.models.vqvae_loss import Bandwidth, vqvae_loss
from jukebox_jax.models.vqvae_stream import decode_long, encode_long
from jukebox_jax.ops import conv_stack
from jukebox_jax.train.task import init_convolutions
from jukebox_jax.types import UserError

PRESET = presets.VQVAE(
    sample_rate=1000, down_depths=(2, 1), strides=(2, 4), width=4, depth=1, multipliers=(2, 1), codebook_size=16,
    codebook_dim=6, linf_k=64, resolutions=((64, 20, 40), (32, 10, 20)),
)  # fmt: skip
MODEL = VQVAE(PRESET)


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), jnp.zeros((1, 64, 1))))
    variables = {"params": init_convolutions(jax.random.key(0), shapes["params"])}
    variables["codebook"] = jax.tree.map(lambda s: jnp.asarray(np.zeros(s.shape, s.dtype)), shapes["codebook"])
    for level in range(2):
        state = variables["codebook"][f"level_{level}"]
        state["codebook"] = 0.3 * jax.random.normal(jax.random.key(level), (16, 6))
    return variables


def noise(*shape: int) -> jax.Array:
    return 0.3 * jax.random.normal(jax.random.key(7), shape)


def run(variables, x, *level, method: str):
    """A method of the model, compiled as one program."""
    return jax.jit(lambda v, x: MODEL.apply(v, x, *level, method=method))(variables, x)


def test_released_size() -> None:
    shapes = jax.eval_shape(lambda: VQVAE(presets.RELEASED_VQVAE).init(jax.random.key(0), jnp.zeros((1, 128, 1))))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 1_485_763
    books = [state["codebook"].shape for state in shapes["codebook"].values()]
    assert books == [(2048, 64)] * 3


@pytest.mark.parametrize(("level", "codes", "samples"), [(0, 5742, 45_935), (1, 80, 2551), (2, 82, 10_455)])
def test_reach_of_the_released_model(level: int, codes: int, samples: int) -> None:
    """Context measured on the original (spec/quirks.md A25): a chunked run lags by no less, nor by a code more."""
    model, hop = VQVAE(presets.RELEASED_VQVAE), presets.RELEASED_VQVAE.hop_lengths[level]
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 128, 1))))
    zeros = jax.tree.map(lambda leaf: jnp.asarray(np.zeros(leaf.shape, np.float32)), shapes)
    encoder, decoder = (model.apply(zeros, level, method=method) for method in ("encoder", "decoder"))
    lag = conv_stack.timetable(encoder, 8 * hop)[-1].lag * hop
    assert samples <= lag < samples + 2 * hop
    lag = conv_stack.timetable(decoder, 8)[-1].lag
    assert codes * hop - hop < lag <= codes * hop + hop


def test_lengths_that_no_hop_divides(variables) -> None:
    x = noise(2, 103, 1)
    assert [z.shape for z in run(variables, x, method="encode")] == [(2, 25), (2, 6)]
    assert run(variables, jnp.zeros((2, 3), jnp.int32), 1, method="decode").shape == (2, 48, 1)


def test_a_level_needs_its_own_variables_only(variables) -> None:
    x = noise(1, 64, 1)
    p = variables["params"]
    part = {"params": {"encoder_1": p["encoder_1"]}, "codebook": variables["codebook"]}
    codes = run(part, x, 1, method="encode_level")
    np.testing.assert_array_equal(codes, run(variables, x, [1], method="encode")[0])
    run({"params": {"decoder_1": p["decoder_1"]}, "codebook": variables["codebook"]}, codes, 1, method="decode")


def test_long_signals(variables) -> None:
    x = noise(2, 700, 1)
    expected = run(variables, x, method="encode")
    found = encode_long(MODEL, variables, np.asarray(x), chunk=64)
    for level, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_array_equal(mine, theirs)
        pieces = list(decode_long(MODEL, variables, mine, level, chunk=64))
        whole = run(variables, theirs, level, method="decode")
        assert len(pieces) > 1
        np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=1e-4, atol=1e-5)
    assert encode_long(MODEL, variables, np.asarray(x[:, :17]), [1], chunk=64)[0].shape == (2, 1)
    with pytest.raises(UserError, match="15 samples are less than one code: at least 16"):
        encode_long(MODEL, variables, np.asarray(x[:, :15]))


def test_cores_side_by_side_are_as_one_run(variables, monkeypatch) -> None:
    """From both ends, and in segments, of any length and number: every code and sample, once and in order."""
    monkeypatch.setattr(vqvae_stream, "NUMBERS", 200)
    level, calls = 1, []
    at_once = vqvae_stream.at_once
    monkeypatch.setattr(vqvae_stream, "at_once", lambda f, given: calls.append(len(given)) or at_once(f, given))
    for batch, length, most in ((1, 331, 512), (1, 400, 512), (1, 1000, 128), (3, 517, 128), (1, 16, 128)):
        monkeypatch.setattr(vqvae_stream, "SEGMENT", most)
        calls.clear()
        x = np.asarray(noise(batch, length, 1))
        codes = encode_long(MODEL, variables, x, [level])[0]
        assert set(calls) == {2} and (len(calls) > batch) == (length > 2 * most)
        np.testing.assert_array_equal(codes, encode_long(MODEL, variables, x, [level], chunk=64)[0])
        calls.clear()
        found = np.concatenate(list(decode_long(MODEL, variables, codes, level)), axis=1)
        whole = np.concatenate(list(decode_long(MODEL, variables, codes, level, chunk=64)), axis=1)
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5)
        assert max(calls) == (2 * batch if length > 64 else batch)


def test_training_updates_and_evaluation_does_not(variables) -> None:
    x = noise(2, 1280, 1)  # the spectral metrics need 1,025 samples
    loss = jax.jit(lambda v, rng: vqvae_loss(MODEL, v, x, Bandwidth(), rng=rng))
    fresh = loss(variables, jax.random.key(0))
    evaluated = jax.jit(lambda v: vqvae_loss(MODEL, v, x, Bandwidth()))(variables)
    for state, hop in zip(fresh.codebook.values(), PRESET.hop_lengths, strict=True):  # started from the data, one step
        assert np.isfinite(state["codebook"]).all()
        np.testing.assert_allclose(jnp.sum(state["count"]), 0.99 * 16 + 0.01 * x.size / hop, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, evaluated.codebook, dict(variables["codebook"]))
    assert {"fit", "pn", "entropy", "used_curr"} <= evaluated.metrics.keys()
    again = loss({**variables, "codebook": fresh.codebook}, jax.random.key(0))
    assert float(again.metrics["dk"]) < float(fresh.metrics["dk"]) or np.isfinite(again.loss)
    other = loss(variables, jax.random.key(1))
    assert (other.codebook["level_0"]["codebook"] != fresh.codebook["level_0"]["codebook"]).any()


def test_the_gradient_passes_straight_through(variables) -> None:
    """Without commitment the encoder gets the decoder's gradient; codebooks get none; silence gives no NaN."""
    x = noise(1, 1280, 1)
    model = VQVAE(dataclasses.replace(PRESET, commitment_weight=0.0))

    def loss(params, x):
        return vqvae_loss(model, {**variables, "params": params}, x, Bandwidth()).loss

    gradient = jax.jit(jax.grad(loss))
    sizes = jax.tree.map(lambda g: float(jnp.max(jnp.abs(g))), gradient(variables["params"], x))
    for encoder in ("encoder_0", "encoder_1"):  # but for ReLUs that nothing passes
        assert np.mean([size > 0 for size in jax.tree.leaves(sizes[encoder])]) > 0.8
    silent = gradient(variables["params"], jnp.zeros_like(x))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(silent))


def test_without_a_bottleneck_it_is_an_autoencoder() -> None:
    model, x = VQVAE(dataclasses.replace(PRESET, use_bottleneck=False)), noise(1, 1280, 1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    assert set(shapes) == {"params"}
    variables = {"params": init_convolutions(jax.random.key(0), shapes["params"])}
    output = jax.jit(lambda v: vqvae_loss(model, v, x, Bandwidth(), rng=jax.random.key(0)))(variables)
    assert output.codebook == {} and float(output.metrics["commit_loss"]) == 0
    np.testing.assert_allclose(output.audio, jax.jit(model.apply)(variables, x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": (2, 3)}, "only even strides do, the nearest is 4"),
        ({"strides": (2,)}, r"strides \(2,\): 2 entries are needed"),
        ({"multipliers": (1, 1, 1)}, "multipliers .* 2 entries are needed"),
    ],
)
def test_presets_that_are_no_model(changes, message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        VQVAE(dataclasses.replace(PRESET, **changes)).init(jax.random.key(0), jnp.zeros((1, 64, 1)))


def test_bad_lengths_and_levels_are_named(variables) -> None:
    with pytest.raises(UserError, match="100 samples are no multiple of 16.*: 96 and 112"):
        jax.eval_shape(lambda: vqvae_loss(MODEL, variables, noise(1, 100, 1), Bandwidth()))
    with pytest.raises(UserError, match="48 samples are fewer than linf_k=64"):
        jax.eval_shape(lambda: vqvae_loss(MODEL, variables, noise(1, 48, 1), Bandwidth()))
    with pytest.raises(UserError, match="unknown level 2"):
        MODEL.apply(variables, noise(1, 64, 1), 2, method="encode_level")
