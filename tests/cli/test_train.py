"""``jukebox train``: what the flags make of a config, the exit codes, and the sampler that it hands to the trainer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.__main__ import main
from jukebox_jax.cli.train import draw
from jukebox_jax.models.prior import Prior
from jukebox_jax.train import loop
from jukebox_jax.train.session import Diverged

TINY = f"--config={Path(__file__).parents[2] / 'configs' / 'tiny.py'}"


def test_flags_and_overrides_reach_the_experiment(monkeypatch: pytest.MonkeyPatch):
    seen: list = []
    monkeypatch.setattr(loop, "train", lambda *args: seen.append(args) or SimpleNamespace(step=7))
    flags = ["--workdir=work", "--dataset=data", "--steps=7", "--restore=model", "--config.optimizer.beta1=0.5"]
    assert main(["train", f"{TINY}:upsampler_1", *flags, "--config.model.transformer.depth=3"]) == 0
    experiment, workdir, sampler = seen[0]
    assert (experiment.dataset, experiment.steps, experiment.init_from) == ("data", 7, "model")
    assert experiment.optimizer.beta1 == 0.5 and experiment.model.transformer.depth == 3
    assert experiment.component == "prior_level_1" and workdir == Path("work") and sampler is draw


def test_a_stopped_run_exits_with_130(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "train", lambda *_: SimpleNamespace(step=6))
    assert main(["train", f"{TINY}:vqvae", "--workdir=w", "--steps=7"]) == 130


def test_a_diverged_run_exits_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def train(*_):
        raise Diverged("the loss is nan at step 3")

    monkeypatch.setattr(loop, "train", train)
    assert main(["train", f"{TINY}:vqvae", "--workdir=w"]) == 1
    assert "nan at step 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([f"{TINY}:vqva", "--workdir=w"], "Did you mean 'vqvae'"),
        ([f"{TINY}:vqvae", "--workdir=w"], "--dataset"),
        ([f"{TINY}:prior", "--workdir=w"], "train the VQ-VAE with this --workdir first"),
        ([f"{TINY}:vqvae", "--workdir=w", "--config.stepps=3"], "Did you mean --config.steps"),
        ([f"{TINY}:vqvae", "--workdir=gs://bucket/w"], "mount the bucket"),
        ([f"{TINY}:vqvae", "--workdir=w", "--process_id=1"], "all of --coordinator"),
    ],
)
def test_mistakes_end_in_one_line_and_2(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_draw_fills_one_window_per_row():
    preset = presets.Prior(0, 8, 5, 4, presets.Transformer(8, 4, 1))
    params = Prior(preset).init(jax.random.key(0), method="initialise")["params"]
    codes = draw(preset, params, None, jnp.zeros((3, 4), jnp.int32), 1)
    assert codes.shape == (3, 8) and np.all(codes >= 0) and np.all(codes < 5)
    np.testing.assert_array_equal(codes, draw(preset, params, None, jnp.zeros((3, 4), jnp.int32), 1))
    assert draw(preset, params, None, None, 2).shape == (1, 8)
