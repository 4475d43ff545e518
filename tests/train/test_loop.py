"""Whole runs at the smallest size: resuming, stopping, exporting, priors on audio and on stored codes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.checkpoint import bundle
from jukebox_jax.data import codes, summary
from jukebox_jax.data.vocabulary import Vocabulary
from jukebox_jax.train import loop
from jukebox_jax.train.experiment import Experiment
from jukebox_jax.train.inputs import open_inputs
from jukebox_jax.train.session import Diverged
from jukebox_jax.train.task import encode_batch
from jukebox_jax.types import UserError

Make = Callable[..., Experiment]


@pytest.fixture(scope="module")
def vqvae(experiment: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Four steps of a VQ-VAE with everything switched on, and the final state."""
    workdir = tmp_path_factory.mktemp("model")
    return workdir, loop.train(experiment("vqvae", evaluate_every=2, evaluate_batches=2, sample_every=4), workdir)


def lines(workdir: Path, component: str) -> list[dict]:
    return [json.loads(line) for line in (workdir / "train" / component / "metrics.jsonl").read_text().splitlines()]


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_a_resumed_run_is_the_uninterrupted_one(vqvae, experiment: Make, tmp_path: Path):
    first = loop.train(experiment("vqvae", steps=2), tmp_path)
    assert first.step == 2
    second = loop.train(experiment("vqvae", steps=4), tmp_path)
    assert second.step == 4
    assert_same(second, vqvae[1])
    assert [row["step"] for row in lines(tmp_path, "vqvae") if "loss" in row] == [1, 2, 3, 4]
    assert_same(loop.train(experiment("vqvae", steps=4), tmp_path), second)  # nothing left to do


def test_what_a_run_leaves(vqvae, dataset: Path):
    workdir, state = vqvae
    description = bundle.load_description(workdir)
    assert description.preset("vqvae").codebook_size == 16 and description.provenance["vqvae"]["steps"] == 4
    stored = bundle.load_component(workdir, "vqvae")
    assert_same(stored["params"], state.ema)
    assert_same(stored["codebook"], state.model_state["codebook"])
    folder = workdir / "train" / "vqvae"
    facts = json.loads((folder / "config.json").read_text())
    assert facts["config"]["model"]["width"] == 4 and facts["config"]["optimizer"]["warmup_steps"] == 1.0
    assert {"jax", "flax", "python"} <= set(facts["versions"]) and facts["data"]["test_windows"] > 0
    assert json.loads((folder / "bandwidth.json").read_text())["dataset"] == str(dataset)
    tests = [row for row in lines(workdir, "vqvae") if "test_loss" in row]
    assert [row["step"] for row in tests] == [2, 4]
    assert {"test_spectral_convergence", "test_recons_loss_l2", "test_entropy"} <= set(tests[0])
    events = b"".join(path.read_bytes() for path in (folder / "tensorboard").iterdir())
    for tag in (b"loss", b"test_loss", b"input/0", b"level_0/0", b"level_1/1"):
        assert tag in events


def test_a_signal_saves_and_stops_and_the_rest_is_the_same(
    vqvae, experiment: Make, tmp_path: Path, monkeypatch, capsys
):
    asked = loop.Stop.__call__

    def call(self: loop.Stop, step: int) -> bool:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return asked(self, step)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(loop.Stop, "__call__", call)
        state = loop.train(experiment("vqvae"), tmp_path)
    assert state.step == 3 and "saved" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    assert bundle.load_description(tmp_path).provenance["vqvae"]["steps"] == 3
    assert_same(loop.train(experiment("vqvae"), tmp_path), vqvae[1])


def test_a_loss_that_is_not_finite_ends_the_run(experiment: Make, tmp_path: Path):
    wild = experiment("vqvae", steps=9, optimizer={"learning_rate": 1e30}, save_every=1)
    with pytest.raises(Diverged, match=r"at step \d.*checkpoint of step \d.*learning_rate"):
        loop.train(wild, tmp_path)
    assert bundle.is_model_dir(tmp_path)


