"""Codes of recordings and back, codes of a data set, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from jukebox_jax import presets
from jukebox_jax.__main__ import main
from jukebox_jax.checkpoint import bundle
from jukebox_jax.data import builder, codes
from jukebox_jax.data.loader import make_loader
from jukebox_jax.models.vqvae import VQVAE

RATE = 2000
PRESET = presets.VQVAE(
    sample_rate=RATE, down_depths=(2, 1), strides=(2, 2), width=4, depth=2, multipliers=None, codebook_size=64,
    codebook_dim=4,
)  # fmt: skip
CONFIG = """from jukebox_jax import config, presets
PRIOR = presets.Prior(0, 64, 64, 4, presets.Transformer(64, 8, 2, 2, 8, "block_column"), upsampling=2,
                      conditioner=presets.Conditioner(4, 1, 1))
def get_config(arg=""):
    c = config.prior(PRIOR)
    c.batch_size, c.seed = 2, 7
    return c
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: VQVAE(PRESET).init(jax.random.key(0), jnp.zeros((1, 16, 1))))
    variables = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)
    bundle.save_component(folder, "vqvae", variables, PRESET)
    return folder, variables


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    (folder / "more").mkdir()
    rng = np.random.default_rng(1)
    for name, channels, seconds in (("a.wav", 1, 2.5), ("more/b.flac", 2, 1.9), ("c.wav", 2, 3.2)):
        soundfile.write(folder / name, 0.3 * rng.standard_normal((int(seconds * RATE) + 3, channels)), RATE)
    return folder


def test_a_recording_there_and_back(model, music, tmp_path, capsys):
    folder, variables = model
    target = tmp_path / "codes.npz"
    assert main(["encode", f"--model={folder}", f"--input={music / 'a.wav'}", f"--output={target}"]) == 0
    with np.load(target) as file:
        found = [file["codes_level_0"], file["codes_level_1"]]
    audio, _ = soundfile.read(music / "a.wav", dtype="float32")
    length = len(audio) // 8 * 8
    expected = VQVAE(PRESET).apply(variables, jnp.asarray(audio[None, :length, None]), method="encode")
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    out = tmp_path / "out.wav"
    assert main(["decode", f"--model={folder}", f"--codes={target}", "--level=1", f"--output={out}"]) == 0
    decoded, rate = soundfile.read(out, dtype="float32")
    whole = VQVAE(PRESET).apply(variables, expected[1], 1, method="decode")
    assert rate == RATE and len(decoded) == length
    np.testing.assert_allclose(decoded, np.clip(whole[0, :, 0], -1, 1), atol=1e-4)
    assert "from level 1" in capsys.readouterr().out


def test_a_folder_and_items(model, music, tmp_path):
    folder, _ = model
    run = ["encode", f"--model={folder}", f"--input={music}", f"--output={tmp_path / 'codes'}", "--levels=1"]
    assert main(run) == 0
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.npz"))
    assert written == ["codes/a.wav.npz", "codes/c.wav.npz", "codes/more/b.flac.npz"]
    with np.load(tmp_path / "codes/more/b.flac.npz") as file:
        assert file.files == ["codes_level_1"] and file["codes_level_1"].shape == (1, 3800 // 8)
    np.savez(tmp_path / "two.npz", codes_level_0=np.zeros((2, 100), np.int32))
    assert main(["decode", f"--model={folder}", f"--codes={tmp_path / 'two.npz'}", f"--output={tmp_path / 'o'}"]) == 0
    assert [soundfile.info(tmp_path / f"o/item_{i}.wav").frames for i in range(2)] == [400, 400]


def test_a_data_set_is_what_training_reads(model, music, tmp_path):
    folder, variables = model
    (tmp_path / "prior.py").write_text(CONFIG)
    dataset, output = tmp_path / "data", tmp_path / "codes"
    builder.build(music, dataset, sample_rate=RATE, record_seconds=1.0, test_fraction=0.4, workers=1)
    flags = [f"--model={folder}", f"--dataset={dataset}", f"--config={tmp_path / 'prior.py'}", f"--output={output}"]
    assert main(["encode", *flags, "--passes=2", "--batch_size=8", "--mesh=data=8", "--config.seed=5"]) == 0
    stored = codes.make_codes_loader(output, "train", 2)
    audio = make_loader(dataset, "train", 256, 2, 5, shift=True, blend=True, passes=2)
    for step in (0, 9):
        heard = jnp.asarray(audio.batch(step)["audio"])
        expected = VQVAE(PRESET).apply(variables, heard, method="encode")
        batch = stored.batch(step)
        for name, z in zip(("codes", "upper_codes"), expected, strict=True):
            np.testing.assert_array_equal(batch[name], z)


def test_what_is_wrong_is_said(model, music, tmp_path, capsys):
    folder, _ = model
    np.savez(tmp_path / "two.npz", codes_level_0=np.zeros((2, 100), np.int32))
    (tmp_path / "prior.py").write_text(CONFIG)
    encode, two = ["encode", f"--model={folder}"], f"--codes={tmp_path / 'two.npz'}"
    for argv, message in [
        ([*encode, "--output=x"], "either --input"),
        ([*encode, "--input=nowhere.wav", "--output=x.npz"], "not there"),
        ([*encode, f"--input={music / 'a.wav'}", "--output=x"], "must end in .npz"),
        ([*encode, f"--input={music}", "--output=x.npz"], "name a folder"),
        ([*encode, f"--input={music / 'a.wav'}", "--output=x.npz", "--levels=2"], "levels of this model are 0,1"),
        ([*encode, f"--dataset={tmp_path}", "--output=x"], "--config"),
        ([*encode, f"--dataset={tmp_path}", "--output=x", "--config=configs/tiny.py:vqvae"], "codes are for priors"),
        (["decode", f"--model={folder}", two, f"--output={tmp_path / 'x.wav'}"], "choose one with --item"),
        (["decode", f"--model={folder}", two, f"--output={tmp_path / 'x.ogg'}"], "allowed are .wav and .flac"),
        (["decode", f"--model={folder}", two, "--level=1", "--output=x"], "no codes of level 1"),
        (["decode", f"--model={folder}", two, "--level=2", "--output=x"], "unknown level 2"),
        (["decode", f"--model={folder}", two, "--item=2", "--output=x.wav"], "items 0 to 1"),
    ]:
        assert main(argv) == 2, argv
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
