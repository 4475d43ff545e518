"""Sweeps: a base config plus the overrides of one point.

    jukebox sweep --config=configs/sweep.py:prior_1b_lyrics --workdir=SWEEPS --dataset=DATASET     lists or runs them
    jukebox train --config=configs/sweep.py:prior_1b_lyrics,index=7 --workdir=DIR --dataset=DATASET
    python configs/sweep.py prior_1b_lyrics       prints one --config= line per point

Each sweep is a product of its lists, the last one fastest."""

import itertools
import sys
from pathlib import Path

from jukebox_jax import config
from jukebox_jax.types import UserError, choose

RATE = "optimizer.learning_rate"
SWEEPS = {
    "prior_1b_lyrics": ("prior_1b_lyrics.py:", {RATE: (1e-4, 3e-4, 6e-4), "batch_size": (128, 256, 512)}),
    "prior_5b": ("prior_5b.py:", {RATE: (1e-4, 3e-4), "optimizer.beta2": (0.925, 0.999)}),
    "vqvae": ("vqvae.py:", {"model.codebook_size": (256, 1024, 2048), "model.commitment_weight": (0.02, 0.25)}),
    "tiny_vqvae": ("tiny.py:vqvae", {RATE: (3e-4, 1e-3), "model.codebook_size": (64, 256), "seed": (0, 1)}),
    "tiny_prior": ("tiny.py:prior", {RATE: (3e-4, 1e-3), "model.transformer.depth": (3, 6)}),
}


def points(name):
    """The override list of each point of a sweep."""
    choose("sweep", name, SWEEPS)
    keys, lists = zip(*SWEEPS[name][1].items(), strict=True)
    return [[f"{k}={v}" for k, v in zip(keys, values, strict=True)] for values in itertools.product(*lists)]


def get_config(arg=""):
    arg = config.parse_arg(arg, sweep=tuple(SWEEPS), index=0, runlocal=False)
    if not 0 <= arg.index < len(points(arg.sweep)):
        raise UserError(f"index={arg.index}: the sweep {arg.sweep} has points 0 to {len(points(arg.sweep)) - 1}")
    base = f"{Path(__file__).parent / SWEEPS[arg.sweep][0]}{',runlocal' * arg.runlocal}"
    c = config.load(base, points(arg.sweep)[arg.index])
    c.name = f"{arg.sweep}_{arg.index}"
    return c


if __name__ == "__main__":
    try:
        for i, _ in enumerate(points(" ".join(sys.argv[1:]))):
            print(f"--config=configs/sweep.py:{sys.argv[1]},index={i}")
    except UserError as error:
        print(f"sweep.py: error: {error}", file=sys.stderr)
        sys.exit(2)
