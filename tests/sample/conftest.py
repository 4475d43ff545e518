"""A random model of two levels, small enough to sample from in a test."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.data.labels import Labeller, Vocabulary
from jukebox_jax.models.prior import Prior
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.sample.request import Request, Settings
from jukebox_jax.sample.source import Source

RATE = 8000
CONTEXT = 16
LABELS = presets.Labels("v3", 3, 3, 1, 8, 4, 0.01, 10.0, RATE)
TOP = presets.Prior(
    level=1, context_length=CONTEXT, codebook_size=12, hop_length=8, labels=LABELS,
    transformer=presets.Transformer(CONTEXT, 16, 4, 2, 4, "factored_lyrics_4", init_scale=8.0),
    lyrics=presets.Lyrics("separate", 8, 79, encoder=presets.Transformer(8, 8, 1)), alignment_layer=3, alignment_head=1,
)  # fmt: skip
BOTTOM = presets.Prior(
    level=0, context_length=CONTEXT, codebook_size=12, hop_length=4, upsampling=2,
    transformer=presets.Transformer(CONTEXT, 16, 1, init_scale=8.0),
    conditioner=presets.Conditioner(8, 1, 1), labels=presets.Labels("v3", 3, 3, 1, sample_rate=RATE),
)  # fmt: skip
CONFIG = presets.VQVAE(
    sample_rate=RATE, down_depths=(2, 1), strides=(2, 2), width=4, depth=1, multipliers=None, codebook_size=12,
    codebook_dim=4,
)  # fmt: skip


@pytest.fixture(scope="session")
def source() -> Source:
    """Random weights, from shapes alone: nothing is compiled for them."""
    rng, numbers = jax.random.key(0), np.random.default_rng(0)
    shapes = {"vqvae": jax.eval_shape(VQVAE(CONFIG).init, rng, jnp.zeros((1, 64, 1)))}
    for prior in (BOTTOM, TOP):
        shapes[f"prior_level_{prior.level}"] = jax.eval_shape(
            functools.partial(Prior(prior).init, method="initialise"), rng
        )
    weights = jax.tree.map(lambda leaf: jnp.asarray(numbers.normal(0, 0.4, leaf.shape), leaf.dtype), shapes)
    vocabulary = Vocabulary("v3", {"unknown": 0, "ada": 1, "bob": 2}, {"unknown": 0, "folk": 1, "reel": 2})
    labellers = {p.level: Labeller(p.labels, vocabulary, p.window_samples, strict=True) for p in (BOTTOM, TOP)}
    return Source("tiny", CONFIG, {0: BOTTOM, 1: TOP}, labellers, weights.__getitem__)


@pytest.fixture(scope="session")
def request_for() -> Callable[..., Request]:
    """A request for some items of half a window more than one window."""

    def make(items: int = 2, **changes) -> Request:
        lyrics = ["Over the hills and far away", "la", ""]
        metas = tuple(
            {
                "artist": ["ada", "bob", "unknown"][i % 3],
                "genre": "folk",
                "lyrics": lyrics[i % 3],
                "total_length": 800,
                "offset": 0,
            }
            for i in range(items)
        )
        values = dict(
            metas=metas, length=192, levels=(1, 0), hop_fractions=(0.5, 0.5), settings=(Settings(),) * 2,
            batch_sizes=(8, 8), seed=3,
        )  # fmt: skip
        return Request(**(values | changes))

    return make
