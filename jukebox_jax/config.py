"""Experiments as files: ``configs/X.py`` defines ``get_config(arg)``; the command line may change any leaf.

    jukebox train --config=configs/prior_5b.py:runlocal --config.optimizer.learning_rate=1e-4

A config is a locked ``ConfigDict``: the architecture (``model``, a preset as a table) and everything else that decides
a run. ``train/task.py`` makes a frozen dataclass of it, once. Defaults of all experiments are here and only here.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import ml_collections

from jukebox_jax import presets
from jukebox_jax.types import UserError, choose, nearest

# Attributes of a ConfigDict can be anything, which its own annotations do not say.
ConfigDict: TypeAlias = Any


def vqvae(preset: presets.VQVAE) -> ConfigDict:
    """The defaults of training a VQ-VAE (spec/vqvae.md section 7)."""
    c = _experiment(preset)
    with c.unlocked():
        c.window_samples = 262_144
    return c


def prior(preset: presets.Prior) -> ConfigDict:
    """The defaults of training a prior; its window is its context. ``vqvae``: the model directory with the VQ-VAE."""
    c = _experiment(preset)
    with c.unlocked():
        c.vqvae = ""  # empty: the work directory
        c.remat = True  # recompute each layer in the backward pass
        # So many neighbours together, in turn: (2,) halves the memory for activations, for 4 % more to compute.
        c.remat_layers = (1,)
        c.loss_chunks = 1  # pieces of the sequence whose logits exist at one time
    c.optimizer.weight_decay = 0.01
    return c


def _experiment(preset: presets.VQVAE | presets.Prior) -> ConfigDict:
    c: ConfigDict = ml_collections.ConfigDict({
        "name": "",  # empty: the config's file name
        "model": dataclasses.asdict(preset),
        "dataset": "",  # made by `jukebox dataset` (or, for priors, `jukebox encode`)
        "init_from": "",  # a model directory to fine-tune; its architecture and labels are used
        "seed": 0,
        "steps": 100_000,
        "batch_size": 16,  # of all devices together
        "accumulate": 1,  # parts that a batch is cut into, one after the other, to save memory
        "shift": True,  # random crops
        "blend": True,  # random mix of left and right
        "passes": 0,  # > 0: only so many crops and mixes of a window, as in `jukebox encode --passes`
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},  # -1: what is left over
        "dtype": "auto",  # of the computation; auto: bfloat16 on accelerators, float32 on CPUs
        "optimizer": {
            "learning_rate": 3e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0,
            "ignore_grad_norm": 0.0, "warmup_steps": 100.0,
            "decay": "step", "decay_start": 0.0, "decay_steps": 1e10, "decay_factor": 1.0,
        },
        "ema": {"decay": 0.0, "every": 1},  # decay 0: 1 - batch_size / 8000
        "log_every": 10,
        "save_every": 1000,
        "keep": 2,  # checkpoints
        "evaluate_every": 1000,
        "evaluate_batches": 8,
        "sample_every": 5000,  # audio to TensorBoard
    })  # fmt: skip
    return c.lock()


def shrink(c: ConfigDict) -> ConfigDict:
    """``:runlocal``: the same experiment at a size that any machine trains for a few steps."""
    model = c.model
    if "down_depths" in model:
        model.update({"width": 8, "depth": 2, "codebook_size": 64, "codebook_dim": 16})
        c.window_samples = 16_384
    else:
        model.update({"context_length": 256, "codebook_size": 64})
        if model.lyrics:
            if model.lyrics.encoder:
                model.lyrics.encoder.update({"length": 32, "width": 32, "depth": 3, "num_blocks": 4})
            model.lyrics.num_tokens = model.labels.num_lyric_tokens = 32
        merged = 32 if model.lyrics and model.lyrics.kind == "merged" else 0
        heads, depth = min(model.transformer.num_heads, 2), min(model.transformer.depth, 19)
        model.transformer.update(
            {"length": 256 + merged, "width": 64, "depth": depth, "num_heads": heads, "num_blocks": 8}
        )
        if model.alignment_layer is not None:
            model.alignment_layer = 15 if model.transformer.pattern == "factored_prime" else 18
            model.alignment_head = 0
        if model.conditioner:
            model.conditioner.update({"width": 16, "depth": 2})
    c.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})
    c.update({"steps": 4, "batch_size": 2, "accumulate": 1, "log_every": 1, "save_every": 4, "evaluate_every": 4})
    c.update({"evaluate_batches": 1, "sample_every": 4})
    return c


def parse_arg(arg: str, **spec: bool | int | float | tuple[str, ...]) -> ConfigDict:
    """What follows the colon of ``--config=FILE:arg``: comma-separated words, ``name`` or ``name=value``.

    ``spec`` has the default of each name. A tuple of words is a choice, its first word the default; in ``arg`` a choice
    is named by the word alone, and so is a switch (bool): ``parse_arg("b,fast", part=("a", "b"), fast=False)``.
    """
    values: dict[str, Any] = {
        name: default[0] if isinstance(default, tuple) else default for name, default in spec.items()
    }
    words = {word: name for name, default in spec.items() if isinstance(default, tuple) for word in default}
    switches = [name for name, default in spec.items() if isinstance(default, bool)]
    for item in filter(None, arg.split(",")):
        name, equals, text = item.partition("=")
        if not equals:
            choose("config argument", item, [*words, *switches, *(f"{n}=..." for n in spec if n not in switches)])
            values.update({words[item]: item} if item in words else {item: True})
            continue
        choose("config argument", name, spec)
        default = spec[name]
        if isinstance(default, tuple):
            choose(name, text, default)
            values[name] = text
        else:
            values[name] = _convert(name, text, type(default))
    return ml_collections.FrozenConfigDict(values)


def load(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of ``FILE.py`` or ``FILE.py:arg`` with overrides ``--config.key.sub=value`` applied.

    Raises ``UserError`` for a file that is not there, an unknown key (with the nearest) or a value of the wrong type.
    """
    path, arg = _split(spec)
    module = _import(path)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} defines no get_config(arg): it is not a config file")
    c = module.get_config(arg)
    if not c.name:
        c.name = path.stem
    for override in overrides:
        name, equals, text = override.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"write --config.{name}=VALUE, in one word")
        _set(c, name, text)
    return c


