"""``jukebox plan``: what training on so many tokens, or sampling so many songs, takes and costs. Arithmetic only."""

from __future__ import annotations

import argparse
from typing import Any

from jukebox_jax.cli.certify import add_prices
from jukebox_jax.types import UserError, choose

HELP = "memory, time and cost of a training run or of sampling songs, in seconds"
EXAMPLE = (
    "jukebox plan --config=configs/prior_5b.py --topology=v5e-256 --tokens=1e11\n"
    "  jukebox plan --program=sample --model=5b_lyrics --topology=v5e-8 --songs=16 --seconds=180"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags; ``--config.key.sub=value`` changes any setting of the config."""
    parser.add_argument("--program", default="train", help="train (default) or sample")
    parser.add_argument("--topology", required=True, help="v5e:16x16, v5p:4x8x8, ...; or v5e-256")
    parser.add_argument("--num_slices", type=int, default=1, help="slices of that topology, over the slow network")
    parser.add_argument("--efficiency", type=float, default=0.5, help="share of the roofline that you expect (0.5)")
    train = parser.add_argument_group("train")
    train.add_argument("--config", metavar="FILE.py[:ARGS]", help="the experiment")
    train.add_argument("--tokens", type=float, help="codes (audio samples for a VQ-VAE); default: config.steps' worth")
    train.add_argument("--batch_size", type=int, help="rows of all devices together; sampling: songs drawn together")
    train.add_argument("--mesh", help="such as data=4,fsdp=64 (default: the config's)")
    sample = parser.add_argument_group("sample")
    sample.add_argument("--model", help="5b, 5b_lyrics, 1b_lyrics, or a model directory")
    sample.add_argument("--songs", type=int, default=16)
    sample.add_argument("--seconds", type=float, default=180.0, help="of each song")
    sample.add_argument("--hop_fraction", type=lambda text: [float(x) for x in text.split(",")], metavar="F[,F...]")
    add_prices(parser)


def main(args: argparse.Namespace) -> int:
    """1 if the memory is predicted not to suffice."""
    from jukebox_jax.certify import prices, topology

    choose("program", args.program, ("train", "sample"))
    if not 0 < args.efficiency <= 1:
        raise UserError(f"--efficiency={args.efficiency:g}: a share of the roofline, more than 0 and at most 1")
    needed, other = ("config", "model") if args.program == "train" else ("model", "config")
    if getattr(args, needed) is None or getattr(args, other) is not None:
        raise UserError(f"--program={args.program} needs --{needed}, and no --{other}")
    where = topology.parse(args.topology, args.num_slices)
    price = prices.price(where.chip.kind, args.prices, args.price_per_chip_hour)
    return (_train if args.program == "train" else _sample)(args, where, price)


def _train(args: argparse.Namespace, where, price: float | None) -> int:
    from jukebox_jax.certify.plan import predict
    from jukebox_jax.certify.programs import resolve
    from jukebox_jax.certify.report import duration, gib, rates
    from jukebox_jax.parallel.mesh import parse_mesh

    wanted = resolve(
        args.config, "train", where.num_devices, batch_size=args.batch_size, mesh=parse_mesh(args.mesh),
        overrides=tuple(args.overrides),
    )  # fmt: skip
    found = predict(wanted, where)
    assert wanted.experiment is not None
    work, seconds = found.work, found.roofline.seconds
    steps = wanted.experiment.steps if args.tokens is None else -(-int(args.tokens) // int(work.tokens))
    mesh = " x ".join(f"{axis}={size}" for axis, size in wanted.mesh.items())
    if found.peak is None:
        memory = f"arguments {gib(found.arguments)}; the rest only `jukebox certify` can say"
    else:
        memory = (
            f"{'fits' if found.fits else 'DOES NOT FIT'}: peak {gib(found.peak)} of {gib(found.limit)} (arguments"
            f" {gib(found.arguments)}, temporaries {gib(found.temporaries)})"
        )
    print(f"{args.config} on {where.title}: {where.chips} chips, mesh {mesh}, batch {wanted.batch_size}")
    print(f"HBM per device   {memory}")
    print(
        f"FLOPs per step   {found.flops:.4g} per device; at least {duration(seconds)}, bound by {found.roofline.bound}"
    )
    total = steps * work.tokens
    print(f"{steps:,} steps     {total:.4g} tokens, {duration(total / work.tokens * work.audio_seconds)} of audio")
    for share in sorted({1.0, args.efficiency}, reverse=True):
        r = rates(seconds / share, work.tokens, work.audio_seconds, where.chips, price)
        cost = "" if r.dollars_per_unit is None else f", ${r.dollars_per_unit * steps:,.2f}"
        print(
            f"at {share:.0%} of the roofline  {duration(r.seconds * steps)}, {r.tokens_per_second:,.0f} tokens/s{cost}"
        )
    _price(where, price)
    return 0 if found.fits is not False else 1


def _sample(args: argparse.Namespace, where, price: float | None) -> int:
    from jukebox_jax.certify.report import duration, gib
    from jukebox_jax.certify.songs import plan_songs

    vqvae, priors = _model(args.model)
    levels = plan_songs(vqvae, priors, args.songs, args.seconds, where, args.hop_fraction, args.batch_size)
    print(f"{args.songs} songs of {args.seconds:g} s with {args.model} on {where.title}: {where.chips} chips")
    fits = True
    for found in levels:
        mesh = " x ".join(f"{axis}={size}" for axis, size in found.mesh.items() if size > 1) or "one device"
        fits = fits and found.decode.fits is not False
        print(
            f"level {found.level}  {found.windows} windows, {found.tokens:,} codes a song; batch {found.batch}, {mesh}:"
            f" {gib(found.decode.peak)} of {gib(found.decode.limit)}{'' if found.decode.fits else ' DOES NOT FIT'};"
            f" {duration(found.decode.roofline.seconds)} per code, {duration(found.prefill.roofline.seconds)} per"
            f" prefill, {duration(found.seconds)} in all"
        )
    total = sum(found.seconds for found in levels)
    for share in sorted({1.0, args.efficiency}, reverse=True):
        cost = "" if price is None else f", ${price * where.chips * total / share / 3600:,.2f}"
        print(f"at {share:.0%} of the roofline  {duration(total / share)}{cost}")
    _price(where, price)
    return 0 if fits else 1


def _model(name: str) -> tuple[Any, Any]:
    """The VQ-VAE, and priors by level."""
    from pathlib import Path

    from jukebox_jax.checkpoint.bundle import is_model_dir, load_description
    from jukebox_jax.checkpoint.source import MODELS, PRESETS
    from jukebox_jax.presets import Prior

    if name in MODELS:
        vqvae, *priors = (PRESETS[part] for part in MODELS[name])
        return vqvae, {prior.level: prior for prior in priors if isinstance(prior, Prior)}
    if not is_model_dir(Path(name)):
        choose("model", name, [*MODELS, "or a model directory"])
    description = load_description(Path(name))
    if description.vqvae is None or not description.priors:
        raise UserError(f"{name} has no VQ-VAE or no prior yet: nothing can be sampled from it")
    return description.vqvae, description.priors


def _price(where, price: float | None) -> None:
    if price is None:
        print(f"no price of {where.chip.kind} is known: give --price_per_chip_hour")
    else:
        print(f"(${price:.2f} per chip-hour: --price_per_chip_hour or --prices=FILE if yours is another)")
