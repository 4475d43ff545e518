"""The demo's commands are ones that a user could type, in an order that works; its own part is small."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading

import pytest

from jukebox_jax import __main__ as dispatcher
from jukebox_jax import config
from jukebox_jax.cli import demo
from jukebox_jax.types import UserError

SONGS = [
    {"total_length": 100, "artist": "B", "genre": "x"},
    {"total_length": 300, "artist": "B", "genre": "x"},
    {"total_length": 200, "artist": "B", "genre": "y"},
    {"total_length": 900, "artist": "A", "genre": "y"},
    {"total_length": 100},
]


def write_data(folder, music):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "songs.jsonl").write_text("\n".join(map(json.dumps, SONGS)))
    (folder / "summary.json").write_text(json.dumps({"sample_rate": 10, "input": str(music)}))


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """Run the demo with commands that only leave their data set behind; returns what was typed."""

    def run(*argv: str) -> list[tuple[str, ...]]:
        words = []

        def jukebox(*command: str) -> None:
            words.append(command)
            if command[0] == "dataset":
                flags = dict(word.removeprefix("--").partition("=")[::2] for word in command[1:])
                write_data(tmp_path / "out" / "data", flags["input"])

        monkeypatch.setattr(demo, "jukebox", jukebox)
        code = dispatcher.main(["demo", f"--output={tmp_path / 'out'}", f"--input={tmp_path}", *argv])
        return words if code == 0 else [(str(code),)]

    return run


def test_every_command_is_one_that_a_user_can_type(typed):
    words = typed("--effort=0.5")
    assert [command[0] for command in words] == ["dataset", "train", "train", "train", "train", "sample"]
    for name, *argv in words:
        args = dispatcher.parse(name, importlib.import_module(f"jukebox_jax.cli.{name}"), argv)
        if name == "train":
            assert args.steps == round(demo.PARTS[args.config.partition(":")[2]][0] * 0.5)
            config.load(args.config, args.overrides)


def test_a_second_run_keeps_the_data(typed):
    assert typed()[0][0] == "dataset"
    assert typed()[0][0] == "train"


def test_other_music_needs_another_output(typed, tmp_path, capsys):
    typed()
    assert typed(f"--input={tmp_path / 'more'}") == [("2",)]
    assert "choose another --output" in capsys.readouterr().err


def test_labels_are_pairs_of_the_data_each_artist_first(tmp_path):
    write_data(tmp_path, "music")
    asked = demo.labels(tmp_path)
    assert [(a["artist"], a["genre"]) for a in asked] == [("B", "x"), ("A", "y"), ("unknown", "unknown"), ("B", "y")]
    assert {a["total_seconds"] for a in asked} == {20.0}


def test_a_command_that_fails_ends_the_demo(capfd):
    with pytest.raises(SystemExit) as stop:
        demo.jukebox("trian")
    assert stop.value.code == 2
    assert capfd.readouterr().out == "\n$ jukebox trian\n"


def test_sigterm_reaches_the_command(monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\ntrap 'echo saved > {tmp_path}/saved; exit 0' TERM\ntouch {tmp_path}/up\nread line\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    reader, writer = os.pipe()  # what the command waits on, so that it ends on the signal only
    stdin = os.dup(0)
    os.dup2(reader, 0)

    def terminate():
        while not (tmp_path / "up").exists():
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    try:
        with pytest.raises(SystemExit) as stop:
            demo.jukebox("train")
    finally:
        thread.join()
        os.dup2(stdin, 0)
        for descriptor in (stdin, reader, writer):
            os.close(descriptor)
    assert stop.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "saved").read_text() == "saved\n"


def test_sigterm_while_the_command_starts(monkeypatch):
    class Started:
        """A command; it is told to end before its starter knows of it."""

        def __init__(self, _) -> None:
            self.told = False
            os.kill(os.getpid(), signal.SIGTERM)

        def terminate(self) -> None:
            self.told = True

        def wait(self) -> int:
            assert self.told
            return 0

    monkeypatch.setattr(demo.subprocess, "Popen", Started)
    with pytest.raises(SystemExit) as stop:
        demo.jukebox("train")
    assert stop.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("effort", ["0", "-1", "nan"])
def test_effort_must_be_positive(effort):
    with pytest.raises(UserError, match="allowed are numbers above 0"):
        dispatcher.run("demo", [f"--effort={effort}"])
