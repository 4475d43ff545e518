"""``jukebox COMMAND ...``: finds ``jukebox_jax/cli/COMMAND.py`` and calls it.

``jukebox --help`` reads each command's ``HELP`` from its source, so it imports no command, and no jax. Exit codes:
0 done, 1 a check that a command makes has failed, 2 the user's input is wrong (one line on stderr), 130 interrupted
(training that a signal stopped has saved, and the same command goes on).
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import jukebox_jax
from jukebox_jax.types import UserError, choose, nearest

# The order of the list in --help: a first project from start to end, then the rest.
ORDER = ("demo", "dataset", "train", "sweep", "sample", "compose", "encode", "decode", "convert", "verify", "evaluate",
         "features", "labels", "plan", "certify")  # fmt: skip

# Which extra brings a package that is not installed.
EXTRAS = {
    "apache_beam": "beam", "array_record": "data", "grain": "data", "importlib_resources": "data", "librosa": "audio",
    "libtpu": "tpu", "pretty_midi": "demo", "tensorboardX": "train", "tensorflow_datasets": "data",
    "tinysoundfont": "demo", "torch": "bench", "transformers": "bench",
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line; an unknown flag brings the nearest known one."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        hint = nearest(unknown[0].partition("=")[0], flags) if unknown[0].startswith("-") else []
        known = f"did you mean {hint[0]}?" if hint else f"see {self.prog} --help"
        self.error(f"unknown argument {' '.join(unknown)!r}; {known}")


def commands() -> dict[str, str]:
    """The commands that exist, and the line that describes each."""
    found = {path.stem: _help_line(path) for path in sorted((Path(__file__).parent / "cli").glob("[a-z]*.py"))}
    return {name: found[name] for name in (*(n for n in ORDER if n in found), *(n for n in found if n not in ORDER))}


def _help_line(path: Path) -> str:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == "HELP" and node.value is not None:
                return str(ast.literal_eval(node.value))
    return ""


def overview() -> str:
    """What ``jukebox --help`` prints."""
    rows = "\n".join(f"  {name:<10} {line}" for name, line in commands().items())
    return (
        f"usage: jukebox COMMAND [options]\n\n{(jukebox_jax.__doc__ or '').splitlines()[0]}\n\ncommands:\n{rows}\n\n"
        "jukebox COMMAND --help shows a command's options and an example; jukebox --version the version.\n"
    )


def make_parser(name: str, command: ModuleType) -> Parser:
    """The parser of ``jukebox name``."""
    parser = Parser(
        prog=f"jukebox {name}",
        description=command.HELP,
        epilog=f"example:\n  {command.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    return parser


def parse(name: str, command: ModuleType, argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command's flags. For a command with ``--config``, ``--config.key=value`` go to ``args.overrides``."""
    parser = make_parser(name, command)
    args, unknown = parser.parse_known_args(argv)
    if hasattr(args, "config"):
        args.overrides = [u for u in unknown if u.startswith("--config.")]
        for override in args.overrides:
            if "=" not in override:
                parser.error(f"write {override}=VALUE, in one word")
        unknown = [u for u in unknown if u not in args.overrides]
    if unknown:
        parser.refuse(unknown)
    return args


def run(name: str, argv: Sequence[str]) -> int:
    """Run one command; raises what the command raises."""
    choose("command", name, commands())
    command = importlib.import_module(f"jukebox_jax.cli.{name}")
    return command.main(parse(name, command, argv)) or 0


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview(), end="")
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"jukebox_jax {jukebox_jax.__version__}")
        return 0
    name = argv[0]
    where = f"jukebox {name}" if name in commands() else "jukebox"
    try:
        return run(name, argv[1:])
    except UserError as error:
        return _fail(where, str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        extra = EXTRAS[package]
        return _fail(where, f"needs the package {package}: pip install 'jukebox_jax[{extra}]'" + _without_deps(package))
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a missing file, a full disk, no permission: the user's to mend
        if error.strerror is None or error.filename is None:
            raise
        return _fail(where, f"{error.strerror}: {os.fspath(error.filename)!r}")
    except KeyboardInterrupt:
        print(f"{where}: interrupted", file=sys.stderr)
        return 130


def _without_deps(package: str) -> str:
    return " and pip install --no-deps tinysoundfont" if package == "tinysoundfont" else ""


def _fail(where: str, message: str) -> int:
    """One line; the rows of a table (two spaces in front) stay rows below it."""
    lines = message.splitlines()
    rows = [line for line in lines if line.startswith("  ")]
    line = " ".join(word for line in lines if line not in rows for word in line.split())
    sys.stderr.write("\n".join([f"{where}: error: {line}", *rows]) + "\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
