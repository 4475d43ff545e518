"""The collectives of optimised HLO: which there are, what they move, and whether work goes on beside them.

A synchronous one is one instruction. An asynchronous one is a start and a done, or, for those that the TPU compiler
mixes into matrix products, a chain of fusions from ``AsyncCollectiveStart`` on, each reading what the last one made;
those that a SparseCore runs begin without operands, are given them by an update, and end in a done.
Channel ids tell nothing: collectives of ``shard_map`` share one. An all-reduce of which a fusion keeps one
slice per device (``all-reduce-scatter``) is how this compiler writes a reduce-scatter, and is reported as that. Between
slices of a pod, a collective is a send and a receive of the host.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from jukebox_jax.certify.hlo_bytes import called, collective_kind, inner_collectives
from jukebox_jax.certify.hlo_text import Computation, HloError, Instruction, Module

_START, _DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"
_PASSED_ON = ("get-tuple-element", "bitcast", "tuple", "opt-barrier", "copy")


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
    op_name: str  # the compiler often drops it: then that of a product that runs beside it
    between_slices: bool = False  # over the data-centre network

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


class _Span(NamedTuple):
    """A collective and the computation that holds it; its places in the order of execution; who made its buffers."""

    collective: Instruction
    holder: Computation
    places: list[int]
    chain: set[str]


def collectives(
    module: Module, computation: Computation, executions: int, loops: int, works: Callable[[Instruction], bool]
) -> list[Collective]:
    """Those that a computation executes itself. ``works``: whether an instruction is worth waiting beside."""
    order, spans = list(computation), []
    beside = _op_name(module, computation)
    found = []
    for place, instruction in enumerate(order):
        if instruction.opcode.endswith("-done"):
            for span in spans:
                if span.chain & set(instruction.operands):
                    span.places.append(place)
        elif instruction.opcode == "send" and "megascale" in instruction.attributes:
            last = _arrival(order, instruction)
            busy = any(works(i) for i in order[place + 1 : last])
            found.append(_between_slices(instruction, executions, loops, busy, beside))
        elif instruction.opcode == "async-update":
            spans += _given(module, computation, instruction, place)
        elif collective_kind(instruction.opcode):
            started = {instruction.name} if instruction.opcode.endswith("-start") else set()
            spans.append(_Span(instruction, computation, [place], started))
        else:
            _fused(module, computation, instruction, place, spans)
    for span in spans:
        first, last = span.places[0], span.places[-1]
        busy = any(works(i) for i in order[first + 1 : last])
        found.append(_describe(span, executions, loops, busy, beside))
    return found


def _op_name(module: Module, computation: Computation) -> str:
    """The JAX operation of the matrix products that run here: a gradient's if there is one."""
    first = ""
    for instruction in computation:
        if instruction.opcode == "fusion":
            name = _op_name(module, module.called(instruction))
        elif instruction.opcode in ("dot", "convolution"):
            name = instruction.op_name
        else:
            continue
        if "transpose(" in name:
            return name
        first = first or name
    return first


def _megascale(instruction: Instruction, key: str) -> str:
    found = re.search(rf'_xla_{key}="([^"]*)"', instruction.attributes)
    return found[1] if found else ""


def _arrival(order: list[Instruction], send: Instruction) -> int:
    """The place of the done of the receive that answers a send."""
    meeting = _megascale(send, "host_transfer_rendezvous")
    received = {i.name for i in order if i.opcode == "recv" and _megascale(i, "host_transfer_rendezvous") == meeting}
    return next(p for p, i in enumerate(order) if i.opcode == "recv-done" and received & set(i.operands))


def _between_slices(send: Instruction, executions: int, loops: int, overlapped: bool, beside: str) -> Collective:
    """``_xla_megascale_target="{1,2}x{0:7}"``: slices 1 and 2, devices 0 to 7 of each."""
    kind = _megascale(send, "megascale_transfer_type").lower().replace("_", "-")
    target = re.match(r"\{([\d,]+)\}x", _megascale(send, "megascale_target"))
    if not kind or not target:
        raise HloError(f"{send.name}: a transfer between slices that is not understood")
    size, slices = send.shapes[0].logical, len(target[1].split(","))
    op_name = send.op_name or beside
    return Collective(send.name, kind, executions, loops, size, size, slices, overlapped, op_name, True)


