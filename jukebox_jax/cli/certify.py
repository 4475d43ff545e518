"""``jukebox certify``: compile a program for TPUs that are not here, and say whether it fits and what it costs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

HELP = "compile for TPUs without one: does it fit, what does it do, what will it cost"
EXAMPLE = "jukebox certify --config=configs/prior_5b.py --topology=v5e:16x16 --program=train --json=certificate.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags; ``--config.key.sub=value`` changes any setting of the config."""
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARGS]", help="the experiment, or its model")
    parser.add_argument(
        "--topology", required=True, help="v5e:16x16, v5p:4x8x8, tpu7x:2x2x1; or v5e-256 (cuda:8 for eight GPUs)"
    )
    parser.add_argument("--num_slices", type=int, default=1, help="slices of that topology, over the slow network")
    parser.add_argument("--program", default="train", help="train, prefill, decode (a VQ-VAE's: to audio) or encode")
    parser.add_argument("--batch_size", type=int, help="rows of all devices together (default: config, or 16)")
    parser.add_argument("--mesh", help="such as data=4,fsdp=64 (default: config's, or heads over tensor, rest data)")
    parser.add_argument("--int8", action="store_true", help="decode with weights and caches of 8 bits")
    parser.add_argument("--platform", default="tpu", help="tpu, or cuda: lowered only, not compiled")
    parser.add_argument("--json", metavar="FILE", help="write the certificate")
    add_prices(parser)


def add_prices(parser: argparse.ArgumentParser) -> None:
    """Flags of what a chip costs."""
    group = parser.add_argument_group("prices (default: list prices of 2025 and 2026 in US dollars)")
    group.add_argument("--prices", metavar="FILE", help='JSON such as {"v5e": 0.6}: dollars per chip and hour')
    group.add_argument("--price_per_chip_hour", type=float, help="for this command, whatever the chip")


def main(args: argparse.Namespace) -> int:
    """1 if the program does not fit, or cannot be counted without a guess."""
    from jukebox_jax.certify import compile, prices, report, topology
    from jukebox_jax.certify.certificate import Certificate
    from jukebox_jax.parallel.mesh import parse_mesh

    request = compile.Request(
        args.config, args.program, args.topology, args.num_slices, args.batch_size, parse_mesh(args.mesh),
        tuple(args.overrides), args.platform, args.int8,
    )  # fmt: skip
    price = None
    if request.platform == "tpu":
        chip = topology.parse(args.topology, args.num_slices).chip
        price = prices.price(chip.kind, args.prices, args.price_per_chip_hour)
    try:
        ((kind, found),) = compile.run(request).items()
    except compile.CompilerFailed as error:
        print(f"jukebox certify: {error}", file=sys.stderr)
        return 1
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if kind == "lowered":
        print("\n".join(_lowered(found)))
        return 0
    certificate = Certificate.from_json(found)
    print("\n".join(report.lines(certificate, price)))
    return 0 if certificate.sound else 1


def _lowered(found: dict) -> list[str]:
    mesh = " x ".join(f"{axis}={size}" for axis, size in found["mesh"].items())
    return [
        f"lowered for {found['devices']} GPUs (mesh {mesh}, batch {found['batch_size']}) in"
        f" {found['lower_seconds']:.1f} s: {found['lines']:,} lines of StableHLO, {found['kernels']} Triton kernels",
        "lowering only: without the GPU compiler, memory, FLOPs and time are not known",
    ]
