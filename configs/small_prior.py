"""The original README's small top prior, without labels: 95 s of context at 22.05 kHz (161M parameters).

    jukebox train --config=configs/small_prior.py --workdir=DIR --dataset=DATASET

DIR has a VQ-VAE trained with configs/small_vqvae.py. Smoke test: --config=configs/small_prior.py:runlocal"""

from jukebox_jax import config, presets


def get_config(arg=""):
    arg = config.parse_arg(arg, runlocal=False)
    c = config.prior(presets.SMALL_PRIOR)
    c.batch_size, c.steps = 4, 200_000
    return config.shrink(c) if arg.runlocal else c
