"""A model directory is opened once, and a component loaded when it is asked for, in the form that sampling wants."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax.checkpoint import bundle
from jukebox_jax.data.labels import Vocabulary
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.sample.source import from_directory
from jukebox_jax.types import UserError


@pytest.fixture
def folder(source, tmp_path) -> str:
    path = tmp_path / "model"
    bundle.save_component(path, "vqvae", source.load("vqvae"), source.vqvae)
    for level, prior in source.priors.items():
        bundle.save_component(path, f"prior_level_{level}", source.load(f"prior_level_{level}"), prior)
    vocabulary = source.labellers[0].vocabulary
    assert isinstance(vocabulary, Vocabulary)
    vocabulary.save(str(bundle.labels_dir(path)))
    return str(path)


def test_a_directory_is_the_model(source, folder) -> None:
    opened = from_directory(folder)
    assert opened.vqvae == source.vqvae and opened.priors == source.priors and opened.fingerprint
    for component in ("vqvae", "prior_level_0", "prior_level_1"):
        loaded, expected = opened.load(component), source.load(component)
        jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    with pytest.raises(UserError, match="unknown artist"):
        opened.labellers[0].label({"artist": "eve", "total_length": 8, "offset": 0})


def test_a_mesh_gets_each_part_where_it_belongs(source, folder) -> None:
    """Heads and hidden units over ``tensor``; an upsampler of one head keeps its attention whole."""
    opened = from_directory(folder, mesh=make_mesh({"data": 4, "tensor": 2}))
    for level, heads in ((1, "tensor"), (0, None)):
        params = opened.load(f"prior_level_{level}")["params"]
        layer = params["transformer"]["segment_0"]["layer_0"]
        found = [layer[part][name]["kernel"].sharding.spec for part, name in (("attention", "query"), ("mlp", "in"))]
        assert [spec[-1] if spec else None for spec in found] == [heads, "tensor"]
        jax.tree.map(np.testing.assert_array_equal, params, source.load(f"prior_level_{level}")["params"])
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(opened.load("vqvae")))


def test_layers_are_loaded_in_half_precision(source, folder) -> None:
    loaded = from_directory(folder, dtype=jnp.bfloat16).load("prior_level_1")["params"]
    kinds = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.dtype for path, leaf in
             jax.tree_util.tree_leaves_with_path(loaded)}  # fmt: skip
    layers = {name for name in kinds if "transformer/" in name and name.endswith("/kernel")}
    assert layers and all((kind == jnp.bfloat16) == (name in layers) for name, kind in kinds.items())
    assert "embedding" in kinds and kinds["lyrics_projection/kernel"] == jnp.float32


def test_every_level_needs_a_prior(source) -> None:
    with pytest.raises(UserError, match="has priors of 1, and a VQ-VAE of 2 levels"):
        dataclasses.replace(source, priors={1: source.priors[1]})
