"""`jukebox sample` from a model directory; bad flags end in one line and exit code 2."""

from __future__ import annotations

import dataclasses
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
from jukebox_jax.data.labels import Vocabulary
from jukebox_jax.models.prior import Prior
from jukebox_jax.models.vqvae import VQVAE

LABELS = presets.Labels("v2", 4, 4, 2, 0, 4, 0.01, 10.0, 8000)
PRIOR = presets.Prior(1, 8, 6, 8, presets.Transformer(8, 8, 1), labels=LABELS)
BOTTOM = dataclasses.replace(
    PRIOR, level=0, hop_length=4, upsampling=2, labels=None, conditioner=presets.Conditioner(4, 1, 1)
)
CONFIG = presets.VQVAE(
    sample_rate=8000, down_depths=(2, 1), strides=(2, 2), width=4, depth=1, multipliers=None, codebook_size=6,
    codebook_dim=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("cli") / "model"
    numbers, rng = np.random.default_rng(0), jax.random.key(0)

    def save(component: str, shapes, preset) -> None:
        weights = jax.tree.map(lambda leaf: jnp.asarray(numbers.normal(0, 0.5, leaf.shape), leaf.dtype), shapes)
        bundle.save_component(folder, component, weights, preset)

    save("vqvae", jax.eval_shape(VQVAE(CONFIG).init, rng, jnp.zeros((1, 64, 1))), CONFIG)
    for prior in (PRIOR, BOTTOM):
        shapes = jax.eval_shape(lambda rng, prior=prior: Prior(prior).init(rng, method="initialise"), rng)
        save(f"prior_level_{prior.level}", shapes, prior)
    Vocabulary("v2", {"unknown": 0, "ada_x": 1}, {"unknown": 0, "folk": 1, "rock": 2}).save(
        str(bundle.labels_dir(folder))
    )
    return str(folder)


def sample(model: str, out: Path, *flags: str) -> int:
    return main(["sample", f"--model={model}", f"--output={out}", *flags])


def codes(out: Path) -> list[np.ndarray]:
    with np.load(out / "codes.npz") as file:
        return [file["codes_level_0"], file["codes_level_1"]]


def test_one_song_through_its_modes(model, tmp_path, capsys) -> None:
    """Draw; upsample, continue and prime from the results; a seed is the same whatever the batch."""
    song = ("--seconds=0.016", "--artist=Ada X", "--genre=folk rock", "--seed=7", "--hop_fraction=0.5")
    assert sample(model, tmp_path / "a", *song, "--num_samples=2") == 0
    assert "level 1: 16 codes an item in 3 windows of 8, 0 given" in capsys.readouterr().out
    drawn = codes(tmp_path / "a")
    assert [c.shape for c in drawn] == [(2, 32), (2, 16)]

    assert sample(model, tmp_path / "mesh", *song, "--num_samples=2", "--mesh=data=2,tensor=4") == 0
    for mine, theirs in zip(codes(tmp_path / "mesh"), drawn, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    wav = Path("level_0", "item_1.wav")
    one, mesh = (soundfile.read(tmp_path / name / wav, dtype="int16")[0].astype(int) for name in ("a", "mesh"))
    np.testing.assert_allclose(mesh, one, rtol=0, atol=1)  # a step of 16 bits: their products round differently

    top = ("--levels=1", "--num_samples=2", "--max_batch_size=1")
    assert sample(model, tmp_path / "top", *song, *top) == 0
    np.testing.assert_array_equal(codes(tmp_path / "top")[1], drawn[1])
    saved = f"--codes={tmp_path / 'top' / 'codes.npz'}"
    up = ("--mode=upsample", saved, "--items=1", "--seed=7", "--hop_fraction=0.5")
    assert sample(model, tmp_path / "up", *up) == 0
    np.testing.assert_array_equal(codes(tmp_path / "up")[0], drawn[0][1:])

    more = ("--mode=continue", saved, "--seconds=0.02", "--levels=1")
    assert sample(model, tmp_path / "more", *more) == 0
    np.testing.assert_array_equal(codes(tmp_path / "more")[1][:, :16], drawn[1])
    assert codes(tmp_path / "more")[1].shape == (2, 20)

    sound = tmp_path / "a" / "level_0" / "item_0.wav"
    primed = ("--mode=primed", f"--audio={sound}", "--prompt_seconds=0.008", "--seconds=0.016", "--levels=1")
    assert sample(model, tmp_path / "primed", *primed) == 0
    assert codes(tmp_path / "primed")[1].shape == (1, 16) and codes(tmp_path / "primed")[0].shape == (1, 16)


def test_descriptions_come_from_a_file(model, tmp_path) -> None:
    songs = [{"artist": "ada x", "total_seconds": 2}, {"genre": "rock", "offset": 0.5}]
    (tmp_path / "songs.json").write_text(json.dumps(songs))
    flags = (
        f"--metadata={tmp_path / 'songs.json'}",
        "--seconds=0.016",
        "--num_samples=3",
        "--genre=folk",
        "--levels=1",
    )
    assert sample(model, tmp_path / "out", *flags) == 0
    metas = json.loads((tmp_path / "out" / "run.json").read_text())["request"]["metas"]
    assert [(m["artist"], m["genre"], m["total_length"], m["offset"]) for m in metas] == [
        ("ada x", "folk", 16000, 0), ("unknown", "rock", 4128, 4000), ("ada x", "folk", 16000, 0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--artist=ada_y"], "unknown artist 'ada_y': the nearest of the 2 allowed are 'ada_x'"),
        (["--genre=folc"], "unknown genre 'folc'"),
        (["--genre=folk rock folk"], "has 3 words; this model takes at most 2"),
        (["--seconds=0.003"], "0.003 s is too short: one window of level 0 is 0.004 s"),
        (["--levels=0,1"], "levels 0,1 are in the wrong order"),
        (["--lyrics=la"], "takes no lyrics"),
        (["--lyrics=la", "--lyrics_file=la.txt"], "choose one"),
        (["--lyrics_file=absent.txt"], "No such file"),
        (["--mode=forward"], "unknown mode 'forward': allowed are ancestral, continue, upsample, primed"),
        (["--metadata=absent.json"], "No such file"),
        (["--mesh=heads=8"], "write sizes of data, fsdp and tensor such as data=4,fsdp=64"),
        (["--mesh=data=3"], "mesh data=3 x fsdp=1 x tensor=1 does not fit 8 devices"),
        (["--seconds=long"], "invalid float value: 'long'"),
        (["--top_k=1.5"], "invalid comma-separated int value: '1.5'"),
        (["--secnds=5"], "did you mean --seconds?"),
        (["--total_seconds=60"], "takes songs of 0.01 to 10 s"),
    ],
)
def test_bad_flags_end_in_one_line(model, tmp_path, capsys, flags, message) -> None:
    try:
        code = sample(model, tmp_path / "out", "--seconds=0.05", *flags)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_model(tmp_path, capsys) -> None:
    assert sample(str(tmp_path), tmp_path / "out") == 2
    assert "is not a model directory" in capsys.readouterr().err


def test_nothing_to_draw_is_said(model, tmp_path, capsys) -> None:
    np.savez(tmp_path / "codes.npz", codes_level_0=np.zeros((1, 32), int), codes_level_1=np.zeros((1, 16), int))
    assert sample(model, tmp_path / "out", "--mode=upsample", f"--codes={tmp_path / 'codes.npz'}") == 2
    assert "there is nothing to draw" in capsys.readouterr().err


def test_composing_asks_and_upsamples(model, tmp_path, capsys, monkeypatch) -> None:
    answers = iter(["7", "1", "0 done"])
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    flags = (
        f"--model={model}",
        f"--output={tmp_path / 'piece'}",
        "--takes=2",
        "--step_seconds=0.008",
        "--total_seconds=1",
    )
    assert main(["compose", *flags]) == 0
    printed = capsys.readouterr()
    assert "take 7 is not among the 2: allowed are 0 to 1" in printed.err
    final = next((tmp_path / "piece").glob("final_*"))
    assert str(final / "index.html") in printed.out and codes(final)[0].shape == (1, 32)
