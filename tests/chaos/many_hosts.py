"""``jukebox train`` as many processes of one machine: equal losses, shares, and every way to lose a host.

    python tests/chaos/many_hosts.py        (about a quarter of an hour on two cores)

Each check starts real processes on 127.0.0.1, with one CPU device each, on a tiny data set. Prints what was seen, with
seconds; the first thing that is otherwise raises. A part of it is in the default suite.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SECONDS = 60  # within which a job that cannot run has ended
RATE = 2000

CONFIG = """
import dataclasses

from jukebox_jax import config, presets

VQVAE = presets.VQVAE(
    sample_rate=2000, down_depths=(1, 1), strides=(2, 2), width=4, depth=1, multipliers=None, codebook_size=16,
    codebook_dim=4, loss="l2", linf_k=64, resolutions=((64, 16, 32),),
)
ONE_LEVEL = dataclasses.replace(VQVAE, down_depths=(1,), strides=(2,))
LABELS = presets.Labels("v3", 0, 0, 1, 0, 8, None, None)
PRIOR = presets.Prior(1, 64, 16, 4, presets.Transformer(64, 8, 3, 2, 8, "factored"), labels=LABELS)


def get_config(arg=""):
    arg = config.parse_arg(arg, part=("vqvae", "one_level", "prior"))
    models = {"vqvae": VQVAE, "one_level": ONE_LEVEL}
    c = config.prior(PRIOR) if arg.part == "prior" else config.vqvae(models[arg.part])
    c.update({"batch_size": 8, "steps": 20, "log_every": 1, "save_every": 1000})
    c.update({"evaluate_every": 20, "evaluate_batches": 1, "sample_every": 20})
    c.optimizer.warmup_steps = 1.0
    if arg.part == "prior":
        c.remat = False
    else:
        c.window_samples = 2048
    return c
"""

# `jukebox` that notes which rows of which step this process reads.
RECORDING = """
import sys
from jukebox_jax.data import loader
from jukebox_jax.__main__ import main

read = loader.Loader._row

def row(self, number):
    if self.order.shuffle:
        step, local = divmod(number, len(self.rows))
        with open(sys.argv[1], "a") as file:
            file.write(f"{step} {self.rows[local]}\\n")
    return read(self, number)

