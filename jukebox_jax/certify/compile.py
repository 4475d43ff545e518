"""One program, compiled for chips that are not here: from what the user asked for to a certificate.

The TPU compiler is a library that prints as it likes and ends the process when it fails badly, so it runs in a process
of its own: ``run`` starts ``python -m jukebox_jax.certify.compile`` and both sides speak JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jukebox_jax.certify import topology
from jukebox_jax.certify.certificate import Certificate, Memory, certify
from jukebox_jax.types import UserError, choose

PLATFORMS = ("tpu", "cuda")
DUMPED = ("v5p", "v6e", "tpu7x")  # chips with SparseCores: ``as_text()`` fails where those run collectives


class CompilerFailed(RuntimeError):
    """Neither a program nor a refusal: the last that the compiler said."""


@dataclass(frozen=True)
class Request:
    """What to compile. ``batch_size`` and ``mesh`` None: see ``programs.resolve``. Eight GPUs: topology ``cuda:8``."""

    config: str
    program: str
    topology: str
    num_slices: int = 1
    batch_size: int | None = None
    mesh: Mapping[str, int] | None = None
    overrides: tuple[str, ...] = ()
    platform: str = "tpu"
    int8: bool = False  # decode in 8 bits

    def __post_init__(self) -> None:
        choose("platform", self.platform, PLATFORMS)
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"--batch_size={self.batch_size}: it must be at least 1")

    def resolve(self, num_devices: int) -> Any:
        """The ``programs.Wanted`` of this request on so many devices."""
        from jukebox_jax.certify.programs import resolve

        return resolve(
            self.config, self.program, num_devices, batch_size=self.batch_size, mesh=self.mesh,
            overrides=self.overrides, int8=self.int8,
        )  # fmt: skip


def run(request: Request) -> dict[str, Any]:
    """Compile in a process of its own. ``{"certificate": ...}`` (see ``Certificate.from_json``), or for cuda
    ``{"lowered": ...}``.

    Raises:
        UserError: what was asked for makes no program, or the compiler is missing.
        CompilerFailed: it crashed, or met a program that it can't compile.
    """
    if request.platform == "tpu":
        topology.check_compiler()
    environment = {**os.environ, **{name: os.environ.get(name, v) for name, v in topology.ENVIRONMENT.items()}}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", "jukebox_jax.certify.compile"], input=json.dumps(dataclasses.asdict(request)),
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    line = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not line.startswith("{"):
        raise CompilerFailed(f"the compiler ended with {done.returncode}:\n{done.stderr[-4000:]}")
    answer = json.loads(line)
    if "error" in answer:
        raise UserError(answer["error"])
    return answer


def compile_here(request: Request) -> Certificate:
    """Compile for a TPU in this process, in which no TPU may be in use."""
    from jukebox_jax.certify.programs import build
    from jukebox_jax.parallel.mesh import make_mesh

    where = topology.parse(request.topology, request.num_slices)
    wanted = request.resolve(where.num_devices)
    mesh = make_mesh(wanted.mesh, where.devices(), request.num_slices)
    program, work = build(wanted, mesh)
    clock = time.process_time()
    lowered = program.lower()
    lower_seconds, clock = time.process_time() - clock, time.process_time()
    compiled, refusal, text = None, None, ""
    try:
        compiled, text = compile_text(lowered, where.chip.kind)
    except Exception as error:  # jax's JaxRuntimeError is no public name in all versions
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = str(error).strip().splitlines()[0][:400]
    facts = dict(
        config=request.config, program=request.program, mesh=wanted.mesh, batch_size=wanted.batch_size,
        overrides=[*request.overrides, *["--int8"] * request.int8], versions=_versions(),
        refusal=refusal, lower_seconds=lower_seconds,
        compile_seconds=time.process_time() - clock,
    )  # fmt: skip
    if compiled is None:
        memory = refused(refusal or "", where.chip)
        return certify(None, "it does not fit", where, work, memory=memory, fits=False, **facts)
    return certify(text, None, where, work, memory=_memory(compiled, where.chip), fits=True, **facts)


def compile_text(lowered: Any, kind: str) -> tuple[Any, str]:
    """Compile for a kind of chip (``topology.CHIPS``): what jax makes of it, and the optimised HLO's text."""
    if kind not in DUMPED:
        compiled = lowered.compile()
        return compiled, compiled.as_text()
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        (path,) = Path(folder).glob("*.after_optimizations.txt")
        return compiled, path.read_text(encoding="utf-8")


def lower_for_gpus(request: Request) -> dict[str, Any]:
    """What lowering for CUDA shows: that the program can be traced and partitioned, and which kernels it calls."""
    from jukebox_jax.certify.programs import build
    from jukebox_jax.parallel.mesh import abstract_mesh

    kind, _, count = request.topology.partition(":")
    if kind != "cuda" or not count.isdigit() or int(count) < 1 or request.num_slices != 1:
        raise UserError(f"--platform=cuda needs a number of GPUs such as --topology=cuda:8, not {request.topology!r}")
    wanted = request.resolve(int(count))
    program, _ = build(wanted, abstract_mesh(wanted.mesh, int(count), "cuda"))
    clock = time.process_time()
    text = program.lower("cuda").as_text()
    calls = re.findall(r"stablehlo.custom_call @([\w$.]+)", text)
    return {
        "devices": int(count), "mesh": wanted.mesh, "batch_size": wanted.batch_size,
        "lower_seconds": time.process_time() - clock, "lines": text.count("\n"),
        "kernels": sum("triton" in call for call in calls),
    }  # fmt: skip


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import jukebox_jax

    return {"jukebox_jax": jukebox_jax.__version__, "jax": version("jax"), "libtpu": version("libtpu")}


def _memory(compiled: Any, chip: topology.Chip) -> Memory:
    m = compiled.memory_analysis()
    whole = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    return Memory(
        chip.hbm_limit, m.argument_size_in_bytes, m.output_size_in_bytes, m.alias_size_in_bytes,
        m.temp_size_in_bytes, max(m.peak_memory_in_bytes, 0) or whole,
    )  # fmt: skip


def refused(message: str, chip: topology.Chip) -> Memory:
    """What the compiler's refusal says: how many bytes of HBM it would need."""
    found = re.search(
        r"\((\d+(?:\.\d+)?)([KMGT])\) exceeds available HBM|Used (\d+(?:\.\d+)?)([KMGT]) of .* hbm", message
    )
    needed = None
    if found:
        number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
        needed = int(float(number) * 1024 ** ("KMGT".index(unit) + 1))
    return Memory(chip.hbm_limit, None, None, None, None, needed)


def main() -> None:
    """The child process: a request on stdin, an answer on stdout."""
    values = json.load(sys.stdin)
    request = Request(**{**values, "overrides": tuple(values["overrides"])})
    try:
        if request.platform == "cuda":
            answer = {"lowered": lower_for_gpus(request)}
        else:
            answer = {"certificate": compile_here(request).to_json()}
    except UserError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
