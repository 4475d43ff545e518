"""The released VQ-VAE: 3 levels, hops 8/32/128, 2048 codes each (1.5M parameters).

    jukebox train --config=configs/vqvae.py --workdir=DIR --dataset=DATASET

Smoke test: --config=configs/vqvae.py:runlocal"""

from jukebox_jax import config, presets


def get_config(arg=""):
    arg = config.parse_arg(arg, runlocal=False)
    c = config.vqvae(presets.RELEASED_VQVAE)
    c.batch_size, c.steps = 64, 400_000
    c.save_every = c.evaluate_every = c.sample_every = 5_000
    return config.shrink(c) if arg.runlocal else c
