"""The original README's small VQ-VAE: 22.05 kHz, 2 levels, hops 32/256, 1024 codes (0.6M parameters).

    jukebox dataset --input=MUSIC --output=DATASET --sample_rate=22050
    jukebox train --config=configs/small_vqvae.py --workdir=DIR --dataset=DATASET

Smoke test: --config=configs/small_vqvae.py:runlocal"""

from jukebox_jax import config, presets


def get_config(arg=""):
    arg = config.parse_arg(arg, runlocal=False)
    c = config.vqvae(presets.SMALL_VQVAE)
    c.batch_size, c.steps = 4, 200_000
    return config.shrink(c) if arg.runlocal else c
