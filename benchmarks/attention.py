"""One attention layer of every released model, compiled for TPUs that are not here: bytes, VMEM, compile time.

The layer stands between its projections, as in the model, because that is where layouts are decided. Bytes are
counted from the compiled text (``jukebox_jax.certify.hlo``): everything between the projections, copies included,
wherever it lies, against the floor of reading q, k, v and writing o once (backward: q, k, v, do and dq, dk, dv).
``whole`` is the HBM traffic of the whole program, projections included, kernel / XLA.

    python benchmarks/attention.py --chips=v5e,v6e --models=prior_5b --kinds=block,column

The rows go to certificates/kernels/attention.json, over older ones of the same chip, model and kind, and all of them as
a table to the README.md beside it.
"""

from __future__ import annotations

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jukebox_jax import presets
from jukebox_jax.certify import hlo, report
from jukebox_jax.certify.compile import compile_text
from jukebox_jax.ops import attention_pallas, attention_xla, blocks

CHIPS = {"v5e": "v5e:2x4", "v6e": "v6e:2x4", "v5p": "v5p:2x2x2", "tpu7x": "tpu7x:2x2x1"}
XLA = {"block": attention_xla.block, "column": attention_xla.column, "previous": attention_xla.previous_block}
PREFETCH = ("copy-start", "slice-start", "dynamic-slice-start")
PROJECTION = "projection"


class Layer(NamedTuple):
    """Sizes of one attention layer; ``stored`` positions per block, of which ``block_length`` are real."""

    num_blocks: int
    block_length: int
    stored: int
    num_heads: int
    attention_width: int
    width: int


def layers() -> dict[str, Layer]:
    """The distinct factored layers of the released priors and their lyrics encoders."""
    found: dict[Layer, str] = {}
    for name, prior in presets.PRIORS.items():
        encoder = prior.lyrics.encoder if prior.lyrics else None
        for t, suffix in ((prior.transformer, ""), (encoder, "/lyrics")):
            if t is not None and t.num_blocks:
                c = t.block_length
                layer = Layer(t.num_blocks, c, -(-c // 8) * 8, t.num_heads, t.attention_width, t.width)
                found.setdefault(layer, name + suffix)
    return {name: layer for layer, name in found.items()}


def forward(layer: Layer, kind: str, implementation: str):
    """``(x [b t d], wq, wk, wv [d S], wo [S d]) -> [b t d]``."""

    def apply(x, wq, wk, wv, wo):
        with jax.named_scope(PROJECTION):
            q, k, v = (x @ w for w in (wq, wk, wv))
        if implementation == "xla":
            o = XLA[kind](q, k, v, num_heads=layer.num_heads, num_blocks=layer.num_blocks)
        else:
            q, k, v = (blocks.to_blocks(y, layer.num_blocks) for y in (q, k, v))
            valid = layer.block_length
            o = attention_pallas.factored_attention(
                q, k, v, kind=kind, num_heads=layer.num_heads, platform="tpu", valid=valid
            )
            o = blocks.from_blocks(o)
        with jax.named_scope(PROJECTION):
            return o @ wo

    return apply


def with_gradient(function):
    def apply(dy, *arguments):
        y, pull = jax.vjp(function, *arguments)
        return y, *pull(dy)

    return apply


class Compiled(NamedTuple):
    seconds: float
    attention: int  # bytes between the projections
    hbm: int  # of the whole program
    vmem: int | None


def compile_layer(chip: str, layer: Layer, kind: str, implementation: str, backward: bool, batch: int) -> Compiled:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip]).devices[:1]
    sharding = NamedSharding(Mesh(np.array(devices), ("x",)), PartitionSpec())
    stored = layer.block_length if implementation == "xla" else layer.stored
    stream = jax.ShapeDtypeStruct((batch, layer.num_blocks * stored, layer.width), jnp.bfloat16, sharding=sharding)
    d, s = layer.width, layer.attention_width
    weights = [jax.ShapeDtypeStruct(z, jnp.bfloat16, sharding=sharding) for z in ((d, s), (d, s), (d, s), (s, d))]
    function, results = forward(layer, kind, implementation), sharding
    arguments = [stream, *weights]
    if backward:  # gradients of weights in the compiler's layout: their transposes would be counted as attention's
        free = Format(Layout.AUTO, sharding)
        function, arguments, results = with_gradient(function), [stream, *arguments], (sharding, sharding, *4 * [free])
    clock, vmem = time.process_time(), None
    lowered = jax.jit(function, out_shardings=results).lower(*arguments)
    compiled, text = compile_text(lowered, chip)
    seconds = time.process_time() - clock
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # only what jax prints names the VMEM, where it can print
        text, vmem = compiled.as_text(), 0
    program = hlo.analyse(text)
    between = [
        o
        for o in program.operations
        if o.opcode not in PREFETCH and not (PROJECTION in o.op_name and o.flops and o.opcode != "custom-call")
    ]
    if vmem is not None:
        vmem = max((k.vmem for k in program.kernels), default=0)
    return Compiled(seconds, sum(o.logical.total for o in between), program.hbm_bytes, vmem)


