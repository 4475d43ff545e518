"""The command: what it writes, that files do not touch each other, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from jukebox_jax import presets
from jukebox_jax.__main__ import main
from jukebox_jax.checkpoint import bundle
from jukebox_jax.models.prior import Prior
from jukebox_jax.models.vqvae import VQVAE

RATE = 2000
VQ = presets.VQVAE(
    sample_rate=RATE, down_depths=(2,), strides=(2,), width=4, depth=1, multipliers=None, codebook_size=8,
    codebook_dim=4,
)  # fmt: skip
PRIOR = presets.Prior(0, 64, 8, 4, presets.Transformer(64, 8, 2, 2, 8, "block_column", init_scale=8.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    rng = np.random.default_rng(0)
    inits = {
        "vqvae": (VQ, lambda: VQVAE(VQ).init(jax.random.key(0), jnp.zeros((1, 16, 1)))),
        "prior_level_0": (PRIOR, lambda: Prior(PRIOR).init(jax.random.key(0), method="initialise")),
    }
    for component, (preset, init) in inits.items():
        draw = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), jax.eval_shape(init))
        bundle.save_component(folder, component, draw, preset)
    return folder


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    for i, (name, seconds, channels, rate) in enumerate(
        [("a", 0.3, 1, RATE), ("b", 0.05, 2, RATE), ("c", 0.2, 2, 3000)]
    ):
        samples = 0.3 * np.random.default_rng(i).standard_normal((round(seconds * rate), channels))
        soundfile.write(folder / f"{name}.wav", samples, rate)
    (folder / "broken.mp3").write_bytes(b"")
    return folder


def test_features_of_a_folder_and_of_a_file_alone(model, music, tmp_path, capsys):
    flags = [f"--model={model}", "--layer=1", "--pool=none"]
    assert main(["features", *flags, f"--output={tmp_path / 'all.npz'}", str(music)]) == 0
    out = capsys.readouterr().out
    assert f"skipped  {music}/broken.mp3  the file is empty" in out and "3 recordings, 500 frames per second" in out
    found, settings = np.load(tmp_path / "all.npz"), json.loads((tmp_path / "all.json").read_text())
    names = [f"{music}/{name}.wav" for name in "abc"]
    assert list(found) == names and [found[name].shape for name in names] == [(150, 8), (25, 8), (100, 8)]
    assert settings["frame_rate"] == 500 and settings["layer"] == 1 and settings["files"][names[1]]["seconds"] == 0.05
    assert settings["skipped"] == {f"{music}/broken.mp3": "the file is empty"}

    assert main(["features", *flags, f"--output={tmp_path / 'one.npz'}", names[1]]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "one.npz")[names[1]], found[names[1]])
    assert main(["features", *flags[:2], f"--output={tmp_path / 'mean.npz'}", names[1], names[0], names[1]]) == 0
    pooled = np.load(tmp_path / "mean.npz")
    assert list(pooled) == [names[1], names[0]]
    for name in pooled:
        np.testing.assert_allclose(pooled[name], found[name].mean(0), rtol=1e-5, atol=1e-6)


def test_errors_are_one_line(model, music, tmp_path, capsys):
    output, broken = f"--output={tmp_path / 'x.npz'}", str(music / "broken.mp3")
    for flags, message in [
        ([output, "--layer=3", broken], "layers 1 to 2"),
        ([output, "--layer=1", broken], "none of the 1 recordings could be used"),
        ([output, "nowhere.wav"], "nowhere.wav is not there"),
        ([output, "--pool=sum", broken], "unknown pool 'sum': allowed are mean, max, none"),
        (["--output=x.npy", broken], "--output=x.npy must end in .npz"),
    ]:
        assert main(["features", f"--model={model}", *flags]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
