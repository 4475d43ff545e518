"""Files made to do harm, or damaged: always a ``UserError`` that names the file, never code, memory or time."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from jukebox_jax.checkpoint import pickle_reader
from jukebox_jax.checkpoint.torch_reader import MAGIC, PROTOCOL, open_checkpoint
from jukebox_jax.types import UserError

FILES = Path(__file__).parents[1] / "golden" / "torch_reader"


@pytest.fixture
def bounded_memory():
    """No hostile file of these tests is larger than a megabyte, and none may take more than a few to refuse."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


def legacy(content: bytes, keys: bytes | None = None, tail: bytes = b"") -> bytes:
    """A legacy file around a pickle given as bytes."""
    system = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, system)]
    return b"".join([*parts, content, pickle.dumps([], 2) if keys is None else keys, tail])


def refused(tmp_path: Path, data: bytes, reason: str = "") -> None:
    path = tmp_path / "hostile.pth.tar"
    path.write_bytes(data)
    with pytest.raises(UserError, match="hostile.pth.tar") as error:
        open_checkpoint(path)
    assert reason in str(error.value)
    assert len(str(error.value)) < 2000


class Reduce:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.made = (function, arguments)

    def __reduce__(self):
        return self.made


class Stateful:
    """Unpickled, it would run its own code."""

    def __init__(self):
        self.state = 1

    def __setstate__(self, state):
        raise AssertionError("ran")


def call(module: str, name: str, argument: str = "true", protocol_4: bool = False) -> bytes:
    if protocol_4:
        found = (
            b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93"
        )
    else:
        found = f"c{module}\n{name}\n".encode()
    return b"\x80\2" + found + b"X" + struct.pack("<I", len(argument)) + argument.encode() + b"\x85R."


@pytest.mark.parametrize("protocol_4", [False, True])
@pytest.mark.parametrize(
    "module, name",
    [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("__builtin__", "eval"), ("builtins", "exec"),
     ("builtins", "getattr"), ("subprocess", "Popen"), ("importlib", "import_module"), ("antigravity", "geohash"),
     ("torch", "load"), ("torch", "os.system"), ("torch._utils", "_rebuild_tensor_v2.__globals__"),
     ("collections", "OrderedDict.__init__"), ("operator", "attrgetter"), ("pickle", "loads"), ("numpy", "load"),
     ("copyreg", "_reconstructor"), ("functools", "partial"), ("test_hostile", "Stateful")],
)  # fmt: skip
def test_globals_that_are_no_tensors(tmp_path, module, name, protocol_4):
    canary = tmp_path / "canary"
    argument = f"touch {canary}" if name == "system" else f"__import__('pathlib').Path({str(canary)!r}).touch()"
    pickled = call(module, name, argument, protocol_4)
    if (module, name) in {("posix", "system"), ("builtins", "eval")}:
        pickle.loads(pickled)  # Python's own unpickler runs it
        assert canary.exists()
        canary.unlink()
    refused(tmp_path, legacy(pickled), f"it names '{module}.{name}'")
    assert not canary.exists() and "antigravity" not in sys.modules


def test_refused_wherever_it_stands(tmp_path):
    """In a checkpoint that is otherwise fine, in any entry of it."""
    canary = tmp_path / "canary"
    for content in (
        {"model": {}, "x": Reduce(eval, f"open({str(canary)!r}, 'w')")},
        {"model": {"w": Reduce(os.system, f"touch {canary}")}},
        {"model": {}, "hps": [({"a": Reduce(getattr, "x", "upper")},)]},
        {"model": {}, "opt": Stateful()},
    ):
        refused(tmp_path, legacy(pickle.dumps(content, 2)), "refused")
        assert not canary.exists()


SYMBOL = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
FLOATS = b"ctorch\nFloatStorage\n"
STORAGE = b"(X\7\0\0\0storage" + FLOATS + b"X\1\0\0\0000X\3\0\0\0cpuK\4tQ"  # key "0", four floats
ZERO_KEYS = pickle.dumps(["0"], 2)
DATA = struct.pack("<q4f", 4, 0, 1, 2, 3)


