"""The released 1B top prior: 384 lyric tokens and 6144 codes (17.8 s) in one sequence (943M parameters).

    jukebox train --config=configs/prior_1b_lyrics.py --workdir=DIR --dataset=DATASET

DIR has the trained VQ-VAE (or --config.vqvae=MODEL_DIR). Smoke test: --config=configs/prior_1b_lyrics.py:runlocal"""

from jukebox_jax import config, presets


def get_config(arg=""):
    arg = config.parse_arg(arg, runlocal=False)
    c = config.prior(presets.PRIOR_1B_LYRICS)
    c.batch_size, c.steps = 256, 300_000
    c.mesh.data, c.mesh.fsdp = 1, -1  # on a pod better -1, 32: certificates/make.py
    c.loss_chunks = 16
    c.save_every = c.evaluate_every = c.sample_every = 5_000
    return config.shrink(c) if arg.runlocal else c
