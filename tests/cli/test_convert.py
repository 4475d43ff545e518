"""``jukebox convert``, through the command line: into model directories and out of them."""

from __future__ import annotations

import dataclasses
import filecmp
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.__main__ import main
from jukebox_jax.checkpoint import bundle, openai, source
from jukebox_jax.checkpoint.mapping import flatten
from jukebox_jax.checkpoint.safetensors_io import read_safetensors, write_safetensors
from jukebox_jax.checkpoint.torch_reader import open_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
PIPELINE = GOLDEN / "pipeline_partial"
IDS = GOLDEN / "labeller" / "ids"
COMPONENTS = ("vqvae", "prior_level_0", "prior_level_1", "prior_level_2")


def convert(*flags: str) -> int:
    return main(["convert", *flags])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("convert") / "model"
    assert convert(f"--checkpoint={PIPELINE}", f"--output={directory}", f"--labels={IDS}") == 0
    return directory


def tensors(component: str):
    return open_checkpoint(PIPELINE / f"{component}.pth.tar").tensors


def test_one_file_says_what_it_was_and_what_is_missing(tmp_path, capsys):
    file = PIPELINE / "prior_level_1.pth.tar"
    assert convert(f"--checkpoint={file}", f"--output={tmp_path / 'm'}") == 0
    out = capsys.readouterr().out
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"{file.stat().st_size:,} bytes, SHA-256 {digest}" in out
    assert out.count("non-commercial") == 1
    assert "still missing for sampling: vqvae, prior_level_0, prior_level_2, v2 label ids (--labels)" in out
    origin = bundle.load_description(tmp_path / "m").provenance["prior_level_1"]
    assert origin["files"] == [{"file": file.name, "size": file.stat().st_size, "sha256": digest}]
    assert (origin["layout"], origin["container"], origin["step"]) == ("openai", "legacy", 0)
    assert "non-commercial" in origin["licence"]


def test_a_folder_becomes_a_whole_model(model, capsys):
    description = bundle.load_description(model)
    assert description.components == COMPONENTS and description.name == "model"
    for component in ("vqvae", "prior_level_2"):
        variables, preset = bundle.load_component(model, component), description.preset(component)
        export = openai.export_vqvae if component == "vqvae" else openai.export_prior
        for name, tensor in export(variables, preset).items():
            np.testing.assert_array_equal(tensor.read(), tensors(component)[name].read())
    for table in IDS.glob("v2_*_ids.txt"):
        assert filecmp.cmp(table, model / "labels" / table.name, shallow=False)


@pytest.mark.parametrize("layout", ["openai", "transformers"])
def test_to_safetensors_and_back(model, tmp_path, layout):
    out, back = tmp_path / "out", tmp_path / "back"
    assert convert(f"--checkpoint={model}", "--to=safetensors", f"--layout={layout}", f"--output={out}") == 0
    if layout == "openai":
        for component in ("vqvae", "prior_level_0"):
            written = read_safetensors(out / f"{component}.safetensors")
            assert list(written) == list(tensors(component))
            for name, tensor in written.items():
                np.testing.assert_array_equal(tensor.read(), tensors(component)[name].read())
    else:
        names = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
        assert names["priors.0.prior.embed_tokens.weight"] == "prior_level_2.safetensors"
        assert names["vqvae.bottleneck.level_blocks.0.codebook"] == "vqvae.safetensors"
    assert convert(f"--checkpoint={out}", f"--output={back}") == 0  # the files know their presets
    for component in ("vqvae", "prior_level_2"):
        again, first = (flatten(bundle.load_component(d, component)) for d in (back, model))
        assert again.keys() == first.keys()
        assert all(np.array_equal(again[path], first[path]) for path in first)
    assert bundle.load_description(back).priors == bundle.load_description(model).priors


def tiny(monkeypatch) -> dict[str, source.Preset]:
    """Stand-ins for the released presets, so that files without hyperparameters can be tested at small size."""
    checkpoint = open_checkpoint(PIPELINE / "vqvae.pth.tar")
    found: dict[str, source.Preset] = {"vqvae": source.vqvae_from_hps(checkpoint.hps or {})}
    for name, level in (("upsampler_level_0", 0), ("upsampler_level_1", 1), ("prior_5b", 2)):
        checkpoint = open_checkpoint(PIPELINE / f"prior_level_{level}.pth.tar")
        found[name] = source.prior_from_hps(checkpoint.hps or {})
    for name, preset in found.items():
        monkeypatch.setitem(source.PRESETS, name, preset)
    return found


def bare(tmp_path: Path, component: str, name: str) -> Path:
    """A component's tensors without hyperparameters, as in the released files."""
    write_safetensors(tmp_path / name, tensors(component))
    return tmp_path / name


