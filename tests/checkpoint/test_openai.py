"""Original checkpoints <-> our variables: strict, exact and complete, for every golden checkpoint there is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.checkpoint import openai
from jukebox_jax.checkpoint.mapping import flatten
from jukebox_jax.checkpoint.openai_hps import prior_from_hps, vqvae_from_hps
from jukebox_jax.checkpoint.tensors import LazyTensor, Storage
from jukebox_jax.checkpoint.torch_reader import open_checkpoint
from jukebox_jax.models.prior import Prior
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
SKIPPED = (
    "torch_reader",
    "transformer_orders",
    "pipeline_partial",
    "pipeline_partial_1b_lyrics",
)  # no model, or no new one
FILES = [path for path in sorted(GOLDEN.rglob("*.pth.tar")) if path.parent.name not in SKIPPED]


def golden(case: str):
    checkpoint = open_checkpoint(GOLDEN / case / "checkpoint.pth.tar")
    return checkpoint, prior_from_hps(checkpoint.hps or {})


def shapes(tree):
    return {path: tuple(leaf.shape) for path, leaf in flatten(tree).items()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_import_fills_the_model_and_export_gives_the_file_back(path):
    checkpoint = open_checkpoint(path)
    if any(name.startswith("encoders.") for name in checkpoint.tensors):
        preset = vqvae_from_hps(checkpoint.hps or {})
        variables = openai.import_vqvae(checkpoint, preset)
        exported = openai.export_vqvae(variables, preset)
        audio = jnp.zeros((1, preset.hop_lengths[-1], 1))
        abstract = jax.eval_shape(VQVAE(preset).init, jax.random.key(0), audio)
    else:
        preset = prior_from_hps(checkpoint.hps or {})
        variables = openai.import_prior(checkpoint, preset)
        exported = openai.export_prior(variables, preset, openai.residual_naming(checkpoint.tensors))
        model = Prior(preset)
        abstract = jax.eval_shape(lambda rng: model.init(rng, method="initialise"), jax.random.key(0))
    assert shapes(variables) == shapes(abstract)  # no variable left over, none without a tensor
    assert all(leaf.dtype == np.float32 for leaf in flatten(variables).values())
    assert list(exported) == list(checkpoint.tensors)  # the order too: Adam's state is keyed by it
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(exported[name].read(), tensor.read(), err_msg=name)
        assert exported[name].shape == tensor.shape


def test_there_are_goldens_of_every_wiring():
    cases = {path.parent.name for path in FILES}
    needed = {"top_5b_lyrics", "1b_lyrics_drawn_lyric_ids", "upsampler_level_0", "upsampler_plain_cond", "uncond"}
    assert {f"prior_{case}" for case in needed} | {"vqvae_2level", "train_ema", "train_ema_vqvae"} <= cases


def test_half_precision_weights_keep_their_type_until_they_are_read():
    checkpoint, preset = golden("prior_top_5b_fp16_weights")
    lazy = flatten(openai.stream_prior(checkpoint, preset))
    kernels = {path for path, leaf in lazy.items() if leaf.dtype == np.float16}
    assert kernels == {path for path in lazy if path[-1] == "kernel"}
    for path, leaf in flatten(openai.import_prior(checkpoint, preset)).items():
        np.testing.assert_array_equal(leaf, lazy[path].read())


def test_query_key_and_value_are_columns_and_layers_are_stacked():
    """Against the layout written down by hand, on the layer that attends to lyrics and on one that does not."""
    checkpoint, preset = golden("prior_top_5b_lyrics")
    params = openai.import_prior(checkpoint, preset)["params"]
    width = preset.transformer.attention_width
    name = "prior.transformer._attn_mods."
    first = params["transformer"]["segment_0"]
    whole = checkpoint.tensors[f"{name}4.attn.c_attn.w"].read()  # block column previous | block COLUMN: repeat 1
    for i, part in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(
            first["layer_1"]["attention"][part]["kernel"][1], whole[:, i * width : (i + 1) * width]
        )
    lyrics = params["transformer"]["segment_1"]["layer_0"]["attention"]  # layer 18, after nine triples in segment 0
    np.testing.assert_array_equal(lyrics["query"]["kernel"][0], checkpoint.tensors[f"{name}18.attn.c_attn.w"].read())
    both = checkpoint.tensors[f"{name}18.attn.c_enc_kv.b"].read()
    np.testing.assert_array_equal(lyrics["key"]["bias"][0], both[:width])
    np.testing.assert_array_equal(lyrics["value"]["bias"][0], both[width:])


def test_convolutions_are_turned():
    checkpoint = open_checkpoint(GOLDEN / "vqvae_2level" / "checkpoint.pth.tar")
    variables = openai.import_vqvae(checkpoint, vqvae_from_hps(checkpoint.hps or {}))
    down = checkpoint.tensors["encoders.1.level_blocks.1.model.0.0.weight"].read()  # out in k
    kernel = variables["params"]["encoder_1"]["block_1"]["stage_0"]["downsample"]["kernel"]
    assert kernel[3, 2, 1] == down[1, 2, 3]
    up = checkpoint.tensors["decoders.1.level_blocks.0.model.3.1.weight"].read()  # in out k
    kernel = variables["params"]["decoder_1"]["block_0"]["stage_2"]["upsample"]["kernel"]
    assert kernel[3, 2, 1] == up[2, 1, 3]
    state = variables["codebook"]["level_1"]
    np.testing.assert_array_equal(state["sum"] / state["count"][:, None], state["codebook"])


def spoilt(checkpoint, **changes):
    """The checkpoint with tensors replaced, or removed (None)."""
    tensors = {**checkpoint.tensors, **changes}
    return dataclasses.replace(checkpoint, tensors={name: t for name, t in tensors.items() if t is not None})


def test_a_mismatch_prints_what_is_missing_extra_and_of_another_shape():
    checkpoint, preset = golden("prior_uncond")
    start = checkpoint.tensors["prior.start_token"]
    bad = spoilt(checkpoint, **{"prior.start_token": None, "prior.stop\x1btoken": start, "prior.x_emb.weight": start})
    with pytest.raises(UserError) as error:
        openai.import_prior(bad, preset)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("checkpoint.pth.tar does not fit: 1 missing, 1 extra, 1 of another shape")
    assert [line.split() for line in lines[1:]] == [
        ["missing", "prior.start_token", "expected", "1x32"],
        ["extra", "'prior.stop\\x1btoken'", "found", "1x32"],
        ["other", "shape", "prior.x_emb.weight", "expected", "64x32,", "found", "1x32"],
    ]


def test_the_table_is_cut_where_nothing_fits():
    checkpoint, _ = golden("prior_uncond")
    with pytest.raises(UserError, match=r"(?s)833 missing.*missing +\.\.\. and 813 more") as error:
        openai.import_prior(checkpoint, presets.PRIOR_5B)
    assert len(str(error.value).splitlines()) < 70


def test_tied_weights_must_be_equal(tmp_path):
    checkpoint, preset = golden("prior_uncond")
    other = tmp_path / "other"
    (checkpoint.tensors["prior.x_out.weight"].read() + 1).tofile(other)
    tensor = LazyTensor(Storage(other, np.dtype("<f4"), 64 * 32, 0), (64, 32))
    with pytest.raises(UserError, match="prior.x_out.weight and prior.x_emb.weight differ"):
        openai.import_prior(spoilt(checkpoint, **{"prior.x_out.weight": tensor}), preset)
    checkpoint.tensors["prior.x_emb.weight"].read().tofile(other)  # equal, in another place: fine
    openai.import_prior(spoilt(checkpoint, **{"prior.x_out.weight": tensor}), preset)


def test_integers_are_no_weights(tmp_path):
    checkpoint, preset = golden("prior_uncond")
    tensor = LazyTensor(Storage(checkpoint.path, np.dtype("<i4"), 32, 0), (1, 32))
    with pytest.raises(UserError, match=r"prior\.start_token is of int32"):
        openai.import_prior(spoilt(checkpoint, **{"prior.start_token": tensor}), preset)


def test_attention_to_lyrics_without_lyrics():
    preset = dataclasses.replace(presets.PRIOR_5B, transformer=presets.PRIOR_5B_LYRICS.transformer)
    with pytest.raises(UserError, match=r"layer 18 of prior \(factored_lyrics\) attends to lyrics"):
        openai.prior_entries(preset)


def test_export_refuses_other_variables():
    checkpoint, preset = golden("prior_uncond")
    variables = openai.import_prior(checkpoint, preset)
    variables["params"]["stop"] = variables["params"].pop("start")
    with pytest.raises(UserError, match=r"(?s)1 missing, 1 extra.*params/start.*params/stop"):
        openai.export_prior(variables, preset)


@pytest.mark.parametrize("case, file", [("train_ema", "checkpoint_latest"), ("train_ema_vqvae", "checkpoint_step_4")])
def test_adam_state(case, file):
    """Keyed by position in the file; a tied weight and the codebooks do not count."""
    checkpoint = open_checkpoint(GOLDEN / case / f"{file}.pth.tar")
    hps = checkpoint.hps or {}
    preset = prior_from_hps(hps) if case == "train_ema" else vqvae_from_hps(hps)
    moments = openai.import_moments(checkpoint, preset)
    assert moments["step"] == checkpoint.step
    imported = openai.import_prior if case == "train_ema" else openai.import_vqvae
    weights = imported(checkpoint, preset)
    for kind in ("exp_avg", "exp_avg_sq"):
        assert shapes(moments[kind]["params"]) == shapes(weights["params"])
    assert all((leaf >= 0).all() for leaf in flatten(moments["exp_avg_sq"]).values())
    names = [n for n in checkpoint.tensors if not n.endswith((".k", "x_out.weight"))]
    last = (checkpoint.opt or {})["state"][len(names) - 1]["exp_avg"].read()
    found = [leaf for leaf in flatten(moments["exp_avg"]).values() if leaf.shape[-1:] == last.shape[-1:]]
    assert any(
        np.array_equal(leaf, last) or (leaf.ndim > last.ndim and np.array_equal(leaf[-1], last)) for leaf in found
    )
    with pytest.raises(UserError, match="no complete optimiser state"):
        openai.import_moments(dataclasses.replace(checkpoint, opt=None), preset)
