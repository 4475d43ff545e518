"""The command: what it prints, and one line for what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jukebox_jax.__main__ import main


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "music"
    folder.mkdir()
    for name in ("a.wav", "b.flac", "c.wav"):
        soundfile.write(folder / name, 0.1 * np.random.default_rng(0).standard_normal((8000, 2)), 4000)
    (folder / "broken.mp3").write_bytes(b"")
    return folder


def test_it_builds_and_tells(music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = [f"--input={music}", f"--output={tmp_path / 'out'}", "--sample_rate=4000", "--workers=1"]
    assert main(["dataset", *flags]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^skipped +broken.mp3 +the file is empty$", out, re.M)
    assert re.search(r"^train +2 songs, 0.1 min, 2 records in 1 shards", out, re.M)
    assert re.search(r"^test +1 songs", out, re.M) and f"1 skipped; see {tmp_path}/out/summary.json" in out
    assert "decode" in err  # the progress bar
    assert main(["dataset", *flags]) == 2
    assert "pass --overwrite to replace it" in capsys.readouterr().err
    assert main(["dataset", *flags, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input=nowhere"], "input nowhere is not there"),
        (["--test_fraction=2"], "test_fraction 2: allowed are 0 up to, not including, 1"),
        (["--runner=Dataflow"], "unknown runner 'Dataflow': allowed are local, DirectRunner,"),
        (["--workers=0"], "--workers=0: allowed are 1 and more"),
        (["--", "--project=x"], "'--project=x': flags after -- need --runner"),
        (["--label_version=v1"], "unknown label version 'v1': allowed are v2, v3"),
    ],
)
def test_errors_are_one_line(
    music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
):
    assert main(["dataset", f"--input={music}", f"--output={tmp_path / 'out'}", *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith("jukebox dataset: error: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["dataset", "--help"])
    assert stop.value.code == 0
    assert "metadata.csv" in (out := capsys.readouterr().out) and "jukebox dataset --input=music" in out
