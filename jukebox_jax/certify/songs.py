"""What sampling whole songs takes: windows of every level, prefilled and decoded, by arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jukebox_jax import presets
from jukebox_jax.certify.plan import Prediction, predict
from jukebox_jax.certify.programs import sampled
from jukebox_jax.certify.topology import Topology
from jukebox_jax.ops.attention_pallas_tpu import round_up
from jukebox_jax.sample import windows
from jukebox_jax.types import UserError


class LevelPlan(NamedTuple):
    """One level of all songs, at the roofline."""

    level: int
    batch: int  # songs at a time
    batches: int
    mesh: dict[str, int]
    windows: int  # per song
    tokens: int  # per song
    prefill: Prediction
    decode: Prediction

    @property
    def seconds(self) -> float:
        """At most: every batch decodes its tokens, and prefills each window that has a past over the whole context."""
        prefills = (self.windows - 1) * self.prefill.roofline.seconds
        return self.batches * (prefills + self.tokens * self.decode.roofline.seconds)


def plan_songs(
    vqvae: presets.VQVAE, priors: Mapping[int, presets.Prior], songs: int, seconds: float, where: Topology,
    hop_fractions: Sequence[float] | None = None, batch_size: int | None = None,
) -> list[LevelPlan]:  # fmt: skip
    """Levels from the top down. ``batch_size``: songs drawn together (default: all).

    Raises:
        UserError: no songs, or songs shorter than one code.
    """
    if songs < 1 or seconds <= 0:
        raise UserError(f"--songs={songs} and --seconds={seconds:g} must be above 0")
    fractions = hop_fractions or [0.5] * (len(priors) - 1) + [0.125]
    if len(fractions) not in (1, len(priors)):
        raise UserError(f"--hop_fraction takes one value, or {len(priors)}: one per level")
    found = []
    for level in sorted(priors, reverse=True):
        prior = priors[level]
        total = math.ceil(seconds * vqvae.sample_rate / prior.hop_length)
        fraction = fractions[level] if len(fractions) > 1 else fractions[0]
        hop = windows.hop_length(fraction, prior.context_length, prior.upsampling)
        drawn = windows.plan(0, total, prior.context_length, hop)
        tensor = math.gcd(prior.transformer.num_heads, where.num_devices)
        shards = where.num_devices // tensor
        batch = round_up(min(batch_size or songs, songs), shards)
        wanted = [sampled(prior, program, where.num_devices, batch) for program in ("prefill", "decode")]
        prefill, decode = (predict(w, where) for w in wanted)
        tokens = sum(window.end - window.given for window in drawn)
        batches = math.ceil(songs / batch)
        found.append(LevelPlan(level, batch, batches, wanted[0].mesh, len(drawn), tokens, prefill, decode))
    return found
