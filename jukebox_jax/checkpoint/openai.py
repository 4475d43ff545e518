"""The names of the original's tensors <-> our variables, for every model that a preset can describe.

Built from presets alone (spec/models.md section 7), strict both ways. Differences between the two: the original's
convolutions are channels first; its ``c_attn`` and ``c_enc_kv`` hold query, key and value side by side; and the layers
of a transformer are separate there, stacked here where they repeat (``models/pattern.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from jukebox_jax import presets
from jukebox_jax.checkpoint.mapping import (
    Entry,
    OutgoingTensor,
    Part,
    Path,
    export_tensors,
    flatten,
    import_tensors,
    read_all,
    unflatten,
)
from jukebox_jax.checkpoint.tensors import LazyTensor
from jukebox_jax.checkpoint.torch_reader import Checkpoint
from jukebox_jax.models.pattern import Kind, layer_kinds, locate, segments
from jukebox_jax.types import UserError

CONV = (2, 1, 0)  # (out, in, k) -> (k, in, out)
CONV_TRANSPOSE = (2, 0, 1)  # (in, out, k) -> (k, in, out)
RESIDUALS = ("blocks", "model")  # of a conditioner: with and without the original's gradient checkpointing (cond_c_res)


class _Table(list[Entry]):
    """Entries in the original's order, with one method per kind of module."""

    def whole(self, name: str, shape: tuple[int, ...], path: Path, layer: tuple[int, int] | None = None, axes=None):
        self.append(Entry(name, shape, (Part(path, axes=axes, layer=layer),)))

    def conv(self, name: str, path: Path, inputs: int, outputs: int, size: int, axes=CONV) -> None:
        shape = (outputs, inputs, size) if axes is CONV else (inputs, outputs, size)
        self.whole(f"{name}.weight", shape, (*path, "kernel"), axes=axes)
        self.whole(f"{name}.bias", (outputs,), (*path, "bias"))

    def norm(self, name: str, path: Path, width: int, layer=None) -> None:
        self.whole(f"{name}.weight", (width,), (*path, "scale"), layer)
        self.whole(f"{name}.bias", (width,), (*path, "bias"), layer)

    def dense(self, name: str, paths: list[Path], inputs: int, outputs: int, layer=None) -> None:
        """``Conv1D``: ``outputs`` columns for each of ``paths``, side by side."""
        for suffix, shape, leaf in ((".w", (inputs,), "kernel"), (".b", (), "bias")):
            spans = [(i * outputs, (i + 1) * outputs) if len(paths) > 1 else None for i in range(len(paths))]
            parts = [Part((*p, leaf), span, layer=layer) for p, span in zip(paths, spans, strict=True)]
            self.append(Entry(name + suffix, (*shape, outputs * len(paths)), tuple(parts)))


def vqvae_entries(preset: presets.VQVAE) -> list[Entry]:
    """Every tensor of a VQ-VAE's checkpoint (spec/models.md 7.1)."""
    table, e = _Table(), preset.codebook_dim
    for level in range(preset.levels):
        for block in range(level + 1):
            name, path = (
                f"encoders.{level}.level_blocks.{block}.model",
                ("params", f"encoder_{level}", f"block_{block}"),
            )
            _encoder_block(table, name, path, preset, level, block)
    for level in range(preset.levels):
        width, depth = preset.level_width_depth(level)
        for block in range(level + 1):
            name, path = (
                f"decoders.{level}.level_blocks.{block}.model",
                ("params", f"decoder_{level}", f"block_{block}"),
            )
            stride, stages = preset.strides[block], preset.down_depths[block]
            _decoder_block(table, name, path, e, stride, stages, width, depth, preset.hidden_ratio, "model")
        table.conv(f"decoders.{level}.out", ("params", f"decoder_{level}", "output"), e, 1, 3)
    for level in range(preset.levels if preset.use_bottleneck else 0):
        path = ("codebook", f"level_{level}", "codebook")
        table.whole(f"bottleneck.level_blocks.{level}.k", (preset.codebook_size, e), path)
    return table