def test_an_upsampler_trains_alike_on_audio_and_on_stored_codes(vqvae, experiment: Make, dataset: Path, tmp_path: Path):
    heard = experiment("upsampler", vqvae=str(vqvae[0]), passes=2, evaluate_batches=1, steps=2)
    stored = tmp_path / "codes"
    model = open_inputs(heard, 2000).model
    assert isinstance(model, presets.Prior) and model.labels is not None
    levels = (0, 1)
    variables, config = bundle.load_component(vqvae[0], "vqvae"), bundle.load_description(vqvae[0]).vqvae
    encoded = jax.jit(lambda v, a: encode_batch(config, v, a, levels))

    def encode(audio: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(("codes", "upper_codes"), map(np.asarray, encoded(variables, audio)), strict=True))

    codes.write_codes(
        stored, dataset, encode, window_samples=model.window_samples, batch_size=8, passes=2, shift=True, blend=True,
        upper=True, min_duration=model.labels.min_duration, max_duration=model.labels.max_duration,
        provenance={"level": model.level}, progress=False,
    )  # fmt: skip
    first = loop.train(heard, tmp_path / "heard")
    second = loop.train(dataclasses.replace(heard, dataset=str(stored)), tmp_path / "stored")
    assert_same(first, second)
    component = f"prior_level_{model.level}"
    keys = ("loss", "bits_per_token", "test_loss")
    rows = [
        [{k: row[k] for k in keys if k in row} for row in lines(tmp_path / w, component)] for w in ("heard", "stored")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 3
    assert 3.0 < rows[0][0]["bits_per_token"] < 5.0  # 16 codes: 4 bits


def test_a_prior_takes_its_labels_from_the_data(vqvae, experiment: Make, dataset: Path, tmp_path: Path):
    heard: list = []

    def sampler(preset, params, y, upper_codes, seed):
        heard.append((preset, y.shape, upper_codes, seed))
        return jax.numpy.zeros((y.shape[0], preset.context_length), jax.numpy.int32)

    made = experiment("prior", vqvae=str(vqvae[0]), steps=1, sample_every=1)
    loop.train(made, tmp_path, sampler)
    labels = bundle.load_description(tmp_path).priors[1].labels
    names = Vocabulary.load(tmp_path / "labels", "v3")
    assert labels is not None and labels.max_duration is not None and set(names.artists) == {"unknown", "ann", "bob"}
    assert (labels.num_artists, labels.num_genres, labels.sample_rate) == (3, 3, 2000)
    assert labels.min_duration == pytest.approx(256 / 2000)
    longest = max(s.total_length for split in ("train", "test") for s in summary.load_songs(dataset, split))
    assert longest < labels.max_duration * 2000 <= longest + 2000
    preset, shape, upper, seed = heard[0]
    assert preset.labels == labels and shape == (2, 5) and upper is None and seed == 1
    Vocabulary.from_names(["eve"], ["folk"]).save(tmp_path / "labels")
    with pytest.raises(UserError, match="names of another data set"):
        loop.train(made, tmp_path)


def test_fine_tuning_starts_from_the_exported_weights(vqvae, experiment: Make, tmp_path: Path):
    state = loop.train(experiment("vqvae", init_from=str(vqvae[0]), steps=1, optimizer={"warmup_steps": 9.0}), tmp_path)
    assert_same(state.params, vqvae[1].ema)  # the first rate is 0
    count = state.model_state["codebook"]["level_1"]["count"]
    expected = 2048 // 4 * 8 / 16  # codes of a window, devices, codebook size
    assert np.abs(np.sum(count) - (0.99 * 16 * expected + 0.01 * 8 * 2048 // 4)) < 1


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("prior", {}, "needs a trained VQ-VAE.*--config.vqvae"),
        ("vqvae", {"dataset": ""}, "no data set.*--dataset"),
        ("vqvae", {"dataset": "nowhere"}, "nowhere is no data set"),
        ("vqvae", {"batch_size": 12}, "config.batch_size=12 does not divide over 8 devices"),
        ("vqvae", {"batch_size": 8, "accumulate": 2}, "in 2 parts.*multiple of 16"),
        ("vqvae", {"model": {"sample_rate": 44100}}, "is at 2000 Hz, the model at 44100"),
        ("vqvae", {"mesh": {"data": 3}}, "does not fit 8 devices"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(part, changes, message, experiment: Make, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        loop.train(experiment(part, **changes), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": 2}, "level of the VQ-VAE.*2"),
        ({"codebook_size": 99}, "codebook_size is 99.*has 16.*--config.model.codebook_size=16"),
        ({"hop_length": 16}, "hop_length is 16.*has 4"),
    ],
)
def test_a_prior_must_fit_its_vqvae(change: dict, message: str, vqvae, experiment: Make, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        loop.train(experiment("prior", vqvae=str(vqvae[0]), model=change), tmp_path)
