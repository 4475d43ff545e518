"""The least time that a counted program takes on a chip, and what bounds it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from jukebox_jax.certify.hlo_collectives import Collective
from jukebox_jax.certify.topology import Chip


class Roofline(NamedTuple):
    """Seconds that each part needs at its documented rate; one device's share of one program."""

    mxu: float
    hbm: float
    ici: float
    dcn: float
    exposed: float  # of ici and dcn: nothing else runs beside it in the compiled schedule

    @property
    def seconds(self) -> float:
        """Matrix units, memory and hidden transfers side by side, then the exposed transfers. No program that was
        compiled so can be faster; kernels that do not reach the rates are slower."""
        return max(self.mxu, self.hbm, self.ici + self.dcn - self.exposed) + self.exposed

    @property
    def bound(self) -> str:
        """What takes longest: MXU, HBM, ICI or DCN."""
        parts = {"MXU": self.mxu, "HBM": self.hbm, "ICI": self.ici, "DCN": self.dcn}
        return max(parts, key=lambda name: parts[name])


def roofline(
    chip: Chip, flops: int | float, hbm_bytes: int | float, collectives: Iterable[Collective] = ()
) -> Roofline:
    """Of one device. Transfers use all links of a chip at once, which a small slice does not have: a lower bound."""
    share = chip.devices  # devices that share a chip's rates
    ici = dcn = exposed = 0.0
    for collective in collectives:
        rate = chip.dcn if collective.between_slices else chip.ici
        seconds = collective.wire_bytes * collective.executions * share / rate
        dcn += seconds if collective.between_slices else 0
        ici += 0 if collective.between_slices else seconds
        exposed += 0 if collective.overlapped else seconds
    return Roofline(flops * share / chip.flops, hbm_bytes * share / chip.hbm, ici, dcn, exposed)
