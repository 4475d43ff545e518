"""``jukebox convert``: a foreign checkpoint into a model directory, and a model directory into safetensors."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jukebox_jax import presets
from jukebox_jax.checkpoint import bundle, openai, port
from jukebox_jax.checkpoint.mismatch import Mismatch
from jukebox_jax.checkpoint.safetensors_io import write_safetensors
from jukebox_jax.checkpoint.source import MODELS, PRESETS, Source, import_component, open_sources, plan
from jukebox_jax.checkpoint.stream import StreamedArray
from jukebox_jax.data.vocabulary import VERSIONS, Vocabulary
from jukebox_jax.types import UserError, choose

HELP = "Turn a checkpoint of the original (or of transformers) into a model directory, or one into safetensors."
EXAMPLE = "jukebox convert --checkpoint=prior_level_2.pth.tar --model=prior_1b_lyrics --output=models/1b_lyrics"
LICENCE = (
    "Note: OpenAI released Jukebox's weights for non-commercial use only. Whoever converts them stays bound by that."
)
LAYOUTS = ("openai", "transformers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="a .pth.tar, .safetensors or .bin file, an index of several, or a folder of them; "
        "a model directory with --to=safetensors",
    )
    names = ", ".join([*MODELS, *PRESETS])
    parser.add_argument("--model", metavar="NAME", help=f"what it is, where the file does not say: {names}")
    parser.add_argument("--output", required=True, metavar="DIR", help="the model directory to write or to add to")
    parser.add_argument("--labels", metavar="DIR", help="your folder of {v2,v3}_{artist,genre}_ids.txt, to be copied")
    parser.add_argument("--to", default="orbax", help="orbax (default): a model directory; safetensors: from one")
    parser.add_argument("--layout", default="openai", help="names in safetensors: openai (default) or transformers")


def main(args: argparse.Namespace) -> None:
    jax.config.update("jax_platforms", "cpu")  # leave accelerators alone
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's remarks about its own files
    choose("--to", args.to, ("orbax", "safetensors"))
    choose("--layout", args.layout, LAYOUTS)
    try:
        if args.to == "safetensors":
            export_model(args.checkpoint, Path(args.output), args.layout)
        else:
            import_model(args.checkpoint, args.model, Path(args.output), args.labels)
    except Mismatch as error:
        print(error.table, file=sys.stderr)
        raise UserError(error.summary) from error


def import_model(checkpoint: str, model: str | None, output: Path, labels: str | None) -> None:
    """Add every component that ``checkpoint`` holds to the model directory ``output``."""
    if bundle.is_model_dir(checkpoint):
        raise UserError(f"{checkpoint} is a model directory already: --to=safetensors exports it")
    sources = open_sources(checkpoint)
    parts = [(source, component, preset) for source in sources for component, preset in plan(source, model).items()]
    check_together(output, [preset for _, _, preset in parts])
    tables = find_labels(labels, [preset for _, _, preset in parts]) if labels else []
    levels = next((preset.levels for _, _, preset in parts if isinstance(preset, presets.VQVAE)), 3)
    digests: dict[Path, dict[str, Any]] = {}
    for source, component, preset in parts:
        variables = import_component(source, component, preset, levels)
        if not digests:
            print(LICENCE)
        need_space(output, sum(leaf.nbytes for leaf in jax.tree.leaves(variables)))
        for file in source.files:
            if file not in digests:
                digests[file] = digest(file)
                print(f"{file}: {digests[file]['size']:,} bytes, SHA-256 {digests[file]['sha256']}")
        with progress(f"writing {component}", sum(leaf.nbytes for leaf in jax.tree.leaves(variables))) as bar:
            watched = jax.tree.map(lambda leaf, bar=bar: watch(leaf, bar.update), variables)
            provenance = origin(source, [digests[file] for file in source.files])
            name = model if model in MODELS else None
            bundle.save_component(output, component, watched, preset, name=name, provenance=provenance)
        print(f"{output / component}: {describe(component, preset, variables)}")
    for table in tables:
        target = Path(bundle.labels_dir(output)) / table.name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(table, target)
        print(f"{target}: copied from {table.parent}")
    print(what_is_left(output))


def export_model(directory: str, output: Path, layout: str) -> None:
    """Write a model directory's components as safetensors, under the original's or the port's names."""
    description = bundle.load_description(directory)
    if not description.components:
        raise UserError(f"{directory} has no component yet")
    output.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    total = 0
    for component in description.components:
        preset = description.preset(component)
        variables = bundle.open_component(directory, component)
        if isinstance(preset, presets.VQVAE):
            tensors = openai.export_vqvae(variables, preset)
        else:
            residuals = description.provenance.get(component, {}).get("residuals", openai.RESIDUALS[0])
            tensors = openai.export_prior(variables, preset, residuals)
        if layout == "transformers":
            levels = description.vqvae.levels if description.vqvae else 1 + max(description.priors)
            head = port.prefix(component, levels)
            tensors = {head + port.port_name(name): tensor for name, tensor in tensors.items()}
        size = sum(math.prod(t.shape) * np.dtype(t.dtype).itemsize for t in tensors.values())
        need_space(output, size)
        file = output / f"{component}.safetensors"
        with progress(f"writing {file.name}", size) as bar:
            metadata = {"component": component, "preset": json.dumps(dataclasses.asdict(preset))}
            write_safetensors(file, tensors, metadata, bar.update)
        print(f"{file}: {len(tensors)} tensors, {size:,} bytes")
        weight_map |= dict.fromkeys(tensors, file.name)
        total += size
    if layout == "transformers":
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (output / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def check_together(output: Path, new: list[presets.VQVAE | presets.Prior]) -> None:
    """Refuse priors that do not belong to the VQ-VAE they would be stored with."""
    old = bundle.load_description(output) if bundle.is_model_dir(output) else bundle.Description("")
    vqvae = next((p for p in new if isinstance(p, presets.VQVAE)), old.vqvae)
    priors = dict(old.priors) | {p.level: p for p in new if isinstance(p, presets.Prior)}
    for level, prior in priors.items() if vqvae else ():
        assert vqvae is not None
        hop = vqvae.hop_lengths[level] if level < vqvae.levels else None
        if (prior.hop_length, prior.codebook_size) != (hop, vqvae.codebook_size):
            raise UserError(
                f"the prior of level {level} (hop {prior.hop_length}, {prior.codebook_size} codes) does not belong to "
                f"the VQ-VAE in {output} (hops {vqvae.hop_lengths}, {vqvae.codebook_size} codes): use another --output"
            )


def find_labels(directory: str, new: list[presets.VQVAE | presets.Prior]) -> list[Path]:
    """The tables of every version that the new priors need and, beyond, of those that are there; all are readable."""
    needed = {p.labels.version for p in new if isinstance(p, presets.Prior) and p.labels}
    there = {v for v in VERSIONS if (Path(directory) / f"{v}_artist_ids.txt").exists()}
    if not needed | there:
        raise UserError(f"--labels={directory} has no {{v2,v3}}_{{artist,genre}}_ids.txt")
    for version in needed | there:
        Vocabulary.load(directory, version)
    return [Path(directory) / f"{v}_{kind}_ids.txt" for v in sorted(needed | there) for kind in ("artist", "genre")]


def digest(file: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a file."""
    sha, size = hashlib.sha256(), file.stat().st_size
    with file.open("rb") as stream, progress(f"reading {file.name}", size) as bar:
        while block := stream.read(1 << 22):
            sha.update(block)
            bar.update(len(block))
    return {"file": file.name, "size": size, "sha256": sha.hexdigest()}


def origin(source: Source, files: list[dict[str, Any]]) -> dict[str, Any]:
    """What ``model.json`` remembers of where a component came from."""
    known = {"files": files, "layout": source.layout, "container": source.container, "licence": LICENCE}
    known["residuals"] = openai.residual_naming(source.tensors)
    return known | ({"step": source.step} if source.step is not None else {})


def watch(leaf: Any, written: Callable[[int], Any]) -> Any:
    return dataclasses.replace(leaf, written=written) if isinstance(leaf, StreamedArray) else leaf


def describe(component: str, preset: presets.VQVAE | presets.Prior, variables: Any) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    if isinstance(preset, presets.VQVAE):
        return f"VQ-VAE of {preset.levels} levels, hops {preset.hop_lengths}, {parameters:,} parameters"
    return f"prior of level {preset.level}, {preset.context_length} codes, {parameters:,} parameters"


def what_is_left(output: Path) -> str:
    """What ``jukebox sample`` would still miss."""
    description = bundle.load_description(output)
    levels = range(description.vqvae.levels) if description.vqvae else range(3)
    wanted = [bundle.VQVAE, *map(bundle.prior_component, levels)]
    missing = [component for component in wanted if component not in description.components]
    versions = {p.labels.version for p in description.priors.values() if p.labels}
    labels = bundle.labels_dir(output)
    missing += [f"{v} label ids (--labels)" for v in sorted(versions) if not (labels / f"{v}_artist_ids.txt").exists()]
    ready = f"ready: jukebox sample --model={output} --output=OUT"
    return f"still missing for sampling: {', '.join(missing)}" if missing else ready


def need_space(output: Path, size: int) -> None:
    """Refuse to begin what the disk cannot hold."""
    existing = next(parent for parent in (output, *output.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise UserError(f"{output} needs {size / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB left")


def progress(title: str, size: int) -> tqdm:
    return tqdm(desc=title, total=size, unit="B", unit_scale=True, leave=False, disable=None, mininterval=0.5)