def prior_entries(preset: presets.Prior, residuals: str = "blocks") -> list[Entry]:
    """Every tensor of a prior's checkpoint (spec/models.md 7.2-7.4). ``residuals``: see ``RESIDUALS``."""
    table, t, root = _Table(), preset.transformer, ("params",)
    width = t.width
    if preset.conditioner is not None:
        c, name, path = preset.conditioner, "conditioner_blocks.0", (*root, "conditioner")
        table.whole(f"{name}.x_emb.weight", (preset.codebook_size, width), (*path, "embedding"))
        up = (*path, "upsampler")
        _decoder_block(
            table, f"{name}.cond.model", up, width, c.stride, c.down_depth, c.width, c.depth, c.hidden_ratio, residuals
        )
        table.norm(f"{name}.ln", (*path, "norm"), width)
    if preset.labels is not None:
        tables = {"bow_genre": ("genre", preset.labels.num_genres), "artist": ("artist", preset.labels.num_artists)}
        if preset.conditioner is None:
            times = {
                "total_length": "total_length",
                "absolute_pos": "absolute_position",
                "relative_pos": "relative_position",
            }
            tables |= {name: (leaf, preset.labels.time_bins) for name, leaf in times.items()}
        for name, (leaf, rows) in tables.items():
            table.whole(f"y_emb.{name}_emb.emb.weight", (rows, width), (*root, "labels", leaf))
    lyrics = preset.lyrics
    if lyrics is not None and lyrics.encoder is not None:
        encoder, path = lyrics.encoder, (*root, "lyrics_encoder")
        _core(table, "prime_prior", path, encoder, lyrics.vocab_size, True, allowed=set())
        table.dense("prime_state_proj", [(*root, "lyrics_projection")], encoder.width, width)
        table.norm("prime_state_ln", (*root, "lyrics_norm"), width)
        table.whole("prime_x_out.weight", (lyrics.vocab_size, width), (*root, "lyrics_output"))
    separate = lyrics is not None and lyrics.encoder is not None
    allowed = ({Kind.LYRICS} if separate else set()) | ({Kind.PRIME} if preset.merged_lyrics else set())
    _core(table, "prior", root, t, preset.vocab_size, preset.labels is None, allowed)
    shape = (preset.vocab_size, width)
    if preset.tied_output:
        table.append(Entry("prior.x_out.weight", shape, (), same_as="prior.x_emb.weight"))
    else:
        table.whole("prior.x_out.weight", shape, (*root, "output"))
    return table


def import_vqvae(checkpoint: Checkpoint, preset: presets.VQVAE) -> dict[str, Any]:
    """``{"params", "codebook"}``, float32 numpy. Raises ``UserError`` with a table unless everything fits."""
    tree = read_all(import_tensors(str(checkpoint.path), checkpoint.tensors, vqvae_entries(preset)))
    return with_sums(tree)


def with_sums(variables: dict[str, Any]) -> dict[str, Any]:
    """Add the codebooks' running sums, which no checkpoint holds: every code is given a count of one.

    Training restores them by its own rule (spec/vqvae.md 2.6).
    """
    for level in variables.get("codebook", {}).values():
        level["sum"] = level["codebook"].copy()
        level["count"] = np.ones(len(level["codebook"]), np.float32)
    return variables


def stream_prior(checkpoint: Checkpoint, preset: presets.Prior) -> dict[str, Any]:
    """``{"params"}`` with lazy leaves (``StreamedArray``) in the file's types: for models larger than memory.

    Either naming of the conditioner's residual blocks is taken. Raises ``UserError`` with a table unless all fits.
    """
    entries = prior_entries(preset, residual_naming(checkpoint.tensors))
    return import_tensors(str(checkpoint.path), checkpoint.tensors, entries)


def import_prior(checkpoint: Checkpoint, preset: presets.Prior) -> dict[str, Any]:
    """``{"params"}``, float32 numpy. Raises ``UserError`` with a table unless everything fits."""
    return read_all(stream_prior(checkpoint, preset))


def import_moments(checkpoint: Checkpoint, preset: presets.VQVAE | presets.Prior) -> dict[str, Any]:
    """The original's Adam state: ``{"step": int, "exp_avg": {"params"}, "exp_avg_sq": {"params"}}``, float32 numpy.

    Its state is keyed by position among the ``model`` entries without codebooks, a tied weight counted once
    (spec/models.md section 6). ``UserError`` if the file has none, or one of half-precision parameters.
    """
    vqvae = isinstance(preset, presets.VQVAE)
    table = vqvae_entries(preset) if vqvae else prior_entries(preset, residual_naming(checkpoint.tensors))
    entries = [e for e in table if e.parts and e.parts[0].path[0] == "params"]
    trained = {entry.name for entry in entries}
    names = [name for name in checkpoint.tensors if name in trained]
    state = checkpoint.opt.get("state") if checkpoint.opt else None
    if not isinstance(state, dict) or not all(isinstance(state.get(i), dict) for i in range(len(names))):
        raise UserError(f"{checkpoint.path} has no complete optimiser state")
    moments: dict[str, Any] = {"step": state[0].get("step")}
    for kind in ("exp_avg", "exp_avg_sq"):
        found = {name: state[i].get(kind) for i, name in enumerate(names)}
        if any(not isinstance(t, LazyTensor) or f"scale_{kind}" in state[i] for i, t in enumerate(found.values())):
            raise UserError(f"{checkpoint.path}: the optimiser's {kind} is missing, or scaled for half precision")
        moments[kind] = read_all(import_tensors(f"{checkpoint.path} ({kind})", found, entries))
    return moments


def residual_naming(names: Iterable[str]) -> str:
    """How a prior's checkpoint names the residual blocks of its conditioner: one of ``RESIDUALS``."""
    plain = any(".cond.model.1.0.model." in name for name in names)
    return RESIDUALS[1] if plain else RESIDUALS[0]


