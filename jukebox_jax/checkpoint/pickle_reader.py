"""An interpreter for the pickles that hold tensors, in which no code can run.

Python's own unpickler imports and calls what a file names. This one never imports: a global is looked up in a table
of inert stand-ins (``Symbol``) and everything else is refused on sight, before the next opcode is looked at. It has
only the opcodes that plain data and tensors need, it never recurses, and every length is checked against what is
left of the file, and every object against a budget, before memory is taken.
"""

from __future__ import annotations

import struct
import typing
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

MAX_BYTES = 64 << 20  # of one pickle; tensor data is not part of it
MAX_OPCODES = 1_000_000  # a 5B checkpoint with its optimiser state needs about 200,000
MAX_INT_BYTES = 255
MAX_KEY = 1 << 31  # of an integer used as a dictionary key
MAX_NAME = 200  # characters of a global's module or name


class BadPickle(Exception):
    """The pickle is damaged, or asks for something that is refused."""


class Symbol:
    """An inert stand-in for a global: ``build(*args)`` must do nothing but make plain data."""

    __slots__ = ("name", "build")

    def __init__(self, name: str, build: Callable[..., Any] | None = None):
        self.name, self.build = name, build


class OrderedTable(dict):
    """Stands in for ``collections.OrderedDict``; the attributes that BUILD would set on it are dropped."""


_MARK = object()  # the state of `metastack`: a MARK pushes the current stack aside


