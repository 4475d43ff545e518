"""The released 5B top prior with lyrics: 79 layers, 7 of them attend to a lyrics encoder (5.64B parameters).

    jukebox train --config=configs/prior_5b_lyrics.py --workdir=DIR --dataset=DATASET

DIR has the trained VQ-VAE (or --config.vqvae=MODEL_DIR). Smoke test: --config=configs/prior_5b_lyrics.py:runlocal"""

from jukebox_jax import config, presets


def get_config(arg=""):
    arg = config.parse_arg(arg, runlocal=False)
    c = config.prior(presets.PRIOR_5B_LYRICS)
    c.batch_size, c.steps = 512, 300_000
    c.mesh.data, c.mesh.fsdp = -1, 64  # 64 is the largest power of two in the width
    # On v5e-256, (2,) would need 2.8 GiB less per chip, and 2.4 % more FLOPs.
    c.loss_chunks, c.remat_layers = 16, (2, 1, 1, 1)
    c.save_every = c.evaluate_every = c.sample_every = 5_000
    return config.shrink(c) if arg.runlocal else c
