"""``jukebox evaluate``: figures of a model on music that it was not trained on."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jukebox_jax.types import UserError

HELP = "measure a model on held-out music: reconstruction, codebook usage, bits per token, use of the labels"
EXAMPLE = "jukebox evaluate --model=models/mine --dataset=data/mine --json=figures.json"

DETAILS = """
The VQ-VAE, per level: spectral convergence (mean over the windows that are not silent, in dB; lower is better),
multispectral loss (a norm: it grows with the window), share and entropy of the codes that occur.
The priors: bits per token (lyric tokens not counted) beside a uniform guess, a unigram model of the codes of the train
split, and the same prior when it is told another artist and genre of the data (all others, or 32 drawn per window).
Windows are processed one by one in float32, so no figure depends on a batch size.
"""
VQVAE_COLUMNS = ("VQ-VAE", "hop", "convergence", "multispectral", "codes used", "entropy, bits", "windows")
PRIOR_COLUMNS = ("prior", "bits/token", "unigram", "uniform", "wrong label", "right label wins", "windows")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``jukebox evaluate``."""
    parser.epilog = f"{parser.epilog}\n{DETAILS}"
    parser.add_argument("--model", required=True, metavar="DIR", help="what `jukebox train` or `convert` left")
    parser.add_argument("--dataset", required=True, metavar="DIR", help="made by `jukebox dataset`")
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--items", type=int, default=256, metavar="N",
                        help="windows for each part, evenly spread over the split (default: 256; 0: all)")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=1.5, help="length of the VQ-VAE's windows (default: 1.5)")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")


def main(args: argparse.Namespace) -> int:
    """Measure, print, write; 1 if a prior could not be measured."""
    from jukebox_jax.checkpoint import bundle

    if args.items < 0 or not args.seconds > 0:
        raise UserError(f"--items={args.items} must be 0 or more, and --seconds={args.seconds:g} above 0")
    description = bundle.load_description(args.model)
    if description.vqvae is None:
        raise UserError(f"{args.model} has no VQ-VAE to make codes with: it has {', '.join(description.components)}")
    variables = bundle.load_component(args.model, "vqvae")
    report: dict[str, Any] = {"model": args.model, "dataset": args.dataset, "split": args.split}
    report["vqvae"] = [_level(args, description.vqvae, variables, i) for i in range(description.vqvae.levels)]
    print(_table(VQVAE_COLUMNS, *map(_vqvae_row, report["vqvae"])))
    report["priors"] = []
    for _, prior in sorted(description.priors.items()):
        figures = {"level": prior.level, "uniform": math.log2(prior.codebook_size)}
        try:
            figures |= _prior(args, description.vqvae, variables, prior)
        except UserError as error:  # songs too short for this prior's window are no reason to lose the rest
            figures["error"] = str(error)
        report["priors"].append(figures)
    if report["priors"]:
        print(_table(PRIOR_COLUMNS, *map(_prior_row, report["priors"])))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(any("error" in figures for figures in report["priors"]))


def _open(args: argparse.Namespace, split: str, window: int, rate: int, labeller: Any = None) -> Any:
    from jukebox_jax.data.loader import make_loader

    return make_loader(args.dataset, split, window, 1, 0, labeller=labeller, shuffle=False, sample_rate=rate)


def _windows(loader: Any, limit: int, title: str) -> Iterator[tuple[int, Any]]:
    """(item, batch of one window), evenly spread over the split."""
    from tqdm import tqdm

    for item in tqdm(_spread(loader, limit), desc=title, unit="window"):
        yield item, loader.batch(item)


def _spread(loader: Any, limit: int) -> list[int]:
    count = min(limit or loader.num_items, loader.num_items)
    return [i * loader.num_items // count for i in range(count)]


def _sample(loader: Any, limit: int) -> dict[str, Any]:
    """Which windows were measured."""
    audio, items = loader.examples, _spread(loader, limit)
    songs = {audio.crop(0, item).index for item in items}
    windows = {"windows": len(items), "of": loader.num_items, "window_seconds": audio.window / audio.sample_rate}
    return windows | {"songs": len(songs), "songs_left_out": [song.file for song in audio.excluded]}


def _level(args: argparse.Namespace, config: Any, variables: Any, level: int) -> dict[str, Any]:
    """Figures of one level of the VQ-VAE."""
    from jukebox_jax.evaluate import audio

    loader = _open(args, args.split, audio.window_length(config, args.seconds), config.sample_rate)
    windows = (batch["audio"] for _, batch in _windows(loader, args.items, f"VQ-VAE, level {level}"))
    known = {"level": level, "hop_length": config.hop_lengths[level]} | _sample(loader, args.items)
    return known | audio.figures(config, variables, level, windows)


def _prior(args: argparse.Namespace, vqvae: Any, variables: Any, config: Any) -> dict[str, Any]:
    """Figures of one prior."""
    from jukebox_jax.checkpoint import bundle
    from jukebox_jax.data.labels import Labeller, Vocabulary
    from jukebox_jax.evaluate import codes, score
    from jukebox_jax.parallel.products import eigen_jit
    from jukebox_jax.train.task import encode_batch

    labeller = None
    if config.labels is not None:
        vocabulary = Vocabulary.load(bundle.labels_dir(args.model), config.labels.version)
        labeller = Labeller(config.labels, vocabulary, config.window_samples)
    scored, train = (
        _open(args, split, config.window_samples, vqvae.sample_rate, labeller) for split in (args.split, "train")
    )
    levels = (config.level,) if config.upsampling is None else (config.level, config.level + 1)
    encode = eigen_jit(lambda variables, audio: encode_batch(vqvae, variables, audio, levels))
    enough = -(-codes.COUNTS_PER_CODE * config.codebook_size // config.context_length)
    title = f"prior, level {config.level}"
    return _sample(scored, args.items) | score.figures(
        config,
        bundle.load_component(args.model, bundle.prior_component(config.level))["params"],
        lambda audio: encode(variables, audio),
        (batch for _, batch in _windows(train, enough, f"{title}: unigram")),
        _windows(scored, args.items, title),
        score.label_columns(labeller, [*scored.examples.songs, *train.examples.songs]),
    )


def _table(*rows: Sequence[str]) -> str:
    """Rows of cells, the first row a header; all but the first and last column are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join([*line[:-1], row[-1]]) for line, row in zip(cells, rows, strict=True))


def _vqvae_row(level: dict[str, Any]) -> list[str]:
    numbers = [f"level {level['level']}", f"{level['hop_length']}", f"{level['convergence_db']:.2f} dB"]
    usage = [f"{level['used']:.1%}", f"{level['entropy']:.2f}"] if "used" in level else ["-", "-"]
    return [*numbers, f"{level['multispectral']:.2f}", *usage, _shown(level)]


def _prior_row(prior: dict[str, Any]) -> list[str]:
    if "error" in prior:
        return [f"level {prior['level']}", *"-----", f"not measured: {prior['error']}"]
    bits, labels = (f"{prior[name]:.4f}" for name in ("bits_per_token", "unigram", "uniform")), prior["labels"]
    effect = [f"{labels['wrong']:.4f}", f"{labels['right_wins']:.1%}"] if labels else ["-", "-"]
    return [f"level {prior['level']}", *bits, *effect, _shown(prior)]


def _shown(figures: dict[str, Any]) -> str:
    left_out = f", {len(figures['songs_left_out'])} songs left out" if figures["songs_left_out"] else ""
    window = f"{figures['window_seconds']:.3g} s"
    return f"{figures['windows']} of {figures['of']}, {window} each, {figures['songs']} songs{left_out}"