@typing.no_type_check  # the tests' run-time checks would cost more than the reading
class PickleReader:
    """Reads one pickle from ``file`` at its current position; ``load`` returns what it describes.

    ``symbols``: (module, name) -> ``Symbol``. ``persistent``: called with each persistent id (plain data).
    """

    def __init__(
        self,
        file: BinaryIO,
        available: int,
        symbols: Mapping[tuple[str, str], Symbol],
        persistent: Callable[[Any], Any] | None = None,
    ):
        self.file, self.left = file, min(available, MAX_BYTES)
        self.symbols, self.persistent = symbols, persistent
        self.stack: list[Any] = []
        self.metastack: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        for _ in range(MAX_OPCODES):
            opcode = self.take(1)[0]
            if opcode == _STOP:
                if self.metastack or len(self.stack) != 1:
                    raise BadPickle("the pickle ends in the middle of an object")
                return self.stack.pop()
            action = _ACTIONS.get(opcode)
            if action is None:
                raise BadPickle(f"refused: opcode 0x{opcode:02x}, which tensors do not need")
            action(self)
        raise BadPickle(f"refused: more than {MAX_OPCODES} opcodes")

    # reading

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise BadPickle(f"truncated, or a length of {count} bytes that the file does not have")
        data = self.file.read(count)
        if len(data) != count:
            raise BadPickle("truncated")
        self.left -= count
        return data

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise BadPickle("a string is not UTF-8") from error

    def line(self) -> str:
        data = bytearray()
        while (byte := self.take(1)) != b"\n":
            data += byte
            if len(data) > MAX_NAME:
                raise BadPickle("refused: an overlong global name")
        return data.decode("utf-8", "replace")

    # the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise BadPickle("damaged: an object is missing")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise BadPickle(f"damaged: expected a {kind.__name__}")
        return self.stack[-1]

    def mark(self) -> None:
        self.metastack.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        if not self.metastack:
            raise BadPickle("damaged: a mark is missing")
        items, self.stack = self.stack, self.metastack.pop()
        return items

    def pop_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def put(self, index: int) -> None:
        if not self.stack:
            raise BadPickle("damaged: nothing to remember")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise BadPickle("damaged: an object is referred to before it is there")
        self.push(self.memo[index])

    # compound actions

    def set_items(self, items: list[Any]) -> None:
        table = self.top(dict)
        if len(items) % 2:
            raise BadPickle("damaged: a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only keys whose hash cannot be made to collide, and never a nested one.
            if not (isinstance(key, str) or (type(key) is int and 0 <= key < MAX_KEY)):
                raise BadPickle("refused: a dictionary key that is neither a name nor a small number")
            table[key] = value

    def append(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def find(self, module: str, name: str) -> None:
        symbol = self.symbols.get((module, name))
        if symbol is None:
            shown = f"{module}.{name}"
            raise BadPickle(f"refused: it names {shown[:MAX_NAME]!r}, and nothing but tensors is read")
        self.push(symbol)

    def find_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise BadPickle("damaged: the name of a global is no text")
        self.find(module, name)

    def reduce(self) -> None:
        arguments, symbol = self.pop(), self.pop()
        if not isinstance(symbol, Symbol) or symbol.build is None or not isinstance(arguments, tuple):
            raise BadPickle("refused: a call of something that is no tensor")
        try:
            self.push(symbol.build(*arguments))
        except TypeError as error:
            raise BadPickle(f"damaged: wrong arguments for {symbol.name}") from error

    def build(self) -> None:
        self.pop()
        if not self.stack or type(self.stack[-1]) is not OrderedTable:
            raise BadPickle("refused: it sets the state of an object")

    def persistent_id(self) -> None:
        if self.persistent is None:
            raise BadPickle("refused: an external reference")
        self.push(self.persistent(self.pop()))

    def protocol(self) -> None:
        if (version := self.number("<B")) > 5:
            raise BadPickle(f"pickle protocol {version} is unknown")

    def integer(self, size: int) -> None:
        if size > MAX_INT_BYTES:
            raise BadPickle(f"refused: an integer of {size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))


_STOP = ord(".")
_ACTIONS: dict[int, Callable[[PickleReader], None]] = {
    0x80: PickleReader.protocol,
    0x95: lambda r: (r.take(8), None)[1],  # FRAME: a hint
    ord("("): PickleReader.mark,
    ord("0"): lambda r: (r.pop(), None)[1],
    ord("N"): lambda r: r.push(None),
    0x88: lambda r: r.push(True),
    0x89: lambda r: r.push(False),
    ord("J"): lambda r: r.push(r.number("<i")),
    ord("K"): lambda r: r.push(r.number("<B")),
    ord("M"): lambda r: r.push(r.number("<H")),
    0x8A: lambda r: r.integer(r.number("<B")),
    0x8B: lambda r: r.integer(r.number("<I")),
    ord("G"): lambda r: r.push(r.number(">d")),
    ord("X"): lambda r: r.push(r.text(r.number("<I"))),
    0x8C: lambda r: r.push(r.text(r.number("<B"))),
    0x8D: lambda r: r.push(r.text(r.number("<Q"))),
    ord("U"): lambda r: r.push(r.take(r.number("<B")).decode("latin-1")),  # Python 2 strings
    ord("T"): lambda r: r.push(r.take(r.number("<I")).decode("latin-1")),
    ord("C"): lambda r: r.push(r.take(r.number("<B"))),
    ord("B"): lambda r: r.push(r.take(r.number("<I"))),
    ord("}"): lambda r: r.push({}),
    ord("]"): lambda r: r.push([]),
    ord(")"): lambda r: r.push(()),
    ord("t"): lambda r: r.push(tuple(r.pop_mark())),
    0x85: lambda r: r.pop_tuple(1),
    0x86: lambda r: r.pop_tuple(2),
    0x87: lambda r: r.pop_tuple(3),
    ord("l"): lambda r: r.push(r.pop_mark()),
    ord("a"): lambda r: r.append([r.pop()]),
    ord("e"): lambda r: r.append(r.pop_mark()),
    ord("s"): lambda r: r.set_items([r.pop(), r.pop()][::-1]),
    ord("u"): lambda r: r.set_items(r.pop_mark()),
    ord("q"): lambda r: r.put(r.number("<B")),
    ord("r"): lambda r: r.put(r.number("<I")),
    0x94: lambda r: r.put(len(r.memo)),
    ord("h"): lambda r: r.get(r.number("<B")),
    ord("j"): lambda r: r.get(r.number("<I")),
    ord("c"): lambda r: r.find(r.line(), r.line()),
    0x93: PickleReader.find_on_stack,
    ord("R"): PickleReader.reduce,
    ord("b"): PickleReader.build,
    ord("Q"): PickleReader.persistent_id,
}
