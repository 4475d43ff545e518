"""What is measured: sizes, inputs, and the time below which the arithmetic cannot go."""

from __future__ import annotations

from typing import Any

import numpy as np

from jukebox_jax import presets

RATE = 44_100  # samples a second
# tiny: sizes for a smoke test
SIZES: dict[str, dict[str, Any]] = {
    "full": dict(seconds=12.0, chunk=65_536, width=512, depth=12, heads=4, context=2048, blocks=32, new=256, batch=4),
    "tiny": dict(seconds=0.3, chunk=8192, width=16, depth=3, heads=2, context=256, blocks=16, new=64, batch=2),
}
BATCHES = (1, 4, 16)


def presets_of(size: dict[str, Any]) -> tuple[Any, Any]:
    """The VQ-VAE's and the prior's presets."""
    tiny = size["width"] < 512
    vqvae = presets.VQVAE(width=4, depth=1, codebook_size=32, codebook_dim=8, linf_k=64) if tiny else presets.VQVAE()
    transformer = presets.Transformer(
        size["context"], size["width"], size["depth"], size["heads"], size["blocks"], "factored"
    )
    labels = presets.Labels(num_artists=4111, num_genres=120, min_duration=60.0, max_duration=600.0)
    return vqvae, presets.Prior(2, size["context"], vqvae.codebook_size, 128, transformer, labels=labels)


def label_rows(batch: int, window: int) -> np.ndarray:
    """A song of two minutes, its first window, artist 10, genre 1."""
    return np.tile(np.array([RATE * 120, 0, window, 10, 1, -1, -1, -1, -1], np.int32), (batch, 1))


def music(rows: int, samples: int) -> np.ndarray:
    """Chords of decaying partials and a little noise: no silence, no clipping. (rows, samples, 1) float32."""
    rng, t = np.random.default_rng(0), np.arange(samples) / RATE
    x = 0.01 * rng.standard_normal((rows, samples))
    for row in x:
        for pitch in rng.uniform(80, 800, 6):
            row += 0.04 * np.sin(2 * np.pi * pitch * t) * np.exp(-3 * (t * rng.uniform(0.5, 2) % 1))
    return x[..., None].astype(np.float32)


def floors(limits: dict[str, float], size: dict[str, Any]) -> dict[str, float]:
    """Seconds below which this machine cannot go, from the limits and the arithmetic of each row.

    Sampling reads every weight once a token (from the cache: the model fits it) and multiplies it with each row of the
    batch; training multiplies three times as much as the forward.
    """
    vqvae, prior = presets_of(size)
    t = prior.transformer
    layer = 4 * t.width * t.attention_width + 2 * t.width * t.mlp_dim
    weights = t.depth * layer + prior.vocab_size * t.width
    c, n, s = t.block_length, t.num_blocks, t.attention_width
    attention = sum(2 * 2 * s * {0: c, 1: n, 2: c}[i % 3] for i in range(t.depth))  # FLOPs of a token, scores and sums
    token = 2 * weights + attention
    flops, bytes_s = limits["matrix_product_gflop_s"] * 1e9, limits["cached_matrix_vector_gb_s"] * 1e9
    found = {f"sample_{b}": size["new"] * max(4 * weights / bytes_s, b * token / flops) for b in BATCHES}
    prefill = (size["context"] - size["new"]) * (token - 2 * prior.vocab_size * t.width) / flops
    found |= {"prefill": prefill, "prefill_32": prefill}
    found["train"] = 3 * size["batch"] * size["context"] * token / flops
    coders = {kind: [_coder_flops(vqvae, level, kind) for level in range(vqvae.levels)] for kind in ("en", "de")}
    search = [2 * vqvae.codebook_size * vqvae.codebook_dim / hop for hop in vqvae.hop_lengths]
    samples = size["seconds"] * RATE
    found["encode"] = samples * (sum(coders["en"]) + sum(search)) / flops
    found["decode"] = samples * coders["de"][0] / flops
    found["vqvae_train"] = 2 * size["chunk"] * (3 * sum(coders["en"] + coders["de"]) + sum(search)) / flops
    return found


def _coder_flops(c: Any, level: int, kind: str) -> float:
    """FLOPs of an encoder or decoder per sample of audio."""
    width, depth = c.level_width_depth(level)
    total, rate, hidden = 0.0, 1.0, int(c.hidden_ratio * width)
    for i in range(level + 1):
        inputs = 1 if i == 0 else c.codebook_dim
        for stage in range(c.down_depths[i]):
            outer = inputs if stage == 0 else width  # channels on the audio's side of the stage
            rate /= c.strides[i]
            total += rate * 2 * (2 * c.strides[i] * (outer if kind == "en" or stage else c.codebook_dim) * width)
            total += rate * 2 * depth * (3 * width * hidden + hidden * width)
        total += rate * 2 * 3 * width * c.codebook_dim
    return total + (2 * 3 * c.codebook_dim if kind == "de" else 0)
