"""Activations of a top prior as features of audio: what its first layers make of the codes of a recording.

A recording is cut into windows of one context, and each is encoded and run alone. So a recording's features do not
depend on what else is processed. Only the layers asked for are read from disk and run.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from jukebox_jax import presets
from jukebox_jax.checkpoint import bundle
from jukebox_jax.data.labels import Labeller, Vocabulary
from jukebox_jax.data.vocabulary import UNKNOWN
from jukebox_jax.models.pattern import locate, segments
from jukebox_jax.models.prior import Prior
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.types import UserError, choose

POOLS = ("mean", "max", "none")


@dataclass(frozen=True)
class Extractor:
    """A VQ-VAE and the first ``num_layers`` layers of its top prior; made by ``load``. ``window`` is in samples."""

    vqvae: presets.VQVAE
    prior: presets.Prior
    variables: Any  # of the VQ-VAE
    params: Any  # of the prior
    num_layers: int
    labeller: Labeller

    @property
    def window(self) -> int:
        return self.prior.window_samples

    @property
    def frame_rate(self) -> float:
        """Frames per second: one per code."""
        return self.vqvae.sample_rate / self.prior.hop_length

    def frames(
        self, windows: Iterable[Float[np.ndarray, "_"]], total_length: int, artist: str = UNKNOWN, genre: str = UNKNOWN
    ) -> Iterator[Float32[np.ndarray, "_ d"]]:
        """Frames of each window of one recording of ``total_length`` samples: ``window`` samples at the model's rate.

        The last window may be shorter, and has as many frames as whole codes fit. The label row says where in the
        recording a window is, with lengths moved into the range that the model knows, and names no artist or genre
        unless one is given (``UserError`` for unknown ones).
        """
        for index, audio in enumerate(windows):
            count = len(audio) // self.prior.hop_length
            if not count:
                continue
            size = padded_length(self.prior, count) * self.prior.hop_length
            padded = np.zeros((1, size, 1), np.float32)
            padded[0, : len(audio), 0] = audio[:size]
            y = self._row(index * self.window, total_length, artist, genre)
            yield np.asarray(self._run(self.variables, self.params, padded, y)[:count])

    def _row(self, start: int, total_length: int, artist: str, genre: str) -> Any:
        labels = self.prior.labels
        if labels is None:
            return None
        rate, high = labels.sample_rate, labels.max_duration
        total = max(total_length, math.ceil((labels.min_duration or 0) * rate))
        if high is not None:
            total = min(total, math.ceil(high * rate) - 1)
            start = max(0, min(start, math.floor(high * rate) - self.window))
        meta = {"artist": artist, "genre": genre, "total_length": total, "offset": min(start, total - 1)}
        return self.labeller.label(meta)[0].astype(np.int32)[None]

    @functools.cached_property
    def _run(self) -> Any:
        encoder, model, level = VQVAE(self.vqvae), Prior(self.prior), self.prior.level

        @jax.jit
        def run(variables: Any, params: Any, audio: Any, y: Any) -> Any:
            codes = encoder.apply(variables, audio, level, method="encode_level")
            cond = model.apply({"params": params}, y, None, method="condition")
            hidden = model.apply({"params": params}, codes, cond, self.num_layers, method="hidden")
            return jnp.asarray(hidden)[0, self.prior.merged_lyrics :]

        return run


def load(directory: str | Path, layer: int) -> Extractor:
    """The extractor of a model directory, for activations after the first ``layer`` layers of its top prior.

    Raises ``UserError`` where the model has no VQ-VAE or top prior, or not so many layers.
    """
    description = bundle.load_description(directory)
    if description.vqvae is None or description.vqvae.levels - 1 not in description.priors:
        have = ", ".join(description.components)
        raise UserError(f"features need a VQ-VAE and the prior of its top level; model {directory} has {have}")
    prior = description.priors[description.vqvae.levels - 1]
    depth = prior.transformer.depth
    if not 1 <= layer <= depth:
        raise UserError(f"layer {layer}: the top prior of {directory} has layers 1 to {depth}")
    vocabulary = None
    if prior.labels is not None:
        vocabulary = Vocabulary.load(bundle.labels_dir(directory), prior.labels.version)
    labeller = Labeller(prior.labels, vocabulary, prior.window_samples, strict=True)
    stored = bundle.open_component(directory, bundle.prior_component(prior.level))["params"]
    # Where layers are scaled by 1 / depth, all of them are kept, so that the depth is what it was.
    kept = depth if prior.transformer.residual_scale else layer
    rest = {name: part for name, part in stored.items() if name != "transformer"}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf[...], jnp.float32), rest)
    params["transformer"] = first_layers(stored["transformer"], prior.transformer, kept)
    prior = dataclasses.replace(prior, transformer=dataclasses.replace(prior.transformer, depth=kept))
    return Extractor(description.vqvae, prior, bundle.load_component(directory, "vqvae"), params, layer, labeller)


def first_layers(stored: Any, config: presets.Transformer, depth: int) -> dict[str, Any]:
    """Parameters of a transformer of the first ``depth`` layers of ``stored``, stacked as that one needs them.

    The leaves of ``stored`` may be on disk (``bundle.open_component``): no other layer is read.
    """
    places = iter([locate(config.pattern, config.depth, layer) for layer in range(depth)])
    stacks = {}
    for index, (kinds, repeats) in enumerate(segments(config.pattern, depth)):
        groups = [[next(places) for _ in kinds] for _ in range(repeats)]
        columns = enumerate(zip(*groups, strict=True))
        stacks[f"segment_{index}"] = {f"layer_{j}": _gather(stored, column) for j, column in columns}
    return stacks


def _gather(stored: Any, column: Sequence[tuple[int, int, int]]) -> Any:
    """The layers at these (segment, repeat, place), on a leading axis."""
    runs = [
        (stored[f"segment_{segment}"][f"layer_{place}"], [repeat for _, repeat, _ in run])
        for (segment, place), run in itertools.groupby(column, key=lambda layer: (layer[0], layer[2]))
    ]

    def join(*leaves: Any) -> Any:
        parts = [leaf[np.array(rows)] for leaf, (_, rows) in zip(leaves, runs, strict=True)]
        return jnp.asarray(np.concatenate(parts), jnp.float32)

    return jax.tree.map(join, *(tree for tree, _ in runs))


def padded_length(config: presets.Prior, count: int) -> int:
    """Codes to compute for ``count`` of them: whole blocks, and few different lengths, as each is compiled."""
    block, lyrics = config.transformer.block_length, config.merged_lyrics
    blocks = 1 << (-(-(lyrics + count) // block) - 1).bit_length()
    return min(blocks * block, config.transformer.length) - lyrics


def pool(windows: Iterable[Float[np.ndarray, "_ d"]], how: str) -> Float32[np.ndarray, "..."]:
    """All frames (t, d) of a recording's windows, or their ``mean`` or ``max`` (d,); float32.

    Raises ``UserError`` if there is not one frame.
    """
    choose("pool", how, POOLS)
    kept: list[Any] = []
    count = 0
    for frames in windows:
        count += len(frames)
        reduced = {"none": lambda x: x, "max": lambda x: x.max(0), "mean": lambda x: x.sum(0, dtype=np.float64)}
        kept.append(reduced[how](frames))
    if not count:
        raise UserError("the audio is shorter than one code: there is no frame")
    if how == "none":
        return np.concatenate(kept)
    return np.max(kept, axis=0) if how == "max" else (np.sum(kept, axis=0) / count).astype(np.float32)