def measure(chip: str, name: str, layer: Layer, kind: str, batch: int, implementations: list[str]) -> dict:
    """Both passes of one layer on one chip."""
    row: dict = dict(chip=chip, model=name, kind=kind, batch=batch, **layer._asdict())
    for implementation in implementations:
        one, both = (compile_layer(chip, layer, kind, implementation, backward, batch) for backward in (False, True))
        stored = layer.block_length if implementation == "xla" else layer.stored
        array = batch * layer.num_blocks * stored * layer.attention_width * 2
        result: dict = dict(seconds=[one.seconds, both.seconds], vmem=[one.vmem, both.vmem])
        result["forward"] = one.attention / (4 * array)
        result["backward"] = (both.attention - one.attention) / (7 * array)
        result["hbm"] = [one.hbm, both.hbm]
        row[implementation] = result
    return row


def cells(row: dict) -> list[str]:
    """What ``COLUMNS`` name."""
    ours, xla = (row.get(implementation, {}) for implementation in ("pallas", "xla"))

    def show(value: float, digits: int = 2) -> str:
        return "-" if math.isnan(value) else f"{value:.{digits}f}"

    nan = [math.nan, math.nan]
    whole = [a / b for a, b in zip(ours.get("hbm", nan), xla.get("hbm", nan), strict=True)]
    vmem = "/".join("-" if v is None else f"{v / 2**20:.1f}" for v in ours.get("vmem", []))
    seconds = "/".join(f"{s:.0f}" for s in ours.get("seconds", []))
    numbers = [r.get(key, math.nan) for key in ("forward", "backward") for r in (ours, xla)]
    f, fx, b, bx = (show(n) for n in numbers)
    return [row["chip"], row["model"], row["kind"], f, fx, b, bx, " / ".join(map(show, whole)), vmem, seconds]


def line(values: Sequence[str]) -> str:
    """Cells of a row, or the columns' names, side by side."""
    widths = (6, 34, 9, -9, -7, -10, -7, -20, -12, -11)
    return "".join(v.ljust(w) if w > 0 else v.rjust(-w) for v, w in zip(values, widths, strict=True))


FOLDER = Path(__file__).parents[1] / "certificates" / "kernels"
INTRODUCTION = """# Attention kernels

One attention layer between its projections, bf16, batch 2, compiled by the real TPU compiler for chips that were not
there (`python benchmarks/attention.py`), forward and backward; nothing was run. **forward** and **backward**: bytes
between the projections, copies included, over the floor of q, k, v and o once, and of q, k, v, do, dq, dk and dv once;
beside them what XLA's own attention moves. **whole**: HBM bytes of the whole program, projections included, kernel /
XLA, forward and forward + backward. One layer alone is kept in VMEM by XLA where a stack of them is not: what decides
is the second table. **compile**: processor time of the programs with kernels (of v5e's rows and the lyrics encoders',
which are older, wall time on a busy machine). A dash: not compiled, or of VMEM: not said (programs that jax cannot
print are counted from the compiler's own dump, which does not name it).

"""
PROGRAMS = "## Whole programs\n"  # attention_programs.py writes what follows
COLUMNS = ("chip", "model", "kind", "forward", "XLA", "backward", "XLA", "whole", "VMEM MiB", "compile s")


def keep(row: dict) -> None:
    """Write a row over its older self, and the table of all."""
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / "attention.json"
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    name = lambda r: (list(CHIPS).index(r["chip"]), list(layers()).index(r["model"]), r["kind"])  # noqa: E731
    rows = sorted([r for r in old if name(r) != name(row)] + [row], key=name)
    file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    table = "\n".join(report.table([COLUMNS, *map(cells, rows)]))
    _, mark, programs = (FOLDER / "README.md").read_text(encoding="utf-8").partition(PROGRAMS)
    (FOLDER / "README.md").write_text(INTRODUCTION + table + "\n\n" + mark + programs, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default=",".join(CHIPS), help=f"comma-separated, of {', '.join(CHIPS)}")
    parser.add_argument("--models", default=",".join(layers()), help="comma-separated presets")
    parser.add_argument("--kinds", default="block,column,previous")
    parser.add_argument("--implementations", default="pallas,xla")
    parser.add_argument("--batch", type=int, default=2)
    args = parser.parse_args()
    print(line(COLUMNS))
    for chip in args.chips.split(","):
        for name in args.models.split(","):
            for kind in args.kinds.split(","):
                row = measure(chip, name, layers()[name], kind, args.batch, args.implementations.split(","))
                print(line(cells(row)), flush=True)
                keep(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
