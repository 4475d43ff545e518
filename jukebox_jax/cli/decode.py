"""``jukebox decode``: codes to audio."""

from __future__ import annotations

import argparse
from pathlib import Path

from jukebox_jax.types import UserError, choose

HELP = "turn codes into audio, with the decoder of one level"
EXAMPLE = "jukebox decode --model=models/mine --codes=codes.npz --level=0 --output=out.wav"
SUFFIXES = (".wav", ".flac")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``jukebox decode``."""
    parser.add_argument("--model", required=True, metavar="DIR", help="with a VQ-VAE: what `train` or `convert` left")
    parser.add_argument("--codes", required=True, metavar="FILE.npz", help="from `jukebox encode` or `jukebox sample`")
    parser.add_argument("--level", type=int, default=0, help="which level's codes (0, the bottom)")
    parser.add_argument("--item", type=int, metavar="I", help="only this item of the file, counted from 0")
    parser.add_argument(
        "--output", required=True, metavar="PATH", help="a .wav or .flac file; for several items a folder"
    )


def main(args: argparse.Namespace) -> int:
    """Decode each item in pieces, so that length does not matter."""
    import numpy as np

    from jukebox_jax.checkpoint import bundle
    from jukebox_jax.models.vqvae import VQVAE
    from jukebox_jax.presets import VQVAE as Preset
    from jukebox_jax.sample.prompts import load_codes

    preset = bundle.load_description(args.model).preset("vqvae")
    assert isinstance(preset, Preset)
    choose("level", args.level, range(preset.levels))
    codes = load_codes(args.codes, preset.levels, preset.codebook_size)[args.level]
    if not codes.size:
        raise UserError(f"{args.codes} has no codes of level {args.level}")
    items = range(len(codes)) if args.item is None else [args.item]
    if args.item is not None and not 0 <= args.item < len(codes):
        raise UserError(f"--item={args.item}: {args.codes} has items 0 to {len(codes) - 1}")
    output = Path(args.output)
    single = output.suffix.lower() in SUFFIXES
    if single and len(items) > 1:
        raise UserError(f"{args.codes} has {len(codes)} items: choose one with --item=I, or name a folder as --output")
    if output.suffix and not single:
        raise UserError(f"--output={output}: allowed are {' and '.join(SUFFIXES)}, or a folder")
    variables = bundle.load_component(args.model, "vqvae")
    for item in items:
        target = output if single else output / f"item_{item}.wav"
        seconds, clipped = _decode(
            VQVAE(preset), variables, np.ascontiguousarray(codes[item : item + 1]), args.level, target
        )
        note = f" ({clipped:.1%} of the samples were beyond full scale and are clipped)" if clipped > 0.01 else ""
        print(f"item {item}: {seconds:.2f} s from level {args.level}: {target}{note}")
    return 0


def _decode(model, variables, codes, level: int, target: Path) -> tuple[float, float]:
    """Write 16-bit audio; returns its seconds and the share of samples that were clipped."""
    import numpy as np
    import soundfile

    from jukebox_jax.models.vqvae_stream import decode_long

    rate, total, clipped = model.config.sample_rate, 0, 0
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}.part")
    try:
        with soundfile.SoundFile(staged, "w", rate, 1, "PCM_16", format=target.suffix[1:].upper()) as file:
            for piece in decode_long(model, variables, codes, level):
                audio = piece[0, :, 0]
                total, clipped = total + len(audio), clipped + int(np.count_nonzero(np.abs(audio) > 1))
                file.write(np.clip(audio, -1, 1))
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)
    return total / rate, clipped / max(1, total)
