"""``jukebox train``: train or fine-tune one component of a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jukebox_jax.types import UserError

if TYPE_CHECKING:
    from jukebox_jax.parallel.processes import Job

HELP = "train a VQ-VAE, a prior or an upsampler; run it again to resume"
EXAMPLE = "jukebox train --config=configs/tiny.py:vqvae --workdir=models/mine --dataset=data/mine --config.steps=500"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags; ``--config.key.sub=value`` changes any setting of the config and is collected by ``__main__``."""
    parser.add_argument(
        "--config", required=True, metavar="FILE.py[:ARGS]",
        help="the experiment; --config.key.sub=value changes any of its settings",
    )  # fmt: skip
    parser.add_argument("--workdir", required=True, help="the model directory: created, or resumed")
    parser.add_argument("--dataset", help="made by `jukebox dataset`; for priors also by `jukebox encode`")
    parser.add_argument("--steps", type=int, help="train up to this many steps (config.steps)")
    parser.add_argument("--restore", metavar="MODEL_DIR", help="fine-tune this model (config.init_from)")
    add_process_arguments(parser)


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of a run of several processes."""
    processes = parser.add_argument_group("several processes (detected on TPUs, under Slurm and OpenMPI)")
    processes.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    processes.add_argument("--num_processes", type=int)
    processes.add_argument("--process_id", type=int, help="of this process, from 0")
    processes.add_argument("--wait", type=float, metavar="SECONDS", help="how long they wait for each other (30)")


def main(args: argparse.Namespace) -> int:
    """Train; 1 if the loss is no longer finite, 130 if a signal stopped the run before its last step."""
    from jukebox_jax.parallel import processes

    if "://" in args.workdir:
        raise UserError(f"--workdir={args.workdir}: mount the bucket (launch/README.md says how), give that directory")
    job = processes.find(args.coordinator, args.num_processes, args.process_id)
    if args.wait is not None:
        job.wait = args.wait
    with job:
        return run(args, job)


def run(args: argparse.Namespace, job: Job) -> int:
    """Train, as one of the processes of ``job``."""
    from jukebox_jax import config
    from jukebox_jax.train import preflight
    from jukebox_jax.train.experiment import from_config
    from jukebox_jax.train.loop import train
    from jukebox_jax.train.session import Diverged

    c = config.load(args.config, args.overrides)
    for flag, key in (("dataset", "dataset"), ("steps", "steps"), ("restore", "init_from")):
        if getattr(args, flag) is not None:
            c[key] = getattr(args, flag)
    experiment = from_config(c.to_dict())
    job.agree(preflight.facts(experiment.to_dict()))
    job.start()
    try:
        state = train(experiment, Path(args.workdir), draw)
    except Diverged as error:
        print(f"jukebox train: {error}", file=sys.stderr)
        return 1
    return 0 if int(state.step) >= experiment.last_step else 130


def draw(preset, params, y, upper_codes, seed: int):
    """One window per row, to listen to in TensorBoard: a ``train.reports.Sampler``."""
    import jax
    import jax.numpy as jnp

    from jukebox_jax.models.prior import Prior
    from jukebox_jax.sample.decode import sample_window

    rows = (y if y is not None else upper_codes).shape[0] if y is not None or upper_codes is not None else 1
    keys = jax.random.split(jax.random.key(seed), rows)
    start = jnp.zeros((rows, 0), jnp.int32)
    return sample_window(
        Prior(preset), params, start, y, upper_codes, keys, start=0, num_steps=preset.context_length
    ).codes
