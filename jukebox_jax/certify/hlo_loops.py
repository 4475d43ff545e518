"""How often a while loop of optimised HLO runs, proved from its text or refused.

The counter must start from a constant, move by a constant and be compared with a constant. Each is followed through
copies, fusions and the carries of enclosing loops. Nothing is assumed: a loop that ends on data raises HloError.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from jukebox_jax.certify.hlo_text import Computation, HloError, Instruction, Module

_SAME = ("copy", "bitcast", "convert", "reshape", "copy-done", "opt-barrier", "optimization-barrier")
_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}


class Scope(NamedTuple):
    """A computation being executed; inside a loop, also the loop and the scope around it."""

    computation: Computation
    loop: Instruction | None = None
    outer: Scope | None = None


class Affine(NamedTuple):
    """``slope * x + offset`` of the counter x."""

    slope: int
    offset: int


Leaf = Callable[[Instruction], "Affine | None"]


def trip_count(module: Module, loop: Instruction, scope: Scope) -> int:
    """Iterations of ``loop``, an instruction of ``scope.computation``."""
    known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
    if known:
        return int(known[1])
    condition, body = module.called(loop, "condition"), module.called(loop, "body")
    inside = Scope(body, loop, scope)
    left, right, direction = _comparison(module, condition)
    sides: list[Affine | None] = []
    counter: int | None = None
    for side in (left, right):
        index = _carried(condition, side)
        if index is not None and _carry_step(module, inside, index) != 0:
            counter, value = index, Affine(1, 0)
        elif index is not None:
            value = _constant(module, scope, _initial(module, loop, scope, index))
        else:
            value = _affine(module, condition, side, lambda _: None)
        sides.append(value)
    if counter is None or None in sides:
        raise HloError(f"while {loop.name}: its condition does not compare a counter with a constant")
    step = _carry_step(module, inside, counter)
    start = _constant(module, scope, _initial(module, loop, scope, counter))
    if not step or start is None:
        raise HloError(f"while {loop.name}: its counter has no constant start and step")
    limit = sides[1] if sides[0] == Affine(1, 0) else sides[0]
    assert limit is not None
    direction = direction if sides[0] == Affine(1, 0) else _MIRRORED[direction]
    distance = limit.offset - start.offset
    if step < 0:
        distance, step, direction = -distance, -step, _MIRRORED[direction]
    if direction not in ("LT", "LE", "NE"):
        raise HloError(f"while {loop.name}: the counter moves away from its limit")
    return max(0, -(-(distance + (direction == "LE")) // step))


def _comparison(module: Module, condition: Computation) -> tuple[str, str, str]:
    root = condition.root
    names = root.operands
    if root.opcode == "fusion":
        inner = module.called(root).root
        parameters = {p.name: names[i] for i, p in module.called(root).parameters.items()}
        if inner.opcode == "compare" and all(name in parameters for name in inner.operands):
            root, names = inner, [parameters[name] for name in inner.operands]
    direction = root.attribute("direction")
    if root.opcode != "compare" or direction not in _MIRRORED:
        raise HloError(f"loop condition {condition.name} ends in {root.opcode}, not in a comparison")
    return names[0], names[1], direction


def _source(computation: Computation, name: str) -> Instruction:
    """The instruction that made a value, copies passed over."""
    instruction = computation[name]
    while instruction.opcode in _SAME or instruction.opcode == "copy-start":
        instruction = computation[instruction.operands[0]]
    return instruction


def _carried(computation: Computation, name: str) -> int | None:
    """The place in the loop's carry that a value is read from, or None."""
    source = _source(computation, name)
    if source.opcode != "get-tuple-element" or computation[source.operands[0]].opcode != "parameter":
        return None
    return int(source.attribute("index") or 0)


def _initial(module: Module, loop: Instruction, scope: Scope, index: int) -> str:
    """Name, in the scope around the loop, of a carry's first value."""
    start = _source(scope.computation, loop.operands[0])
    if start.opcode != "tuple":
        raise HloError(f"while {loop.name}: its carry starts as a {start.opcode}")
    return start.operands[index]


def _carry_step(module: Module, inside: Scope, index: int) -> int | None:
    """What one iteration adds to a carry; None where that is no constant."""
    body = inside.computation
    end = _source(body, body.root.name)
    if end.opcode != "tuple":
        return None
    value = _affine(
        module, body, end.operands[index], lambda i: Affine(1, 0) if _carried(body, i.name) == index else None
    )
    return value.offset if value is not None and value.slope == 1 else None


def _constant(module: Module, scope: Scope, name: str) -> Affine | None:
    """A value that is the same in every execution of the scope."""

    def leaf(instruction: Instruction) -> Affine | None:
        index = _carried(scope.computation, instruction.name)
        if index is None or scope.loop is None or scope.outer is None or _carry_step(module, scope, index) != 0:
            return None
        return _constant(module, scope.outer, _initial(module, scope.loop, scope.outer, index))

    value = _affine(module, scope.computation, name, leaf)
    return value if value is not None and value.slope == 0 else None


def _affine(module: Module, computation: Computation, name: str, leaf: Leaf) -> Affine | None:
    """A value as a linear function of what ``leaf`` knows."""
    instruction = _source(computation, name)
    if instruction.opcode == "constant":
        return Affine(0, int(instruction.arguments)) if re.fullmatch(r"-?\d+", instruction.arguments) else None
    if instruction.opcode in ("add", "subtract"):
        x, y = (_affine(module, computation, operand, leaf) for operand in instruction.operands)
        if x is None or y is None:
            return None
        sign = 1 if instruction.opcode == "add" else -1
        return Affine(x.slope + sign * y.slope, x.offset + sign * y.offset)
    if instruction.opcode == "fusion":
        inner = module.called(instruction)

        def argument(parameter: Instruction) -> Affine | None:
            if parameter.opcode != "parameter":
                return None
            return _affine(module, computation, instruction.operands[int(parameter.arguments)], leaf)

        return _affine(module, inner, inner.root.name, argument)
    return leaf(instruction)
