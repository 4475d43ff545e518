"""The front door: every command has help with an example, wrong input ends in one line, and README knows them all."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from jukebox_jax import __main__ as dispatcher
from jukebox_jax import config
from jukebox_jax.types import UserError

ROOT = Path(__file__).parents[1]
COMMANDS = list(dispatcher.commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_purpose_and_an_example(name, capsys):
    command = importlib.import_module(f"jukebox_jax.cli.{name}")
    with pytest.raises(SystemExit) as stop:
        dispatcher.main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert command.EXAMPLE in shown
    assert "\n" not in command.HELP and command.HELP
    assert dispatcher.commands()[name] == command.HELP


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_parses(name):
    command = importlib.import_module(f"jukebox_jax.cli.{name}")
    for line in command.EXAMPLE.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        assert words[:2] == ["jukebox", name]
        dispatcher.parse(name, command, words[2:])


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_are_snake_case(name):
    command = importlib.import_module(f"jukebox_jax.cli.{name}")
    for action in dispatcher.make_parser(name, command)._actions:
        flags = action.option_strings
        assert not flags or any(re.fullmatch(r"--[a-z][a-z0-9_]*", flag) for flag in flags), flags


def test_overview_imports_no_jax_and_lists_every_command():
    code = (
        "import sys; from jukebox_jax.__main__ import main; main(['--help']); "
        "assert not {'jax', 'numpy', 'flax'} & set(sys.modules), 'slow'"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert re.findall(r"^  ([a-z]+) +\S", shown, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("document", ["README.md"])
def test_readme_names_every_command_and_no_other(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"\bjukebox ([a-z]+)\b(?= --|`| *\\)", text))
    assert named == set(COMMANDS)


def test_readme_commands_parse():
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [
        line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("jukebox ")
    ]
    assert lines
    for line in lines:
        name, *argv = shlex.split(line)[1:]
        args = dispatcher.parse(name, importlib.import_module(f"jukebox_jax.cli.{name}"), argv)
        if name == "train":
            config.load(str(ROOT / args.config), args.overrides)


def test_readme_links_lead_somewhere():
    for document in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{document} links to {target}"


def fake(main) -> ModuleType:
    command = ModuleType("fake")
    command.__dict__.update(HELP="Fakes.", EXAMPLE="jukebox fake", main=main)

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--config")
        parser.add_argument("--workdir")
        parser.add_argument("--steps", type=int)

    command.__dict__["add_arguments"] = add_arguments
    return command


@pytest.fixture
def call(monkeypatch, capsys):
    """Run ``jukebox fake ARGV`` with ``main(args)`` as its body; returns (exit code, stdout, stderr)."""

    def call(main, *argv: str):
        monkeypatch.setattr(dispatcher, "commands", lambda: {"fake": "Fakes."})
        monkeypatch.setitem(sys.modules, "jukebox_jax.cli.fake", fake(main))
        try:
            code = dispatcher.main(["fake", *argv])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def raising(error: BaseException):
    def main(args):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no artist 'x':\n try 'y'"), 2, "jukebox fake: error: no artist 'x': try 'y'"),
        (KeyboardInterrupt(), 130, "jukebox fake: interrupted"),
        (FileNotFoundError(2, "No such file", "a.wav"), 2, "jukebox fake: error: No such file: 'a.wav'"),
        (
            ModuleNotFoundError("x", name="apache_beam.io"),
            2,
            "jukebox fake: error: needs the package apache_beam: pip install 'jukebox_jax[beam]'",
        ),
    ],
)
def test_errors_end_in_one_line(call, error, code, line):
    assert call(raising(error)) == (code, "", line + "\n")


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), ModuleNotFoundError("x", name="jukebox_jax.nope"), OSError("?")]
)
def test_our_own_mistakes_keep_their_traceback(call, error):
    with pytest.raises(type(error)):
        call(raising(error))


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--wrokdir=x"], "did you mean --workdir?"),
        (["--work=x"], "did you mean --workdir?"),  # no abbreviations: they break when a flag is added
        (["--steps=many"], "invalid int value: 'many'"),
        (["stray"], "see jukebox fake --help"),
        (["--config.steps", "7"], "write --config.steps=VALUE"),
    ],
)
def test_bad_flags_end_in_one_line(call, argv, part):
    code, out, err = call(lambda args: None, *argv)
    assert (code, out) == (2, "")
    assert part in err and err.startswith("jukebox fake: error: ") and err.count("\n") == 1


def test_config_overrides_reach_the_command(call):
    seen = []
    code, _, _ = call(lambda args: seen.append(args.overrides), "--config=a.py", "--config.b.c=1", "--config.d=x=y")
    assert (code, seen) == (0, [["--config.b.c=1", "--config.d=x=y"]])


def test_exit_code_of_a_command_is_the_program_s(call):
    assert call(lambda args: 1)[0] == 1


def test_unknown_command_suggests_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr(dispatcher, "commands", lambda: {"train": "", "sample": ""})
    assert dispatcher.main(["trian"]) == 2
    err = capsys.readouterr().err
    assert "Did you mean 'train'?" in err and err.startswith("jukebox: error: unknown command 'trian'")
