"""The floors of ARCHITECTURE.md, read from the imports: a module imports only from floors below its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jukebox_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    "types": 0, "presets": 0,
    "ops": 1, "parallel": 1, "data": 1, "config": 1,
    "models": 2, "checkpoint": 2,
    "train": 3, "sample": 3, "evaluate": 3, "certify": 3,
    "cli": 4, "__main__": 4,
}  # fmt: skip

# Sideways, on one floor: certify compiles the programs of train and sample, openai.py reads the attention patterns,
# presets raise UserError, and the dispatcher lists the commands.
SIDEWAYS = {
    ("presets", "types"),
    ("certify", "train"),
    ("certify", "sample"),
    ("__main__", "cli"),
}
EXACT = {("checkpoint/openai.py", "models.pattern")}

# Modules that import no jax, nor what brings it (packages end in a slash).
NO_JAX = ("presets.py", "types.py", "models/pattern.py", "sample/windows.py", "data/", "__main__.py", "__init__.py")
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
FORBIDDEN_NAMES = {"utils", "util", "common", "base", "helpers", "misc", "registry"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, absolute, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: write absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(name: str, imported: Iterator[str]) -> Iterator[str]:
    """The rules, on the imports of one module (``name`` relative to the package)."""
    part = name.removesuffix(".py").partition("/")[0]
    for target in imported:
        root, _, rest = target.partition(".")
        if root == "jukebox_jax" and rest:
            other = rest.partition(".")[0]
            if other not in FLOORS:
                continue  # a name of jukebox_jax/__init__.py
            allowed = (
                FLOORS[other] < FLOORS.get(part, 0)
                or other == part
                or (part, other) in SIDEWAYS
                or any(name == here and rest.startswith(there) for here, there in EXACT)
            )
            if not allowed:
                yield f"{name} (floor {FLOORS.get(part, 0)}) imports {target} (floor {FLOORS[other]})"
        elif root in JAX and name.startswith(NO_JAX):
            yield f"{name} imports {root}, and is to import no jax"
        elif root == "flax" and part == "ops":
            yield f"{name} imports flax, and ops sees none"
        elif root == "ml_collections" and name != "config.py":
            yield f"{name} imports ml_collections, which belongs to config.py"
        elif root == "importlib" and rest == "import_module" or target == "importlib":
            if name != "__main__.py":
                yield f"{name} imports by string; only the dispatch in __main__.py may"
        elif part == "ops" and target.startswith("jax.sharding"):
            yield f"{name} imports {target}, and ops sees no mesh"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_keeps_to_its_floor(path):
    assert not list(violations(name_of(path), imports(path)))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("ops/attention.py", "jukebox_jax.parallel.mesh"),
        ("ops/attention.py", "flax.linen"),
        ("train/loop.py", "jukebox_jax.sample.decode"),
        ("sample/decode.py", "jukebox_jax.train.loop"),
        ("models/prior.py", "jukebox_jax.checkpoint.bundle"),
        ("checkpoint/bundle.py", "jukebox_jax.models.pattern"),
        ("data/loader.py", "jax.numpy"),
        ("sample/windows.py", "jax"),
        ("types.py", "jukebox_jax.presets.VQVAE"),
        ("train/task.py", "ml_collections.ConfigDict"),
        ("train/task.py", "importlib.import_module"),
    ],
)
def test_the_rules_catch(name, target):
    assert list(violations(name, iter([target])))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_one_idea_per_file(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 300, f"{name_of(path)} has {lines} lines; 300 is the most"
    parts = {part.lower().strip("_") for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not parts & FORBIDDEN_NAMES, f"{name_of(path)}: say what it holds"


def test_every_part_has_a_floor():
    parts = {name_of(path).removesuffix(".py").partition("/")[0] for path in MODULES} - {"__init__"}
    assert parts <= set(FLOORS), f"no floor for {sorted(parts - set(FLOORS))}"


def test_the_package_stays_small():
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES) <= 21_150
