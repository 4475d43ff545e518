"""The original README's small lyrics prior in one sequence: 384 lyric tokens, then 6144 codes (161M parameters).

    jukebox train --config=configs/small_single_enc_dec_prior.py --workdir=DIR --dataset=DATASET

--config.vqvae=MODEL_DIR names a model with the released VQ-VAE's sizes.
Smoke test: --config=configs/small_single_enc_dec_prior.py:runlocal"""

from jukebox_jax import config, presets


def get_config(arg=""):
    arg = config.parse_arg(arg, runlocal=False)
    c = config.prior(presets.SMALL_SINGLE_ENC_DEC_PRIOR)
    c.batch_size, c.steps = 4, 200_000
    return config.shrink(c) if arg.runlocal else c
