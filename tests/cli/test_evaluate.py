"""The command, on models that have more and less: what it prints, writes and says of what it cannot measure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from jukebox_jax import presets
from jukebox_jax.__main__ import main
from jukebox_jax.checkpoint import bundle
from jukebox_jax.data import builder
from jukebox_jax.data.labels import Vocabulary
from jukebox_jax.models.prior import Prior
from jukebox_jax.models.vqvae import VQVAE

RATE = 2000
VQ = presets.VQVAE(
    sample_rate=RATE, down_depths=(2, 1), strides=(2, 2), width=4, depth=1, multipliers=None, codebook_size=8,
    codebook_dim=4,
)  # fmt: skip
STACK = presets.Transformer(64, 8, 2, 2, 8, "block_column", init_scale=8.0)


def draw(init: Callable[[], Any]) -> Any:
    """Random numbers in place of what ``init`` makes, without compiling it."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), jax.eval_shape(init))


def save_prior(folder: Path, prior: presets.Prior) -> None:
    variables = draw(lambda: Prior(prior).init(jax.random.key(0), method="initialise"))
    bundle.save_component(folder, f"prior_level_{prior.level}", variables, prior)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    rows = ["file,artist,genre"]
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", 0.3 * np.random.default_rng(i).standard_normal(3 * RATE), RATE)
        rows.append(f"{i}.wav,{'Ann Bob Zoë'.split()[i % 3]},{'Jazz Pop'.split()[i % 2]}")
    (folder / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    output = folder / "set"
    builder.build(folder, output, sample_rate=RATE, test_fraction=0.3, workers=1, progress=False)
    return output


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VQ-VAE, an upsampler without labels and a labelled top prior."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    bundle.save_component(folder, "vqvae", draw(lambda: VQVAE(VQ).init(jax.random.key(0), jnp.zeros((1, 16, 1)))), VQ)
    vocabulary = Vocabulary.load(data / "labels", "v3")
    vocabulary.save(bundle.labels_dir(folder))
    labels = presets.Labels("v3", vocabulary.num_artists, vocabulary.num_genres, 1, 0, 4, 0.5, 10.0, RATE)
    for prior in (
        presets.Prior(1, 64, 8, 8, STACK, labels=labels),
        presets.Prior(0, 64, 8, 4, STACK, upsampling=2, conditioner=presets.Conditioner(8, 1, 1)),
    ):
        save_prior(folder, prior)
    return folder


def test_figures_of_a_whole_model(model, data, tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert main(["evaluate", f"--model={model}", f"--dataset={data}", "--items=5", f"--json={file}"]) == 0
    out, report = capsys.readouterr().out, json.loads(file.read_text())
    assert out.count("level 0") == out.count("level 1") == 2 and "right label wins" in out
    for level, figures in enumerate(report["vqvae"]):
        assert figures["windows"] == 4 and figures["songs"] == 2 and figures["window_seconds"] == 1.5
        assert figures["codes"] == 4 * 3000 // (4, 8)[level] and 0 < figures["used"] <= 1
        assert np.isfinite(figures["convergence_db"]) and figures["multispectral"] > 0
    bottom, top = report["priors"]
    assert bottom["labels"] is None and top["labels"]["wrong_labels"] == 5
    for prior in (bottom, top):
        assert prior["windows"] == 5 < prior["of"] and prior["uniform"] == 3.0
        assert 0 < prior["unigram"] <= 4 and prior["bits_per_token"] > 0
    assert top["unigram_codes"] > 64 and top["songs_left_out"] == []


def test_a_vqvae_alone_and_what_is_not_measured(data, tmp_path, capsys):
    flags = ["evaluate", f"--dataset={data}", f"--model={tmp_path}", "--items=1", "--seconds=0.6"]
    assert main(flags) == 2
    assert "is not a model directory" in capsys.readouterr().err
    single = dataclasses.replace(VQ, down_depths=(2,), strides=(2,))
    variables = draw(lambda: VQVAE(single).init(jax.random.key(0), jnp.zeros((1, 16, 1))))
    bundle.save_component(tmp_path, "vqvae", variables, single)
    assert main(flags) == 0
    assert "prior" not in capsys.readouterr().out
    save_prior(tmp_path, presets.Prior(0, 4096, 8, 4, presets.Transformer(4096, 8, 1)))
    assert main(flags) == 1
    assert "not measured: " in (out := capsys.readouterr().out) and "none of its 2 songs" in out
    for flag, message in [("--split=tests", "Did you mean 'test'?"), ("--items=-1", "--items=-1 must be 0 or more")]:
        assert main([*flags, flag]) == 2
        assert message in capsys.readouterr().err
