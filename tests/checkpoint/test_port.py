"""The transformers port: its names, as its own code gives them, and safetensors files."""

from __future__ import annotations

import gzip
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from jukebox_jax import presets
from jukebox_jax.checkpoint import openai, port
from jukebox_jax.checkpoint.mapping import flatten
from jukebox_jax.checkpoint.openai_hps import prior_from_hps
from jukebox_jax.checkpoint.safetensors_io import read_index, read_metadata, read_safetensors, write_safetensors
from jukebox_jax.checkpoint.source import import_component, open_sources
from jukebox_jax.checkpoint.tensors import BFLOAT16
from jukebox_jax.checkpoint.torch_reader import open_checkpoint
from jukebox_jax.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
VQVAE = presets.VQVAE(width=4, depth=2, codebook_size=32, codebook_dim=8)
LABELS = presets.Labels(num_artists=10, num_genres=6, time_bins=64, min_duration=1.0, max_duration=600.0)
UPSAMPLER = presets.Prior(
    0, 24, 32, 8, presets.Transformer(24, 16, 4, 2, 4, "factored"), upsampling=4, labels=LABELS,
    conditioner=presets.Conditioner(8, 2),
)  # fmt: skip
LYRICS = {
    "sep": presets.Lyrics("separate", 8, 80, 0.4, presets.Transformer(8, 12, 3, 1, 4, "factored")),
    "merged": presets.Lyrics("merged", 8, 79),
    "plain": None,
}
TRANSFORMERS = {
    "sep": presets.Transformer(24, 16, 20, 2, 4, "factored_lyrics"),
    "merged": presets.Transformer(32, 16, 16, 2, 4, "factored_prime"),
    "plain": presets.Transformer(24, 16, 4, 2, 4, "factored"),
}


@pytest.mark.parametrize("wiring", LYRICS)
def test_names_and_shapes_are_the_ports_own(wiring):
    """The files list the state dict of transformers 4.57.6's JukeboxModel at these sizes (made by running it)."""
    theirs = json.loads(gzip.decompress((GOLDEN / "port_names" / f"{wiring}.json.gz").read_bytes()))
    top = replace(
        UPSAMPLER, level=2, hop_length=128, upsampling=None, conditioner=None, transformer=TRANSFORMERS[wiring],
        lyrics=LYRICS[wiring], tied_output=wiring == "merged",
    )  # fmt: skip
    ours = port.port_entries(openai.vqvae_entries(VQVAE), port.prefix("vqvae", 3))
    for level, prior in enumerate((UPSAMPLER, replace(UPSAMPLER, level=1), top)):
        ours += port.port_entries(openai.prior_entries(prior), port.prefix(f"prior_level_{level}", 3))
    assert {entry.name: list(entry.shape) for entry in ours} == theirs


@pytest.mark.parametrize("residuals", openai.RESIDUALS)
def test_both_namings_of_the_conditioner_become_one(residuals):
    names = {port.port_name(entry.name) for entry in openai.prior_entries(UPSAMPLER, residuals)}
    assert names == {port.port_name(entry.name) for entry in openai.prior_entries(UPSAMPLER)}
    assert "conditioner_blocks.upsampler.upsample_block.2.resnet_block.1.conv1d_2.bias" in names


@pytest.fixture
def exported(tmp_path):
    """A golden prior as the port would store it: the tied output left out, in two files with an index."""
    checkpoint = open_checkpoint(GOLDEN / "prior_upsampler_level_0" / "checkpoint.pth.tar")
    preset = prior_from_hps(checkpoint.hps or {})
    renamed = {f"priors.2.{port.port_name(name)}": tensor for name, tensor in checkpoint.tensors.items()}
    del renamed["priors.2.prior.fc_proj_out.weight"]
    half = len(renamed) // 2
    parts = {"a.safetensors": dict(list(renamed.items())[:half]), "b.safetensors": dict(list(renamed.items())[half:])}
    for file, tensors in parts.items():
        write_safetensors(tmp_path / file, tensors)
    weight_map = {name: file for file, tensors in parts.items() for name in tensors}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index, checkpoint, preset


@pytest.mark.parametrize("folder", [False, True])
def test_sharded_import_equals_the_originals(exported, folder):
    index, checkpoint, preset = exported
    (source,) = open_sources(index.parent if folder else index)
    assert (source.layout, source.container) == ("transformers", "safetensors")
    found = import_component(source, "prior_level_0", preset)
    expected = flatten(openai.import_prior(checkpoint, preset))
    assert set(flatten(found)) == set(expected)
    for path, leaf in flatten(found).items():
        np.testing.assert_array_equal(leaf.read(), expected[path])


def test_another_component_is_not_there(exported):
    index, _, preset = exported
    (source,) = open_sources(index)
    with pytest.raises(UserError, match=r"no tensor named priors\.1\.\*"):
        import_component(source, "prior_level_1", preset)
    with pytest.raises(UserError, match=r"(?s)2 missing.*priors\.2\.prior\.transformer\._attn_mods\.6"):
        bigger = replace(preset, transformer=replace(preset.transformer, depth=7))
        import_component(source, "prior_level_0", bigger)


TENSORS = {
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "scalar": np.float32(3),
    "brain": np.arange(4).astype(BFLOAT16),
    "bytes": np.array([1, 2], np.uint8),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(3, 2)),
}


class Held:
    def __init__(self, values):
        self.values = np.asarray(values)
        self.shape, self.dtype = self.values.shape, self.values.dtype

    def read(self):
        return self.values


def test_files_are_those_of_the_library(tmp_path):
    write_safetensors(tmp_path / "ours", {name: Held(v) for name, v in TENSORS.items()}, {"who": "us"})
    theirs = safetensors.numpy.load_file(tmp_path / "ours")
    assert set(theirs) == set(TENSORS)
    for name, values in TENSORS.items():
        np.testing.assert_array_equal(np.asarray(theirs[name], np.float64), np.asarray(values, np.float64))
    assert read_metadata(tmp_path / "ours") == {"format": "pt", "who": "us"}
    plain = {name: np.ascontiguousarray(values) for name, values in TENSORS.items() if name != "brain"}
    safetensors.numpy.save_file(plain, tmp_path / "theirs")
    for name, tensor in read_safetensors(tmp_path / "theirs").items():
        np.testing.assert_array_equal(tensor.read(), plain[name])
        assert tensor.dtype == plain[name].dtype


def header(entries: object, data: bytes = bytes(8)) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes):
    return header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}})


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "truncated"), (b"\xff" * 8, "truncated"), (header(b"{"), "not a safetensors file"),
        (header(b"[" * 100_000), "not a safetensors file"), (header([]), "no table"), (header({"w": 1}), "damaged"),
        (entry(dtype="F8"), "unknown type"), (entry(dtype=["F32"]), "unknown type"), (entry(shape=[3]), "a size"),
        (entry(shape=[-2]), "damaged"), (entry(data_offsets=[0, 1 << 60]), "a size"), (entry(shape="22"), "damaged"),
        (entry(shape=[2, 1 << 62]), "a size"), (entry(data_offsets=[8, 16]), "truncated"),
        (entry(data_offsets=[0]), "damaged"), (entry()[:-1], "truncated"),
    ],
)  # fmt: skip
def test_damaged_safetensors(tmp_path, content, reason):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"(?s)bad\.safetensors.*({reason})"):
        read_safetensors(path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {"a": "../b"}}', '{"weight_map": {"a": 1}}', "{}"])
def test_damaged_index(tmp_path, text):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"index\.json is not an index"):
        read_index(path)
