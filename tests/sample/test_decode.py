"""Prefill and cached steps equal the forward over the whole stream: every kind, every prompt length of a window."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.models import decode_form, step_products
from jukebox_jax.models.cache import DECODABLE, Sizes, apart, shape
from jukebox_jax.models.decode_form import layer_step, layer_weights
from jukebox_jax.models.layers import Layer
from jukebox_jax.models.pattern import Kind
from jukebox_jax.models.prior import Prior
from jukebox_jax.models.step_products import ALL
from jukebox_jax.ops.logits import Settings
from jukebox_jax.parallel import lanes
from jukebox_jax.sample import decode
from jukebox_jax.sample.decode import sample_window
from jukebox_jax.types import UserError

T, BLOCKS, LYRICS, WIDTH, BATCH = 9, 3, 5, 8, 2
C = T // BLOCKS
TURNED = {"scanned": ALL[:1], "rows": ALL, "kernel": ()}

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of codes that prefills are traced for."""
    found = []

    def prefill(model, params, codes, cond, given, prepared):
        found.append(codes.shape[1])
        return decode.prefill(model, params, codes, cond, given, prepared)

    monkeypatch.setattr(decode, "_prefill", jax.jit(prefill, static_argnums=0))
    return found


@pytest.mark.parametrize(
    ("kind", "form"),
    [(kind, form) for kind in DECODABLE for form in ("scanned", "rows", "kernel")],
    ids=lambda value: getattr(value, "value", value),
)
def test_a_layer_goes_on_from_every_prompt_length(kind: Kind, form: str) -> None:
    config = presets.Transformer(T, WIDTH, 1, 2, BLOCKS, attention_ratio=0.5, init_scale=20.0)
    layer = Layer(config, kind, prime_length=4, num_lyrics=LYRICS)
    x = jax.random.normal(jax.random.key(0), (BATCH, T, WIDTH))
    lyrics = jax.random.normal(jax.random.key(1), (BATCH, LYRICS, WIDTH)) if kind is Kind.LYRICS else None
    expected, params = jax.jit(layer.init_with_output)(jax.random.key(2), x, lyrics)
    weights = layer_weights(kind, params["params"], config.num_heads, jnp.float32, TURNED[form])

    def steps(cache, known):
        """Outputs at positions known .. T, zeros before."""
        cache = apart(kind, cache, layer.sizes) if form != "scanned" else cache

        def body(t, carry):
            cache, out = carry
            y, cache = layer_step(layer, weights, x[:, t], cache, 0, t)
            return cache, out.at[:, t].set(y)

        return jax.lax.fori_loop(known, T, body, (cache, jnp.zeros_like(x)))[1]

    @jax.jit(static_argnums=0)
    def from_prompt(padded: int, known):
        noise = jax.random.normal(jax.random.key(3), x.shape) * 10
        prompt = jnp.where(jnp.arange(T)[None, :, None] < known, x, noise)[:, :padded]  # the padding must not matter
        out, cache = layer.apply(params, prompt, lyrics, known, method="prefill")
        return out, steps(cache[None], known)

    for known in range(1, T):
        for padded in range(-(-known // C) * C, T + 1, C):  # whole blocks, up to the whole context
            first, rest = from_prompt(padded, known)
            np.testing.assert_allclose(first[:, :known], expected[:, :known], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(rest[:, known:], expected[:, known:], rtol=1e-5, atol=1e-5)
    if kind is not Kind.LYRICS:
        empty = jnp.full((1, *shape(kind, layer.sizes, BATCH, WIDTH // 2)), 1e3)  # unwritten slots must not matter
        np.testing.assert_allclose(jax.jit(steps)(empty, 0), expected, rtol=1e-5, atol=1e-5)


CONTEXT = 10
TRANSFORMER = presets.Transformer(CONTEXT + 6, 12, 16, 2, 4, "factored_prime", attention_ratio=0.5, init_scale=6.0)
LABELS = presets.Labels("v3", 3, 4, 2, 6, 8, 1.0, 9.0, 100)
MERGED = presets.Prior(
    level=1, context_length=CONTEXT, codebook_size=9, hop_length=8, transformer=TRANSFORMER, labels=LABELS,
    lyrics=presets.Lyrics("merged", 6, 7),
)  # fmt: skip
SEPARATE = presets.Prior(
    level=1, context_length=12, codebook_size=9, hop_length=8, labels=LABELS, tied_output=False,
    transformer=presets.Transformer(12, 12, 4, 2, 4, "factored_lyrics_4", attention_ratio=0.5, init_scale=6.0),
    lyrics=presets.Lyrics("separate", 6, 7, encoder=presets.Transformer(6, 8, 2, 1, 2, "block_column")),
)  # fmt: skip
UPSAMPLER = presets.Prior(
    level=0, context_length=12, codebook_size=9, hop_length=4, upsampling=2,
    transformer=presets.Transformer(12, 12, 4, 2, 3, "factored_dense", attention_ratio=0.5, init_scale=6.0),
    conditioner=presets.Conditioner(8, 1, 1),
)  # fmt: skip
LONG = presets.Prior(  # prefills over 2, 3, 4, 5, 7, 8, 9 and 10 of ten blocks
    level=1, context_length=20, codebook_size=9, hop_length=8,
    transformer=presets.Transformer(20, 12, 3, 2, 10, "factored", attention_ratio=0.5, init_scale=6.0),
)  # fmt: skip
DENSE = dataclasses.replace(LONG, transformer=presets.Transformer(20, 12, 2, 2, attention_ratio=0.5, init_scale=6.0))


@pytest.mark.parametrize(
    "preset", [MERGED, SEPARATE, UPSAMPLER, LONG, DENSE], ids=["merged", "separate", "upsampler", "long", "dense"]
)
def test_a_window_goes_on_from_every_prompt_length(preset: presets.Prior, lengths: list[int]) -> None:
    model = Prior(preset, scan_layers=preset is MERGED)  # the others with their layers apart
    params = jax.jit(functools.partial(model.init, method="initialise"))(jax.random.key(0))["params"]
    rng = np.random.default_rng(0)
    y = [
        [300, 20, preset.window_samples, 1, 2, -1, 1, 2, 3, 4, 5, 6],
        [800, 60, preset.window_samples, 2, 0, 3, 0, 0, 1, 2, 3, 1],
    ]
    y = jnp.asarray(y, jnp.int32) if preset.labels else None
    upper = (
        jnp.asarray(rng.integers(0, 9, (BATCH, preset.context_length // 2)), jnp.int32) if preset.upsampling else None
    )
    codes = jnp.asarray(rng.integers(0, 9, (BATCH, preset.context_length)), jnp.int32)
    keys = jax.random.split(jax.random.key(1), BATCH)
    first = preset.merged_lyrics

    @jax.jit
    def forward(params, tokens):
        """Logits of the music positions, from tokens of the sequence."""
        cond = model.apply({"params": params}, y, upper, method="condition")

        def logits(model, tokens):
            positions = model.positions(cond)
            x = model.transformer(model._embed(tokens, cond, positions), cond.lyrics)
            return model._conditioned(x, positions) @ model._output_table().T

        return model.apply({"params": params}, tokens, method=logits)[:, first:]

    for known in range(preset.context_length):
        drawn = sample_window(
            model, params, codes[:, :known], y, upper, keys, start=0, num_steps=preset.context_length - known,
            settings=Settings(), keep_logits=True, chunk=5,  # ends in other blocks than it begins in
        )  # fmt: skip
        prompt = codes[:, :known] + preset.lyric_vocabulary
        tokens = jnp.concatenate([y[:, -first:], prompt, drawn.raw] if first else [prompt, drawn.raw], axis=1)
        np.testing.assert_allclose(drawn.logits, forward(params, tokens)[:, known:], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(drawn.codes[:, :known], codes[:, :known])
        np.testing.assert_array_equal(drawn.codes[:, known:], np.maximum(drawn.raw - preset.lyric_vocabulary, 0))
    wanted = {decode.prefix(model, first + known) - first for known in range(0 if first else 1, preset.context_length)}
    assert 2 < len(wanted) <= 8 and sorted(lengths) == sorted(wanted)  # traced once each


def test_half_a_context_is_half_a_forward(lengths: list[int]) -> None:
    t = presets.Transformer(64, 8, 1, 2, 32, "factored")
    model = Prior(presets.Prior(level=1, context_length=64, codebook_size=9, hop_length=8, transformer=t))
    params = jax.jit(functools.partial(model.init, method="initialise"))(jax.random.key(0))["params"]
    keys = jax.random.split(jax.random.key(1), 1)
    for given in (32, 31, 30, 25, 56, 32):
        sample_window(model, params, jnp.zeros((1, given), jnp.int32), None, None, keys, start=0, num_steps=0)
    assert lengths == [32, 56]


PRESETS = [preset for preset in vars(presets).values() if isinstance(preset, presets.Prior)]


@pytest.mark.parametrize("preset", [*PRESETS, MERGED, SEPARATE, UPSAMPLER, LONG, DENSE])
def test_eight_prefills_serve_every_prompt(preset: presets.Prior) -> None:
    t = preset.transformer
    found = [decode.prefix(Prior(preset), known) for known in range(1, t.length + 1)]
    blocks = t.num_blocks or t.length
    assert found == sorted(found) and set(found) == {
        -(-i * blocks // 8) * (t.length // blocks) for i in range(1, 9)
    }  # eighths, in whole blocks
    spare = [there - known for known, there in enumerate(found, 1)]
    assert min(spare) == 0 and max(spare) < t.length // 8 + t.length // blocks


@pytest.mark.parametrize(
    ("wide", "cores"), [(decode.WIDE, 1), (3, 1), (decode.WIDE, 2)], ids=["all narrow", "three are wide", "lanes"]
)
def test_chunks_and_neighbours_change_nothing(wide: int, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw depends on its item's key and on its place, not on chunks or on what else stands in the batch."""
    monkeypatch.setattr(decode, "WIDE", wide)
    monkeypatch.setattr(lanes, "_cores", lambda: cores)
    monkeypatch.setattr(lanes, "_shared_cache", lambda: 1 << 30)
    monkeypatch.setattr(lanes, "_met", met := set())
    afresh = functools.partial(decode_form.prepare)  # nothing compiled for other cores
    monkeypatch.setattr(decode, "_prepare", jax.jit(afresh, static_argnums=0))
    sizes = []
    monkeypatch.setattr(
        decode, "at_once", lambda program, calls: sizes.append(len(calls)) or lanes.at_once(program, calls)
    )
    shallow = dataclasses.replace(UPSAMPLER, transformer=presets.Transformer(12, 12, 1, init_scale=20.0))
    model = Prior(shallow)
    params = jax.jit(functools.partial(model.init, method="initialise"))(jax.random.key(0))["params"]
    upper = jnp.asarray(np.random.default_rng(1).integers(0, 9, (3, 6)), jnp.int32)
    keys = jax.random.split(jax.random.key(1), 3)
    codes = jnp.zeros((3, 5), jnp.int32)
    starts = np.asarray([0, 12, 4], np.int32)

    def draw(rows, chunk: int) -> np.ndarray:
        rows = np.asarray(rows)
        return np.asarray(
            sample_window(
                model, params, codes[rows], None, upper[rows], keys[rows], start=starts[rows], num_steps=7, chunk=chunk
            ).codes
        )

    together = draw([0, 1, 2], 7)
    assert len({tuple(row) for row in together.tolist()}) == 3
    np.testing.assert_array_equal(draw([0, 1, 2], 3), together)
    np.testing.assert_array_equal(draw([2, 0], 3), together[[2, 0]])
    np.testing.assert_array_equal(draw([1], 3), together[[1]])
    assert sizes == [cores] * 7 + [1] * 3  # chunks of 7, 3 and 3 of the seven
    assert step_products.plain(decode.weights(model, params)) == (cores > 1)
    assert len(met) == (3 if cores > 1 else 0)  # two sizes of chunks, two of lanes: where a window ends is no new kind


@pytest.mark.parametrize(("batch", "width"), [(1, 6), (1, 7), (3, 6)])
def test_products_with_every_form_of_a_matrix(batch: int, width: int) -> None:
    x, kernel = jax.random.normal(jax.random.key(0), (batch, width)), jax.random.normal(jax.random.key(1), (width, 5))
    for weights in ({"kernel": kernel}, {"rows": kernel.T}):
        found = jax.jit(step_products.product, static_argnums=2)(x, weights, jnp.float32)
        np.testing.assert_allclose(found, x @ kernel, rtol=1e-5, atol=1e-6)


def test_a_loop_that_ends_early_draws_the_first_of_the_whole_one() -> None:
    model = Prior(dataclasses.replace(UPSAMPLER, transformer=presets.Transformer(12, 12, 1, init_scale=20.0)))
    params = jax.jit(functools.partial(model.init, method="initialise"))(jax.random.key(0))["params"]
    cond = decode.condition(model, params, None, jnp.zeros((2, 6), jnp.int32))
    keys, token = jax.random.split(jax.random.key(1), 2), jnp.zeros(2, jnp.int32)
    run = jax.jit(functools.partial(decode.decode, model, 7, Settings(), True))

    def draw(*end: int) -> tuple[np.ndarray, np.ndarray]:
        cache = decode.empty_cache(model, 2, params, cond)
        codes, logits, _ = run(decode.weights(model, params), cache, cond, token, keys, 0, 0, *end)
        return np.asarray(codes), np.asarray(logits)

    (codes, logits), (first_codes, first_logits) = draw(), draw(3)
    np.testing.assert_array_equal(first_codes[:, :3], codes[:, :3])
    np.testing.assert_allclose(first_logits[:, :3], logits[:, :3], rtol=1e-5, atol=1e-5)
    assert not first_logits[:, 3:].any() and logits[:, 3:].all()


def test_a_window_longer_than_the_context_is_refused() -> None:
    model = Prior(UPSAMPLER)
    with pytest.raises(UserError, match=r"5 \+ 8 codes do not fit a context of 12"):
        sample_window(model, {}, jnp.zeros((1, 5), jnp.int32), None, None, None, start=0, num_steps=8)


@pytest.mark.parametrize("kind", [Kind.SUMMARY, Kind.SPREAD])
def test_summaries_have_no_cache(kind: Kind) -> None:
    with pytest.raises(UserError, match="no cached decoding"):
        shape(kind, Sizes(T, BLOCKS, 0, 0), BATCH, WIDTH)
