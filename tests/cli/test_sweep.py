"""``jukebox sweep``: what it lists, skips, trains and launches."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jukebox_jax.__main__ import main
from jukebox_jax.cli import sweep, train

ROOT = Path(__file__).parents[2]
SPEC = f"{ROOT / 'configs' / 'sweep.py'}:tiny_vqvae"


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of eight points, 1 and 6 are finished, 2 is half done."""
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    for index, steps in ((1, 400), (2, 200), (6, 401)):
        folder = tmp_path / "it's here" / f"tiny_vqvae_{index}"
        folder.mkdir(parents=True)
        provenance = {"vqvae": {"steps": steps}}
        described = {"format": 1, "name": "x", "vqvae": None, "priors": {}, "provenance": provenance}
        (folder / "model.json").write_text(json.dumps(described))
    return tmp_path / "it's here"


def call(workdir: Path, *flags: str) -> int:
    return main(["sweep", f"--config={SPEC}", f"--workdir={workdir}", *flags])


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would run; that of point 4 fails, that of point 5 is interrupted."""
    commands: list[list[str]] = []

    class Process:
        def __init__(self, words: list[str]):
            commands.append(words)
            self.code = {"--index=4": 3, "--index=5": 130}.get(words[-1], 0)

        def wait(self) -> int:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            return self.code

    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(Popen=Process))
    return commands


def test_points_are_listed_with_their_state(workdir: Path, capsys: pytest.CaptureFixture[str]):
    assert call(workdir) == 0
    rows = capsys.readouterr().out.splitlines()
    states = ["new", "finished", "step 200 of 400", "new", "new", "new", "finished", "new"]
    assert [row[:25].split(maxsplit=1) for row in rows] == [[str(i), f"{s:<20}"] for i, s in enumerate(states)]
    assert rows[7].endswith("optimizer.learning_rate=0.001 model.codebook_size=256 seed=1")


def test_one_point_is_trained_by_index(workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    seen: list = []
    monkeypatch.setattr(train, "main", lambda args: seen.append(args) or 0)
    assert call(workdir, "--index=7", "--dataset=d", "--steps=9", "--config.seed=3") == 0
    args = seen.pop()
    assert (args.config, args.workdir) == (f"{SPEC},index=7", str(workdir / "tiny_vqvae_7"))
    assert (args.dataset, args.steps, args.restore, args.overrides) == ("d", 9, None, ["--config.seed=3"])
    assert (
        call(workdir, "--index=1") == 0 and "point 1 (tiny_vqvae_1) is finished: 400 steps" in capsys.readouterr().out
    )
    assert not seen
    assert call(workdir, "--index=1", "--steps=500") == 0 and seen.pop().config.endswith(
        "index=1"
    )  # more is wanted now
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert call(workdir) == 0 and seen.pop().workdir.endswith("tiny_vqvae_3")
    assert call(workdir, "--all", "--dry_run") == 0 and not seen


def test_all_goes_on_after_a_failure_and_stops_at_a_signal(workdir: Path, started, capsys):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert call(workdir, "--all", "--dataset=a b") == 130
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert [words[-1] for words in started] == [f"--index={i}" for i in (0, 2, 3, 4, 5)]  # 1 and 6 are finished
    flags = [f"--config={SPEC}", f"--workdir={workdir}", "--dataset=a b"]
    assert started[0] == [sys.executable, "-m", "jukebox_jax", "sweep", *flags, "--index=0"]
    started.clear()
    (workdir / "tiny_vqvae_5").mkdir()
    (workdir / "tiny_vqvae_5" / "model.json").write_text((workdir / "tiny_vqvae_1" / "model.json").read_text())
    assert call(workdir, "--all") == 1
    assert started[-1][-1] == "--index=7" and "failed: point 4" in capsys.readouterr().err


def test_slurm_gets_one_array_of_what_is_left(workdir: Path, started, capsys):
    assert call(workdir, "--slurm=--nodes=1 --comment='a b'", "--config.seed=2") == 0
    script = str(ROOT / "launch" / "slurm.sbatch")
    words = ["jukebox", "sweep", f"--config={SPEC}", f"--workdir={workdir}", "--config.seed=2"]
    assert started == [["sbatch", "--array=0,2,3,4,5,7", "--nodes=1", "--comment=a b", script, *words]]
    started.clear()
    assert call(workdir, "--slurm=", "--steps=100", "--dry_run") == 0 and not started  # 2 is finished by that measure
    assert shlex.split(capsys.readouterr().out)[:2] == ["sbatch", "--array=0,3,4,5,7"]


def test_each_point_gets_a_tpu(workdir: Path, started, capsys):
    assert call(workdir, "--tpu_vm=--zone=z --type=v5litepod-16", "--dry_run") == 0 and not started
    shown = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [words[3] for words in shown] == [f"--name=tiny-vqvae-{i}" for i in (0, 2, 3, 4, 5, 7)]
    script = str(ROOT / "launch" / "tpu_vm.sh")
    words = ["--", "jukebox", "sweep", f"--config={SPEC}", f"--workdir={workdir}", "--index=2"]
    assert shown[1] == ["bash", script, "babysit", "--name=tiny-vqvae-2", "--zone=z", "--type=v5litepod-16", *words]
    dry = subprocess.run([*shown[1][:6], "--dry_run", *shown[1][6:]], capture_output=True, text=True, check=True).stdout
    assert "--index=2" in dry and dry.startswith("gcloud compute tpus queued-resources create tiny-vqvae-2 ")
    assert call(workdir, "--tpu_vm=--zone=z --type=v5litepod-16") == 130  # point 5
    assert len(started) == 6


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        (SPEC, ["--index=8"], "--index=8: the sweep"),
        (SPEC, ["--index=-1"], "has points 0 to 7"),
        (f"{SPEC}s", [], "Did you mean 'tiny_vqvae'"),
        (f"{SPEC},index=3", [], "as --index=N"),
        (SPEC.partition(":")[0], [], "unknown sweep ''"),
        (str(ROOT / "configs" / "tiny.py:vqvae"), [], "has no points(name)"),
        ("configs/sweeep.py:tiny_vqvae", [], "no config file"),
        (SPEC, ["--all", "--index=1"], "not allowed with"),
        (SPEC, ["--config.sed=1"], "Did you mean --config.seed"),
    ],
)
def test_mistakes_end_in_one_line_and_2(config, flags, message, workdir, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    try:
        code = main(["sweep", f"--config={config}", f"--workdir={workdir}", *flags])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and message in error


def test_an_installed_package_has_no_launchers(workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sweep.jukebox_jax, "__file__", "/site-packages/jukebox_jax/__init__.py")
    assert call(workdir, "--slurm=") == 2 and "need a clone of the repository" in capsys.readouterr().err


@pytest.mark.parametrize(("argument", "code"), [("tiny_vqvae", 0), ("tiny_vqva", 2)])
def test_the_file_is_a_script_too(argument: str, code: int):
    done = subprocess.run([sys.executable, SPEC.partition(":")[0], argument], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code
    if code:
        assert "Did you mean 'tiny_vqvae'" in done.stderr and done.stderr.count("\n") == 1
    else:
        assert done.stdout.splitlines()[7] == "--config=configs/sweep.py:tiny_vqvae,index=7"
