"""What a compiled program does, counted from its optimised HLO text: FLOPs, HBM bytes, kernels, collectives.

XLA's own ``cost_analysis`` counts a loop's body once and a kernel as nothing. Here every loop is multiplied by its
proved trip count, kernels by what their ``CostEstimate`` declares, and whatever cannot be counted raises ``HloError``.
The rules are in ``hlo_bytes`` and ``hlo_loops``.
"""

from __future__ import annotations

import re
from functools import partial
from typing import NamedTuple

from jukebox_jax.certify.hlo_bytes import Bytes, Measure, traffic
from jukebox_jax.certify.hlo_collectives import Collective, collectives
from jukebox_jax.certify.hlo_flops import FlopCounter
from jukebox_jax.certify.hlo_loops import Scope, trip_count
from jukebox_jax.certify.hlo_text import Computation, HloError, Instruction, Module, parse

_HBM, _LOGICAL = Measure(), Measure(everywhere=True)
_KERNEL = "tpu_custom_call"


class Operation(NamedTuple):
    """One instruction outside fusions. Bytes and FLOPs are of one execution."""

    name: str
    opcode: str
    executions: int
    loops: int  # nested loops around it
    flops: int
    hbm: Bytes  # physical bytes in HBM
    logical: Bytes  # bytes of the elements, wherever they lie
    type: str
    op_name: str


class Kernel(NamedTuple):
    """A Pallas call. ``declared`` is its CostEstimate's bytes, which may count operand blocks that are read twice."""

    name: str
    executions: int
    loops: int
    flops: int
    declared: int
    logical: Bytes
    hbm: Bytes  # physical, blocks that are read twice included
    vmem: int  # scoped VMEM, bytes


class Loop(NamedTuple):
    name: str
    trips: int
    executions: int  # of the loop itself
    loops: int


class Program(NamedTuple):
    """One device's share of a compiled program, executed once."""

    flops: int  # matrix products, convolutions and kernels
    hbm_read: int
    hbm_written: int
    operations: list[Operation]
    kernels: list[Kernel]
    collectives: list[Collective]
    loops: list[Loop]
    donated: int  # bytes of arguments that a result may take over

    @property
    def hbm_bytes(self) -> int:
        return self.hbm_read + self.hbm_written

    def collective_bytes(
        self, kind: str | None = None, in_loop: bool | None = None, overlapped: bool | None = None
    ) -> int:
        """Bytes of the collectives that fit, each as often as it runs."""
        return sum(
            c.bytes * c.executions
            for c in self.collectives
            if (kind in (None, c.kind)) and in_loop in (None, c.loops > 0) and overlapped in (None, c.overlapped)
        )


def analyse(hlo_text: str) -> Program:
    """Count one device's program from ``compiled.as_text()``.

    Of a conditional, the branch that moves most counts. Raises HloError for a loop without a provable trip count and
    for a kernel without a CostEstimate.
    """
    module = parse(hlo_text)
    walk = _Walk(module)
    walk.run(Scope(module.entry), 1, 0)
    return Program(
        sum(o.flops * o.executions for o in walk.operations),
        sum(o.hbm.read * o.executions for o in walk.operations),
        sum(o.hbm.written * o.executions for o in walk.operations),
        walk.operations, walk.kernels, walk.collectives, walk.loops, _donated(module),
    )  # fmt: skip


class _Walk:
    """Executes the control flow, and takes notes."""

    def __init__(self, module: Module):
        self.module = module
        self.operations: list[Operation] = []
        self.kernels: list[Kernel] = []
        self.collectives: list[Collective] = []
        self.loops: list[Loop] = []
        self.count = FlopCounter(module)

    def run(self, scope: Scope, executions: int, loops: int) -> None:
        for instruction in scope.computation:
            if instruction.opcode == "while":
                trips = trip_count(self.module, instruction, scope)
                self.loops.append(Loop(instruction.name, trips, executions, loops))
                inside = Scope(self.module.called(instruction, "body"), instruction, scope)
                self.run(inside, executions * trips, loops + 1)
            elif instruction.opcode == "conditional":
                self.branch(instruction, executions, loops)
            elif instruction.opcode == "call":
                self.run(Scope(self.module.called(instruction, "to_apply")), executions, loops)
            else:
                self.operation(scope.computation, instruction, executions, loops)
        works = partial(_works, self, scope.computation)
        self.collectives += collectives(self.module, scope.computation, executions, loops, works)

    def branch(self, instruction: Instruction, executions: int, loops: int) -> None:
        names = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.attributes)
        names = names or re.findall(r"[\w.\-]+", instruction.attribute("branch_computations") or "")
        walks = []
        for name in names:
            walk = _Walk(self.module)
            walk.run(Scope(self.module.computations[name]), executions, loops)
            walks.append(walk)
        most = max(walks, key=lambda walk: sum((o.hbm.total + o.flops) * o.executions for o in walk.operations))
        for mine, its in zip(self.notes, most.notes, strict=True):
            mine.extend(its)

    @property
    def notes(self) -> tuple[list, ...]:
        return self.operations, self.kernels, self.collectives, self.loops

    def operation(self, computation: Computation, instruction: Instruction, executions: int, loops: int) -> None:
        hbm, logical = (traffic(self.module, computation, instruction, measure) for measure in (_HBM, _LOGICAL))
        flops = self.count(computation, instruction)
        if instruction.opcode == "custom-call" and f'"{_KERNEL}"' in instruction.attributes:
            declared, flops = instruction.config("bytes_accessed"), instruction.config("flops")
            if declared is None or flops is None:
                raise HloError(f"kernel {instruction.name} has no CostEstimate")
            again = max(0, declared - logical.total) * hbm.read // max(1, logical.read)
            hbm, logical = hbm + (again, 0), logical + (max(0, declared - logical.total), 0)
            used = re.search(r'used_scoped_memory_configs":\[[^\]]*?"size":"(\d+)"', instruction.attributes)
            offset = re.search(r'"scoped_memory_configs":\[[^\]]*?"offset":"(\d+)"', instruction.attributes)
            vmem = (int(used[1]) if used else 0) - (int(offset[1]) if offset else 0)
            self.kernels.append(Kernel(instruction.name, executions, loops, flops, declared, logical, hbm, vmem))
        if hbm.total or logical.total or flops:
            self.operations.append(
                Operation(
                    instruction.name, instruction.opcode, executions, loops, flops, hbm, logical, instruction.type,
                    instruction.op_name,
                )
            )  # fmt: skip


def _works(walk: _Walk, computation: Computation, instruction: Instruction) -> bool:
    """Whether an instruction is worth waiting beside."""
    return (
        instruction.opcode in ("while", "conditional", "call")
        or f'"{_KERNEL}"' in instruction.attributes
        or walk.count(computation, instruction) > 0
    )


def _donated(module: Module) -> int:
    found = re.search(r"input_output_alias=\{(.*?)\}, \w+=", module.header)
    indices = {int(n) for n in re.findall(r"\((\d+), \{", found[1])} if found else set()
    return sum(s.physical for i, p in module.entry.parameters.items() if i in indices for s in p.shapes)