def export_vqvae(variables: dict[str, Any], preset: presets.VQVAE) -> dict[str, OutgoingTensor]:
    """Our variables under the original's names; the codebook's running sums stay behind, as in the original."""
    leaves = flatten(variables)
    kept = {path: leaf for path, leaf in leaves.items() if path[0] != "codebook" or path[-1] == "codebook"}
    return export_tensors("the VQ-VAE", unflatten(kept), vqvae_entries(preset))


def export_prior(
    variables: dict[str, Any], preset: presets.Prior, residuals: str = "blocks"
) -> dict[str, OutgoingTensor]:
    """Our variables under the original's names."""
    return export_tensors(f"the prior of level {preset.level}", variables, prior_entries(preset, residuals))


def _encoder_block(table: _Table, name: str, path: Path, preset: presets.VQVAE, level: int, block: int) -> None:
    width, depth = preset.level_width_depth(level)
    stride, stages = preset.strides[block], preset.down_depths[block]
    for i in range(stages):
        inputs = width if i else preset.codebook_dim if block else 1
        table.conv(f"{name}.{i}.0", (*path, f"stage_{i}", "downsample"), inputs, width, 2 * stride)
        _resnet(table, f"{name}.{i}.1.model", (*path, f"stage_{i}", "resnet"), width, depth, preset.hidden_ratio)
    if stages:
        table.conv(f"{name}.{stages}", (*path, "output"), width, preset.codebook_dim, 3)


def _decoder_block(
    table: _Table, name: str, path: Path, outer: int, stride: int, stages: int, width: int, depth: int, ratio: float,
    residuals: str,
) -> None:  # fmt: skip
    """``outer``: the width that comes in and goes out."""
    if stages:
        table.conv(f"{name}.0", (*path, "input"), outer, width, 3)
    for i in range(stages):
        at = (*path, f"stage_{i}")
        _resnet(table, f"{name}.{i + 1}.0.{residuals}", (*at, "resnet"), width, depth, ratio)
        outputs = outer if i == stages - 1 else width
        table.conv(f"{name}.{i + 1}.1", (*at, "upsample"), width, outputs, 2 * stride, CONV_TRANSPOSE)


def _resnet(table: _Table, name: str, path: Path, width: int, depth: int, ratio: float) -> None:
    hidden = int(ratio * width)
    for d in range(depth):
        table.conv(f"{name}.{d}.model.1", (*path, f"block_{d}", "conv_0"), width, hidden, 3)
        table.conv(f"{name}.{d}.model.3", (*path, f"block_{d}", "conv_1"), hidden, width, 1)


def _core(
    table: _Table, name: str, path: Path, t: presets.Transformer, vocab: int, has_start: bool, allowed: set[Kind]
) -> None:
    """One autoregressive core. ``allowed``: which of the kinds that need lyrics it may have."""
    if has_start:
        table.whole(f"{name}.start_token", (1, t.width), (*path, "start"))
    table.whole(f"{name}.x_emb.weight", (vocab, t.width), (*path, "embedding"))
    table.whole(f"{name}.pos_emb.pos_emb", (t.length, t.width), (*path, "position"))
    for n, kind in enumerate(layer_kinds(t.pattern, t.depth)):
        if kind in {Kind.LYRICS, Kind.PRIME} - allowed:
            raise UserError(
                f"layer {n} of {name} ({t.pattern}) attends to lyrics, which this model does not have there"
            )
    table.extend(transformer_entries(t, f"{name}.transformer", (*path, "transformer")))


def transformer_entries(t: presets.Transformer, name: str, path: Path) -> list[Entry]:
    """The layers of a transformer, whose tensors start with ``name``."""
    table = _Table()
    for n, kind in enumerate(layer_kinds(t.pattern, t.depth)):
        segment, repeat, place = locate(t.pattern, t.depth, n)
        layer = (repeat, segments(t.pattern, t.depth)[segment].repeats)
        at = (*path, f"segment_{segment}", f"layer_{place}")
        here = f"{name}._attn_mods.{n}"
        query, key, value = ((*at, "attention", leaf) for leaf in ("query", "key", "value"))
        if kind is Kind.LYRICS:
            table.dense(f"{here}.attn.c_attn", [query], t.width, t.attention_width, layer)
            table.dense(f"{here}.attn.c_enc_kv", [key, value], t.width, t.attention_width, layer)
        else:
            table.dense(f"{here}.attn.c_attn", [query, key, value], t.width, t.attention_width, layer)
        table.dense(f"{here}.attn.c_proj", [(*at, "attention", "output")], t.attention_width, t.width, layer)
        table.norm(f"{here}.ln_0", (*at, "norm_0"), t.width, layer)
        table.dense(f"{here}.mlp.c_fc", [(*at, "mlp", "in")], t.width, t.mlp_dim, layer)
        table.dense(f"{here}.mlp.c_proj", [(*at, "mlp", "out")], t.mlp_dim, t.width, layer)
        table.norm(f"{here}.ln_1", (*at, "norm_1"), t.width, layer)
    return table
