"""Bytes that one execution of an optimised HLO instruction moves.

The rules: an operand is read and a result written where its layout puts it in HBM, padded to whole tiles. Inside a
fusion, an operand that is only sliced is read by the slice, and the target of a dynamic-update-slice is
written by the update; nested fusions are followed. An asynchronous copy counts where it starts. An asynchronous
collective shows up in a start, in fusions beside it and in a done: its buffers count once, at the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from jukebox_jax.certify.hlo_text import Computation, HloError, Instruction, Module, Shape, shapes

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
_NOTHING = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency", "domain",
    "opt-barrier", "optimization-barrier", "partition-id", "replica-id", "while", "conditional", "call",
    "async-done",
}  # fmt: skip
_NO_TRAFFIC = {
    "AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveStart", "AsyncCollectiveDone", "ConcatBitcast",
    "Sharding",
}  # fmt: skip
_SLICES = ("slice", "dynamic-slice", "gather")


class Bytes(NamedTuple):
    """Read and written."""

    read: int = 0
    written: int = 0

    @property
    def total(self) -> int:
        return self.read + self.written

    def __add__(self, other):
        return Bytes(self.read + other[0], self.written + other[1])


class Measure(NamedTuple):
    """What counts: HBM and physical size, or (``everywhere``) any memory and logical size."""

    everywhere: bool = False

    def size(self, shape: Shape) -> int:
        return shape.logical if self.everywhere else shape.physical

    def there(self, found: list[Shape]) -> int:
        """Bytes of the arrays that lie where we count."""
        return sum(self.size(shape) for shape in found if self.everywhere or shape.in_hbm)

    def part(self, piece: Instruction, whole: list[Shape]) -> int:
        """Bytes of a slice of an array; the text inside a fusion does not always say where the slice lies."""
        return min(sum(map(self.size, piece.shapes)), self.there(whole)) if self.there(whole) else 0


def collective_kind(opcode: str) -> str | None:
    """``all-gather-start`` -> ``all-gather``; None for other opcodes and for the end of an asynchronous one."""
    kind = opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


def called(module: Module, instruction: Instruction) -> Computation:
    """What a fusion, an asynchronous operation or (of another core) a custom call runs."""
    key = "called_computations" if instruction.opcode == "custom-call" else "calls"
    return module.called(instruction, key)


def inner_collectives(module: Module, instruction: Instruction) -> list[Instruction]:
    """The collectives in a fusion, nested ones included, or in what another core of the chip runs."""
    offloaded = instruction.opcode == "custom-call" and instruction.attribute("called_computations")
    if instruction.opcode not in ("fusion", "async-start") and not offloaded:
        return []
    found = []
    for inner in called(module, instruction):
        found += [inner] if collective_kind(inner.opcode) else inner_collectives(module, inner)
    return found


def traffic(module: Module, computation: Computation, instruction: Instruction, measure: Measure) -> Bytes:
    """Bytes of one execution. Loops, calls and conditionals are walked by ``hlo.analyse`` and cost nothing here."""
    opcode = instruction.opcode
    if opcode in _NOTHING or opcode.endswith("-done"):
        return Bytes()
    if opcode == "custom-call" and (instruction.attribute("custom_call_target") or "").strip('"') in _NO_TRAFFIC:
        return Bytes()
    operands = computation.operand_shapes(instruction)
    if opcode == "async-update":  # ((operands), result, context): what started before its operands were there
        given = sum(map(measure.there, operands[1:]))
        return Bytes(given, measure.there(shapes(instruction.elements[1])) if operands[1:] else 0)
    if opcode == "fusion":
        return _fusion(module, instruction, operands, measure)
    if opcode.endswith("-start"):
        return _start(module, instruction, operands, measure)
    if opcode in ("send", "recv"):  # (buffer, context, token)
        moved = measure.there(instruction.shapes[:1])
        return Bytes(moved, 0) if opcode == "send" else Bytes(0, moved)
    if opcode in _SLICES:
        indices = sum(map(measure.there, operands[1:]))
        return Bytes(measure.part(instruction, operands[0]) + indices, measure.there(instruction.shapes))
    if opcode == "dynamic-update-slice":
        update = sum(map(measure.size, operands[1])) if measure.there(instruction.shapes) else 0
        return Bytes(measure.there(operands[1]), update)
    distinct = dict(zip(instruction.operands, operands, strict=True))
    return Bytes(sum(map(measure.there, distinct.values())), measure.there(instruction.shapes))


def _start(module: Module, instruction: Instruction, operands: list[list[Shape]], measure: Measure) -> Bytes:
    """An asynchronous operation, counted whole where it starts."""
    kind = instruction.opcode.removesuffix("-start")
    elements = [shapes(element) for element in instruction.elements]
    if kind == "copy":  # (destination, source, context)
        return Bytes(measure.there(elements[1]), measure.there(elements[0]))
    if kind in COLLECTIVES:
        result = instruction.shapes if kind == "all-reduce" else elements[1]
        return Bytes(sum(map(measure.there, operands)), measure.there(result))
    if kind == "async":
        inner = module.called(instruction).root
        if collective_kind(inner.opcode):
            return Bytes(sum(map(measure.there, operands)), measure.there(elements[1]))
        kind = inner.opcode
    result = elements[1]  # ((operands), result, context)
    if kind in _SLICES:
        size = sum(map(measure.size, result))
        return Bytes(size if measure.there(operands[0]) else 0, measure.there(result))
    if kind == "dynamic-update-slice":
        return Bytes(measure.there(operands[1]), sum(map(measure.size, operands[1])) if measure.there(result) else 0)
    if kind in ("copy", "fusion", "custom-call", "send", "recv"):
        return Bytes(sum(map(measure.there, operands)), measure.there(result))
    raise HloError(f"{instruction.name}: asynchronous {kind} is not understood")


class _Through(NamedTuple):
    """A parameter that leaves its fusion unchanged."""


def _readers(module: Module, computation: Computation, name: str) -> Iterator[tuple[Instruction, int] | _Through]:
    """What finally reads a value inside a fusion, bitcasts and nested fusions followed."""
    if computation[name].is_root:
        yield _Through()
    for user, position in computation.users[name]:
        if user.opcode == "bitcast" or _retiles(module, user):
            yield from _readers(module, computation, user.name)
        elif user.opcode == "fusion":
            inner = module.called(user)
            for reader in _readers(module, inner, inner.parameters[position].name):
                if isinstance(reader, _Through):
                    yield from _readers(module, computation, user.name)
                else:
                    yield reader
        elif user.opcode == "tuple":
            yield _Through()
        else:
            yield user, position


def _retiles(module: Module, user: Instruction) -> bool:
    """Whether a nested fusion only shows its operand in other tiles, and keeps it where it is.

    So 8-bit stacks come to a product: ``s8[24,1920,1920]:T(32,128)`` copied to ``T(8,128)``, the result aliasing the
    operand. Such a copy has no buffer (the program's temporaries are a hundredth of it): what is read is the slice.
    """
    if user.opcode != "fusion" or user.attribute("output_to_operand_aliasing") != "{{}: (0, {})}":
        return False
    inner = module.called(user)
    root, parameters = inner.root, inner.parameters
    if root.opcode != "copy" or len(parameters) != 1 or root.operands != [parameters[0].name]:
        return False
    (before,), (after,) = parameters[0].shapes, root.shapes
    return before._replace(tile=after.tile) == after


def _read(module: Module, fused: Computation, parameter: Instruction, outer: list[Shape], measure: Measure) -> int:
    """Bytes that a fusion reads of one operand."""
    full, total = measure.there(outer), 0
    for reader in set(_readers(module, fused, parameter.name)):
        if isinstance(reader, _Through):
            continue
        user, position = reader
        if position == 0 and user.opcode in _SLICES:
            total += measure.part(user, outer)
        elif (position == 0 and user.opcode == "dynamic-update-slice") or collective_kind(user.opcode):
            continue
        elif user.opcode == "custom-call" and "AsyncCollective" in user.attributes:
            continue
        else:
            return full
    return min(full, total)


def _written(module: Module, fused: Computation, name: str, outer: list[Shape], measure: Measure) -> int:
    """Bytes that a fusion writes of one result."""
    if not measure.there(outer):
        return 0
    maker = fused[name]
    if maker.opcode == "bitcast":
        return _written(module, fused, maker.operands[0], outer, measure)
    if maker.opcode == "parameter" or collective_kind(maker.opcode):
        return 0
    if maker.opcode == "dynamic-update-slice":
        return sum(map(measure.size, fused[maker.operands[1]].shapes))
    if maker.opcode == "fusion":
        inner = module.called(maker)
        if inner.root.opcode in ("dynamic-update-slice", "bitcast"):
            return _written(module, inner, inner.root.name, outer, measure)
    return measure.there(outer)


def _fusion(module: Module, instruction: Instruction, operands: list[list[Shape]], measure: Measure) -> Bytes:
    fused = module.called(instruction)
    read = 0
    seen: dict[str, int] = {}
    for index, parameter in fused.parameters.items():
        name = instruction.operands[index]
        seen[name] = max(seen.get(name, 0), _read(module, fused, parameter, operands[index], measure))
    read = sum(seen.values())
    root = fused.root
    if root.opcode == "custom-call" and "AsyncCollective" in root.attributes:
        if "AsyncCollectiveDone" in root.attributes:
            return Bytes()
        (collective,) = inner_collectives(module, instruction)
        return Bytes(*_async_buffers(fused, collective, instruction, operands, measure))
    makers = root.operands if root.opcode == "tuple" else [root.name]
    elements = instruction.elements if root.opcode == "tuple" else [instruction.type]
    written = sum(
        _written(module, fused, maker, shapes(element), measure)
        for maker, element in zip(makers, elements, strict=True)
    )
    return Bytes(read, written)


def _async_buffers(fused, collective, instruction, operands, measure: Measure) -> tuple[int, int]:
    """The operands of a collective that starts here, and the buffer that it will fill."""
    read = sum(
        measure.there(operands[int(fused[name].arguments)])
        for name in collective.operands
        if fused[name].opcode == "parameter"
    )
    wanted = [(shape.dtype, shape.dims) for shape in collective.shapes]
    written = 0
    for shape in instruction.shapes:
        if (shape.dtype, shape.dims) in wanted:
            wanted.remove((shape.dtype, shape.dims))
            written += measure.there([shape])
    return read, written