loader.Loader._row = row
sys.exit(main(sys.argv[2:]))
"""


class Ended(NamedTuple):
    """A process: its exit code, what it printed on stdout and stderr, and when it ended (seconds after the start)."""

    code: int
    out: str
    err: str
    seconds: float


class Run:
    """Processes of one ``jukebox train``. ``each(i)`` has more flags of process i, ``only`` the ones that start."""

    def __init__(
        self, folder: Path, workdir: str, count: int, *flags: str, part: str = "vqvae", record: bool = False,
        each: Callable[[int], Sequence[str]] = lambda i: (), only: Sequence[int] | None = None,
        path: Callable[[int], str] = lambda i: "",
    ):  # fmt: skip
        self.workdir, self.start, self.processes = folder / workdir, time.monotonic(), {}
        self.logs, port = Path(tempfile.mkdtemp(dir=folder)), free_port()
        common = [f"--config={folder / 'config.py'}:{part}", f"--dataset={folder / 'data'}", *flags]
        for i in range(count) if only is None else only:
            job = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={i}"]
            argv = ["train", *common, f"--workdir={self.workdir}", *(job if count > 1 else []), *each(i)]
            recording = [str(folder / "recording.py"), str(self.logs / f"{i}.rows")]
            program = recording if record else ["-m", "jukebox_jax"]
            env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
            env["PYTHONPATH"] = os.pathsep.join(filter(None, (path(i), str(ROOT))))
            with open(self.logs / f"{i}.out", "w") as out, open(self.logs / f"{i}.err", "w") as err:
                command = [sys.executable, *program, *argv]
                self.processes[i] = subprocess.Popen(command, stdout=out, stderr=err, env=env, cwd=folder)

    def wait(self, seconds: float = 600) -> dict[int, Ended]:
        """By process, what became of it. Whoever has not ended then is killed, and the wait fails."""
        running, ends = dict(self.processes), {}
        while running and time.monotonic() < self.start + seconds:
            for i, process in list(running.items()):
                if process.poll() is not None:
                    ends[i] = time.monotonic() - self.start
                    del running[i]
            time.sleep(0.05)
        for process in running.values():
            process.kill()
            process.wait()
        text = lambda i, kind: (self.logs / f"{i}.{kind}").read_text()  # noqa: E731
        assert not running, f"{sorted(running)} had not ended: {[text(i, 'err')[-2000:] for i in running]}"
        codes = {i: process.returncode for i, process in self.processes.items()}
        return {i: Ended(codes[i], text(i, "out"), text(i, "err"), ends[i]) for i in sorted(codes)}

    def succeed(self) -> dict[int, Ended]:
        ended = self.wait()
        assert all(e.code == 0 for e in ended.values()), [(e.code, e.err[-3000:]) for e in ended.values()]
        return ended

    def reach(self, step: int, part: str = "vqvae") -> None:
        """Wait until this step is logged."""
        while step not in losses(self.workdir, part):
            assert all(p.poll() is None for p in self.processes.values()), self.wait()
            time.sleep(0.1)

    def rows(self, steps: int) -> list[set[tuple[int, int]]]:
        """(step, row) that each process has read, of the first steps."""
        notes = [(self.logs / f"{i}.rows").read_text().split() for i in self.processes]
        pairs = [zip(map(int, note[::2]), map(int, note[1::2]), strict=True) for note in notes]
        return [{(step, row) for step, row in pair if step < steps} for pair in pairs]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def prepare(folder: Path) -> None:
    """Data set, config and recording program."""
    import numpy as np
    import soundfile

    from jukebox_jax.data import builder

    music, rng = folder / "music", np.random.default_rng(0)
    music.mkdir(parents=True)
    for number in range(8):
        time_ = np.arange(int((3 + number % 3) * RATE)) / RATE
        tone = np.sin(2 * np.pi * (80 + 30 * number) * time_)[:, None] * [0.4, 0.2]
        soundfile.write(music / f"{number}.wav", tone + 0.05 * rng.normal(size=tone.shape), RATE)
    builder.build(music, folder / "data", sample_rate=RATE, record_seconds=1.0, workers=1, progress=False)
    (folder / "config.py").write_text(CONFIG)
    (folder / "recording.py").write_text(RECORDING)


def losses(workdir: Path, part: str = "vqvae") -> dict[int, float]:
    """Loss by step, as the first process logged it."""
    file = workdir / "train" / part / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def same(found: dict[int, float], expected: dict[int, float]) -> float:
    """The largest relative difference, if that is rounding."""
    assert found.keys() == expected.keys(), (sorted(found), sorted(expected))
    worst = max(abs(found[s] - expected[s]) / abs(expected[s]) for s in expected)
    assert worst < 1e-5, worst
    return worst


def ended_alike(run: Run, code: int, message: str, seconds: float = SECONDS) -> float:
    """All processes ended in time, with this code and a line that has ``message``; returns when the last one did."""
    ended = run.wait(seconds)
    for i, e in ended.items():
        assert e.code == code and message in e.err, (i, e)
        assert all(message in line for line in e.err.splitlines()), e.err
    return max(e.seconds for e in ended.values())


def only_the_first_writes(ended: dict[int, Ended]) -> None:
    assert "step 1/" in ended[0].out
    for e in (e for i, e in ended.items() if i):
        assert all(line.startswith("[Gloo]") for line in e.out.splitlines()) and not e.err, (e.out, e.err)


# ---- the checks


def equal_losses(folder: Path) -> str:
    Run(folder, "one", 1).succeed()
    expected, seen = losses(folder / "one"), []
    assert sorted(expected) == list(range(1, 21))
    for count in (2, 4):
        ended = Run(folder, f"of_{count}", count).succeed()
        only_the_first_writes(ended)
        seen.append(f"{count} processes {same(losses(folder / f'of_{count}'), expected):.1e}")
    return f"20 steps, largest relative difference from one process: {', '.join(seen)}"


def shares(folder: Path) -> str:
    """By data, by fsdp: disjoint and complete. By tensor: all processes read all."""
    for name, mesh in (("data", []), ("fsdp", ["--config.mesh.data=1", "--config.mesh.fsdp=-1"])):
        run = Run(folder, f"shares_{name}", 4, *mesh, record=True)
        run.succeed()
        same(losses(run.workdir), losses(folder / "one"))
        found = run.rows(20)
        assert set.union(*found) == {(s, r) for s in range(20) for r in range(8)}
        assert sum(map(len, found)) == 20 * 8
    run = Run(folder, "shares_tensor", 2, "--config.mesh.data=1", "--config.mesh.tensor=2", record=True)
    run.succeed()
    same(losses(run.workdir), losses(folder / "one"))
    assert [len(found) for found in run.rows(20)] == [160, 160]
    return "4 processes by data and by fsdp: each row of 20 batches read once; 2 by tensor: all rows by both"


def prior(folder: Path) -> str:
    """A prior on the VQ-VAE that many processes left, with samples to TensorBoard."""
    flags = [f"--config.vqvae={folder / 'of_2'}"]
    Run(folder, "prior_one", 1, *flags, part="prior").succeed()
    mesh = ["--config.mesh.data=1", "--config.mesh.fsdp=-1"]
    only_the_first_writes(Run(folder, "prior_two", 2, *flags, *mesh, part="prior").succeed())
    found, expected = (losses(folder / w, "prior_level_1") for w in ("prior_two", "prior_one"))
    return f"prior on 2 processes by fsdp: {same(found, expected):.1e}"


def missing_process(folder: Path) -> str:
    second = ended_alike(Run(folder, "new", 4, only=(0, 1, 3)), 2, "no sign of process 3 of 4 (--process_id=2)")
    first = ended_alike(Run(folder, "new", 2, only=(1,)), 2, "no answer from process 1 of 2")
    assert not (folder / "new").exists()
    return f"one of four missing: all ended after {second:.0f} s; the first missing: after {first:.0f} s"


def differing_config(folder: Path) -> str:
    flags = lambda i: ["--config.optimizer.beta1=0.8"] if i == 2 else []  # noqa: E731
    message = "config.optimizer.beta1 is 0.9 on process 1 and 0.8 on process 3"
    seconds = ended_alike(Run(folder, "new", 4, each=flags), 2, message)
    bad = lambda i: ["--config.optimizer.bta1=0.8"] if i == 1 else []  # noqa: E731
    run = Run(folder, "new", 2, each=bad)
    other = ended_alike(run, 2, "unknown key config.optimizer.bta1")
    return f"all ended after {seconds:.0f} s; an unknown key on one: after {other:.0f} s"


def differing_package(folder: Path) -> str:
    fake = folder / "fake" / "optax-9.9.9.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 9.9.9\n")
    run = Run(folder, "new", 2, path=lambda i: str(fake.parent) if i == 1 else "")
    return f"all ended after {ended_alike(run, 2, 'and 9.9.9 on process 2'):.0f} s"


def unshared_directory(folder: Path) -> str:
    run = Run(folder, "unshared", 2, each=lambda i: [f"--workdir={folder / f'mine_{i}'}"])
    return f"a --workdir of its own: all ended after {ended_alike(run, 2, 'process 2 of 2 does not see'):.0f} s"


def killed(folder: Path) -> str:
    seen = []
    for victim in (0, 1):
        run = Run(folder, f"killed_{victim}", 4, "--steps=100000")
        run.reach(5)
        run.processes[victim].kill()
        start = time.monotonic()
        ended = run.wait()
        seen.append(f"{time.monotonic() - start:.0f} s")
        assert time.monotonic() - start < SECONDS
        for i, e in ended.items():
            assert e.code == -signal.SIGKILL if i == victim else e.code > 0, (i, e.code)
            assert i == victim or f"process {victim + 1} failed: it has gone without a word" in e.err, e.err
    return f"after kill -9 of the first, and of the second of four, the others had ended within {', '.join(seen)}"


def terminated(folder: Path) -> str:
    for number, (victim, which) in enumerate(((1, signal.SIGTERM), (0, signal.SIGTERM), (1, signal.SIGINT))):
        run = Run(folder, f"terminated_{number}", 2, "--steps=100000")
        run.reach(5)
        run.processes[victim].send_signal(which)
        ended = run.wait()
        assert [e.code for e in ended.values()] == [130, 130], [e.err[-3000:] for e in ended.values()]
        step = max(losses(run.workdir))
        assert f"stopped after step {step}: saved" in ended[0].out
        states = sorted(p.name for p in (run.workdir / "train" / "vqvae" / "checkpoints").iterdir())
        described = json.loads((run.workdir / "model.json").read_text())
        assert states == [str(step)] and described["provenance"]["vqvae"]["steps"] == step, (states, step)
        if number == 0:
            resumed = Run(folder, run.workdir.name, 2, f"--steps={step + 10}").succeed()
            assert f"resumed from step {step}" in resumed[0].out
            Run(folder, "uninterrupted", 1, f"--steps={step + 10}").succeed()
            worst = same(losses(run.workdir), losses(folder / "uninterrupted"))
    return f"a signal to one of two: both saved the same step, exit code 130; resumed: {worst:.1e} from one process"


CHECKS = (
    equal_losses, shares, prior, missing_process, differing_config, differing_package, unshared_directory, killed,
    terminated,
)  # fmt: skip


if __name__ == "__main__":
    chosen = [check for check in CHECKS if not sys.argv[1:] or check.__name__ in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary))
        for check in chosen:
            begin = time.monotonic()
            print(f"{check.__name__}: {check(Path(temporary))}  [{time.monotonic() - begin:.0f} s]", flush=True)
