"""Certificates in words: the table that ``jukebox certify`` prints, and what to turn when a program does not fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from jukebox_jax.certify.certificate import Certificate
from jukebox_jax.certify.topology import GIB


class Rates(NamedTuple):
    """What a certificate's roofline comes to; no machine that runs the program is faster."""

    seconds: float  # per unit
    tokens_per_second: float
    audio_per_chip_hour: float  # seconds
    dollars_per_unit: float | None
    dollars_per_audio_hour: float | None


def rates(
    seconds: float, tokens: int | float, audio_seconds: int | float, chips: int, price: int | float | None
) -> Rates:
    """``price`` in dollars per chip and hour; None: unknown."""
    dollars = None if price is None else price * chips * seconds / 3600
    each = None if dollars is None else dollars / audio_seconds * 3600
    return Rates(seconds, tokens / seconds, audio_seconds / seconds * 3600 / chips, dollars, each)


def certificate_rates(c: Certificate, price: float | None) -> Rates | None:
    if c.roofline is None:
        return None
    return rates(c.roofline.seconds, c.work.tokens, c.work.audio_seconds, c.chips, price)


def lines(c: Certificate, price: float | None) -> list[str]:
    """The table, a line per row."""
    m = c.memory
    per_device = "per chip" if c.chips == c.devices else f"per device ({c.devices // c.chips} to a chip)"
    slices = f"{c.num_slices} slices of " if c.num_slices > 1 else ""
    mesh = " x ".join(f"{axis}={size}" for axis, size in c.mesh.items() if size > 1) or "one device"
    rows = [
        (f"{c.config} {c.program}", f"batch {c.batch_size} on {slices}{c.topology}: {c.chips} chips, mesh {mesh}"),
        (f"HBM {per_device}", f"{'fits' if c.fits else 'DOES NOT FIT'}: peak {gib(m.peak)} of {gib(m.limit)}"),
    ]
    if m.arguments is not None:
        parts = (("arguments", m.arguments), ("temporaries", m.temporaries), ("outputs in place", m.aliased))
        rows.append(("", ", ".join(f"{name} {gib(size)}" for name, size in parts)))
    if c.refusal:
        rows.append(("compiler", c.refusal))
    if c.uncounted and c.fits:
        rows.append(("counts", f"unavailable: {c.uncounted}"))
    rows += _counts(c) + _rates(c, price)
    seconds = f"{c.compile_seconds:.1f} s of processor time, and {c.lower_seconds:.1f} s to trace and lower"
    rows.append(("compile time", seconds))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows] + (knobs(c) if not c.fits else [])


def _counts(c: Certificate) -> list[tuple[str, str]]:
    if c.flops is None or c.hbm_bytes is None or c.kernels is None:
        return []
    unit = c.work.unit
    against = f", {c.flops_ratio:.3f} x the model's" if c.flops_ratio else ""
    floor = f", {c.floor_ratio:.3f} x the floor" if c.floor_ratio else ""
    rows = [
        (f"FLOPs per {unit}", f"{c.flops:.4g}{against}"),
        (f"HBM bytes per {unit}", f"{c.hbm_bytes:.4g}{floor}"),
    ]
    if c.work.cache_bytes and c.memory.temporaries is not None and c.program == "decode":
        share = c.memory.temporaries / c.work.cache_bytes
        rows.append(("caches", f"{gib(c.work.cache_bytes)}; temporaries are {share:.1%} of that"))
    kernels = c.kernels
    what = f"{kernels['distinct']:.0f}, called {kernels['calls']:.4g} times, {kernels['flops']:.3g} FLOPs"
    rows.append(("Pallas kernels", what if kernels["distinct"] else "none"))
    for t in c.collectives:
        where = "in loops" if t.in_loop else "outside loops"
        hidden = f", {t.overlapped_bytes / t.bytes:.0%} beside work" if t.bytes else ""
        network = " between slices" if t.network == "dcn" else ""
        rows.append((t.kind + network, f"{where}: {t.count:.4g} of {t.bytes:.4g} bytes in all{hidden}"))
    if c.gathered and c.work.weight_bytes:
        ways = [f"{c.gathered[way] / c.work.weight_bytes:.3f} x {way}" for way in ("forward", "backward")]
        rows.append(("weights gathered", ", ".join(ways)))
    return rows


def _rates(c: Certificate, price: float | None) -> list[tuple[str, str]]:
    r, roof = certificate_rates(c, price), c.roofline
    if r is None or roof is None:
        return []
    parts = {"MXU": roof.mxu, "HBM": roof.hbm, "ICI": roof.ici, "DCN": roof.dcn}
    shown = ", ".join(f"{name} {duration(value)}" for name, value in parts.items() if value)
    rows = [
        (f"at least, per {c.work.unit}", f"{duration(r.seconds)}, bound by {roof.bound} ({shown})"),
        ("at most", f"{r.tokens_per_second:,.0f} tokens/s, {r.audio_per_chip_hour:,.0f} s of audio per chip-hour"),
    ]
    if r.dollars_per_audio_hour is None:
        return [*rows, ("cost", f"no price of {c.topology.partition(':')[0]} is known: give --price_per_chip_hour")]
    each = f"${r.dollars_per_unit:.3g} per {c.work.unit}, ${r.dollars_per_audio_hour:.3g} per hour of audio"
    return [*rows, ("cost, at least", f"{each} at ${price:.2f} per chip-hour")]


def knobs(c: Certificate) -> list[str]:
    """What makes a program smaller."""
    if c.program == "train":
        advice = [
            "--config.accumulate=2: half the batch's activations at a time",
            "--batch_size: fewer rows per device",
            "--config.remat=true: keep one activation per layer, recompute the rest",
            "--config.loss_chunks=16: logits of a part of the positions at a time",
            "--mesh: a larger fsdp (parameters, moments) or tensor (activations too)",
            "--topology: more chips, or chips with more memory",
        ]
        if c.work.weight_bytes is None:  # a VQ-VAE
            advice[2:5] = ["--config.window_samples: shorter windows"]
    else:
        advice = [
            "--batch_size: fewer rows: caches grow with them",
            "--mesh: a larger tensor axis splits weights and caches by heads, a larger data axis the rows",
            "--topology: more chips, or chips with more memory",
        ]
    return ["what would help:", *(f"  {a}" for a in advice)]


def gib(size: int | None) -> str:
    return "?" if size is None else f"{size / GIB:.2f} GiB"


def duration(seconds: int | float) -> str:
    """Three digits in a unit that suits."""
    units = (("d", 86400, 3), ("h", 3600, 3), ("min", 60, 3), ("s", 1, 1), ("ms", 1e-3, 1), ("us", 1e-6, 1))
    for unit, scale, least in units:
        if seconds >= scale * least:
            return f"{seconds / scale:,.0f} {unit}" if seconds >= 1000 * scale else f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def table(rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table; the first row is its head."""
    head, *rest = [list(row) for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest)]
