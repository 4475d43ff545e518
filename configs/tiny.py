"""The real architecture at a size that two CPU cores train in minutes: what `make demo`, tests and notebooks run.

    jukebox train --config=configs/tiny.py:vqvae --workdir=DIR --dataset=DATASET
    jukebox train --config=configs/tiny.py:prior --workdir=DIR --dataset=DATASET     then upsampler_1, upsampler_0

Levels, hops, attention pattern, conditioning and losses are the released model's; width, depth, codebook and context
are not. `lyrics` is the top prior with lyrics in one sequence."""

from dataclasses import replace

from jukebox_jax import config, presets

VQVAE = replace(presets.RELEASED_VQVAE, width=16, depth=2, codebook_size=256, codebook_dim=32)
LABELS = presets.Labels("v3", 0, 0, 1, 0, 32, None, 300.0)  # as many names as the data has; songs up to 5 minutes
STACK = presets.Transformer(512, 192, 6, 1, 16, "factored", init_scale=0.7)
PRIOR = presets.Prior(2, 512, 256, 128, STACK, labels=LABELS)
UPSAMPLER = replace(
    PRIOR, upsampling=4, conditioner=presets.Conditioner(width=32, depth=4), labels=replace(LABELS, max_duration=None)
)
LYRICS = replace(
    PRIOR, labels=replace(LABELS, num_lyric_tokens=64), lyrics=presets.Lyrics("merged", 64, 79, 0.4),
    transformer=replace(STACK, length=576, depth=16, pattern="factored_prime"), alignment_layer=15, alignment_head=0,
)  # fmt: skip
PRIORS = {
    "prior": PRIOR, "lyrics": LYRICS, "upsampler": replace(UPSAMPLER, level=0, hop_length=8),
    "upsampler_0": replace(UPSAMPLER, level=0, hop_length=8), "upsampler_1": replace(UPSAMPLER, level=1, hop_length=32),
}  # fmt: skip


def get_config(arg=""):
    arg = config.parse_arg(arg, part=("vqvae", *PRIORS), runlocal=False)
    if arg.part == "vqvae":
        c = config.vqvae(VQVAE)
        c.window_samples, c.batch_size, c.steps = 16_384, 8, 400
    else:
        c = config.prior(PRIORS[arg.part])
        c.batch_size, c.steps, c.remat = 8, 400, False
    c.optimizer.learning_rate = 1e-3
    c.ema.decay = 0.98  # a run of a few hundred steps would otherwise export its beginnings
    c.save_every = c.evaluate_every = c.sample_every = 200
    return config.shrink(c) if arg.runlocal else c
