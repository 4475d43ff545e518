"""Batches for training: the global batch at a step is a function of (seed, step) alone.

There is no iterator to save, and any number of processes sees the same global batches, each its own rows. Grain's
``MapDataset`` gives the order of an epoch, random access, and threads that read ahead.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int64

from jukebox_jax.data.items import AudioItems
from jukebox_jax.data.labels import Labeller
from jukebox_jax.types import UserError

SMALL = 1 << 16  # items whose order is drawn at once

Batch = dict[str, np.ndarray]


@runtime_checkable
class Examples(Protocol):
    """What a loader draws from: ``AudioItems``, or ``codes.CodesItems``."""

    num_items: int

    def example(self, epoch: int, item: int) -> dict[str, Any]: ...


class Order:
    """Which item stands in which row of which step.

    ``shuffle``: every epoch is a new permutation; what does not fill its last batch is left out. Otherwise the items in
    order; the last batch of an epoch is filled up from the first items (``num_valid`` rows are not repeats).
    """

    def __init__(self, num_items: int, batch_size: int, seed: int, shuffle: bool):
        self.num_items, self.batch_size = num_items, batch_size
        whole, rest = divmod(num_items, batch_size)
        self.steps_per_epoch = whole if shuffle else whole + bool(rest)
        digest = hashlib.blake2b(f"order {seed}".encode(), digest_size=4).digest()
        self.seed, self.shuffle = int.from_bytes(digest, "little"), shuffle
        self._grain = grain.MapDataset.range(num_items).shuffle(self.seed).repeat()
        self._small = functools.lru_cache(maxsize=4)(self._permutation)

    def place(self, step: int, row: int) -> tuple[int, int]:
        """(epoch, item) of row ``row`` of the global batch at ``step``."""
        epoch, step = divmod(step, self.steps_per_epoch)
        position = (step * self.batch_size + row) % self.num_items
        if not self.shuffle:
            return epoch, position
        if self.num_items <= SMALL:
            return epoch, int(self._small(epoch)[position])
        return epoch, int(self._grain[epoch * self.num_items + position])  # pyright: ignore[reportArgumentType]

    def _permutation(self, epoch: int) -> Int64[np.ndarray, "n"]:
        """Grain finds each position of an epoch by itself, which takes milliseconds where there are few."""
        return np.argsort(np.random.Philox(key=[self.seed, epoch]).random_raw(self.num_items), kind="stable")

    def num_valid(self, step: int) -> int:
        """Rows of the global batch at ``step`` that are not repeats of the epoch's first items."""
        done = (step % self.steps_per_epoch) * self.batch_size
        return min(self.batch_size, self.num_items - done)


class Loader:
    """Batches of examples: ``batch(step)`` for random access, ``iterate(start_step)`` with threads that read ahead.

    A batch has the arrays of the examples, stacked, and ``y`` int32 (b, columns) if there is a ``labeller``: only those
    of ``rows`` (of the global batch; default all), which is a process's share. Attributes: ``num_items``,
    ``steps_per_epoch``, ``batch_size`` (global), ``rows``, ``examples``.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool = True,
        labeller: Labeller | None = None,
        rows: Sequence[int] | None = None,
    ):
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: it must be at least 1")
        self.examples, self.labeller, self.batch_size = examples, labeller, batch_size
        self.num_items = examples.num_items
        self.order = Order(self.num_items, batch_size, seed, shuffle)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.rows = range(batch_size) if rows is None else tuple(rows)
        self._batches = grain.MapDataset.range(sys.maxsize).map(self._row).batch(len(self.rows))

    def batch(self, step: int) -> Batch:
        """``rows`` of the global batch at ``step``."""
        return self._batches[step]  # pyright: ignore[reportReturnType]

    def iterate(self, start_step: int = 0, *, threads: int = 4, ahead: int = 4) -> Iterator[Batch]:
        """The batches from ``start_step`` on, without end; ``threads`` read up to ``ahead`` batches ahead."""
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        return iter(self._batches[start_step:].to_iter_dataset(options))

    def num_valid(self, step: int) -> int:
        """Rows of the global batch at ``step`` that are not repeats (always all of them in a shuffled loader)."""
        return self.order.num_valid(step)

    def _row(self, number: int) -> Batch:
        step, row = divmod(number, len(self.rows))
        epoch, item = self.order.place(step, self.rows[row])
        example = self.examples.example(epoch, item)
        arrays = {key: value for key, value in example.items() if isinstance(value, np.ndarray)}
        if self.labeller is not None:
            arrays["y"] = self.labeller.label(example)[0].astype(np.int32)
        return arrays


def make_loader(
    dataset_dir: str | Path,
    split: str,
    window_samples: int,
    batch_size: int,
    seed: int,
    *,
    labeller: Labeller | None = None,
    shift: bool = False,
    blend: bool = False,
    passes: int | None = None,
    shuffle: bool | None = None,
    min_duration: float | None = None,
    max_duration: float | None = None,
    sample_rate: int | None = None,
    rows: Sequence[int] | None = None,
) -> Loader:
    """Crops of ``window_samples`` samples: {"audio": float32 (b, a, 1), "y": int32 (b, columns) if ``labeller``}.

    ``batch_size`` is global. The train split is shuffled, others come in order (``shuffle`` overrides). Durations in
    seconds; they default to the range that the labels cover. ``sample_rate`` is the model's, to be checked. The crops
    are those of ``items.AudioItems``; ``rows`` as in ``Loader``. Raises ``UserError`` if the split has not one batch.
    """
    labels = labeller.labels if labeller is not None else None
    if labels is not None:
        min_duration = labels.min_duration if min_duration is None else min_duration
        max_duration = labels.max_duration if max_duration is None else max_duration
        sample_rate = labels.sample_rate if sample_rate is None else sample_rate
    examples = AudioItems(
        dataset_dir, split, window_samples, seed=seed, shift=shift, blend=blend, passes=passes,
        min_duration=min_duration, max_duration=max_duration, sample_rate=sample_rate,
    )  # fmt: skip
    if labeller is not None:
        for song in {
            song.genre: song for song in examples.songs
        }.values():  # a genre it refuses: now, not in mid-training
            labeller.label({"artist": song.artist, "genre": song.genre, "total_length": song.total_length, "offset": 0})
    shuffle = split == "train" if shuffle is None else shuffle
    if shuffle and examples.num_items < batch_size:
        rate, window = examples.sample_rate, examples.window / examples.sample_rate
        raise UserError(
            f"{dataset_dir}, split {split}: {examples.total / rate:.4g} s of music in songs long enough; one batch of"
            f" {batch_size} windows of {window:.3g} s needs {batch_size * window:.4g} s. Batch sizes up to"
            f" {examples.num_items} are allowed with this data"
        )
    return Loader(examples, batch_size, seed, shuffle=shuffle, labeller=labeller, rows=rows)
