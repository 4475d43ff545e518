"""Features are the whole model's activations, whatever is read, padded or processed beside."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.checkpoint import bundle
from jukebox_jax.evaluate import features
from jukebox_jax.models.pattern import segments
from jukebox_jax.models.prior import Prior
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.types import UserError

from .conftest import BOTTOM, CONFIG, LABELS, MERGED, RATE, TOP, prior_params, vqvae_variables


def sound(samples: int) -> np.ndarray:
    return (0.4 * np.random.default_rng(3).standard_normal(samples)).astype(np.float32)


@functools.cache
def runner(config: presets.Prior, layers: int):
    @jax.jit
    def run(variables, params, padded, y):
        codes = VQVAE(CONFIG).apply(variables, padded, 1, method="encode_level")
        model = Prior(config, scan_layers=True)
        cond = model.apply({"params": params}, y, None, method="condition")
        return model.apply({"params": params}, codes, cond, layers, method="hidden")[0, config.merged_lyrics :]

    return run


def whole(config: presets.Prior, audio: np.ndarray, total: int, start: int, layers: int) -> np.ndarray:
    """The same from the whole model, over one whole window."""
    padded = np.zeros((1, config.window_samples, 1), np.float32)
    padded[0, : len(audio), 0] = audio
    y = np.zeros((1, LABELS.columns), np.int32)
    y[0, :4] = total, start, config.window_samples, 0
    return np.asarray(runner(config, layers)(vqvae_variables(), prior_params(config), padded, y))


@pytest.mark.parametrize(("config", "layer"), [(TOP, 4), (MERGED, 2)], ids=("separate", "merged"))
def test_windows_are_the_whole_model_s_activations(save, config, layer):
    extractor = features.load(save(config), layer)
    window, total = config.window_samples, config.window_samples + 45
    audio = sound(total)
    first, second = extractor.frames([audio[:window], audio[window:]], total)
    assert first.shape == (config.context_length, 8) and second.shape == (45 // 8, 8)
    np.testing.assert_allclose(first, whole(config, audio[:window], total, 0, layer), rtol=1e-4, atol=1e-4)
    expected = whole(config, audio[window:], total, window, layer)[:4]  # the encoder hears where the padding ends
    np.testing.assert_allclose(second[:4], expected, rtol=1e-4, atol=1e-4)


def test_only_the_layers_asked_for_are_read(save):
    stored = bundle.open_component(save(TOP), "prior_level_1")["params"]["transformer"]
    rows = []

    class Watched:
        def __init__(self, array):
            self.array = array

        def __getitem__(self, index):
            rows.append(len(index))
            return self.array[index]

    read = features.first_layers(jax.tree.map(Watched, stored), TOP.transformer, 2)
    leaves = len(jax.tree.leaves(stored["segment_0"]["layer_0"]))
    assert sum(rows) == 2 * leaves and {part for part in read} == {"segment_0"}


@pytest.mark.parametrize(("pattern", "depth"), [("factored_lyrics", 79), ("factored_prime", 72), ("factored", 7)])
def test_layers_land_where_the_shorter_model_has_them(pattern, depth):
    config = presets.Transformer(8, 8, depth, pattern=pattern)
    number = iter(range(depth))
    stored = {}
    for i, (kinds, repeats) in enumerate(segments(pattern, depth)):
        rows = np.array([[next(number) for _ in kinds] for _ in range(repeats)])
        stored[f"segment_{i}"] = {f"layer_{j}": {"w": rows[:, j]} for j in range(len(kinds))}
    for kept in {1, 5, min(36, depth), depth}:
        found = features.first_layers(stored, config, kept)
        order = []
        for i, (kinds, _) in enumerate(segments(pattern, kept)):
            stack = [found[f"segment_{i}"][f"layer_{j}"]["w"] for j in range(len(kinds))]
            order += np.stack(stack, axis=1).astype(int).ravel().tolist()
        assert order == list(range(kept))


def test_scaled_residuals_keep_their_depth(save):
    stack = dataclasses.replace(TOP.transformer, residual_scale=True, depth=2, pattern="factored")
    extractor = features.load(save(dataclasses.replace(TOP, transformer=stack)), 1)
    assert extractor.prior.transformer.depth == 2 and extractor.num_layers == 1
    assert extractor.params["transformer"].keys() == {"segment_0"} and segments("factored", 2)[0].repeats == 1
    assert extractor.params["transformer"]["segment_0"].keys() == {"layer_0", "layer_1"}


def test_lengths_the_model_does_not_know_are_moved_into_its_range(save):
    extractor, window = features.load(save(TOP), 1), TOP.window_samples
    assert extractor._row(0, 10, "unknown", "unknown")[0, :5].tolist() == [100, 0, window, 0, 0]
    assert extractor._row(9000, 10_000, "Ada", "reel")[0, :5].tolist() == [7999, 8000 - window, window, 1, 2]
    with pytest.raises(UserError, match="unknown artist 'adda'.* 'ada'"):
        extractor._row(0, 1000, "Adda", "unknown")
    assert extractor.frame_rate == RATE / 8


def test_padding_is_whole_blocks_of_few_lengths():
    assert [features.padded_length(TOP, n) for n in (1, 4, 5, 9, 17, 32)] == [4, 4, 8, 16, 32, 32]
    assert [features.padded_length(MERGED, n) for n in (1, 3, 26)] == [2, 10, 26]


def test_pool():
    windows = [np.array([[1.0, 5.0], [2.0, 1.0]], np.float32), np.array([[9.0, 3.0]], np.float32)]
    assert features.pool(iter(windows), "mean").tolist() == [4.0, 3.0]
    assert features.pool(iter(windows), "max").tolist() == [9.0, 5.0]
    assert features.pool(iter(windows), "none").shape == (3, 2)
    assert {features.pool(windows, how).dtype for how in features.POOLS} == {np.dtype(np.float32)}
    with pytest.raises(UserError, match="Did you mean 'mean'"):
        features.pool(windows, "meen")
    with pytest.raises(UserError, match="there is no frame"):
        features.pool([], "mean")


def test_errors_say_what_there_is(save):
    with pytest.raises(UserError, match="layer 6: the top prior of .* has layers 1 to 5"):
        features.load(save(TOP), 6)
    with pytest.raises(UserError, match="layers 1 to 5"):
        features.load(save(TOP), 0)
    with pytest.raises(UserError, match="has vqvae, prior_level_0"):
        features.load(save(BOTTOM), 1)
