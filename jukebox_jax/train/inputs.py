"""What a run reads: batches of the data set, and the labels that its songs give a prior."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import jax

from jukebox_jax import presets
from jukebox_jax.checkpoint import bundle
from jukebox_jax.data import summary
from jukebox_jax.data.labels import Labeller
from jukebox_jax.data.loader import Loader, make_loader
from jukebox_jax.data.vocabulary import Vocabulary
from jukebox_jax.train.experiment import Experiment
from jukebox_jax.types import UserError


class Inputs(NamedTuple):
    """Loaders of both splits, and what they decided about the model."""

    model: presets.VQVAE | presets.Prior  # with the data's label tables and durations
    sample_rate: int
    train: Loader
    test: Loader | None  # None: the data set has no test split, or none of its songs is long enough
    vocabulary: Vocabulary | None


def open_inputs(experiment: Experiment, sample_rate: int) -> Inputs:
    """Open the data set of an experiment. ``sample_rate``: of the VQ-VAE, which the data must have."""
    if not experiment.dataset:
        raise UserError("no data set: give --dataset=DIR (made by `jukebox dataset`) or config.dataset")
    table = summary.load(experiment.dataset)
    model, vocabulary = experiment.model, None
    if isinstance(model, presets.Prior) and model.labels is not None:
        if experiment.init_from:
            vocabulary = Vocabulary.load(bundle.labels_dir(experiment.init_from), model.labels.version)
        else:
            vocabulary = Vocabulary.load(Path(experiment.dataset) / "labels", table["label_version"])
            model = with_labels(model, vocabulary, table["sample_rate"], _longest(experiment.dataset))
    train = _loader(experiment, model, vocabulary, sample_rate, "train")
    test = None
    if "test" in table["splits"]:
        try:
            test = _loader(experiment, model, vocabulary, sample_rate, "test")
        except UserError:  # songs shorter than a window: training does not depend on them
            test = None
    return Inputs(model, sample_rate, train, test, vocabulary)


def with_labels(model: presets.Prior, vocabulary: Vocabulary, sample_rate: int, longest: int) -> presets.Prior:
    """The preset with tables for these names, and durations from one window to the longest song where it has none.

    ``longest``: samples. Lyrics take the vocabulary's version of the alphabet.
    """
    labels, lyrics = model.labels, model.lyrics
    assert labels is not None
    low, high = model.window_samples / sample_rate, math.floor(longest / sample_rate) + 1.0
    labels = dataclasses.replace(
        labels, version=vocabulary.version, num_artists=vocabulary.num_artists, num_genres=vocabulary.num_genres,
        sample_rate=sample_rate, min_duration=low if labels.min_duration is None else labels.min_duration,
        max_duration=high if labels.max_duration is None else labels.max_duration,
    )  # fmt: skip
    if lyrics is not None:
        lyrics = dataclasses.replace(lyrics, vocab_size={"v2": 80, "v3": 79}[vocabulary.version])
    return dataclasses.replace(model, labels=labels, lyrics=lyrics)


def keep_vocabulary(vocabulary: Vocabulary, workdir: Path) -> None:
    """Copy the names into the model directory. ``UserError`` if it has others already: one model, one set of names."""
    target = bundle.labels_dir(workdir)
    if any(Path(target).glob(f"{vocabulary.version}_*_ids.txt")):
        there = Vocabulary.load(target, vocabulary.version)
        if (there.artists, there.genres) != (vocabulary.artists, vocabulary.genres):
            raise UserError(
                f"{target} has the names of another data set: train all priors of a model on one data set,"
                " or use another --workdir"
            )
    vocabulary.save(Path(target))


def _longest(dataset: str) -> int:
    splits = summary.load(dataset)["splits"]
    return max(song.total_length for split in splits for song in summary.load_songs(dataset, split))


def _loader(
    experiment: Experiment, model: presets.VQVAE | presets.Prior, vocabulary: Vocabulary | None, rate: int, split: str
) -> Loader:
    window = model.window_samples if isinstance(model, presets.Prior) else experiment.window_samples
    labels = model.labels if isinstance(model, presets.Prior) else None
    labeller = Labeller(labels, vocabulary, window) if labels is not None else None
    return make_loader(
        experiment.dataset, split, window, experiment.batch_size, experiment.seed, labeller=labeller,
        shift=experiment.shift, blend=experiment.blend, sample_rate=rate,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip
