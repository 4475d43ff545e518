"""What a compiled program does, counted from its optimised HLO text: FLOPs, HBM bytes, kernels, collectives.

XLA's own ``cost_analysis`` counts a loop's body once and a kernel as nothing. Here every loop is multiplied by its
proved trip count, kernels by what their ``CostEstimate`` declares, and whatever cannot be counted raises ``HloError``.
The rules are in ``hlo_bytes`` and ``hlo_loops``.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from jukebox_jax.certify.hlo_bytes import Bytes, Measure, collective_kind, inner_collectives, traffic
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


class Collective(NamedTuple):
    """Bytes are of one execution on one device, logical."""

    name: str
    kind: str
    executions: int
    loops: int
    operand_bytes: int
    result_bytes: int
    group_size: int
    overlapped: bool  # a matrix product, kernel or loop runs between its start and its end
    op_name: str

    @property
    def bytes(self) -> int:
        """Size of the whole array: what is gathered, or what is reduced."""
        return max(self.operand_bytes, self.result_bytes)

    @property
    def wire_bytes(self) -> float:
        """Sent by one device, on a ring."""
        if self.kind.startswith("collective"):
            return float(self.operand_bytes)
        return self.bytes * (self.group_size - 1) / self.group_size * (2 if self.kind == "all-reduce" else 1)


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
        self.collectives += _collectives(self, scope.computation, executions, loops)

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


def _collectives(walk: _Walk, computation: Computation, executions: int, loops: int) -> list[Collective]:
    """The collectives that a computation executes: one per channel, from its first appearance to its last."""
    spans: dict[str, list[tuple[int, Instruction, Computation]]] = {}
    order = list(computation)
    ends = {name: place for place, i in enumerate(order) if i.opcode.endswith("-done") for name in i.operands}
    for place, instruction in enumerate(order):
        own = [instruction] if collective_kind(instruction.opcode) else inner_collectives(walk.module, instruction)
        for collective in own:
            where = computation if collective is instruction else _holder(walk.module, instruction, collective)
            channel = collective.attribute("channel_id") or collective.name
            spans.setdefault(channel, []).append((place, collective, where))
            if instruction.name in ends:
                spans[channel].append((ends[instruction.name], collective, where))
    found = []
    for appearances in spans.values():
        first, collective, where = appearances[0]
        last = max(place for place, _, _ in appearances)
        kind = collective_kind(collective.opcode) or ""
        operand_bytes = sum(s.logical for shapes in where.operand_shapes(collective) for s in shapes)
        asynchronous = collective.opcode.endswith("-start")
        result = collective.shapes if not asynchronous or kind == "all-reduce" else collective.shapes[1:2]
        found.append(
            Collective(
                collective.name, kind, executions, loops, operand_bytes, sum(s.logical for s in result),
                _group_size(collective), any(_works(walk, computation, i) for i in order[first + 1 : last]),
                collective.op_name,
            )
        )  # fmt: skip
    return found


def _holder(module: Module, instruction: Instruction, collective: Instruction) -> Computation:
    """The (nested) fused computation that holds a collective."""
    fused = module.called(instruction)
    if collective.name in fused.instructions:
        return fused
    return next(
        _holder(module, inner, collective)
        for inner in fused
        if inner.opcode == "fusion" and collective in inner_collectives(module, inner)
    )


def _works(walk: _Walk, computation: Computation, instruction: Instruction) -> bool:
    """Whether an instruction is worth waiting beside."""
    return (
        instruction.opcode in ("while", "conditional", "call")
        or f'"{_KERNEL}"' in instruction.attributes
        or walk.count(computation, instruction) > 0
    )


def _group_size(collective: Instruction) -> int:
    """Devices that take part in one group."""
    if collective.opcode.startswith("collective-permute"):
        return len(re.findall(r"\{\d+,\d+\}", collective.attribute("source_target_pairs") or ""))
    groups = collective.attribute("replica_groups") or ""
    if found := re.match(r"\[\d+,(\d+)\]<=", groups):
        return int(found[1])
    if found := re.match(r"\{\{([\d,]+)\}", groups):
        return len(found[1].split(","))
    if found := re.match(r"mesh\[([^\]]*)\] \{([^}]*)\}", groups):
        axes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        names = re.findall(r"'([^']+)'", found[2])
        if names and all(name in axes for name in names) and ":" not in found[2]:
            return math.prod(int(axes[name]) for name in names)
    raise HloError(f"{collective.name}: replica groups {groups!r} are not understood")


def _donated(module: Module) -> int:
    found = re.search(r"input_output_alias=\{(.*?)\}, \w+=", module.header)
    indices = {int(n) for n in re.findall(r"\((\d+), \{", found[1])} if found else set()
    return sum(s.physical for i, p in module.entry.parameters.items() if i in indices for s in p.shapes)