def test_a_file_without_hyperparameters_needs_a_name(tmp_path, monkeypatch, capsys):
    tiny(monkeypatch)
    file = bare(tmp_path, "prior_level_1", "weights.safetensors")
    output = f"--output={tmp_path / 'm'}"
    assert convert(f"--checkpoint={file}", output) == 2
    said = capsys.readouterr().err
    assert "its tensors fit upsampler_level_0 and upsampler_level_1" in said and "--model=NAME" in said
    assert convert(f"--checkpoint={file}", "--model=5b", output) == 2
    assert "can be upsampler_level_0 or upsampler_level_1" in capsys.readouterr().err
    assert convert(f"--checkpoint={file}", "--model=upsampler_level_1", output) == 0
    named = bare(tmp_path, "prior_level_0", "prior_level_0.safetensors")
    assert convert(f"--checkpoint={named}", "--model=5b", output) == 0  # the file's name tells which
    assert bundle.load_description(tmp_path / "m").components == ("prior_level_0", "prior_level_1")
    assert bundle.load_description(tmp_path / "m").name == "5b"


def test_a_port_file_holds_all_components(model, tmp_path, monkeypatch, capsys):
    expected = tiny(monkeypatch)
    out = tmp_path / "out"
    assert convert(f"--checkpoint={model}", "--to=safetensors", "--layout=transformers", f"--output={out}") == 0
    for file in out.glob("*.safetensors"):  # as the port writes them: without our presets
        write_safetensors(file.with_suffix(".tmp"), read_safetensors(file))
        file.with_suffix(".tmp").rename(file)
    index = out / "model.safetensors.index.json"
    assert convert(f"--checkpoint={index}", f"--output={tmp_path / 'm'}") == 2
    assert "add --model=5b|5b_lyrics|1b_lyrics" in capsys.readouterr().err
    assert convert(f"--checkpoint={index}", "--model=5b", f"--output={tmp_path / 'm'}") == 0
    description = bundle.load_description(tmp_path / "m")
    assert description.components == COMPONENTS and description.vqvae == expected["vqvae"]


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--checkpoint=nowhere.pth.tar"], "nowhere.pth.tar does not exist"),
        ([f"--checkpoint={GOLDEN}"], "has no checkpoint"),
        ([f"--checkpoint={PIPELINE}", "--model=5b_lyric"], "Did you mean '5b_lyrics'?"),
        ([f"--checkpoint={PIPELINE}", "--to=onnx"], "unknown --to 'onnx': allowed are orbax, safetensors"),
        ([f"--checkpoint={PIPELINE}", "--layout=hf"], "unknown --layout 'hf'"),
        ([f"--checkpoint={PIPELINE}", f"--labels={PIPELINE}"], "label"),
        ([f"--checkpoint={PIPELINE}", "--to=safetensors"], "is not a model directory"),
        ([f"--checkpoint={GOLDEN / 'windows' / 'windows.json'}"], "not a file of torch.save"),
    ],
)
def test_wrong_input_is_one_line(flags, reason, tmp_path, capsys):
    assert convert(*flags, f"--output={tmp_path / 'm'}") == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("jukebox convert: error: ") and "\n" not in said and reason in said
    assert not (tmp_path / "m").exists()


def test_a_mismatch_prints_a_table(tmp_path, capsys):
    assert convert(f"--checkpoint={PIPELINE / 'vqvae.pth.tar'}", "--model=vqvae", f"--output={tmp_path / 'm'}") == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert any(line.split()[:2] == ["other", "shape"] for line in lines)
    assert any(line.split()[0] == "missing" and line.split()[1].startswith("encoders.0.") for line in lines)
    assert lines[-1].startswith("jukebox convert: error: ") and "missing" in lines[-1]
    assert "non-commercial" not in captured.out and not (tmp_path / "m").exists()


def test_a_prior_of_another_vqvae_is_refused(model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "m")
    other = GOLDEN / "prior_upsampler_level_0" / "checkpoint.pth.tar"
    assert convert(f"--checkpoint={other}", f"--output={tmp_path / 'm'}") == 2
    assert "does not belong to the VQ-VAE" in capsys.readouterr().err
    assert filecmp.cmp(model / "model.json", tmp_path / "m" / "model.json", shallow=False)


def test_a_model_directory_is_no_checkpoint_and_an_empty_one_no_model(model, tmp_path, capsys):
    assert convert(f"--checkpoint={model}", f"--output={tmp_path / 'm'}") == 2
    assert "is a model directory already" in capsys.readouterr().err
    empty = {"format": 1, "name": "e", "vqvae": None, "priors": {}, "provenance": {}}
    (tmp_path / "model.json").write_text(json.dumps(empty))
    assert convert(f"--checkpoint={tmp_path}", "--to=safetensors", f"--output={tmp_path / 'o'}") == 2
    assert "has no component yet" in capsys.readouterr().err


def test_a_full_disk_is_known_beforehand(tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert convert(f"--checkpoint={PIPELINE / 'prior_level_1.pth.tar'}", f"--output={tmp_path / 'm'}") == 2
    assert "its disk has 0.0 GB left" in capsys.readouterr().err


def test_presets_in_exported_files_are_checked(tmp_path, capsys):
    preset = json.dumps(dataclasses.asdict(presets.SMALL_UPSAMPLER) | {"levle": 1})
    metadata = {"component": "prior_level_0", "preset": preset}
    write_safetensors(tmp_path / "x.safetensors", tensors("prior_level_0"), metadata)
    assert convert(f"--checkpoint={tmp_path / 'x.safetensors'}", f"--output={tmp_path / 'm'}") == 2
    assert "the preset in its header is damaged" in capsys.readouterr().err
