"""The original README's small upsampler, without labels: 8 codes per code of the level above (218M parameters).

    jukebox train --config=configs/small_upsampler.py --workdir=DIR --dataset=DATASET

DIR has a VQ-VAE trained with configs/small_vqvae.py. Smoke test: --config=configs/small_upsampler.py:runlocal"""

from jukebox_jax import config, presets


def get_config(arg=""):
    arg = config.parse_arg(arg, runlocal=False)
    c = config.prior(presets.SMALL_UPSAMPLER)
    c.batch_size, c.steps = 4, 200_000
    return config.shrink(c) if arg.runlocal else c
