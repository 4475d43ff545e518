"""Floating-point operations that a model's definition asks for: what a compiled program is measured against.

Matrix products of one forward pass, two operations per multiply-add, attention with its full score matrices. Training
is three times that: recomputed layers are the program's affair.
"""

from __future__ import annotations

import math

import jax

from jukebox_jax import presets
from jukebox_jax.models.layers import prime_prefix
from jukebox_jax.models.pattern import Kind, layer_kinds, segments, spans
from jukebox_jax.models.prior import Prior
from jukebox_jax.models.vqvae import VQVAE


def keys_per_query(kind: Kind, t: presets.Transformer, prefix: int = 0, num_lyrics: int = 0) -> int:
    """Scores per query and head."""
    blocks = t.num_blocks or 1
    return {
        Kind.DENSE: t.length,
        Kind.BLOCK: t.block_length,
        Kind.PREVIOUS: t.block_length,
        Kind.COLUMN: blocks,
        Kind.SUMMARY: blocks,
        Kind.SPREAD: blocks * (t.spread or 1),
        Kind.PRIME: prefix,
        Kind.LYRICS: num_lyrics,
    }[kind]


def layer_flops(kind: Kind, t: presets.Transformer, prefix: int = 0, num_lyrics: int = 0) -> int:
    """One layer over one stream of ``t.length`` positions."""
    projected = num_lyrics if kind is Kind.LYRICS else t.length  # positions that give keys and values
    attention = 4 * t.length * keys_per_query(kind, t, prefix, num_lyrics) * t.attention_width
    projections = 4 * t.width * t.attention_width * (t.length + projected)
    return projections + attention + 4 * t.length * t.width * t.mlp_dim


def transformer_flops(t: presets.Transformer, prefix: int = 0, num_lyrics: int = 0) -> int:
    """All layers over one stream."""
    return sum(layer_flops(kind, t, prefix, num_lyrics) for kind in layer_kinds(t.pattern, t.depth))


def stack_flops(config: presets.Prior) -> int:
    """One window through the prior's layers, what it is conditioned on given."""
    t = config.transformer
    return transformer_flops(t, prime_prefix(config.merged_lyrics, t.num_blocks), config.num_lyrics)


def forward_flops(config: presets.Prior) -> int:
    """One window through the prior, to its loss."""
    t, lyrics = config.transformer, config.separate_lyrics
    total = stack_flops(config) + 2 * t.length * t.width * config.vocab_size
    if lyrics:
        encoder = lyrics.encoder
        total += transformer_flops(encoder)
        total += 2 * lyrics.num_tokens * t.width * (encoder.width + lyrics.vocab_size)
    return total + _conditioner_flops(config)


def train_flops(config: presets.Prior) -> int:
    """One window forward and backward."""
    return 3 * forward_flops(config)


def kept_inputs(t: presets.Transformer, remat_layers: tuple[int, ...] = (1,)) -> int:
    """Layers whose input a training step keeps when it recomputes so many neighbours of a group together, in turn."""
    return sum(repeats * len(spans(len(kinds), remat_layers)) for kinds, repeats in segments(t.pattern, t.depth))


def repeated_flops(config: presets.Prior, remat: bool, loss_chunks: int, remat_layers: tuple[int, ...] = (1,)) -> int:
    """What a training step on one window computes twice: layers, but for the last product before a kept input, and the
    logits where they exist in pieces only."""
    t, lyrics, total = config.transformer, config.separate_lyrics, 0
    if remat:
        prefix = prime_prefix(config.merged_lyrics, t.num_blocks)
        stacks = [(t, prefix, config.num_lyrics), *([(lyrics.encoder, 0, 0)] if lyrics else [])]
        for stack, p, n in stacks:
            total += (
                transformer_flops(stack, p, n)
                - kept_inputs(stack, remat_layers) * 2 * stack.length * stack.width * stack.mlp_dim
            )
    return total + (2 * t.length * t.width * config.vocab_size if loss_chunks > 1 else 0)


def step_flops(config: presets.Prior) -> int:
    """One decoded position of one row, with the keys of the end of the context."""
    t, prefix = config.transformer, prime_prefix(config.merged_lyrics, config.transformer.num_blocks)
    total = 2 * t.width * config.vocab_size
    for kind in layer_kinds(t.pattern, t.depth):
        keys = keys_per_query(kind, t, prefix, config.num_lyrics)
        projections = 2 if kind is Kind.LYRICS else 4  # cross attention's keys and values are cached for good
        total += 2 * projections * t.width * t.attention_width + 4 * t.width * t.mlp_dim + 4 * keys * t.attention_width
    return total


def _conditioner_flops(config: presets.Prior) -> int:
    """Convolutions over the codes above; a transposed one works at the length of its input."""
    if config.conditioner is None:
        return 0
    shapes = jax.eval_shape(lambda rng: Prior(config).init(rng, method="initialise"), jax.random.key(0))
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes["params"]["conditioner"]["upsampler"]):
        names = [entry.key for entry in path]
        if names[-1] == "kernel":
            stage = int(names[0].removeprefix("stage_")) if names[0].startswith("stage_") else 0
            positions = config.context_length // (config.upsampling or 1) * config.conditioner.stride**stage
            total += 2 * positions * math.prod(leaf.shape)
    return total


def vqvae_flops(config: presets.VQVAE, samples: int, levels: tuple[int, ...] | None = None) -> dict[str, int]:
    """Of one window through the given levels (None: all): convolutions of ``encoder`` and ``decoder``, and the
    ``distances`` to the codebook."""
    found = {"encoder": 0, "decoder": 0, "distances": 0}
    model = VQVAE(config)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, samples, 1), "float32"))
    for level in range(config.levels) if levels is None else levels:
        codes = samples // config.hop_lengths[level]
        for part, length in (("encoder", samples), ("decoder", codes)):
            stack = jax.eval_shape(lambda v, part=part, level=level: model.apply(v, level, method=part), variables)
            for layer, arrays in stack:
                positions = length if layer.kind == "up" else length // layer.down  # a transposed one: of its input
                found[part] += sum(2 * positions * math.prod(a.shape) for a in arrays if len(a.shape) == 3)
                length = length * layer.up // layer.down
        found["distances"] += 2 * codes * config.codebook_dim * config.codebook_size
    return found


def vqvae_train_flops(config: presets.VQVAE, samples: int) -> int:
    """One window forward and backward through every level; the losses' Fourier transforms do not count."""
    one = vqvae_flops(config, samples)
    return 3 * (one["encoder"] + one["decoder"]) + one["distances"]
