"""A data set of hums, and experiments that are as small as the losses allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from jukebox_jax import config, presets
from jukebox_jax.data import builder
from jukebox_jax.train.experiment import Experiment, from_config

RATE = 2000
VQVAE = presets.VQVAE(
    sample_rate=RATE, down_depths=(1, 1), strides=(2, 2), width=4, depth=1, multipliers=None, codebook_size=16,
    codebook_dim=4, loss="l2", linf_k=64, resolutions=((64, 16, 32),),
)  # fmt: skip
LABELS = presets.Labels("v3", 0, 0, 1, 0, 8, None, None)
TOP = presets.Prior(1, 64, 16, 4, presets.Transformer(64, 8, 3, 2, 8, "factored"), labels=LABELS)
BOTTOM = dataclasses.replace(
    TOP, level=0, hop_length=2, upsampling=2, conditioner=presets.Conditioner(width=4, depth=1, down_depth=1)
)
PRESETS = {"vqvae": VQVAE, "prior": TOP, "upsampler": BOTTOM}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight stereo songs of two artists and two genres, one of them for test."""
    music, rng = tmp_path_factory.mktemp("music"), np.random.default_rng(0)
    rows = ["file,artist,genre,title,lyrics"]
    for number in range(8):
        time = np.arange(int((3 + number % 3) * RATE)) / RATE
        tone = np.sin(2 * np.pi * (80 + 30 * number) * time)[:, None] * [0.4, 0.2]
        soundfile.write(music / f"{number}.wav", tone + 0.05 * rng.normal(size=tone.shape), RATE)
        rows.append(f"{number}.wav,{'Ann Bob'.split()[number % 2]},{'Jazz Pop'.split()[number // 4]},,")
    (music / "metadata.csv").write_text("\n".join(rows) + "\n")
    output = tmp_path_factory.mktemp("data") / "set"
    builder.build(music, output, sample_rate=RATE, record_seconds=1.0, workers=1, progress=False)
    return output


@pytest.fixture(scope="session")
def experiment(dataset: Path) -> Callable[..., Experiment]:
    """``experiment("prior", steps=4, optimizer={"learning_rate": 1.0})``: one of the small experiments."""

    def make(part: str, **changes: Any) -> Experiment:
        preset = PRESETS[part]
        c = config.vqvae(preset) if isinstance(preset, presets.VQVAE) else config.prior(preset)
        c.update({"name": part, "dataset": str(dataset), "batch_size": 8, "steps": 4, "log_every": 1, "save_every": 2})
        c.update({"evaluate_every": 100, "evaluate_batches": 0, "sample_every": 0})
        c.optimizer.warmup_steps = 1.0
        if part == "vqvae":
            c.window_samples = 2048
        else:
            c.remat = False
        c.update(changes)
        return from_config(c.to_dict())

    return make
