"""``jukebox labels``, through the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from jukebox_jax import presets
from jukebox_jax.__main__ import main
from jukebox_jax.data.vocabulary import Vocabulary

IDS = Path(__file__).parents[1] / "golden" / "labeller" / "ids"


@pytest.fixture
def model(tmp_path):
    """A model whose top level takes v3 names and whose lower ones take v2."""
    priors = {
        "level_2": presets.PRIOR_1B_LYRICS,
        "level_1": presets.UPSAMPLER_LEVEL_1,
        "level_0": presets.UPSAMPLER_LEVEL_0,
    }
    description = {"format": 1, "name": "test", "vqvae": None, "provenance": {}}
    description["priors"] = {level: dataclasses.asdict(prior) for level, prior in priors.items()}
    (tmp_path / "model.json").write_text(json.dumps(description), encoding="utf-8")
    for version in ("v2", "v3"):
        Vocabulary.load(IDS, version).save(tmp_path / "labels")
    return tmp_path


def test_search_says_which_levels_know_a_name(model, capsys):
    assert main(["labels", "search", "céline", "dion", f"--model={model}"]) == 0
    out = capsys.readouterr().out
    assert "v2 (level 0, 1), artists (1 of 9):\n    557  c_line_dion\n" in out
    assert "v3 (level 2), artists (1 of 6):\n   5220  céline dion\n" in out


def test_list_shows_all_of_one_kind(capsys):
    assert main(["labels", "list", f"--ids={IDS}", "--kind=genre"]) == 0
    out = capsys.readouterr().out
    assert "v2, genres (9 of 9)" in out and "    282  blues rock\n" in out and "artist" not in out


def test_invisible_marks_are_shown(tmp_path, capsys):
    Vocabulary("v3", {"unknown": 0}, {"samba\u200e": 3}).save(tmp_path)
    assert main(["labels", "search", "Samba", f"--ids={tmp_path}"]) == 0
    assert "samba<U+200E>" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["search", "--ids=IDS"], "search for what"),
        (["list", "ella", "--ids=IDS"], "jukebox labels search ella"),
        (["search", "ella", "--ids=NOWHERE"], "no label tables"),
        (["search", "ella", "--model=NOWHERE"], "not a model directory"),
        (["search", "ella", "--ids=IDS", "--limit=0"], "at least 1"),
    ],
)
def test_mistakes_end_in_one_line(argv, message, tmp_path, capsys):
    places = {"IDS": str(IDS), "NOWHERE": str(tmp_path / "nowhere")}
    for name, path in places.items():
        argv = [a.replace(f"={name}", f"={path}") for a in argv]
    assert main(["labels", *argv]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_finding_nothing_is_exit_1(capsys):
    assert main(["labels", "search", "qqqqqqqqqq", f"--ids={IDS}"]) == 1
    assert "nothing like 'qqqqqqqqqq'" in capsys.readouterr().out
