"""The released level 0 upsampler: context 8192 (1.5 s), width 1920, 72 layers, one head (981M parameters).

    jukebox train --config=configs/upsampler_level_0.py --workdir=DIR --dataset=DATASET

DIR has the trained VQ-VAE (or --config.vqvae=MODEL_DIR). Smoke test: --config=configs/upsampler_level_0.py:runlocal"""

from jukebox_jax import config, presets


def get_config(arg=""):
    arg = config.parse_arg(arg, runlocal=False)
    c = config.prior(presets.UPSAMPLER_LEVEL_0)
    c.batch_size, c.steps = 192, 400_000
    c.mesh.data, c.mesh.fsdp = 1, -1  # on a pod better -1, 32: certificates/make.py
    c.save_every = c.evaluate_every = c.sample_every = 5_000
    return config.shrink(c) if arg.runlocal else c
