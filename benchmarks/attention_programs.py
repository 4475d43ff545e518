"""Whole programs of released priors with XLA's attention and with kernels, and which of the two ``auto`` picks.

They are those of ``jukebox certify``, compiled for TPUs that are not here, each in a process of its own, and counted
from the compiled text: HBM bytes of one device and one run.

    python benchmarks/attention_programs.py           those without a row, then the table
    python benchmarks/attention_programs.py NAME ...  only these, again, such as small_prior/train

The rows go to certificates/kernels/programs.json, and as a table to the README.md beside it. Exit code 1: ``auto``
moves more than XLA's attention somewhere.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jukebox_jax import presets
from jukebox_jax.certify import report, topology
from jukebox_jax.ops import attention, attention_pallas

FOLDER = Path(__file__).parents[1] / "certificates" / "kernels"
NOISE = 1.005  # what compilations of programs that differ in nothing of size may differ by


class Entry(NamedTuple):
    """One program. ``batch_size`` is that of all devices together."""

    config: str
    program: str
    place: str
    batch_size: int

    @property
    def name(self) -> str:
        return f"{self.config}/{self.program}"


ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("upsampler_level_0", "train", "v5e:2x4", 16),
        Entry("upsampler_level_0", "prefill", "v5e:1x1", 4),
        Entry("prior_1b_lyrics", "train", "v5e:2x4", 16),
        Entry("small_prior", "train", "v5e:1x1", 4),
        Entry("small_prior", "prefill", "v5e:1x1", 4),
        Entry("small_single_enc_dec_prior", "train", "v5e:1x1", 4),
        Entry("small_sep_enc_dec_prior", "train", "v5e:1x1", 4),
        Entry("small_sep_enc_dec_prior", "prefill", "v5e:1x1", 4),
    )
}


def picked(config: str) -> str:
    """What ``auto`` runs in the factored layers of a prior on a TPU: ``xla`` or ``kernels``."""
    prior = presets.PRIORS[config]
    found = set()
    for t in (prior.transformer, prior.lyrics.encoder if prior.lyrics else None):
        if t is not None and t.num_blocks:
            stored = t.num_blocks * attention_pallas.ROWS * -(-t.block_length // attention_pallas.ROWS)
            q = jax.ShapeDtypeStruct((1, stored, t.attention_width), jnp.bfloat16)
            where: dict[str, Any] = dict(num_heads=t.num_heads, num_blocks=t.num_blocks, platform="tpu")
            found |= {attention.resolve(kind, q, **where) for kind in attention_pallas.KINDS}
    (only,) = found  # else the program is neither of those that are compiled here
    return "kernels" if only == "pallas" else only


def count(entry: Entry, implementation: str) -> int:
    """HBM bytes of the program as compiled; in a process of its own, which this changes."""
    from jukebox_jax.certify import hlo, programs
    from jukebox_jax.certify.compile import compile_text
    from jukebox_jax.models.prior import Prior
    from jukebox_jax.parallel.mesh import make_mesh
    from jukebox_jax.sample import programs as sampling
    from jukebox_jax.train import task

    if implementation == "kernels":
        attention.pays = lambda *_: True
    else:
        sampling.Prior = task.Prior = lambda *a, **options: Prior(*a, **options, implementation="xla")
    where = topology.parse(entry.place)
    wanted = programs.resolve(
        f"configs/{entry.config}.py", entry.program, where.num_devices, batch_size=entry.batch_size
    )
    program, _ = programs.build(wanted, make_mesh(wanted.mesh, where.devices()))
    return hlo.analyse(compile_text(program.lower(), where.chip.kind)[1]).hbm_bytes


def measure(entry: Entry) -> dict[str, Any]:
    """A row."""
    row: dict[str, Any] = entry._asdict()
    for implementation in ("xla", "kernels"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            row[implementation] = pool.submit(count, entry, implementation).result()
    return row


def excess(row: dict[str, Any]) -> float:
    """What ``auto`` moves over what XLA's attention does."""
    return row[picked(row["config"])] / row["xla"]


COLUMNS = ("model", "program", "chips", "batch", "XLA, GB", "kernels, GB", "kernels / XLA", "`auto`", "auto / XLA")


def cells(row: dict[str, Any]) -> list[str]:
    """What ``COLUMNS`` name."""
    sizes = [f"{row[name] / 1e9:.1f}" for name in ("xla", "kernels")]
    ratios = [f"{row['kernels'] / row['xla']:.3f}", picked(row["config"]), f"{excess(row):.3f}"]
    return [row["config"], row["program"], row["place"], str(row["batch_size"]), *sizes, *ratios]


def rows() -> dict[str, dict[str, Any]]:
    """The file's, by the name of their entry."""
    file = FOLDER / "programs.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return {f"{row['config']}/{row['program']}": row for row in found}


def write_table() -> None:
    """Put the table between the marks of README.md."""
    found, path = rows(), FOLDER / "README.md"
    table = report.table([COLUMNS, *(cells(found[name]) for name in ENTRIES if name in found)])
    before, mark, rest = path.read_text(encoding="utf-8").partition("<!-- programs -->\n")
    _, end, after = rest.partition("<!-- end -->\n")
    assert mark and end, f"{path} has lost the marks around its table"
    path.write_text(before + mark + "\n".join(table) + "\n" + end + after, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENTRIES)}")
    for name in parser.parse_args().names or [name for name in ENTRIES if name not in rows()]:
        found = rows() | {name: measure(ENTRIES[name])}
        kept = [found[n] for n in ENTRIES if n in found]
        (FOLDER / "programs.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        print("  ".join(cells(found[name])), flush=True)
    write_table()
    worse = [name for name, row in rows().items() if excess(row) > NOISE]
    print(f"auto moves more than XLA: {', '.join(worse)}" if worse else "auto moves no more than XLA")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
