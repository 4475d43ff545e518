"""A foreign checkpoint, whatever its container: which components it holds, and their variables.

Containers: the original's ``.pth.tar`` (legacy stream and zip), ``.safetensors`` and ``.bin``, each alone or in a
folder, with or without an index. Layouts: the original's names (one component per file), or the transformers port's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jukebox_jax import presets
from jukebox_jax.checkpoint import openai, port
from jukebox_jax.checkpoint.bundle import VQVAE, prior_component
from jukebox_jax.checkpoint.mapping import Entry, Tensor, import_tensors, read_all
from jukebox_jax.checkpoint.mismatch import mismatch
from jukebox_jax.checkpoint.openai_hps import prior_from_hps, vqvae_from_hps
from jukebox_jax.checkpoint.safetensors_io import read_index, read_metadata, read_safetensors
from jukebox_jax.checkpoint.torch_reader import open_checkpoint
from jukebox_jax.types import UserError, choose

Preset = presets.VQVAE | presets.Prior

MODELS = {
    "5b": ("vqvae", "upsampler_level_0", "upsampler_level_1", "prior_5b"),
    "5b_lyrics": ("vqvae", "upsampler_level_0", "upsampler_level_1", "prior_5b_lyrics"),
    "1b_lyrics": ("vqvae", "upsampler_level_0", "upsampler_level_1", "prior_1b_lyrics"),
}
PRESETS: dict[str, Preset] = {**presets.VQVAES, **presets.PRIORS}
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_ORIGINAL = ("vqvae.pth.tar", "prior_level_0.pth.tar", "prior_level_1.pth.tar", "prior_level_2.pth.tar")


@dataclass(frozen=True)
class Source:
    """Tensors of one or more files, in one layout."""

    path: Path
    files: Sequence[Path]
    container: str  # legacy, zip or safetensors
    layout: str  # openai or transformers
    tensors: Mapping[str, Tensor]
    hps: Mapping[str, Any] | None = None
    step: int | None = None
    presets: Mapping[str, Preset] = field(default_factory=dict)  # by component; known of files that we exported

    def entries(self, preset: Preset) -> list[Entry]:
        """The original's table for a preset, with the naming that this file has."""
        if isinstance(preset, presets.VQVAE):
            return openai.vqvae_entries(preset)
        return openai.prior_entries(preset, openai.residual_naming(self.tensors))

    def fits(self, preset: Preset) -> bool:
        """Whether names and shapes are exactly those of a preset (original layout)."""
        expected = {entry.name: entry.shape for entry in self.entries(preset)}
        return mismatch("", {name: tuple(t.shape) for name, t in self.tensors.items()}, expected) is None


def open_sources(path: str | Path) -> list[Source]:
    """Everything that ``path`` holds: a file, an index, or a folder of either layout."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if not path.is_dir():
        return [_open(path, [path] if not path.name.endswith(".index.json") else read_index(path))]
    for name in (*_INDICES, *_SINGLE):
        if (path / name).exists():
            return open_sources(path / name)
    found = [path / name for name in _ORIGINAL if (path / name).exists()]
    found = found or sorted(path.glob("*.safetensors")) or sorted(path.glob("*.pth.tar"))
    if not found:
        raise UserError(f"{path} has no checkpoint: expected {', '.join(_ORIGINAL)}, or {' or '.join(_SINGLE)}")
    return [_open(file, [file]) for file in found]


def plan(source: Source, model: str | None) -> dict[str, Preset]:
    """Component -> preset of what ``source`` holds. ``model``: a model, a preset, or None for the file's own word."""
    if model is not None:
        choose("model", model, [*MODELS, *PRESETS])
    if model is None and source.presets:
        return dict(source.presets)
    if source.layout == "transformers":
        if model is None:
            raise UserError(f"{source.path} does not say which model it is: add --model={'|'.join(MODELS)}")
        return {_component(PRESETS[name]): PRESETS[name] for name in MODELS.get(model, (model,))}
    preset = PRESETS[model] if model in PRESETS else _recognise(source, model)
    return {_component(preset): preset}


def import_component(source: Source, component: str, preset: Preset, levels: int = 3) -> dict[str, Any]:
    """Variables of one component: a VQ-VAE's as numpy arrays, a prior's as lazy leaves (see ``stream.py``)."""
    entries, tensors, what = source.entries(preset), source.tensors, str(source.path)
    if source.layout == "transformers":
        tensors, entries = port.select(what, tensors, entries, port.prefix(component, levels))
    tree = import_tensors(what, tensors, entries)
    return openai.with_sums(read_all(tree)) if component == VQVAE else tree


def _open(path: Path, files: Sequence[Path]) -> Source:
    tensors: dict[str, Tensor] = {}
    container, hps, step = "safetensors", None, None
    known: dict[str, Preset] = {}
    for file in files:
        if file.suffix == ".safetensors":
            found: Mapping[str, Tensor] = read_safetensors(file)
            known |= _exported(file)
        else:
            checkpoint = open_checkpoint(file)
            found, container, hps, step = checkpoint.tensors, checkpoint.container, checkpoint.hps, checkpoint.step
        for name in found:
            if name in tensors:
                raise UserError(f"{path}: tensor {name!r} occurs in two files")
        tensors |= found
    layout = "transformers" if port.is_port(tensors) else "openai"
    return Source(path, files, container, layout, tensors, hps, step, known)


def _exported(file: Path) -> dict[str, Preset]:
    """Component and preset of a file that ``jukebox convert --to=safetensors`` wrote."""
    metadata = read_metadata(file)
    if not {"component", "preset"} <= set(metadata):
        return {}
    kind = presets.VQVAE if metadata["component"] == VQVAE else presets.Prior
    try:
        preset = presets.from_dict(kind, json.loads(metadata["preset"]))
        return {_component(preset): preset}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: the preset in its header is damaged: {' '.join(str(error).split())[:200]}") from error


def _component(preset: Preset) -> str:
    return VQVAE if isinstance(preset, presets.VQVAE) else prior_component(preset.level)


def _recognise(source: Source, model: str | None) -> Preset:
    """The preset of a file in the original's layout: by its own hyperparameters, or among those of a model."""
    if model is None and source.hps is not None:
        is_vqvae = any(name.startswith("encoders.") for name in source.tensors)
        try:
            return vqvae_from_hps(source.hps) if is_vqvae else prior_from_hps(source.hps)
        except UserError as error:
            raise UserError(f"{source.path}: {error}") from error
    names = list(PRESETS) if model is None else MODELS[model]
    fitting = [name for name in names if source.fits(PRESETS[name])]
    # The two upsamplers differ in nothing that a file shows, so its name decides.
    told = [name for name in fitting if name.removeprefix("upsampler_") in source.path.name]
    if model is None:
        hint = f"its tensors fit {' and '.join(fitting)}" if fitting else "it fits none of the presets"
        raise UserError(f"{source.path} does not say which model it is ({hint}): add --model=NAME")
    if len(fitting) == 1 or len(told) == 1:
        return PRESETS[(told or fitting)[0]]
    if not fitting:
        raise UserError(f"{source.path} fits no part of {model}: name the part, --model={'|'.join(names)}, for a table")
    raise UserError(f"{source.path} can be {' or '.join(fitting)}: say which, with --model=NAME")
