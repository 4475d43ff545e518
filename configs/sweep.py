"""Sweeps: a base config plus the overrides of one point.

    jukebox train --config=configs/sweep.py:prior_1b_lyrics,index=7 --workdir=DIR --dataset=DATASET
    python configs/sweep.py prior_1b_lyrics       prints one --config= line per point

`launch/` runs all points over machines. Each sweep is a product of the lists below, the last one fastest."""

import itertools
import sys
from pathlib import Path

from jukebox_jax import config
from jukebox_jax.types import UserError

SWEEPS = {
    "prior_1b_lyrics": {"optimizer.learning_rate": (1e-4, 3e-4, 6e-4), "batch_size": (128, 256, 512)},
    "prior_5b": {"optimizer.learning_rate": (1e-4, 3e-4), "optimizer.beta2": (0.925, 0.999)},
    "vqvae": {"model.codebook_size": (256, 1024, 2048), "model.commitment_weight": (0.02, 0.25)},
    "tiny": {"optimizer.learning_rate": (3e-4, 1e-3), "model.transformer.depth": (3, 6)},
}


def points(name):
    """The override list of each point of a sweep."""
    keys = SWEEPS[name]
    return [[f"{k}={v}" for k, v in zip(keys, values, strict=True)] for values in itertools.product(*keys.values())]


def get_config(arg=""):
    arg = config.parse_arg(arg, sweep=tuple(SWEEPS), index=0, runlocal=False)
    if not 0 <= arg.index < len(points(arg.sweep)):
        raise UserError(f"index={arg.index}: the sweep {arg.sweep} has points 0 to {len(points(arg.sweep)) - 1}")
    base = "tiny.py:prior" if arg.sweep == "tiny" else f"{arg.sweep}.py:"
    c = config.load(f"{Path(__file__).parent / base}{',runlocal' * arg.runlocal}", points(arg.sweep)[arg.index])
    c.name = f"{arg.sweep}_{arg.index}"
    return c


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in SWEEPS:
        sys.exit(f"usage: python configs/sweep.py {{{','.join(SWEEPS)}}}")
    print("\n".join(f"--config=configs/sweep.py:{name},index={i}" for i in range(len(points(name)))))
