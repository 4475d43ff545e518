"""``jukebox sweep``: list the points of a sweep, train one, or launch all that are not finished."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jukebox_jax
from jukebox_jax.cli import train
from jukebox_jax.types import UserError

HELP = "train the points of a sweep: here, over TPU VMs or as a Slurm array"
EXAMPLE = "jukebox sweep --config=configs/sweep.py:tiny_vqvae --workdir=sweeps --dataset=data/mine --all"


class Point(NamedTuple):
    """One training of a sweep. ``done`` and ``steps``: of its exported model, and to be made."""

    index: int
    name: str
    overrides: Sequence[str]
    workdir: Path
    done: int
    steps: int

    @property
    def finished(self) -> bool:
        return self.done >= self.steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags; ``--config.key=value`` changes a setting of every point. Without an action the points are listed."""
    parser.add_argument("--config", required=True, metavar="FILE.py:SWEEP", help="a sweep of configs/sweep.py")
    parser.add_argument("--workdir", required=True, help="each point has a model directory in it, with its name")
    parser.add_argument("--dataset", help="of all points")
    parser.add_argument("--steps", type=int, help="train each point up to this many steps (config.steps)")
    action = parser.add_argument_group("what to do with them (default: list them)").add_mutually_exclusive_group()
    action.add_argument("--index", type=int, help="train this point (in a Slurm array: that of the task)")
    action.add_argument("--all", action="store_true", help="train one after the other, here")
    action.add_argument("--tpu_vm", metavar="FLAGS", help="a TPU VM for each, with these flags of launch/tpu_vm.sh")
    action.add_argument("--slurm", metavar="FLAGS", help="one array job, with these flags of sbatch ('' for none)")
    parser.add_argument("--dry_run", action="store_true", help="print the commands of --all, --tpu_vm or --slurm")
    train.add_process_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """0 if what was asked for is finished, 1 if a point failed, 130 if it was interrupted."""
    if args.index is None and not args.all and args.tpu_vm is None and args.slurm is None:
        task = os.environ.get("SLURM_ARRAY_TASK_ID")
        args.index = int(task) if task else None
    points = read_points(args)
    if args.index is not None:
        if not 0 <= args.index < len(points):
            raise UserError(f"--index={args.index}: the sweep {args.config} has points 0 to {len(points) - 1}")
        return train_one(points[args.index], args)
    left = [point for point in points if not point.finished]
    if args.slurm is not None:
        array = ",".join(str(point.index) for point in left)
        flags = [*shlex.split(args.slurm), launcher("slurm.sbatch")]
        return together([["sbatch", f"--array={array}", *flags, "jukebox", *command(args)]] if left else [], args)
    if args.tpu_vm is not None:
        script, flags = launcher("tpu_vm.sh"), shlex.split(args.tpu_vm)
        names = [point.name.replace("_", "-") for point in left]
        return together(
            [["bash", script, "babysit", f"--name={name}", *flags, "--", "jukebox", *command(args, point)]
             for name, point in zip(names, left, strict=True)], args,
        )  # fmt: skip
    if args.all:
        return one_after_the_other(left, args)
    for point in points:
        state = "finished" if point.finished else f"step {point.done} of {point.steps}" if point.done else "new"
        print(f"{point.index:>3}  {state:<20}  {' '.join(point.overrides)}")
    return 0


def read_points(args: argparse.Namespace) -> list[Point]:
    """The points of the sweep that ``--config`` names, and how far each has come."""
    from jukebox_jax import config
    from jukebox_jax.checkpoint import bundle
    from jukebox_jax.train.experiment import from_config

    found = []
    for index, overrides in enumerate(config.sweep(args.config)):
        c = config.load(f"{args.config},index={index}", args.overrides)
        c.steps = args.steps or c.steps
        experiment = from_config(c.to_dict())
        workdir, done = Path(args.workdir) / c.name, 0
        if bundle.is_model_dir(workdir):
            origin = bundle.load_description(workdir).provenance.get(experiment.component, {})
            done = int(origin.get("steps", 0))
        found.append(Point(index, c.name, overrides, workdir, done, experiment.last_step))
    return found


def train_one(point: Point, args: argparse.Namespace) -> int:
    """``jukebox train`` of one point, as one process of many if it is."""
    if point.finished:
        print(f"point {point.index} ({point.name}) is finished: {point.done} steps in {point.workdir}")
        return 0
    vars(args).update(config=f"{args.config},index={point.index}", workdir=str(point.workdir), restore=None)
    return train.main(args)


def command(args: argparse.Namespace, point: Point | None = None) -> list[str]:
    """The words behind ``jukebox`` that train one point; without one, that of the Slurm task."""
    given = [("config", args.config), ("workdir", args.workdir), ("dataset", args.dataset), ("steps", args.steps)]
    flags = [f"--{name}={value}" for name, value in given if value is not None]
    index = [f"--index={point.index}"] if point is not None else []
    return ["sweep", *flags, *args.overrides, *index]


def launcher(name: str) -> str:
    """The path of a script in ``launch/``, which the repository has and an installed package has not."""
    path = Path(jukebox_jax.__file__).parents[1] / "launch" / name
    if not path.is_file():
        raise UserError(f"{path} is not there: --tpu_vm and --slurm need a clone of the repository (pip install -e)")
    return str(path)


def one_after_the_other(points: Sequence[Point], args: argparse.Namespace) -> int:
    """Each in a process of its own. A point that fails does not keep the others from running; a signal does."""
    failed = []
    for point in points:
        code = together([[sys.executable, "-m", "jukebox_jax", *command(args, point)]], args)
        if code == 130:
            return code
        if code:
            failed.append(point.index)
    if failed:
        print(f"jukebox sweep: failed: point {', '.join(map(str, failed))}", file=sys.stderr)
    return 1 if failed else 0


def together(commands: Sequence[Sequence[str]], args: argparse.Namespace) -> int:
    """Run the commands at the same time, or print them; 130 if one was interrupted, 1 if one failed."""
    if args.dry_run:
        print("\n".join(shlex.join(words) for words in commands), flush=True)
        return 0
    if not commands:
        print("every point is finished")
        return 0
    try:
        running = [subprocess.Popen(words) for words in commands]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is not installed here") from error

    def forward(number: int, _: object) -> None:  # they save, and end
        for process in running:
            process.send_signal(signal.SIGTERM)

    # Ctrl-C reaches them by itself.
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, forward)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        codes = [process.wait() for process in running]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for words, code in zip(commands, codes, strict=True):
        if code:
            print(f"jukebox sweep: exit code {code}: {shlex.join(words)}", file=sys.stderr)
    return 130 if 130 in codes else 1 if any(codes) else 0
