"""Mutated checkpoints through the reader: only clear errors, no crash, no hang, no code run, memory bounded.

    python tests/chaos/fuzz_reader.py [COUNT [FIRST_SEED]]        (1,000 by default)

Each seed takes a golden checkpoint (both containers, with and without optimiser state, and safetensors) and damages
it: bytes flipped, runs overwritten, removed, repeated or swapped, lengths replaced by extreme ones, opcodes and names
of other globals spliced into the pickle. Reading it to the last tensor must give a checkpoint or a ``UserError``.
"""

from __future__ import annotations

import random
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jukebox_jax.checkpoint.safetensors_io import read_safetensors, write_safetensors
from jukebox_jax.checkpoint.tensors import LazyTensor
from jukebox_jax.checkpoint.torch_reader import open_checkpoint
from jukebox_jax.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = (
    "torch_reader/legacy.pth.tar",
    "torch_reader/zip.pth.tar",
    "train_ema/checkpoint_latest.pth.tar",
    "prior_upsampler_plain_cond/checkpoint.pth.tar",
    "prior_top_5b_fp16_weights/checkpoint.pth.tar",
)
SECONDS = 20  # for one file, with the machine busy
MEGABYTES = 200  # that one run may add to the peak
# What a mutation may splice in: opcodes with operands, hostile globals, extreme lengths.
SPLICES = (
    b"cos\nsystem\nX\4\0\0\0true\x85R", b"cbuiltins\neval\n", b"\x8c\2os\x8c\6system\x93", b"R", b"b", b"\x81", b"o",
    b"Q", b"t", b"u", b"s", b"e", b"(", b")", b"}", b"]", b"0", b"\x85", b"\x87", b"h\0", b"q\0", b"\x94", b".",
    b"K\xff", b"j\xff\xff\xff\xff", b"X\xff\xff\xff\xff", b"\x8a\xff", b"\x8b\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8,
    b"J\xff\xff\xff\xff", b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6",
)  # fmt: skip


PROCESSES = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.remove", "subprocess.Popen", "ctypes.dlopen")
WATCHED = (*PROCESSES, "compile", "exec", "import", "marshal.loads", "pickle.find_class")


class Result(NamedTuple):
    accepted: int  # still readable: the damage hit tensor data, or nothing
    refused: int  # UserError


class Ran(BaseException):
    """Code of a mutated file ran. Not an ``Exception``, so that nothing swallows it."""


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage ``data`` in one to eight places; mostly near the ends, where the structure is."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        near = rng.random()
        size = max(len(out), 1)
        at = int(rng.random() ** (3 if near < 0.6 else 1) * size) % size
        at = size - 1 - at if near < 0.25 else at
        run = rng.choice((1, 1, 2, 4, 8, 32, size // 4))
        action = rng.randrange(7)
        if action == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            out[at : at + run] = rng.randbytes(min(run, 64))
        elif action == 2:
            del out[at : at + run]
        elif action == 3:
            out[at:at] = out[at : at + run]
        elif action == 4:
            other = rng.randrange(size)
            out[at : at + run], out[other : other + run] = out[other : other + run], out[at : at + run]
        elif action == 5:
            splice = rng.choice(SPLICES)
            out[at : at + (len(splice) if rng.random() < 0.5 else 0)] = splice
        else:
            del out[at:]
    return bytes(out)


def read_everything(path: Path) -> None:
    """Open a file and read every tensor that it claims to have."""
    if path.suffix == ".safetensors":
        tensors = list(read_safetensors(path).values())
    else:
        checkpoint = open_checkpoint(path)
        tensors = list(checkpoint.tensors.values())
        state = (checkpoint.opt or {}).get("state")
        rows = state.values() if isinstance(state, dict) else ()
        tensors += [t for row in rows if isinstance(row, dict) for t in row.values() if isinstance(t, LazyTensor)]
    for tensor in tensors:
        tensor.read()


def run(seeds: range, watched: tuple[str, ...] = WATCHED) -> Result:
    """Mutate and read one file per seed. Any other outcome than success or ``UserError`` is raised.

    ``watched``: Python's audit events that may not occur while a file is read.
    """
    refused = 0
    watching = [False]

    def audit(event: str, _: tuple) -> None:
        if watching[0] and event in watched:
            raise Ran(event)

    def hang(*_: object) -> None:
        raise TimeoutError(f"no answer within {SECONDS} s")

    with tempfile.TemporaryDirectory() as folder:
        originals = [GOLDEN.joinpath(name) for name in FILES]
        originals.append(Path(folder) / "original.safetensors")
        tensors = open_checkpoint(originals[0]).tensors
        write_safetensors(originals[-1], {name: t for name, t in tensors.items() if 0 not in t.shape})
        contents = [path.read_bytes() for path in originals]
        for path in originals:
            read_everything(path)  # the undamaged ones are fine, and everything is imported
        np.zeros((0, 3)).astype(np.float32)
        sys.addaudithook(audit)
        old = signal.signal(signal.SIGALRM, hang)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            for seed in seeds:
                rng = random.Random(seed)
                which = rng.randrange(len(contents))
                path = Path(folder) / f"mutated{originals[which].suffix}"
                path.write_bytes(mutate(contents[which], rng))
                signal.alarm(SECONDS)
                watching[0] = True
                try:
                    read_everything(path)
                except UserError as error:
                    refused += 1
                    if str(path) not in str(error):
                        raise AssertionError(f"seed {seed}: the error does not name the file: {error}") from error
                except BaseException as error:
                    watching[0] = False
                    raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
                finally:
                    watching[0] = False
                    signal.alarm(0)
        finally:
            signal.signal(signal.SIGALRM, old)
        added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if added > MEGABYTES:
            raise AssertionError(f"reading took {added:.0f} MB")
    return Result(len(seeds) - refused, refused)


if __name__ == "__main__":
    count, first = (int(value) for value in [*sys.argv[1:], "1000", "0"][:2])
    result = run(range(first, first + count))
    print(f"{count} mutated files: {result.refused} refused, {result.accepted} read, nothing else")
