"""Compile every certificate and write the table (``make certify``).

    python certificates/make.py              all of them, one after the other
    python certificates/make.py --missing    only those without a file
    python certificates/make.py NAME ...     only these (the part of the file's name before .json)
    python certificates/make.py --plans      only what `jukebox plan` says of each, and the table, from the files

A certificate that fails its limits, or no longer fits, ends in exit code 1, after the rest."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from jukebox_jax.certify import compile, prices, report
from jukebox_jax.certify.certificate import Certificate
from jukebox_jax.certify.compile import Request
from jukebox_jax.certify.limits import broken
from jukebox_jax.certify.plan import predict
from jukebox_jax.certify.topology import parse
from jukebox_jax.types import UserError

HERE = Path(__file__).parent
# file name's end: topology, slices
PLACES = {
    "v5e-1": ("v5e:1x1", 1), "v5e-8": ("v5e:2x4", 1), "v5e-256": ("v5e:16x16", 1), "v6e-8": ("v6e:2x4", 1),
    "v6e-256": ("v6e:16x16", 1), "v5p-16": ("v5p:2x2x2", 1), "v5p-512": ("v5p:4x8x8", 1),
    "2xv5e-256": ("v5e:16x16", 2), "tpu7x-8": ("tpu7x:2x2x2", 1), "tpu7x-64": ("tpu7x:4x4x4", 1),
}  # fmt: skip


class Entry(NamedTuple):
    """One certificate. ``batch_size`` and ``mesh`` None: the config's, or ``programs.resolve``'s."""

    config: str
    program: str
    place: str
    batch_size: int | None = None
    mesh: dict[str, int] | None = None
    overrides: tuple[str, ...] = ()
    int8: bool = False

    @property
    def name(self) -> str:
        return f"{self.config}_{self.program}{'_int8' * self.int8}_{self.place}"

    @property
    def request(self) -> Request:
        topology, slices = PLACES[self.place]
        return Request(
            f"configs/{self.config}.py", self.program, topology, slices, self.batch_size, self.mesh, self.overrides,
            int8=self.int8,
        )  # fmt: skip


BIG = ("prior_5b", "prior_5b_lyrics")
# With fsdp=256 the compiled step of 1B gathers no weight, but sums padded arrays in its loops: 4.98 GB of all-reduces
# in place of 3.3 GB of all-gathers.
SHARED = {"data": 8, "fsdp": 32, "tensor": 1}
TRAINED = [
    *(Entry(c, "train", "v5e-256") for c in BIG),
    *(Entry(c, "train", "v6e-256") for c in BIG),
    *(Entry(c, "train", "v5p-512") for c in BIG),
    *(Entry(c, "train", "2xv5e-256", 1024) for c in BIG),
    *(Entry(c, "train", "tpu7x-64") for c in BIG),
    *(Entry("prior_1b_lyrics", "train", place, None, SHARED) for place in ("v5e-256", "v6e-256", "v5p-512")),
    *(Entry("upsampler_level_0", "train", place, 256, SHARED) for place in ("v5e-256", "v6e-256", "v5p-512")),
    Entry("prior_1b_lyrics", "train", "v5e-8", 16),
    Entry("upsampler_level_0", "train", "v5e-8", 16),
    Entry("vqvae", "train", "v5e-8", 32),
    Entry("vqvae", "train", "v5e-256", 256),
]
DECODED = [
    Entry("prior_1b_lyrics", "decode", "v5e-1"),
    *(Entry(c, "decode", place) for c in BIG for place in ("v5e-8", "v6e-8", "v5p-16", "tpu7x-8")),
    *(Entry("prior_1b_lyrics", "decode", place, 32) for place in ("v5e-8", "v6e-8")),
    Entry("upsampler_level_0", "decode", "v5e-1"),
    *(Entry("upsampler_level_0", "decode", place) for place in ("v5e-8", "v6e-8")),
    *(Entry(c, "decode", "v5e-8", int8=True) for c in BIG),
    *(Entry(c, "decode", "v5e-1", int8=True) for c in ("prior_1b_lyrics", "upsampler_level_0")),
    *(Entry(c, "prefill", "v5e-8") for c in (*BIG, "prior_1b_lyrics", "upsampler_level_0")),
    *(Entry("vqvae", program, "v5e-8") for program in ("encode", "decode")),
]
ENTRIES = {entry.name: entry for entry in (*DECODED, *TRAINED)}


def make(entry: Entry) -> list[str]:
    """Compile one, write its file; what is wrong with it."""
    answer = compile.run(entry.request)["certificate"]
    certificate = Certificate.from_json(answer)
    answer["plan"] = planned(entry.request)
    (HERE / f"{entry.name}.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    kind = certificate.topology.partition(":")[0]
    print("\n".join(report.lines(certificate, prices.price(kind))), flush=True)
    return broken(certificate, made(entry._replace(int8=False)) if entry.int8 else None)


def made(entry: Entry) -> Certificate | None:
    """The certificate that is there, if it is."""
    path = HERE / f"{entry.name}.json"
    return Certificate.from_json(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def planned(request: Request) -> dict[str, Any]:
    """What ``jukebox plan`` predicts of the same."""
    where = parse(request.topology, request.num_slices)
    found = predict(request.resolve(where.num_devices), where)
    return {"arguments": found.arguments, "peak": found.peak, "flops": found.flops}


def plan_again() -> None:
    """Predict all of them again, with the programs as they are now; nothing is compiled."""
    for entry in ENTRIES.values():
        path = HERE / f"{entry.name}.json"
        if path.exists():
            answer = json.loads(path.read_text(encoding="utf-8"))
            answer["plan"] = planned(entry.request)
            path.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


def table() -> str:
    """README.md's table, of the files that are there."""
    head = [
        "model", "program", "chips", "mesh", "batch", "HBM peak / limit", "FLOPs / model's", "HBM bytes / floor",
        "at least", "bound by", "audio s per chip-hour, at most",
    ]  # fmt: skip
    rows = [head]
    for name, entry in ENTRIES.items():
        c = made(entry)
        if c is None:
            continue
        r = report.certificate_rates(c, None)
        program = f"{c.program} int8" if entry.int8 else c.program
        mesh = " ".join(f"{axis} {size}" for axis, size in c.mesh.items() if size > 1) or "-"
        rows.append([
            f"[{entry.config}]({name}.json)", program, f"{entry.place} ({c.chips})", mesh, str(c.batch_size),
            f"{report.gib(c.memory.peak)} / {report.gib(c.memory.limit)}" + ("" if c.fits else " **does not fit**"),
            f"{c.flops_ratio:.3f}" if c.flops_ratio else "", f"{c.floor_ratio:.3f}" if c.floor_ratio else "",
            f"{report.duration(r.seconds)} per {c.work.unit}" if r else "not counted",
            c.roofline.bound if c.roofline else "", f"{r.audio_per_chip_hour:,.0f}" if r else "",
        ])  # fmt: skip
    return "\n".join(report.table(rows)) + "\n"


def write_table() -> None:
    """Put the table between the marks of README.md."""
    path = HERE / "README.md"
    before, mark, rest = path.read_text(encoding="utf-8").partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end -->\n")
    assert mark and end, "README.md has lost the marks around its table"
    path.write_text(before + mark + table() + end + after, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--plans", action="store_true")
    args = parser.parse_args()
    failures = []
    if args.plans:
        plan_again()
    for name in () if args.plans else args.names or ENTRIES:
        if args.missing and (HERE / f"{name}.json").exists():
            continue
        clock = time.monotonic()
        print(f"--- {name}", flush=True)
        try:
            failures += [f"{name}: {problem}" for problem in make(ENTRIES[name])]
        except (compile.CompilerFailed, UserError) as error:  # the others are still worth having
            failures.append(f"{name}: {error}")
        print(f"--- {time.monotonic() - clock:.0f} s", flush=True)
        write_table()
    write_table()
    if failures:
        print("\n".join(failures), file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