def _fused(module: Module, computation: Computation, instruction: Instruction, place: int, spans: list[_Span]) -> None:
    """Note the collectives in a fusion: parts of open chains, or new ones."""
    if instruction.opcode == "async-start" and not instruction.operands:
        return
    taken: list[_Span] = []
    for collective in inner_collectives(module, instruction):
        sources = _sources(computation, instruction)
        chain = next(
            (s for s in spans if s not in taken and s.chain & sources and _same(s.collective, collective)), None
        )
        if chain is None:
            begins = instruction.opcode == "async-start" or _marked(module, instruction, _START)
            chain = _Span(collective, _holder(module, instruction, collective), [], set())
            if begins:
                chain.chain.add(instruction.name)
            spans.append(chain)
        else:
            chain.chain.add(instruction.name)
        if _marked(module, instruction, _DONE):
            chain.chain.clear()  # what reads the fusions beside it from here on is no part of it
        chain.places.append(place)
        taken.append(chain)


def _given(module: Module, computation: Computation, update: Instruction, place: int) -> list[_Span]:
    """Collectives of a SparseCore begin with nothing: their operands come with an update."""
    start = computation[update.operands[0]]
    if len(update.operands) == 1 or start.operands:
        return []
    found = inner_collectives(module, start)
    return [_Span(c, _holder(module, start, c), [place], {update.name}) for c in found]


def _same(x: Instruction, y: Instruction) -> bool:
    """Whether two appearances can be of one collective: memory spaces and layouts may differ."""
    dims = lambda i: [(s.dtype, s.dims) for s in i.shapes]  # noqa: E731
    return x.opcode == y.opcode and x.attribute("channel_id") == y.attribute("channel_id") and dims(x) == dims(y)


def _marked(module: Module, instruction: Instruction, mark: str) -> bool:
    """Whether a fusion has a mark's custom call in it."""
    if instruction.opcode != "fusion":
        return mark in instruction.attributes
    return any(_marked(module, inner, mark) for inner in module.called(instruction))


def _sources(computation: Computation, instruction: Instruction) -> set[str]:
    """Instructions whose results an instruction reads, passed on or not."""
    found: set[str] = set()
    for name in instruction.operands:
        while name in computation.instructions and computation[name].opcode in _PASSED_ON:
            found.add(name)
            if not computation[name].operands:
                break
            name = computation[name].operands[0]
        found.add(name)
    return found


def _describe(span: _Span, executions: int, loops: int, overlapped: bool, beside: str) -> Collective:
    collective, holder = span.collective, span.holder
    kind = collective_kind(collective.opcode) or ""
    result = collective.shapes
    if collective.opcode.endswith("-start") and kind != "all-reduce":
        result = result[1:2]
    operand_bytes = sum(s.logical for shapes in holder.operand_shapes(collective) for s in shapes)
    result_bytes, size = sum(s.logical for s in result), _group_size(collective)
    if kind == "all-reduce" and _scattered(holder, collective, size):
        kind, result_bytes = "reduce-scatter", result_bytes // size
    return Collective(
        collective.name, kind, executions, loops, operand_bytes, result_bytes, size, overlapped,
        collective.op_name or beside,
    )  # fmt: skip


def _scattered(holder: Computation, collective: Instruction, size: int) -> bool:
    """Whether a fusion keeps no more of an all-reduce than one device's slice."""
    root = holder.root
    return (
        root.opcode == "dynamic-slice"
        and root.operands[0] == collective.name
        and math.prod(root.shapes[0].dims) * size == math.prod(collective.shapes[0].dims)
    )


def _holder(module: Module, instruction: Instruction, collective: Instruction) -> Computation:
    """The (nested) called computation that holds a collective."""
    fused = called(module, instruction)
    if collective.name in fused.instructions:
        return fused
    return next(_holder(module, inner, collective) for inner in fused if collective in inner_collectives(module, inner))


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
