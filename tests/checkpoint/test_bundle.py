"""A model directory: round trips, shardings, dtypes, replacement, and the errors a user can run into."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.checkpoint import bundle
from jukebox_jax.types import UserError

VARIABLES = {
    "params": {
        "a": {"kernel": np.arange(32, dtype=np.float16).reshape(8, 4)},
        "b": np.linspace(0, 1, 6, dtype=np.float32),
    },
    "codebook": {"level_0": {"codebook": np.ones((4, 2), np.float32), "count": np.ones(4, np.float32)}},
}
PRIOR = presets.SMALL_UPSAMPLER


@pytest.fixture
def model(tmp_path):
    bundle.save_component(tmp_path / "model", "vqvae", VARIABLES, presets.SMALL_VQVAE, provenance={"sha256": "ab"})
    return tmp_path / "model"


def test_round_trip_is_exact_and_float32(model):
    loaded = bundle.load_component(model, "vqvae")
    jax.tree.map(np.testing.assert_array_equal, loaded, VARIABLES)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype("float32")}
    description = bundle.load_description(model)
    assert description == bundle.Description("model", presets.SMALL_VQVAE, {}, {"vqvae": {"sha256": "ab"}})


def test_components_share_a_directory_and_can_be_replaced(model):
    bundle.save_component(model, "prior_level_0", {"params": {"w": jnp.ones(3)}}, PRIOR, name="renamed")
    bundle.save_component(model, "prior_level_0", {"params": {"w": jnp.zeros(3)}}, PRIOR)
    description = bundle.load_description(model)
    assert description.components == ("vqvae", "prior_level_0")
    assert description.preset("prior_level_0") == PRIOR
    assert description.name == "renamed"
    np.testing.assert_array_equal(bundle.load_component(model, "prior_level_0")["params"]["w"], np.zeros(3))
    assert sorted(p.name for p in model.iterdir()) == ["model.json", "prior_level_0", "vqvae"]


def test_restores_into_shardings_and_dtype(model):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = jax.NamedSharding(mesh, jax.P("x")), jax.NamedSharding(mesh, jax.P())
    shardings = jax.tree.map(lambda leaf: split if leaf.shape[0] % 4 == 0 else whole, VARIABLES)
    loaded = bundle.load_component(model, "vqvae", shardings=shardings, dtype=jnp.bfloat16)
    kernel = loaded["params"]["a"]["kernel"]
    assert kernel.sharding == split and kernel.addressable_shards[0].data.shape == (2, 4)
    assert kernel.dtype == jnp.bfloat16
    assert loaded["codebook"]["level_0"]["codebook"].dtype == jnp.float32  # codebooks stay float32
    np.testing.assert_array_equal(kernel.astype(jnp.float32), VARIABLES["params"]["a"]["kernel"])


def test_a_target_of_another_shape_prints_a_table(model):
    target = {"params": {"a": {"kernel": jnp.ones((8, 5))}, "c": jnp.ones(2)}, "codebook": VARIABLES["codebook"]}
    with pytest.raises(UserError) as error:
        bundle.load_component(model, "vqvae", target=target)
    text = str(error.value)
    assert "1 missing, 1 extra, 1 of another shape" in text
    assert "params/a/kernel" in text and "expected 8x5, found 8x4" in text
    assert "missing      params/c" in text


def test_a_save_cut_off_between_the_old_and_the_new_is_still_there(model):
    (model / "vqvae").rename(model / "vqvae.new")
    loaded = bundle.load_component(model, "vqvae")
    np.testing.assert_array_equal(loaded["params"]["b"], VARIABLES["params"]["b"])
    bundle.save_component(model, "vqvae", VARIABLES, presets.SMALL_VQVAE)
    assert sorted(p.name for p in model.iterdir()) == ["model.json", "vqvae"]


def test_errors_name_the_input(model, tmp_path):
    with pytest.raises(UserError, match="not a model directory"):
        bundle.load_description(tmp_path)
    with pytest.raises(UserError, match="has no prior_level_1: it has vqvae"):
        bundle.load_component(model, "prior_level_1")
    with pytest.raises(UserError, match="Did you mean 'vqvae'"):
        bundle.load_component(model, "vqvea")
    with pytest.raises(UserError, match="cannot be saved as prior_level_1"):
        bundle.save_component(model, "prior_level_1", {"params": {}}, PRIOR)
    (model / "vqvae" / "_METADATA").write_text("{")
    with pytest.raises(UserError, match="vqvae is damaged"):
        bundle.load_component(model, "vqvae")
    (model / "vqvae").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="is missing"):
        bundle.load_component(model, "vqvae")


@pytest.mark.parametrize(
    "edit", [lambda d: d.pop("name"), lambda d: d.update(format=2), lambda d: d["vqvae"].update(wdith=3)]
)
def test_damaged_description(model, edit):
    data = json.loads((model / "model.json").read_text())
    edit(data)
    (model / "model.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"model\.json"):
        bundle.load_description(model)
    with pytest.raises(UserError, match=r"model\.json"):
        bundle.save_component(model, "vqvae", VARIABLES, presets.SMALL_VQVAE)
    (model / "model.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        bundle.load_description(model)
