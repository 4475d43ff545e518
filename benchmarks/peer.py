"""Ours beside the port of Jukebox in ``transformers``: speed and memory, measured alternately, on the same weights.

VQ-VAE: the released size, 12 s of audio (encode, decode level 0), a training step on 2 x 65,536 samples. Prior: width
512, depth 12, 4 heads, context 2048 in 32 blocks, factored attention of a quarter of the width, 2048 codes, labels:
sampling, prefill (by the port at once, and as its own sampling does it: 32 codes at a time), a training step of 4
windows. Weights are made here, exported in the port's layout and loaded there
strictly; before anything is timed, both sides' outputs are compared. The port is a black box: it has no data path and
no spectral loss, so its training steps are its forward, the losses written out here, autograd and ``torch.optim.Adam``.

    pip install -e '.[bench]' && python benchmarks/peer.py --json=benchmarks/results/peer.json
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sides import measure
from sides.sizes import BATCHES, RATE, SIZES, floors

CASES = ("encode", "decode", "vqvae_train", "sample", "train")


class Row(NamedTuple):
    """One measured thing: what it is called, its target ratio, and how to turn seconds into a rate."""

    title: str
    unit: str
    amount: float  # units per run
    target: float | None  # transformers' seconds / ours


def agreement(folder: Path) -> dict[str, float]:
    """How far both sides' outputs agree: the share of equal codes, or the largest difference relative to the peak.

    Raises ``SystemExit`` where they do not: then there is nothing to compare the speed of.
    """
    ours, peer = (np.load(folder / f"{side}.npz") for side in ("ours", "peer"))
    found = {}
    for name in ours.files:
        a, b = ours[name], peer[name].reshape(ours[name].shape)
        if a.dtype.kind == "i":
            found[name] = float(np.mean(a == b))
            fine = found[name] > 0.995  # near ties
        else:
            found[name] = float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
            fine = found[name] < 1e-3
        if not fine:
            raise SystemExit(f"peer.py: outputs differ: {name}: {found[name]:.3g}")
    return found


def rows_of(case: str, size: dict[str, Any]) -> dict[str, tuple[Row, Any]]:
    """What is timed in a case, and the call that times it."""
    new, context = size["new"], size["context"]
    if case == "sample":
        rows: dict[str, tuple[Row, Any]] = {}
        for batch, target in zip(BATCHES, (2.5, 3.0, 3.0), strict=True):
            row = Row(f"sampling, batch {batch}", "tok/s", batch * new, target)
            rows[f"sample_{batch}"] = row, partial(_call, "sample", batch=batch, given=0, new=new)
        given = context - new
        for key, chunk, how in (("prefill", None, "at once"), ("prefill_32", 32, "the port's 32 at a time")):
            row = Row(f"prefill of {given:,} and a token, {how}", "tok/s", given, 4.0)
            rows[key] = row, partial(_call, "sample", batch=1, given=given, new=1, chunk=chunk)
        return rows
    rows_by_case = {
        "encode": Row("VQ-VAE encode, all levels", "x real time", size["seconds"], 6.0),
        "decode": Row("VQ-VAE decode, level 0", "x real time", size["seconds"], 5.0),
        "vqvae_train": Row("VQ-VAE training step", "audio s/s", 2 * size["chunk"] / RATE, 4.0),
        "train": Row(f"prior training step, batch {size['batch']}", "tok/s", size["batch"] * context, 1.2),
    }
    return {case: (rows_by_case[case], partial(_call, "time"))}


def _call(name: str, worker: measure.Worker, **arguments: Any) -> float:
    return worker(name, **arguments)


MEMORY_TARGETS = {"encode": 0.5, "decode": 0.5, "vqvae_train": 0.5, "train": 0.6}


def run_case(case: str, size: str, repeats: int) -> dict[str, Any]:
    """All rows of one case: a process per side, outputs compared, then times taken alternately."""
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory())
        with measure.workers(__file__, {"maker": {}}) as makers:
            makers["maker"]("make", case=case, size=size, folder=name)
        sides = stack.enter_context(measure.workers(__file__, {"ours": {}, "peer": {}}))
        versions = {}
        for worker in sides.values():
            versions |= worker("prepare", case=case, size=size, folder=name)
            worker("output")
        result: dict[str, Any] = {"versions": versions, "agreement": agreement(Path(name)), "rows": {}}
        lives = {}
        for side, worker in sides.items():  # warm-up of every shape; compilation counts here and not below
            for _, call in rows_of(case, SIZES[size]).values():
                call(worker=worker)
            lives[side] = worker("memory")
            worker("reset_memory")
        for key, (row, call) in rows_of(case, SIZES[size]).items():
            load = os.getloadavg()[0]
            times = measure.alternate({s: partial(call, worker=w) for s, w in sides.items()}, repeats)
            result["rows"][key] = row._asdict() | {"seconds": times, "load": [load, os.getloadavg()[0]]}
        result["memory_mb"] = {side: worker("memory") for side, worker in sides.items()}
        result["memory_with_compilation_mb"] = {s: max(lives[s], result["memory_mb"][s]) for s in sides}
        if case == "sample":
            ends = measure.alternate({s: partial(w, "first_and_last") for s, w in sides.items()}, min(repeats, 3))
            result["last_over_first"] = {s: measure.median([b / a for a, b in pairs]) for s, pairs in ends.items()}
        return result


def report(result: dict[str, Any]) -> str:
    """The tables: times and ratios; memory; limits."""
    rows, memory_rows = [], []
    for case, found in result["cases"].items():
        for key, row in found["rows"].items():
            ours, peer = (measure.median(row["seconds"][side]) for side in ("ours", "peer"))
            target = f"{row['target']:.1f}" if row["target"] else ""
            floor = result["floors"][key]
            rows.append([
                row["title"], row["unit"], f"{row['amount'] / ours:,.1f}", f"{row['amount'] / peer:,.1f}",
                f"{peer / ours:.2f}", target, f"{ours / floor:.1f}", f"{row['load'][0]:.1f}",
            ])  # fmt: skip
        memory, whole = found["memory_mb"], found["memory_with_compilation_mb"]
        target = MEMORY_TARGETS.get(case)
        memory_rows.append([
            case, f"{memory['ours']:,.0f}", f"{memory['peer']:,.0f}", f"{memory['ours'] / memory['peer']:.2f}",
            f"{target:.1f}" if target else "", f"{whole['ours']:,.0f}", f"{whole['peer']:,.0f}",
        ])  # fmt: skip
    header = ["", "unit", "ours", "transformers", "ratio", "target", "time / floor", "load"]
    text = [measure.table(header, rows), ""]
    header = ["peak memory, MB", "ours", "transformers", "ratio", "target", "ours, compiling", "transformers, all"]
    text += [measure.table(header, memory_rows), ""]
    if "sample" in result["cases"]:
        ends = result["cases"]["sample"]["last_over_first"]
        text.append(
            f"Time of the last {SIZES[result['size']]['new']} tokens of a window over that of the first:"
            f" ours {ends['ours']:.3f}, transformers {ends['peer']:.3f}."
        )
    limits = ", ".join(f"{name} {value:.1f}" for name, value in result["limits"].items())
    text.append(f"Limits measured in this run: {limits}.")
    return "\n".join(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--size", choices=SIZES, default="full", help="tiny: a smoke test")
    parser.add_argument("--json", help="also write everything here")
    parser.add_argument("--role", choices=("ours", "peer", "limits", "maker"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        from sides.ours import Maker, Ours
        from sides.port import Port

        measure.serve({"ours": Ours, "peer": Port, "limits": Limits, "maker": Maker}[args.role]())
        return 0
    result: dict[str, Any] = {**measure.environment(), "size": args.size, "cases": {}}
    with measure.workers(__file__, {"limits": {}}) as sides:
        result["limits"] = sides["limits"]("limits")
    result["floors"] = floors(result["limits"], SIZES[args.size])
    for case in args.cases.split(","):
        result["cases"][case] = run_case(case, args.size, args.repeats)
        if args.json:
            measure.write_json(args.json, result)
    print(report(result))
    return 0


class Limits:
    """The machine's own side, in a process of its own."""

    def limits(self) -> dict[str, float]:
        return measure.limits()


if __name__ == "__main__":
    sys.exit(main())
