"""A synthetic checkpoint of full size through ``jukebox convert``, with the peak memory it took.

    python tests/chaos/large_checkpoint.py [FOLDER [PRESET]]        (a temporary folder, prior_5b by default)

Writes the file as the original's trainer does (legacy stream, ``Conv1D.w`` in half precision, everything else in
single: 10.3 GB for prior_5b), converts it in a process of its own, compares tensors all over the model directory with
what was written, prints the peak, and deletes both. Fails if the peak is more than 2 GB above the largest tensor.
Needs twice the file's size on disk. Seen for prior_5b: 10.29 GB, peak 0.57 GB (680 s, most of them waiting: two cores
shared by seventeen processes).
"""

from __future__ import annotations

import os
import pickle
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from jukebox_jax.checkpoint import bundle, openai
from jukebox_jax.checkpoint.mapping import Entry
from jukebox_jax.checkpoint.source import PRESETS
from jukebox_jax.checkpoint.torch_reader import MAGIC, PROTOCOL
from jukebox_jax.presets import Prior

ALLOWED = 2 * 10**9  # bytes above the largest tensor
BLOCK = np.random.default_rng(0).standard_normal((1 << 24) + 1, np.float32) * np.float32(0.02)
HALF_BLOCK = BLOCK.astype(np.float16)


def values(entry: Entry) -> np.ndarray:
    """The tensor of an entry: a run of the noise that starts where its name says."""
    name = entry.same_as or entry.name
    noise = HALF_BLOCK if name.endswith(".w") else BLOCK
    start = zlib.crc32(name.encode()) % len(noise)
    return np.resize(np.roll(noise, -start)[: entry.size], entry.shape)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def numbers(items: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", item) for item in items) + b"t"


def write(path: Path, entries: list[Entry]) -> None:
    """The legacy stream, tensor by tensor; a tied tensor shares its storage, as in the original's files."""
    system = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    stored = [entry for entry in entries if entry.same_as is None]
    keys = {entry.name: str(index) for index, entry in enumerate(stored)}
    pickled = [b"\x80\2}" + text("model") + b"}("]
    for entry in entries:
        key, kind = keys[entry.same_as or entry.name], "Half" if entry.name.endswith(".w") else "Float"
        storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cuda:0")
        storage += b"\x8a\5" + entry.size.to_bytes(5, "little") + b"tQ"
        strides = tuple(int(np.prod(entry.shape[axis + 1 :])) for axis in range(len(entry.shape)))
        arguments = storage + b"K\0" + numbers(entry.shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)R"
        pickled.append(text(entry.name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR")
    pickled += [b"us", text("step"), b"K\7s."]
    with path.open("wb") as file:
        for part in (MAGIC, PROTOCOL, system):
            file.write(pickle.dumps(part, 2))
        file.write(b"".join(pickled))
        file.write(pickle.dumps(list(keys.values()), 2))
        for entry in stored:
            file.write(struct.pack("<q", entry.size))
            values(entry).tofile(file)


def convert(path: Path, preset: str, output: Path) -> float:
    """Peak resident memory of ``jukebox convert``, in bytes."""
    flags = [f"--checkpoint={path}", f"--model={preset}", f"--output={output}"]
    subprocess.run([sys.executable, "-m", "jukebox_jax", "convert", *flags], check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def compare(output: Path, preset: Prior, entries: list[Entry]) -> int:
    """Read every 16th tensor and all small ones back, and hold them against what was written."""
    exported = openai.export_prior(bundle.open_component(output, bundle.prior_component(preset.level)), preset)
    checked = [e for i, e in enumerate(entries) if i % 16 == 0 or e.size < 1 << 20]
    for entry in checked:
        tensor = exported[entry.name]
        if tensor.dtype != values(entry).dtype or not np.array_equal(tensor.read(), values(entry)):
            raise AssertionError(f"{entry.name} came back otherwise")
    return len(checked)


def main(folder: Path, name: str) -> None:
    preset = PRESETS[name]
    assert isinstance(preset, Prior), "a prior, since a VQ-VAE is small"
    entries = openai.prior_entries(preset)
    path, output = folder / f"{name}.pth.tar", folder / "model"
    write(path, entries)
    largest = max(entry.size * (2 if entry.name.endswith(".w") else 4) for entry in entries)
    print(f"{path}: {path.stat().st_size:,} bytes in {len(entries)} tensors, the largest of {largest / 1e9:.3f} GB")
    start = time.monotonic()
    peak = convert(path, name, output)
    print(f"converted in {time.monotonic() - start:.0f} s, peak memory {peak / 1e9:.3f} GB")
    print(f"{compare(output, preset, entries)} tensors read back and equal")
    if peak > largest + ALLOWED:
        sys.exit(f"the peak is {(peak - largest) / 1e9:.3f} GB above the largest tensor")


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    arguments = [*sys.argv[1:], *(None, None)[len(sys.argv) - 1 :]]
    with tempfile.TemporaryDirectory(dir=arguments[0]) as temporary:
        main(Path(temporary), arguments[1] or "prior_5b")
