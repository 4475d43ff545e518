"""``jukebox verify``: compare this package with arrays that the original has computed.

A case is a directory in the format of the goldens: what it holds says what is compared, its hyperparameters say of
which model, so any size will do. Everything runs in float32 through the functions that sampling and training use.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jukebox_jax.cli.verify_cases import (
    attention,
    audio,
    pipeline,
    prior,
    prior_training,
    tables,
    vqvae,
    vqvae_training,
)
from jukebox_jax.cli.verify_cases.case import Case
from jukebox_jax.cli.verify_cases.report import Report
from jukebox_jax.types import UserError

HELP = "Compare our numbers with the original's, on cases that it has written."
EXAMPLE = "jukebox verify goldens/prior_top_5b goldens/vqvae --exact-codes"

Check = Callable[[Case, Report], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE_DIR", help="data.npz, hps.json, checkpoints")
    parser.add_argument("--exact-codes", "--exact_codes", dest="exact_codes", action="store_true",
                        help="codes of the VQ-VAE must be equal even where two are equally near")  # fmt: skip
    parser.add_argument("--ids", type=Path, metavar="DIR", help="artist and genre tables, for cases without their own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the comparison to a file")


def main(args: argparse.Namespace) -> int:
    cases = [Case(folder, args.ids) for folder in args.cases]
    checks = [family(case) for case in cases]
    reports = []
    for case, check in zip(cases, checks, strict=True):
        reports.append(run(case, check, exact_codes=args.exact_codes))
        print_report(reports[-1])
    if args.json:
        args.json.write_text(json.dumps([as_json(report) for report in reports], indent=1), encoding="utf-8")
    rows = [row for report in reports for row in report.rows]
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows) - failed} passed, {failed} failed")
    return 1 if failed or not rows else 0


def family(case: Case) -> Check:
    """What a directory is a case of, by what it holds."""
    some = lambda pattern: any(re.fullmatch(pattern, name) for name in case.arrays)  # noqa: E731
    tests: dict[Check, bool] = {
        tables.check_windows: (case.folder / "windows.json").exists(),
        tables.check_labels: (case.folder / "cases.json").exists(),
        attention.check_attention: some(r"f\d+_out"),
        attention.check_orders: some(r"o\d+_out"),
        tables.check_filters: case.has("logits") and some(r"top_[kp]_\d+"),
        pipeline.check_pipeline: (case.folder / "vqvae.pth.tar").exists(),
        audio.check_audio: case.has("x_in", "x_out") or case.has("bandwidth_items"),
        prior_training.check_prior_training: case.has("step0_z"),
        vqvae_training.check_vqvae_training: case.has("step0_x"),
        prior.check_prior: case.has("z"),
        vqvae.check_vqvae: some(r"(latent|codes|random_codes)_l\d+"),
    }
    found = next((check for check, holds in tests.items() if holds), None)
    if found is None:
        raise UserError(f"{case.folder} is no case that can be compared: its arrays are of no known family")
    return found


def run(case: Case, check: Check, *, exact_codes: bool = False) -> Report:
    """Compare one case. What fails with an error is a row that failed."""
    report = Report(case, exact_codes)
    with jax.default_matmul_precision("highest"), report.part("case"):
        check(case, report)
    return report


def print_report(report: Report) -> None:
    """A row per array: largest absolute difference, the same over the largest value, tolerance, verdict."""
    print(f"{report.case.folder}")
    print(f"  {'array':<58} {'absolute':>9} {'relative':>9} {'tolerance':>9}")
    for row in report.rows:
        print(row)
    for name in report.unchecked:
        print(f"  {name:<58} not checked")
    print(flush=True)


def as_json(report: Report) -> dict[str, Any]:
    """One case for ``--json``."""
    return {"case": str(report.case.folder), "failed": report.failed, "arrays": report.records(),
            "not_checked": report.unchecked}  # fmt: skip