def tensor(offset: bytes = b"K\0", shape: bytes = b"K\4\x85", strides: bytes = b"K\1\x85", storage=STORAGE) -> bytes:
    made = REBUILD + b"(" + storage + offset + shape + strides + b"\x89" + SYMBOL + b")RtR"
    return b"\x80\2}X\5\0\0\0model}X\1\0\0\0w" + made + b"ss."


def test_the_crafted_tensor_is_fine_before_it_is_spoilt(tmp_path):
    path = tmp_path / "fine.pth.tar"
    path.write_bytes(legacy(tensor(), ZERO_KEYS, DATA))
    assert open_checkpoint(path).tensors["w"].read().tolist() == [0, 1, 2, 3]


HUGE = b"\x8a\x09" + b"\xff" * 8 + b"\x00"  # 2**64 - 1
MINUS = b"J\xff\xff\xff\xff"


@pytest.mark.parametrize(
    "spoilt, reason",
    [
        (dict(offset=MINUS), "shape, strides or offset"),
        (dict(offset=b"K\1"), "past the end"),
        (dict(shape=MINUS + b"\x85"), "shape, strides or offset"),
        (dict(shape=b"K\5\x85"), "larger than its storage"),
        (dict(shape=HUGE + b"\x85"), "larger than its storage"),
        (dict(shape=HUGE + HUGE + b"\x86", strides=b"K\0K\0\x86"), "larger than its storage"),
        (dict(strides=MINUS + b"\x85"), "shape, strides or offset"),
        (dict(strides=b"K\2\x85"), "past the end"),
        (dict(strides=HUGE + b"\x85"), "past the end"),
        (dict(strides=b")"), "shape, strides or offset"),
        (dict(shape=b"K\2K\2\x86", strides=b"K\0K\4\x86"), "past the end"),
        (dict(shape=b"N", strides=b"N"), "shape, strides or offset"),
        (dict(shape=b"K\0" + HUGE + b"\x86", strides=b"K\1K\1\x86"), "larger than its storage"),
        (dict(shape=b"(" + b"K\1" * 99 + b"t", strides=b"(" + b"K\1" * 99 + b"t"), "larger than its storage"),
        (dict(storage=b"K\1"), "without storage"),
        (dict(storage=STORAGE.replace(b"K\4", HUGE)), "elements that the file does not have"),
        (dict(storage=STORAGE.replace(b"K\4", MINUS)), "elements that the file does not have"),
        (dict(storage=STORAGE.replace(b"K\4", b"K\3")), "larger than its storage"),
        (dict(storage=STORAGE.replace(b"torch\nFloatStorage", b"collections\nOrderedDict")), "without type"),
        (dict(storage=STORAGE.replace(b"storage", b"module\1")), "a reference to something"),
    ],
)  # fmt: skip
def test_tensors_outside_their_storage(tmp_path, bounded_memory, spoilt, reason):
    refused(tmp_path, legacy(tensor(**spoilt), ZERO_KEYS, DATA), reason)