def sweep(spec: str) -> list[list[str]]:
    """The overrides of each point of a sweep ``FILE.py:NAME``, whose point i is the config ``FILE.py:NAME,index=i``."""
    path, arg = _split(spec)
    module, words = _import(path), arg.split(",")
    if not hasattr(module, "points"):
        raise UserError(f"{path} has no points(name): it is a config, not a sweep")
    if any(word.startswith("index=") for word in words):
        raise UserError(f"{spec} is one point: name the sweep alone, {path}:{words[0]}, and the point as --index=N")
    return module.points(words[0])


def _split(spec: str) -> tuple[Path, str]:
    """``FILE.py:arg`` as the path of a file that exists, and arg."""
    file, _, arg = spec.partition(".py:")
    path = Path(file if file.endswith(".py") else f"{file}.py")
    if not path.is_file():
        siblings = sorted(str(p) for p in path.parent.glob("*.py"))
        hint = nearest(path, siblings) or siblings
        raise UserError(f"no config file {str(path)!r}" + (f"; did you mean {' or '.join(hint)}?" if hint else ""))
    return path, arg


def leaves(c: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting as ("optimizer.beta1", 0.9)."""
    for key, value in c.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _import(path: Path) -> types.ModuleType:
    found = importlib.util.spec_from_file_location(f"jukebox_config_{path.stem}", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _set(c: ConfigDict, name: str, text: str) -> None:
    *tables, last = name.split(".")
    table: Any = c
    for depth, key in enumerate([*tables, last]):
        if not isinstance(table, ml_collections.ConfigDict):
            where = ".".join(name.split(".")[:depth])
            raise UserError(f"config.{where} is {table!r}: it has no {key!r} to set")
        if key not in table:
            _refuse(c, name, ".".join(tables[:depth]), key, table)
        if depth < len(tables):
            table = table[key]
    old = table[last]
    hint = _model_hint(c, name)
    optional = hint is not None and type(None) in typing.get_args(hint)
    if optional and text.lower() in ("none", "null"):
        value = None
    elif isinstance(old, ml_collections.ConfigDict):
        keys = ", ".join(f"config.{name}.{key}" for key in old)
        raise UserError(
            f"config.{name} is a table: set one of {keys}" + (", or None for the whole" if optional else "")
        )
    else:
        value = _convert(f"config.{name}", text, _scalar(hint, old), old)
    with table.ignore_type():
        table[last] = value


def _refuse(c: ConfigDict, name: str, where: str, key: str, table: ConfigDict) -> None:
    """Name the nearest key: the same word elsewhere, one like it in this table, initials (lr), or any."""
    dot = f"{where}." if where else ""
    full = [leaf for leaf, _ in leaves(c)]
    last = {leaf.rpartition(".")[2]: leaf for leaf in full}
    near = [last[key]] if key in last else [dot + k for k in nearest(key, table)]
    near = near or [dot + k for k in table if key == "".join(word[0] for word in k.split("_"))]
    near = near or [last[k] for k in nearest(key, last)] or nearest(name, full)
    hint = f". Did you mean --config.{near[0]}?" if near else ""
    raise UserError(f"unknown key config.{name}: config{dot and '.' + where} has {', '.join(table)}{hint}")


def _model_hint(c: ConfigDict, name: str) -> Any:
    """The annotation of a field below ``model`` (so that None and empty fields have a type); None elsewhere."""
    path = name.split(".")
    if path[0] != "model" or len(path) == 1:
        return None
    hint: Any = presets.VQVAE if "down_depths" in c.model else presets.Prior
    for key in path[1:]:
        cls = next(h for h in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(h))
        hint = typing.get_type_hints(cls)[key]
    return hint


def _scalar(hint: Any, old: Any) -> type:
    for option in (hint, *typing.get_args(hint)):
        if option in (bool, int, float, str):
            return option
        if typing.get_origin(option) is tuple:
            return tuple
    return type(old)


def _convert(name: str, text: str, kind: type, old: Any = None) -> Any:
    """``text`` as a ``kind``; integers may be written 1e6. Raises ``UserError``."""
    if kind is str:
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        value = text
    if kind is bool and (isinstance(value, bool) or value in (0, 1)):
        return bool(value)
    if kind is int and isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value):
        return int(value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is tuple:
        items = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        inner = type(old[0]) if old else int
        return tuple(_convert(name, str(item), inner, old[0] if old else None) for item in items)
    wanted = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a list such as 1,2"}
    raise UserError(f"{name} takes {wanted.get(kind, kind.__name__)}, not {text!r}")
