"""A certificate: what a compiled program needs and does, per device and per unit of work, and the checks it passes.

A *unit* is a training step, a decoded position of the whole batch, or one run of a prefill or an encoder. FLOPs and
bytes are one device's, counted from the optimised HLO; what cannot be counted is absent, with the reason.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jukebox_jax.certify import hlo
from jukebox_jax.certify.hlo_text import HloError
from jukebox_jax.certify.roofline import Roofline, roofline
from jukebox_jax.certify.topology import Topology

FORMAT = 1


class Memory(NamedTuple):
    """Bytes of one device's HBM. After a refusal only ``limit`` and, where the compiler says it, ``peak``."""

    limit: int
    arguments: int | None
    outputs: int | None
    aliased: int | None  # outputs that take the place of donated arguments
    temporaries: int | None
    peak: int | None


class Traffic(NamedTuple):
    """Collectives of one kind, in loops or outside, per unit. ``bytes``: of the whole arrays; ``wire``: sent."""

    kind: str
    network: str  # ici, dcn
    in_loop: bool
    count: float
    bytes: float
    overlapped_bytes: float
    wire_bytes: float


class Work(NamedTuple):
    """What a program is for, in numbers that don't depend on how it was compiled."""

    unit: str  # step, token, run
    units: int  # in one execution of the program
    tokens: float  # codes (or audio samples) of all devices together, per unit
    audio_seconds: float  # per unit
    model_flops: float | None = None  # of all devices together, per unit
    floor_bytes: float | None = None  # HBM of one device, per unit: no program can move less
    cache_bytes: int | None = None  # of one device
    weight_bytes: float | None = None  # what one gather of every sharded weight gives, in the compute type


@dataclass(frozen=True)
class Certificate:
    """See the module's text. Bytes and FLOPs are per device and unit."""

    config: str
    program: str
    topology: str
    num_slices: int
    chips: int
    devices: int
    mesh: dict[str, int]
    batch_size: int
    overrides: list[str]
    versions: dict[str, str]
    work: Work
    fits: bool
    memory: Memory
    lower_seconds: float  # of processor time, like the next: the wall clock depends on who else computes
    compile_seconds: float
    refusal: str | None = None  # the compiler's, where it does not fit
    uncounted: str | None = None  # why there are no counts
    flops: float | None = None
    hbm_bytes: float | None = None
    kernels: dict[str, float] | None = None  # calls per unit, FLOPs per unit, distinct calls
    collectives: list[Traffic] = field(default_factory=list)
    gathered: dict[str, float] | None = None  # weights, in loops: forward, backward, overlapped bytes
    roofline: Roofline | None = None

    @property
    def sound(self) -> bool:
        """It fits, and was counted."""
        return self.fits and self.flops is not None

    @property
    def flops_ratio(self) -> float | None:
        """Compiled over model FLOPs."""
        if self.flops is None or not self.work.model_flops:
            return None
        return self.flops * self.devices / self.work.model_flops

    @property
    def floor_ratio(self) -> float | None:
        """HBM bytes over what no program can avoid."""
        if self.hbm_bytes is None or not self.work.floor_bytes:
            return None
        return self.hbm_bytes / self.work.floor_bytes

    def to_json(self) -> dict[str, Any]:
        """Plain values, with derived ones for readers; ``from_json`` ignores those."""
        values = dataclasses.asdict(self)
        for name in ("work", "memory", "roofline"):
            part = getattr(self, name)
            values[name] = part._asdict() if part is not None else None
        values["collectives"] = [c._asdict() for c in self.collectives]
        derived = {"flops_ratio": self.flops_ratio, "floor_ratio": self.floor_ratio}
        if self.roofline is not None:
            derived |= {"seconds": self.roofline.seconds, "bound": self.roofline.bound}
        return {"format": FORMAT, **values, "derived": derived}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Certificate:
        """What ``to_json`` gave."""
        known = {f.name for f in dataclasses.fields(cls)}
        kept = {name: value for name, value in values.items() if name in known}
        kept["work"], kept["memory"] = Work(**kept["work"]), Memory(**kept["memory"])
        kept["collectives"] = [Traffic(**c) for c in kept["collectives"]]
        kept["roofline"] = Roofline(**kept["roofline"]) if kept["roofline"] else None
        return cls(**kept)


def certify(text: str | None, why_not: str | None, where: Topology, work: Work, **facts: Any) -> Certificate:
    """Count the optimised HLO of one device. ``facts``: the certificate's fields that need no counting."""
    facts |= {"num_slices": where.num_slices, "chips": where.chips, "devices": where.num_devices, "work": work}
    facts |= {"topology": where.name, "uncounted": why_not}
    if text is None:
        return Certificate(**facts)
    try:
        program = hlo.analyse(text)
    except HloError as error:
        return Certificate(**{**facts, "uncounted": str(error)})
    units = work.units
    bound = roofline(where.chip, program.flops, program.hbm_bytes, program.collectives)
    kernels = {
        "distinct": float(len(program.kernels)),
        "calls": sum(k.executions for k in program.kernels) / units,
        "flops": sum(k.flops * k.executions for k in program.kernels) / units,
    }
    return Certificate(
        **facts, flops=program.flops / units, hbm_bytes=program.hbm_bytes / units, kernels=kernels,
        collectives=summarise(program.collectives, units), gathered=gathers(program.collectives, units),
        roofline=Roofline(*(seconds / units for seconds in bound)),
    )  # fmt: skip


def summarise(collectives: Iterable[hlo.Collective], units: int) -> list[Traffic]:
    """By kind, network, and in loops or not."""
    groups = defaultdict(list)
    for c in collectives:
        groups[c.kind, "dcn" if c.between_slices else "ici", c.loops > 0].append(c)
    return [
        Traffic(
            kind, network, in_loop, sum(c.executions for c in found) / units,
            sum(c.bytes * c.executions for c in found) / units,
            sum(c.bytes * c.executions for c in found if c.overlapped) / units,
            sum(c.wire_bytes * c.executions for c in found) / units,
        )
        for (kind, network, in_loop), found in sorted(groups.items())
    ]  # fmt: skip


def gathers(collectives: Iterable[hlo.Collective], units: int) -> dict[str, float]:
    """Bytes that are gathered in loops: of the forward pass, of the backward pass, and hidden behind work."""
    found = {"forward": 0.0, "backward": 0.0, "overlapped": 0.0}
    for c in collectives:
        if c.kind == "all-gather" and c.loops and not c.between_slices:
            size = c.bytes * c.executions / units
            found["backward" if "transpose(" in c.op_name else "forward"] += size
            found["overlapped"] += size if c.overlapped else 0
    return found