@pytest.mark.parametrize(
    "keys, tail, reason",
    [
        (pickle.dumps([], 2), b"", "the data of a tensor is missing"),
        (pickle.dumps(["0", "0"], 2), DATA * 2, "list of storages"),
        (pickle.dumps(["0", "1"], 2), DATA * 2, "list of storages"),
        (pickle.dumps("0", 2), DATA, "list of storages"),
        (pickle.dumps([0], 2), DATA, "list of storages"),
        (ZERO_KEYS, b"", "truncated"),
        (ZERO_KEYS, DATA[:-1], "truncated"),
        (ZERO_KEYS, struct.pack("<q4f", -4, 0, 1, 2, 3), "another length"),
        (ZERO_KEYS, struct.pack("<q4f", 1 << 60, 0, 1, 2, 3), "another length"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_storages_that_are_not_there(tmp_path, keys, tail, reason):
    refused(tmp_path, legacy(tensor(), keys, tail), reason)


@pytest.mark.parametrize(
    "pickled, reason",
    [
        (b"\x80\2" + SYMBOL + b")R}b0" + SYMBOL + b"}b.", "sets the state"),  # BUILD on the class itself
        (b"\x80\2}}b.", "sets the state"),
        (b"\x80\2" + SYMBOL + b"X\1\0\0\0x\x85R.", "made from other objects"),
        (b"\x80\2" + FLOATS + b")R.", "a call of something"),
        (b"\x80\2" + REBUILD + b")R.", "wrong arguments"),
        (b"\x80\2" + SYMBOL + b"K\1R.", "a call of something"),
        (b"\x80\2" + SYMBOL + b")\x81.", "opcode 0x81"),  # NEWOBJ
        (b"\x80\2(" + SYMBOL + b"o.", "opcode 0x6f"),  # OBJ
        (b"(ios\nsystem\n.", "opcode 0x69"),  # INST
        (b"\x80\2\x82\x01.", "opcode 0x82"),  # EXT1
        (b"\x80\2P0\n.", "opcode 0x50"),  # PERSID
        (b"I1\n.", "opcode 0x49"),  # text integers
        (b"\x80\2" + b"X\xff\xff\xff\xff" + b"a.", "a length of 4294967295"),
        (b"\x80\4\x8d" + b"\xff" * 8 + b"a.", "the file does not have"),
        (b"\x80\2\x8b\xff\xff\xff\x7f\1.", "an integer of"),
        (b"\x80\2B\xff\xff\xff\x7f.", "the file does not have"),
        (b"\x80\x63N.", "protocol 99"),
        (b"\x80\2j\xff\xff\xff\xff.", "referred to before"),
        (b"\x80\2q\0.", "nothing to remember"),
        (b"\x80\2t.", "a mark is missing"),
        (b"\x80\2(((.", "in the middle"),
        (b"\x80\2.", "in the middle"),
        (b"\x80\2\x87.", "an object is missing"),
        (b"\x80\2]N.", "in the middle"),
        (b"\x80\2N(NNu.", "expected a dict"),
        (b"\x80\2}(NNNu.", "a key without a value"),
        (b"\x80\2}NNs.", "dictionary key"),
        (b"\x80\2})Ns.", "dictionary key"),
        (b"\x80\2}" + HUGE + b"Ns.", "dictionary key"),
        (b"\x80\2X\1\0\0\0\xff.", "not UTF-8"),
        (b"\x80\2c" + b"a" * 5000 + b"\nb\n.", "overlong"),
        (b"\x80\4K\1K\2\x93.", "no text"),
        (b"\x80\2K\1.", "no 'model' entry"),
        (b"\x80\2}.", "no 'model' entry"),
        (b"\x80\2}X\5\0\0\0modelK\1s.", "no 'model' entry"),
        (b"\x80\2}X\5\0\0\0model}X\1\0\0\0wK\1ss.", "is no tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pickles_that_tensors_do_not_need(tmp_path, bounded_memory, pickled, reason):
    refused(tmp_path, legacy(pickled), reason)


def test_bombs_of_depth_and_number(tmp_path, monkeypatch, bounded_memory):
    refused(tmp_path, legacy(b"\x80\2" + b"]" + b"\x85" * 50_000 + b"."), "no 'model' entry")  # nested tuples
    refused(tmp_path, legacy(b"\x80\2" + b"(" * 50_000), "in the middle")
    monkeypatch.setattr(pickle_reader, "MAX_OPCODES", 10_000)
    refused(tmp_path, legacy(b"\x80\2]" + b"K\1a" * 10_000 + b"."), "more than 10000 opcodes")
    monkeypatch.setattr(pickle_reader, "MAX_BYTES", 10_000)
    refused(tmp_path, legacy(b"\x80\2X" + struct.pack("<I", 20_000) + b"a" * 20_000 + b"."), "the file does not have")


def test_a_list_that_holds_itself_is_never_walked(tmp_path):
    data = b"\x80\2}X\5\0\0\0model}sX\3\0\0\0hps}X\1\0\0\0x]q\0h\0ass."
    path = tmp_path / "loop.pth.tar"
    path.write_bytes(legacy(data))
    assert list(open_checkpoint(path).hps or {}) == ["x"]


@pytest.mark.parametrize("name", ["legacy.pth.tar", "zip.pth.tar"])
def test_truncated_at_every_percent(tmp_path, name):
    data = (FILES / name).read_bytes()
    for percent in range(100):
        refused(tmp_path, data[: len(data) * percent // 100])
    refused(tmp_path, data[:-1], "truncated")


def members() -> dict[str, bytes]:
    with zipfile.ZipFile(FILES / "zip.pth.tar") as source:
        return {name: source.read(name) for name in source.namelist()}


def packed(contents: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as target:
        for name, data in contents:
            target.writestr(name, data)
    return out.getvalue()


def test_a_zip_written_by_other_means_is_fine(tmp_path):
    path = tmp_path / "fine.pth.tar"
    path.write_bytes(packed(list(members().items())))
    assert open_checkpoint(path).tensors["base"].read()[0, 1] == 1


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda m: [*m, ("zip.pth/data/0", b"x")], "occurs twice"),
        (lambda m: [*m, ("../../etc/passwd", b"x")], "a member named"),
        (lambda m: [*m, ("/etc/passwd", b"x")], "a member named"),
        (lambda m: [*m, ("zip.pth/..\\evil", b"x")], "a member named"),
        (lambda m: [*m, ("other/data.pkl", b"N.")], "without one NAME/data.pkl"),
        (lambda m: [(n, d) for n, d in m if "data.pkl" not in n], "without one NAME/data.pkl"),
        (lambda m: [(n, d) for n, d in m if not n.endswith("data/0")], "storage '0' is missing"),
        (lambda m: [(n, d[:-1] if n.endswith("data/0") else d) for n, d in m], "storage '0' is missing"),
        (lambda m: [(n, b"big" if n.endswith("byteorder") else d) for n, d in m], "big-endian"),
        (lambda m: [(n, call("os", "system") if "data.pkl" in n else d) for n, d in m], "it names 'os.system'"),
        (lambda m: [], "truncated|missing|damaged|without"),
    ],
)
def test_zips_that_torch_does_not_write(tmp_path, change, reason):
    contents = [(name.replace("zip.pth/", "zip.pth/"), data) for name, data in members().items()]
    root = contents[0][0].partition("/")[0]
    changed = [(name.replace("zip.pth", root, 1), data) for name, data in change(contents)]
    path = tmp_path / "hostile.pth.tar"
    path.write_bytes(packed(changed))
    with pytest.raises(UserError, match=reason):
        open_checkpoint(path)


def test_zip_bomb(tmp_path, request):
    bomb = packed([("a/data.pkl", b"N."), ("a/data/0", bytes(200 << 20))], zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 20
    request.getfixturevalue("bounded_memory")
    refused(tmp_path, bomb, "is compressed or encrypted")


@pytest.mark.parametrize("overlap", [True, False])
def test_zip_directory_that_points_elsewhere(tmp_path, overlap):
    """Two members on one range of bytes, or a member past the end."""
    data = bytearray(packed([("a/data.pkl", b"N."), ("a/data/0", bytes(64)), ("a/data/1", bytes(64))]))
    entry = data.rindex(b"PK\1\2")
    other = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    data[entry + 42 : entry + 46] = data[other + 42 : other + 46] if overlap else b"\xf0\xff\xff\x7f"
    if overlap:
        data[entry + 46 : entry + 54] = b"a/data/0"
    refused(tmp_path, bytes(data), "occurs twice" if overlap else "an offset that the file does not have")


@pytest.mark.parametrize("count, reason", [(0xFFFE, "missing"), (1, "damaged|without|reaches")])
def test_zip_directory_of_another_length(tmp_path, count, reason):
    data = bytearray((FILES / "zip.pth.tar").read_bytes())
    end = data.rindex(b"PK\5\6")
    data[end + 8 : end + 12] = struct.pack("<HH", count, count)
    path = tmp_path / "hostile.pth.tar"
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=reason):
        open_checkpoint(path)


def test_mutated_files_never_do_more_than_raise():
    """A thinned run of ``tests/chaos/fuzz_reader.py`` (``make chaos`` does a thousand)."""
    script = Path(__file__).parents[1] / "chaos" / "fuzz_reader.py"
    spec = importlib.util.spec_from_file_location("fuzz_reader", script)
    assert spec and spec.loader
    fuzz_reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz_reader)
    result = fuzz_reader.run(range(150), fuzz_reader.PROCESSES)  # the tests' own checks of types compile code
    assert result.refused > 50 and result.accepted + result.refused == 150
