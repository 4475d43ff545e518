"""``jukebox encode``: audio to codes, of recordings to look at or of a data set to train priors on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jukebox_jax.types import UserError

HELP = "turn audio into codes: recordings, or a data set once and for all before priors train on it"
EXAMPLE = (
    "jukebox encode --model=models/mine --input=song.wav --output=codes.npz\n"
    "jukebox encode --model=models/mine --dataset=data/mine --config=configs/tiny.py:prior --output=data/mine_codes"
)

DETAILS = """
codes.npz has codes_level_0 (the bottom), codes_level_1, ...: int32, items x codes, here of one item; `jukebox decode`,
and `jukebox sample --mode=continue` or upsample, read it. A folder as --input gives a folder of such files.

With --dataset, the windows that training with this --config would read are encoded, and `jukebox train --dataset=CODES`
trains the prior on them with the same batches, step for step, and no encoder. --passes=K stores K random crops and
mixes of every window; training cycles through them. An interrupted run goes on where it was.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``jukebox encode``."""
    parser.epilog = f"{parser.epilog}\n{DETAILS}"
    parser.add_argument("--model", required=True, metavar="DIR", help="with a VQ-VAE: what `train` or `convert` left")
    parser.add_argument("--output", required=True, metavar="PATH", help="a .npz file, or a folder for several")
    recordings = parser.add_argument_group("recordings")
    recordings.add_argument("--input", metavar="PATH", help="a recording, or a folder of them")
    recordings.add_argument("--levels", metavar="0,1,..", help="only these levels (default: all)")
    data = parser.add_argument_group("a data set for a prior")
    data.add_argument("--dataset", metavar="DIR", help="made by `jukebox dataset`")
    data.add_argument("--config", metavar="FILE.py[:ARGS]", help="the experiment; --config.key=value changes a setting")
    data.add_argument("--passes", type=int, default=1, metavar="K", help="crops and mixes per window (1)")
    data.add_argument("--batch_size", type=int, default=8, metavar="N", help="windows read at a time (8)")
    data.add_argument("--mesh", help="devices that share the windows read at a time, such as data=8 (default: one)")
    data.add_argument("--overwrite", action="store_true", help="replace codes that are there already")


def main(args: argparse.Namespace) -> int:
    """Encode recordings or a data set."""
    if (args.input is None) == (args.dataset is None):
        raise UserError("give either --input=RECORDING_OR_FOLDER or --dataset=DIR")
    from jukebox_jax.checkpoint import bundle

    preset = bundle.load_description(args.model).preset("vqvae")
    if args.input is not None:
        return _recordings(args, preset)
    if args.config is None:
        raise UserError("--dataset needs --config=FILE.py[:ARGS], the prior that will train on the codes")
    return _dataset(args, preset)


def _recordings(args: argparse.Namespace, preset: Any) -> int:
    from jukebox_jax.checkpoint import bundle
    from jukebox_jax.data import audio
    from jukebox_jax.models.vqvae import VQVAE

    levels = _levels(args.levels, preset.levels)
    targets = dict(_targets(Path(args.input), Path(args.output)))
    model, variables, skipped = VQVAE(preset), bundle.load_component(args.model, "vqvae"), 0
    for source, target in targets.items():
        try:
            seconds = _encode_file(model, variables, source, target, levels)
        except audio.Undecodable as error:
            skipped += 1
            print(f"skipped  {source}  {error}")
            continue
        print(f"{source}: {seconds:.2f} s, levels {', '.join(map(str, levels))}: {target}")
    if skipped == len(targets):
        raise UserError(f"none of the {skipped} recordings could be used")
    return 0


def _encode_file(model: Any, variables: Any, source: Path, target: Path, levels: list[int]) -> float:
    """Encode one recording, in mono and up to a whole code of the top level; returns its seconds."""
    import numpy as np

    from jukebox_jax.data import audio
    from jukebox_jax.models.vqvae_stream import encode_long

    config = model.config
    hop, rate = config.hop_lengths[-1], config.sample_rate
    decoded = audio.decode(str(source), rate, min_seconds=hop / rate)
    with decoded.store:
        blocks = [audio.to_float(block).mean(axis=1) for block in decoded.records(1 << 20)]
    samples = np.concatenate(blocks)[: decoded.total // hop * hop]
    codes = encode_long(model, variables, samples[None, :, None], levels)
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(target.name + ".new")
    with open(staged, "wb") as file:
        arrays = {f"codes_level_{level}": z for level, z in zip(levels, codes, strict=True)}
        np.savez_compressed(file, allow_pickle=False, **arrays)
    staged.replace(target)
    return len(samples) / rate


def _levels(text: str | None, levels: int) -> list[int]:
    chosen = range(levels) if text is None else text.split(",")
    try:
        found = sorted({int(level) for level in chosen})
    except ValueError:
        found = []
    if not found or found[0] < 0 or found[-1] >= levels:
        raise UserError(f"--levels={text}: levels of this model are {','.join(map(str, range(levels)))}")
    return found


def _targets(source: Path, output: Path) -> Iterator[tuple[Path, Path]]:
    """Recordings, and where the codes of each go."""
    from jukebox_jax.data.metadata import find_audio

    if not source.is_dir():
        if not source.exists():
            raise UserError(f"--input={source} is not there: name a recording, or a folder of them")
        if output.suffix != ".npz":
            raise UserError(f"--output={output} must end in .npz for a single recording")
        yield source, output
        return
    if output.suffix == ".npz":
        raise UserError(f"--output={output} is one file, and --input={source} a folder: name a folder")
    found, _, _ = find_audio(str(source))
    if not found:
        raise UserError(f"{source} has no recordings in it")
    for file in found:
        yield source / file, output / f"{file}.npz"


def _dataset(args: argparse.Namespace, preset: Any) -> int:
    import jax
    import numpy as np

    from jukebox_jax import config, presets
    from jukebox_jax.checkpoint import bundle
    from jukebox_jax.data import codes
    from jukebox_jax.parallel.mesh import make_mesh, parse_mesh, use
    from jukebox_jax.parallel.products import eigen_jit
    from jukebox_jax.parallel.sharding import batch_sharding, replicated
    from jukebox_jax.train.experiment import from_config
    from jukebox_jax.train.inputs import open_inputs
    from jukebox_jax.train.source import with_source
    from jukebox_jax.train.task import encode_batch

    for name in ("passes", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: allowed are 1 and more")
    c = config.load(args.config, args.overrides)
    c.dataset = args.dataset
    if "vqvae" not in c:
        raise UserError(f"--config={args.config} trains a VQ-VAE; codes are for priors, such as configs/tiny.py:prior")
    c.vqvae = args.model
    experiment, _ = with_source(from_config(c.to_dict()), Path(args.model))
    prior = experiment.model
    assert isinstance(prior, presets.Prior)
    model = open_inputs(experiment, preset.sample_rate).model  # what training will read: same data, same checks
    assert isinstance(model, presets.Prior)
    variables = bundle.load_component(args.model, "vqvae")
    upper = prior.upsampling is not None
    levels = (prior.level, prior.level + 1) if upper else (prior.level,)
    mesh = make_mesh(parse_mesh(args.mesh), None if args.mesh else jax.devices()[:1])
    at_once, rows = mesh.shape["data"] * mesh.shape["fsdp"], batch_sharding(mesh)
    if args.batch_size % at_once:
        raise UserError(f"--batch_size={args.batch_size} does not spread over {at_once} devices: take a multiple")
    variables = jax.device_put(variables, replicated(mesh))
    compiled = eigen_jit(lambda variables, audio: encode_batch(preset, variables, audio, levels, at_once))

    def encode(audio: np.ndarray) -> dict[str, np.ndarray]:
        with use(mesh):
            found = [np.asarray(z) for z in compiled(variables, jax.device_put(audio, rows))]
        return dict(zip(("codes", "upper_codes"), found, strict=False))

    made = codes.write_codes(
        args.output, args.dataset, encode,
        window_samples=prior.window_samples, batch_size=args.batch_size, seed=experiment.seed, passes=args.passes,
        shift=experiment.shift, blend=experiment.blend, upper=upper,
        min_duration=model.labels.min_duration if model.labels else None,
        max_duration=model.labels.max_duration if model.labels else None,
        provenance={"model": str(args.model), "level": prior.level, "codebooks": _digest(variables, levels)},
        overwrite=args.overwrite,
    )  # fmt: skip
    for split, facts in made["splits"].items():
        print(f"{split}: {facts['items']} windows of {prior.context_length} codes, {facts['passes'] or 1} times")
    print(f"{args.output}: jukebox train --config={args.config} --dataset={args.output} ...")
    return 0


def _digest(variables: Any, levels: tuple[int, ...]) -> str:
    """A short hash of the codebooks: codes of another VQ-VAE are another data set."""
    import hashlib

    import numpy as np

    books = (np.asarray(variables["codebook"][f"level_{level}"]["codebook"]).tobytes() for level in levels)
    return hashlib.sha256(b"".join(books)).hexdigest()[:16]
