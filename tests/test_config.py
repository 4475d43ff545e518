"""Config files load, overrides are typed, and mistakes end in one clear sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jukebox_jax import config, presets
from jukebox_jax.__main__ import main
from jukebox_jax.train.experiment import from_config
from jukebox_jax.types import UserError

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(p for p in CONFIGS.glob("*.py") if p.stem not in ("tiny", "sweep"))
TINY = ("vqvae", "upsampler", "upsampler_0", "upsampler_1", "prior", "lyrics")


def override(*changes: str, file: str = "prior_1b_lyrics.py") -> config.ConfigDict:
    return config.load(str(CONFIGS / file), [f"--config.{c}" for c in changes])


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_every_config_and_its_small_version_are_whole_experiments(file: Path):
    full = from_config(config.load(str(file)).to_dict())
    small = from_config(config.load(f"{file}:runlocal").to_dict())
    assert full.name == file.stem
    assert full.model in (presets.VQVAES | presets.PRIORS).values()
    assert small.component == full.component and small.last_step == 4
    assert len(file.read_text().splitlines()) <= 45


@pytest.mark.parametrize("part", TINY)
def test_tiny_has_every_part(part: str):
    experiment = from_config(config.load(f"{CONFIGS}/tiny.py:{part}").to_dict())
    level = {
        "vqvae": "vqvae",
        "upsampler": "prior_level_0",
        "upsampler_0": "prior_level_0",
        "upsampler_1": "prior_level_1",
    }
    assert experiment.component == level.get(part, "prior_level_2")


def test_overrides_take_the_type_of_the_field():
    c = override(
        "steps=1e4", "shift=false", "optimizer.learning_rate=1", "model.transformer.num_blocks=32", "dataset=a b=c",
        "model.labels.max_duration=None", "model.alignment_layer=31", "mesh.fsdp=-1", "ema.decay=.5",
    )  # fmt: skip
    assert c.steps == 10_000 and isinstance(c.steps, int)
    assert c.optimizer.learning_rate == 1.0 and isinstance(c.optimizer.learning_rate, float)
    assert c.shift is False and c.dataset == "a b=c" and c.mesh.fsdp == -1 and c.ema.decay == 0.5
    assert c.model.labels.max_duration is None and c.model.alignment_layer == 31
    assert override("model.multipliers=1,1,1", "model.strides=[4,2,2]", file="vqvae.py").model.strides == (4, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "optimizer.learning_rat=1",
            "unknown key config.optimizer.learning_rat.* Did you mean --config.optimizer.learning_rate",
        ),
        ("optimizer.lr=1", "Did you mean --config.optimizer.learning_rate"),
        ("beta1=1", "Did you mean --config.optimizer.beta1"),
        ("model.transformer.widht=8", "Did you mean --config.model.transformer.width"),
        ("steps=many", "config.steps takes a whole number, not 'many'"),
        ("steps=1.5", "takes a whole number"),
        ("shift=perhaps", "takes true or false"),
        ("optimizer.beta1=True", "takes a number"),
        ("mesh=8", "config.mesh is a table: set one of config.mesh.data"),
        ("model.conditioner.width=8", "config.model.conditioner is None"),
        ("steps", "write --config.steps=VALUE"),
        ("model.alignment_layer=x", "takes a whole number"),
    ],
)
def test_a_mistake_names_the_key_and_what_is_allowed(change: str, message: str):
    with pytest.raises(UserError, match=message):
        override(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.decay=cosine", "optimizer.decay 'cosine'.*step, linear"),
        ("optimizer.beta2=1.0", "between 0 and 1"),
        ("batch_size=0", "at least 1"),
        ("accumulate=3", "does not divide"),
        ("dtype=float16", "float32, bfloat16"),
        ("model.context_length=100", "set it to 484"),
        ("model.transformer.num_heads=7", "does not divide the attention width"),
        ("model.labels.num_lyric_tokens=3", "384 tokens"),
        ("model.upsampling=4", "go together"),
    ],
)
def test_values_that_make_no_experiment_are_refused(change: str, message: str):
    with pytest.raises(UserError, match=message):
        from_config(override(change).to_dict())


@pytest.mark.parametrize(
    ("change", "message"), [("window_samples=1000", "multiple of .* 128"), ("window_samples=1024", "2048")]
)
def test_vqvae_windows_fit_the_hop_and_the_losses(change: str, message: str):
    with pytest.raises(UserError, match=message):
        from_config(override(change, file="vqvae.py").to_dict())


def test_a_missing_file_names_its_neighbour():
    with pytest.raises(UserError, match="did you mean .*prior_5b.py"):
        config.load(str(CONFIGS / "prior5b.py"))


def test_arguments_of_a_config_file():
    spec: dict = {"part": ("a", "b"), "fast": False, "index": 0}
    assert config.parse_arg("b,fast,index=7", **spec).to_dict() == {"part": "b", "fast": True, "index": 7}
    assert config.parse_arg("", **spec).part == "a"
    for wrong in ("c", "speed=1", "index=x"):
        with pytest.raises(UserError):
            config.parse_arg(wrong, **spec)


def test_the_command_line_ends_in_one_line_and_2(capsys: pytest.CaptureFixture[str]):
    code = main(["train", f"--config={CONFIGS}/vqvae.py", "--workdir=unused", "--config.optimizer.learning_rat=1"])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and "learning_rate" in error


def test_sweep_points_are_base_configs_plus_overrides():
    lines = subprocess.run(
        [sys.executable, str(CONFIGS / "sweep.py"), "tiny_prior"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert lines[1] == "--config=configs/sweep.py:tiny_prior,index=1" and len(lines) > 2
    points = [config.load(f"{CONFIGS}/sweep.py:tiny_prior,index={i}") for i in range(len(lines))]
    assert len({str(p) for p in points}) == len(lines)
    with pytest.raises(UserError, match=f"index.*{len(lines) - 1}"):
        config.load(f"{CONFIGS}/sweep.py:tiny_prior,index={len(lines)}")
