"""How cost grows with the context, measured: a figure of points and lines, and the numbers as JSON.

Left: time of one decoded token at the end of a context of n blocks of 64, for layers of one kind only. Block and
previous-block attention read 64 or 128 positions whatever the context, column attention reads one position of every
block: flat, flat, and a straight line in n. Right: operations of one layer's attention over a whole context of
sqrt(t) blocks, as XLA counts them for the compiled program, against the line t^1.5 (dense attention: t^2).

    python benchmarks/scaling.py --out=benchmarks/results
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from sides import measure

from jukebox_jax import presets
from jukebox_jax.models import pattern
from jukebox_jax.models.prior import Prior
from jukebox_jax.ops import attention
from jukebox_jax.ops.logits import Settings
from jukebox_jax.sample.decode import sample_window

matplotlib.use("Agg")
import matplotlib.pyplot as plt

KINDS = ("block", "column", "previous")
BLOCK = 64  # positions
CHUNK, CHUNKS = 32, 9  # tokens of a timed scan; scans of a run, of which the first is not timed
BATCH, WIDTH, DEPTH, HEADS = 2, 256, 4, 4
FACTORED_CONTEXTS = (1024, 2304, 4096, 9216, 16_384, 36_864)


def prior(kind: str, context: int) -> presets.Prior:
    """A small prior whose layers all have one kind of attention, as wide as the model."""
    pattern.PATTERNS[kind] = (pattern.Kind(kind),)
    transformer = presets.Transformer(context, WIDTH, DEPTH, HEADS, context // BLOCK, kind, attention_ratio=1.0)
    return presets.Prior(0, context, 16, 8, transformer)


class Decoder:
    """Decodes the last tokens of a context."""

    def __init__(self, kind: str, context: int):
        self.model = Prior(prior(kind, context))
        self.params = jax.jit(lambda rng: self.model.init(rng, method="initialise")["params"])(jax.random.key(0))
        self.codes = np.zeros((BATCH, context - CHUNK * CHUNKS), np.int32)
        self.seconds()

    def seconds(self) -> float:
        """Median seconds of a token."""
        marks: list[float] = []
        sample_window(
            self.model, self.params, self.codes, None, None, jax.random.split(jax.random.key(0), BATCH), start=0,
            num_steps=CHUNK * CHUNKS, settings=Settings(), chunk=CHUNK,
            progress=lambda done: marks.append(measure.time.perf_counter()),
        )  # fmt: skip
        return measure.median(list(np.diff(marks))) / CHUNK


def decode_times(kind: str, contexts: list[int], repeats: int) -> list[float]:
    """Seconds per token at every context, taken in turns."""
    decoders = {str(context): Decoder(kind, context) for context in contexts}
    found = measure.alternate({name: decoder.seconds for name, decoder in decoders.items()}, repeats)
    return [measure.median(times) for times in found.values()]


def attention_flops(kind: str, context: int) -> float:
    """Operations of one layer's attention over a context of sqrt(context) blocks, as XLA counts them."""
    blocks = round(context**0.5)
    stream = jax.ShapeDtypeStruct((1, context, WIDTH), jnp.float32)

    def run(q: Any, k: Any, v: Any) -> Any:
        return attention.attend(kind, q, k, v, num_heads=HEADS, num_blocks=blocks)

    cost = jax.jit(run).lower(stream, stream, stream).cost_analysis()
    return float(cost["flops"])  # type: ignore[index]


def line_fit(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """``y = a + b x`` by least squares of relative errors, and its largest relative error."""
    design = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    a, b = np.linalg.lstsq(design, np.ones_like(y), rcond=None)[0]
    return {"a": float(a), "b": float(b), "largest_error": float(np.max(np.abs((a + b * x) / y - 1)))}


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """What the points say: how flat, how straight, which power."""
    blocks = np.array(result["contexts"]) / BLOCK
    lines = {kind: line_fit(blocks, np.array(result["seconds_per_token"][kind])) for kind in KINDS}
    times = result["seconds_per_token"]
    flat = {kind: times[kind][-1] / times[kind][0] for kind in KINDS}
    contexts = np.log(result["factored_contexts"])
    powers = {kind: float(np.polyfit(contexts, np.log(flops), 1)[0]) for kind, flops in result["flops"].items()}
    return {"last_over_first": flat, "lines": lines, "powers": powers}


def figure(result: dict[str, Any], path: Path) -> None:
    """Points and lines, a small PNG."""
    left: Any
    right: Any
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), dpi=110)
    blocks = np.array(result["contexts"]) / BLOCK
    x = np.linspace(0, blocks[-1], 100)
    for kind, marker in zip(KINDS, "os^", strict=True):
        times, fit = np.array(result["seconds_per_token"][kind]), result["summary"]["lines"][kind]
        points = left.plot(blocks, 1e3 * times, marker, label=kind)
        y = fit["a"] + fit["b"] * x if kind == "column" else np.full_like(x, np.median(times))
        left.plot(x, 1e3 * y, color=points[0].get_color(), linewidth=1)
        flops = np.array(result["flops"][kind]) / 1e9
        right.loglog(result["factored_contexts"], flops, marker, label=kind)
    left.set(xlabel=f"blocks of {BLOCK} in the context", ylabel="ms per decoded token", ylim=(0, None))
    t = np.array(result["factored_contexts"], float)
    dense, block = (np.array(result["flops"][kind]) / 1e9 for kind in ("dense", "block"))
    right.loglog(t, dense, "x", color="gray", label="dense")
    right.loglog(t, block[0] * (t / t[0]) ** 1.5, color="black", linewidth=1, label="$t^{1.5}$")
    right.loglog(t, dense[0] * (t / t[0]) ** 2, ":", color="gray", linewidth=1, label="$t^2$")
    right.set(xlabel="context t, in sqrt(t) blocks", ylabel="GFLOP of a layer's attention")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(path)
    plt.close(fig)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", default="1024,2048,4096,8192,16384,32768", help="multiples of 64")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", default="benchmarks/results", help="folder of scaling.png and scaling.json")
    args = parser.parse_args()
    contexts = [int(context) for context in args.contexts.split(",")]
    result: dict[str, Any] = {
        **measure.environment(), "contexts": contexts, "block": BLOCK, "batch": BATCH, "width": WIDTH, "depth": DEPTH,
        "seconds_per_token": {kind: decode_times(kind, contexts, args.repeats) for kind in KINDS},
        "factored_contexts": FACTORED_CONTEXTS,
        "flops": {kind: [attention_flops(kind, t) for t in FACTORED_CONTEXTS] for kind in (*KINDS, "dense")},
    }  # fmt: skip
    result["summary"] = summary(result)
    folder = Path(args.out)
    measure.write_json(folder / "scaling.json", result)
    figure(result, folder / "scaling.png")
    rows = [
        [kind, *(f"{1e3 * s:.3f}" for s in result["seconds_per_token"][kind])]
        + [f"{result['summary']['last_over_first'][kind]:.2f}", f"{result['summary']['powers'][kind]:.3f}"]
        for kind in KINDS
    ]
    print(measure.table(["ms per token", *map(str, contexts), "last / first", "power of t in FLOPs"], rows))
    fit = result["summary"]["lines"]["column"]
    print(
        f"column: {1e3 * fit['a']:.3f} ms + {1e6 * fit['b']:.2f} us per block, off by at most"
        f" {100 * fit['largest_error']:.0f} %; dense attention's power {result['summary']['powers']['dense']:.3f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
