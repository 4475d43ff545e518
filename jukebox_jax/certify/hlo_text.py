"""Reads optimised HLO text into computations of instructions, and types into shapes with their layouts.

Written for what the TPU compiler prints (jax 0.10), where a layout says how an array lies in memory:
``bf16[2,64,1200]{2,1,0:T(8,128)(2,1)S(1)}`` is tiled 8 x 128 and lives in memory space 1 (VMEM; 0, unwritten, is HBM).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=?]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPEN, _CLOSE = "([{", ")]}"


class HloError(ValueError):
    """The text says something that cannot be counted without a guess."""


class Shape(NamedTuple):
    """One array: its dimensions, and where and how it lies in memory."""

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def in_hbm(self) -> bool:
        return self.space == 0

    @property
    def logical(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.dims) * bits(self.dtype) // 8

    @property
    def physical(self) -> int:
        """Bytes in memory: the minor dimensions padded to whole tiles."""
        dims = [self.dims[i] for i in self.minor_to_major] or list(reversed(self.dims))
        for i, size in enumerate(reversed(self.tile)):
            if i < len(dims):
                dims[i] = -(-dims[i] // size) * size
        return math.prod(dims) * bits(self.dtype) // 8


def bits(dtype: str) -> int:
    if dtype.startswith("f8"):
        return 8
    if dtype not in _BITS:
        raise HloError(f"unknown element type {dtype!r}")
    return _BITS[dtype]


def shapes(text: str) -> list[Shape]:
    """Every array of a type, tuples flattened."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        order, _, placement = layout.partition(":")
        tile = re.search(r"T\(([\d,]+)\)", placement)
        space = re.search(r"S\((\d+)\)", placement)
        found.append(
            Shape(
                dtype,
                tuple(int(d.lstrip("<=")) for d in dims.split(",") if d),
                tuple(int(d) for d in order.split(",") if d),
                tuple(int(d) for d in tile[1].split(",")) if tile else (),
                int(space[1]) if space else 0,
            )
        )
    return found


def _end(text: str, start: int) -> int:
    """Index of the bracket that closes the one at ``start``."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in _OPEN) - (text[i] in _CLOSE)
        if depth == 0:
            return i
    raise HloError(f"unbalanced brackets in {text[:80]!r}")


class Instruction(NamedTuple):
    """``%name = type opcode(arguments), attributes``."""

    name: str
    type: str
    opcode: str
    arguments: str
    attributes: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def shapes(self) -> list[Shape]:
        return shapes(self.type)

    @property
    def elements(self) -> list[str]:
        """Top-level elements of a tuple type, or the type itself."""
        if not self.type.startswith("("):
            return [self.type]
        inner, parts, start, depth = self.type[1:-1], [], 0, 0
        for i, char in enumerate(inner):
            depth += (char in _OPEN) - (char in _CLOSE)
            if char == "," and depth == 0:
                parts.append(inner[start:i])
                start = i + 1
        return [*parts, inner[start:]]

    def attribute(self, key: str) -> str | None:
        """``key=value``: the value up to the next top-level comma, a leading % removed."""
        found = re.search(rf"(?:^|[ ,]){key}=", self.attributes)
        if not found:
            return None
        text, depth = self.attributes[found.end() :], 0
        for i, char in enumerate(text):
            depth += (char in _OPEN) - (char in _CLOSE)
            if char == "," and depth == 0:
                text = text[:i]
                break
        return text.strip().removeprefix("%")

    def config(self, key: str) -> int | None:
        """The first integer under ``key`` in backend_config."""
        found = re.search(rf'"{key}":"?(\d+)', self.attributes)
        return int(found[1]) if found else None

    @property
    def op_name(self) -> str:
        """Where it comes from in the JAX program."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


class Computation:
    """Instructions by name, in order of execution once scheduled."""

    def __init__(self, name: str, instructions: list[Instruction]):
        self.name = name
        self.instructions = {i.name: i for i in instructions}

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    @cached_property
    def root(self) -> Instruction:
        return next(i for i in self if i.is_root)

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(i.arguments): i for i in self if i.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[tuple[Instruction, int]]]:
        """name -> (instruction, operand position) that read it."""
        users: dict[str, list[tuple[Instruction, int]]] = {name: [] for name in self.instructions}
        for instruction in self:
            for position, operand in enumerate(instruction.operands):
                if operand in users:
                    users[operand].append((instruction, position))
        return users

    def operand_shapes(self, instruction: Instruction) -> list[list[Shape]]:
        return [self[name].shapes for name in instruction.operands]


class Module(NamedTuple):
    """A whole program."""

    computations: dict[str, Computation]
    entry: Computation
    header: str

    def called(self, instruction: Instruction, key: str = "calls") -> Computation:
        """The computation that an instruction names."""
        name = (instruction.attribute(key) or "").strip("{}").removeprefix("%")
        if name not in self.computations:
            raise HloError(f"{instruction.opcode} {instruction.name} calls {name!r}, which is not in the text")
        return self.computations[name]


def _instruction(match: re.Match[str]) -> Instruction:
    rest = match[3]
    stop = _end(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    while rest[stop] != " ":  # a layout may follow a tuple
        stop += 1
    kind, rest = rest[:stop], rest[stop + 1 :]
    bracket = rest.index("(")
    end = _end(rest, bracket)
    return Instruction(match[2], kind, rest[:bracket], rest[bracket + 1 : end], rest[end + 1 :], bool(match[1]))


def parse(text: str) -> Module:
    """Read ``compiled.as_text()``. Raises HloError where there is no entry computation."""
    computations: dict[str, Computation] = {}
    entry, name, body = None, None, []
    for line in text.splitlines():
        if name is None:
            start = _COMPUTATION.match(line)
            if start and not line.startswith("HloModule"):
                name, body = start[2], []
                entry = name if start[1] else entry
        elif line.startswith("}"):
            computations[name], name = Computation(name, body), None
        elif match := _INSTRUCTION.match(line):
            body.append(_instruction(match))
    if entry is None:
        raise HloError("no ENTRY computation: not the text of a compiled program")
    return Module(computations, computations[entry], text.partition("\n")[0])
