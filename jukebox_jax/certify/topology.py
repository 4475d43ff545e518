"""The TPU slices that a program can be compiled for, and what their chips can do.

Figures are per chip, from Google's documentation (docs.cloud.google.com/tpu/docs: v5e, v6e, v5p, tpu7x, read in
November 2026), but for ``hbm_limit``, which is per device: what the compiler (libtpu 0.0.52) says is available when it
refuses a program. No jax is imported before ``devices`` is called.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Any

from jukebox_jax.types import UserError, choose

GIB = 2**30
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


@dataclass(frozen=True)
class Chip:
    """One kind of chip. Rates are per second and chip; a JAX device is a chip, or one of its two halves."""

    kind: str
    devices: int  # per chip
    dimensions: int  # of the torus
    hbm_limit: int  # bytes of one device that a program may use
    flops: float  # bfloat16, matrix units
    hbm: float  # bytes
    ici: float  # bytes that a chip sends over all its links: half of the documented bidirectional bandwidth
    dcn: float  # bytes, between slices


CHIPS = {
    chip.kind: chip
    for chip in (
        # v5e: 197 TFLOPs, 819 GB/s, 4 links of 1600 Gb/s together, 6.4 Tb/s of network per 256 chips
        Chip("v5e", 1, 2, int(15.75 * GIB), 197e12, 819e9, 200e9, 25e9 / 8),
        # v6e: 918 TFLOPs, 1638 GB/s, 800 GB/s both ways, 100 Gb/s
        Chip("v6e", 1, 2, int(31.24 * GIB), 918e12, 1638e9, 400e9, 100e9 / 8),
        # v5p: 459 TFLOPs, 2765 GB/s, 1200 GB/s both ways, 50 Gb/s; its two cores are one device
        Chip("v5p", 1, 3, int(95.73 * GIB), 459e12, 2765e9, 600e9, 50e9 / 8),
        # tpu7x: 2307 TFLOPs, 7380 GB/s, 1200 GB/s both ways, 100 Gb/s; each of its two cores is a device
        Chip("tpu7x", 2, 3, int(94.74 * GIB), 2307e12, 7380e9, 600e9, 100e9 / 8),
    )
}

# Names that Google gives to slices; v5p counts cores, two per chip.
ALIASES = {
    "v5e-1": "v5e:1x1", "v5e-4": "v5e:2x2", "v5e-8": "v5e:2x4", "v5e-16": "v5e:4x4", "v5e-32": "v5e:4x8",
    "v5e-64": "v5e:8x8", "v5e-128": "v5e:8x16", "v5e-256": "v5e:16x16", "v6e-1": "v6e:1x1", "v6e-4": "v6e:2x2",
    "v6e-8": "v6e:2x4", "v6e-16": "v6e:4x4", "v6e-32": "v6e:4x8", "v6e-64": "v6e:8x8", "v6e-128": "v6e:8x16",
    "v6e-256": "v6e:16x16", "v5p-8": "v5p:2x2x1", "v5p-16": "v5p:2x2x2", "v5p-64": "v5p:2x4x4",
    "v5p-128": "v5p:4x4x4", "v5p-256": "v5p:4x4x8", "v5p-512": "v5p:4x8x8", "v5p-1024": "v5p:8x8x8",
}  # fmt: skip


@dataclass(frozen=True)
class Topology:
    """Equal slices of one kind of chip."""

    chip: Chip
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def name(self) -> str:
        """As libtpu spells one slice: ``v5e:16x16``."""
        return f"{self.chip.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def title(self) -> str:
        """With the number of slices: ``2 x v5e:16x16``."""
        return self.name if self.num_slices == 1 else f"{self.num_slices} x {self.name}"

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.num_slices

    @property
    def num_devices(self) -> int:
        return self.chips * self.chip.devices

    def devices(self) -> list[Any]:
        """Devices to build a mesh of and to compile for; they are not there, so nothing can run on them.

        Raises:
            UserError: libtpu is not installed, or knows no such slice.
        """
        os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
        check_compiler()
        from jax.experimental import topologies

        more = {"num_slices": self.num_slices} if self.num_slices > 1 else {}
        try:
            found = list(topologies.get_topology_desc(platform="tpu", topology_name=self.name, **more).devices)
        except Exception as error:  # whatever libtpu raises
            known = ", ".join(name for name in ALIASES.values() if name.startswith(self.chip.kind))
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(f"libtpu knows no slice {self.name}: try {known or '2x2x1'} ({reason})") from error
        assert len(found) == self.num_devices, f"{self.name}: {len(found)} devices, not {self.num_devices}"
        return found


def check_compiler() -> None:
    """Raise ``UserError`` unless the TPU compiler is installed."""
    from importlib.util import find_spec

    if find_spec("libtpu") is None:
        raise UserError(
            "the TPU compiler is not installed (it needs no TPU, but Linux): pip install 'jukebox_jax[tpu]'"
        )


def parse(text: str, num_slices: int = 1) -> Topology:
    """``v5e:16x16`` or ``v5e-256`` -> Topology.

    Raises:
        UserError: an unknown kind of chip or shape.
    """
    name = ALIASES.get(text, text)
    kind, colon, shape = name.partition(":")
    choose("kind of chip", kind.partition("-")[0], CHIPS)
    chip = CHIPS[kind.partition("-")[0]]
    if not colon or not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{chip.dimensions - 1}}}", shape):
        example = "16x16" if chip.dimensions == 2 else "4x4x4"
        names = ", ".join(alias for alias in ALIASES if alias.startswith(chip.kind))
        raise UserError(
            f"unknown topology {text!r}: write {chip.kind}:{example}" + (f", or one of {names}" if names else "")
        )
    if num_slices < 1:
        raise UserError(f"--num_slices={num_slices}: it must be at least 1")
    return Topology(chip, tuple(map(int, shape.split("x"))), num_slices)
