"""What a run reads: batches of the data set, and the labels that its songs give a prior."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jukebox_jax import presets
from jukebox_jax.checkpoint import bundle
from jukebox_jax.data import codes, summary
from jukebox_jax.data.labels import Labeller
from jukebox_jax.data.loader import Loader, make_loader
from jukebox_jax.data.lyrics import ALPHABETS
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


class Facts(NamedTuple):
    """What a data set, of audio or of codes, says of itself."""

    sample_rate: int
    splits: tuple[str, ...]
    label_version: str
    min_duration: float | None  # of all songs to read, in seconds; None: not decided yet
    max_duration: float | None


def open_inputs(experiment: Experiment, sample_rate: int, rows: Sequence[int] | None = None) -> Inputs:
    """Open the data set of an experiment. ``sample_rate``: of the VQ-VAE, which the data must have.

    ``rows``: those of each batch that this process reads; default all.
    """
    if not experiment.dataset:
        raise UserError("no data set: give --dataset=DIR (made by `jukebox dataset`) or config.dataset")
    facts, model, vocabulary = _facts(experiment), experiment.model, None
    if facts.sample_rate != sample_rate:
        raise UserError(
            f"{experiment.dataset} is at {facts.sample_rate} Hz, the model at {sample_rate} Hz:"
            f" make one with `jukebox dataset --sample_rate={sample_rate}`"
        )
    if isinstance(model, presets.Prior) and model.labels is not None:
        if experiment.init_from:
            vocabulary = Vocabulary.load(bundle.labels_dir(experiment.init_from), model.labels.version)
        else:
            vocabulary = Vocabulary.load(Path(experiment.dataset) / "labels", facts.label_version)
            model = with_labels(model, vocabulary, facts)
    train = _loader(experiment, model, vocabulary, "train", rows)
    test = None
    if "test" in facts.splits:
        try:
            test = _loader(experiment, model, vocabulary, "test", rows)
        except UserError:  # songs shorter than a window: training does not depend on them
            test = None
    return Inputs(model, sample_rate, train, test, vocabulary)


def with_labels(model: presets.Prior, vocabulary: Vocabulary, facts: Facts) -> presets.Prior:
    """The preset with tables for these names, and with the data's durations where it has none.

    Lyrics take the alphabet of the vocabulary's version.
    """
    labels, lyrics = model.labels, model.lyrics
    assert labels is not None
    labels = dataclasses.replace(
        labels, version=vocabulary.version, num_artists=vocabulary.num_artists, num_genres=vocabulary.num_genres,
        sample_rate=facts.sample_rate,
    )  # fmt: skip
    if model.conditioner is None:  # upsamplers know no times
        low = facts.min_duration or model.window_samples / facts.sample_rate
        labels = dataclasses.replace(
            labels, min_duration=low if labels.min_duration is None else labels.min_duration,
            max_duration=facts.max_duration if labels.max_duration is None else labels.max_duration,
        )  # fmt: skip
    if lyrics is not None:
        lyrics = dataclasses.replace(lyrics, vocab_size=len(ALPHABETS[vocabulary.version]))
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


def _facts(experiment: Experiment) -> Facts:
    """From the description of the audio, or of the codes that `jukebox encode` made for this prior."""
    folder = Path(experiment.dataset)
    if (folder / codes.DESCRIPTION).is_file():
        table = codes.load_description(folder)
        model = experiment.model
        if not isinstance(model, presets.Prior) or table["provenance"].get("level", model.level) != model.level:
            made_for = f"level {table['provenance'].get('level')}"
            raise UserError(f"{folder} has codes of {made_for}: they do not train {experiment.component}")
        version = next((folder / "labels").glob("*_artist_ids.txt")).name.partition("_")[0]
        return Facts(
            table["sample_rate"], tuple(table["splits"]), version, table["min_duration"], table["max_duration"]
        )
    table = summary.load(folder)
    rate, splits = table["sample_rate"], tuple(table["splits"])
    longest = max(song.total_length for split in splits for song in summary.load_songs(folder, split))
    return Facts(rate, splits, table["label_version"], None, math.floor(longest / rate) + 1.0)


def _loader(
    experiment: Experiment,
    model: presets.VQVAE | presets.Prior,
    vocabulary: Vocabulary | None,
    split: str,
    rows: Sequence[int] | None,
) -> Loader:
    """Batches of a split. Test items are neither shifted nor mixed at random: figures of different runs compare."""
    window = model.window_samples if isinstance(model, presets.Prior) else experiment.window_samples
    labels = model.labels if isinstance(model, presets.Prior) else None
    labeller = Labeller(labels, vocabulary, window) if labels is not None else None
    if (Path(experiment.dataset) / codes.DESCRIPTION).is_file():
        return codes.make_codes_loader(
            experiment.dataset, split, experiment.batch_size, experiment.seed, labeller=labeller,
            window_samples=window, rows=rows,
        )  # fmt: skip
    train = split == "train"
    return make_loader(
        experiment.dataset, split, window, experiment.batch_size, experiment.seed, labeller=labeller,
        shift=experiment.shift and train, blend=experiment.blend and train, passes=experiment.passes or None, rows=rows,
    )  # fmt: skip
