"""Codes computed once: the windows of an audio loader, encoded, as a TFDS data set of their own.

A frozen VQ-VAE gives a window the same codes every time, so a prior can train without it. Record ``pass * num_items +
item`` of a split has the codes of that item in that pass, and what its labels are made from. Epochs use pass (epoch
modulo passes): an audio loader with the same seed and ``passes`` gives the same items, crops and labels at every step.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from etils import epath
from jaxtyping import Float32
from tqdm import tqdm

from jukebox_jax.data import records, summary
from jukebox_jax.data.items import AudioItems
from jukebox_jax.data.labels import Labeller
from jukebox_jax.data.loader import Loader
from jukebox_jax.data.records import Shard
from jukebox_jax.types import UserError, choose

FORMAT = 1
DESCRIPTION = "codes.json"
SHARD_RECORDS = 4096

# (b, a, 1) float32 -> {"codes": (b, t), "upper_codes": (b, u) if wanted}, integers
Encode = Callable[[Float32[np.ndarray, "b a 1"]], Mapping[str, np.ndarray]]


def write_codes(
    output: str | Path,
    dataset_dir: str | Path,
    encode: Encode,
    *,
    window_samples: int,
    batch_size: int,
    seed: int = 0,
    passes: int = 1,
    shift: bool = False,
    blend: bool = False,
    upper: bool = False,
    splits: Sequence[str] | None = None,
    min_duration: float | None = None,
    max_duration: float | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    shard_records: int = SHARD_RECORDS,
) -> dict[str, Any]:
    """Encode every item of a data set, ``passes`` times, and write the codes to ``output``; returns its description.

    ``encode`` gets full batches only (the last one is filled up with repeats). The train split is shifted and blended
    as asked; other splits are encoded as they are, once. ``upper``: ``encode`` also gives ``upper_codes``.
    ``provenance`` (JSON) identifies the encoder: an interrupted run goes on at the shard it was in if nothing differs.
    Raises ``UserError`` if ``output`` has codes already (unless ``overwrite``), for unusable data, and for codes beyond
    16 bits.
    """
    target = epath.Path(output)
    if (target / DESCRIPTION).exists() and not overwrite:
        raise UserError(f"output {target} has codes already: pass --overwrite to replace them, or another folder")
    table = summary.load(dataset_dir)
    for split in splits or ():
        choose(f"split of {dataset_dir}", split, table["splits"])
    range_of = {"min_duration": min_duration, "max_duration": max_duration}
    items = {}
    for split in splits or table["splits"]:
        train = split == "train"
        try:
            items[split] = AudioItems(
                dataset_dir, split, window_samples, seed=seed, shift=shift and train, blend=blend and train,
                passes=passes if train else 1, min_duration=min_duration, max_duration=max_duration,
            )  # fmt: skip
        except UserError:
            if train or splits:  # a test split of short songs, not asked for, is no reason to stop
                raise
    description = {
        "format": FORMAT, "sample_rate": table["sample_rate"], "window_samples": window_samples, "seed": seed,
        "passes": passes, "shift": shift, "blend": blend, "upper": upper, **range_of,
        "splits": {split: {"items": its.num_items, "passes": its.passes, "excluded": [s.file for s in its.excluded]}
                   for split, its in items.items()},
        "shard_records": shard_records, "dataset": str(dataset_dir), "provenance": dict(provenance or {}),
    }  # fmt: skip
    scratch = target / ".incomplete"
    if not _same(scratch / DESCRIPTION, description):
        scratch.rmtree(missing_ok=True)
    folder = scratch / records.CODES / records.VERSION
    folder.mkdir(parents=True, exist_ok=True)
    (scratch / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    features = records.codes_features(upper=upper)
    total = sum(its.num_items * (its.passes or 1) for its in items.values())
    written: dict[str, list[Shard]] = {}
    with tqdm(total=total, desc="encode", unit="window", disable=not progress) as bar:
        for split, its in items.items():
            written[split] = []
            count = its.num_items * (its.passes or 1)
            for start in range(0, count, shard_records):
                span = range(start, min(start + shard_records, count))
                written[split].append(_shard(folder, split, span, its, encode, batch_size, features, bar.update))
    records.finish(folder, records.CODES, features, written, f"Codes of {dataset_dir}")
    _publish(scratch, target, Path(dataset_dir) / "labels")
    return description


def _same(path: epath.Path, description: Mapping[str, Any]) -> bool:
    return path.exists() and json.loads(path.read_text()) == json.loads(json.dumps(description))


def _shard(
    folder: epath.Path,
    split: str,
    span: range,
    items: AudioItems,
    encode: Encode,
    batch_size: int,
    features: Any,
    tick: Callable[[int], Any],
) -> Shard:
    """Write the records of ``span``, unless an earlier run has done so."""
    path, done = folder / f"part-{split}-{span.start:010d}", folder / f"part-{split}-{span.start:010d}.json"
    if done.exists():
        tick(len(span))
        return Shard(**json.loads(done.read_text()))
    shard = records.write_shard(str(path), features, _encoded(span, items, encode, batch_size, features, tick))
    done.write_text(json.dumps(dataclasses.asdict(shard)))
    return shard


def _encoded(
    span: range, items: AudioItems, encode: Encode, batch_size: int, features: Any, tick: Callable[[int], Any]
) -> Iterator[dict[str, Any]]:
    def read(number: int) -> dict[str, Any]:
        epoch, item = divmod(span[min(number, len(span) - 1)], items.num_items)
        return items.example(epoch, item) | {"item": item, "pass": epoch}

    batches = -(-len(span) // batch_size)
    rows = grain.MapDataset.range(batches * batch_size).map(read).batch(batch_size, batch_fn=list)
    left = len(span)
    for examples in rows.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)):
        encoded = encode(np.stack([example["audio"] for example in examples]))
        codes = {key: _small(np.asarray(encoded[key])) for key in ("codes", "upper_codes") if key in features}
        for row, example in enumerate(examples[:left]):
            yield {key: value for key, value in example.items() if key != "audio"} | {
                k: v[row] for k, v in codes.items()
            }
        tick(min(left, batch_size))
        left -= batch_size


def _small(codes: np.ndarray) -> np.ndarray:
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < 1 << 16:
        raise UserError(f"codes from {codes.min()} to {codes.max()} can't be stored: allowed are 0 to 65535")
    return codes.astype(np.uint16)


def _publish(scratch: epath.Path, target: epath.Path, labels: Path) -> None:
    """Put the finished data set in place, the description last, with a copy of the audio data set's label tables."""
    (target / DESCRIPTION).unlink(missing_ok=True)
    for name in ("labels", records.CODES):
        (target / name).rmtree(missing_ok=True)
    folder = target / records.CODES / records.VERSION
    folder.mkdir(parents=True)
    for path in (scratch / records.CODES / records.VERSION).iterdir():
        if not path.name.startswith("part-"):
            path.rename(folder / path.name)
    (target / "labels").mkdir()
    for path in labels.iterdir():
        epath.Path(path).copy(target / "labels" / path.name)
    (scratch / DESCRIPTION).rename(target / DESCRIPTION)
    scratch.rmtree()


def load_description(codes_dir: str | Path) -> dict[str, Any]:
    """What ``write_codes`` returned. Raises ``UserError`` if ``codes_dir`` has no codes of this version."""
    path = Path(codes_dir) / DESCRIPTION
    if not path.is_file():
        raise UserError(f"{codes_dir} has no codes: it has no {DESCRIPTION} (make them with `jukebox encode`)")
    table = json.loads(path.read_text(encoding="utf-8"))
    if table.get("format") != FORMAT:
        raise UserError(f"{path} has format {table.get('format')!r}; this version reads {FORMAT}")
    return table


class CodesItems:
    """The items of a split of a codes data set; the same as those of ``AudioItems``, encoded."""

    def __init__(self, codes_dir: str | Path, split: str):
        self.description = load_description(codes_dir)
        self.source = records.open_split(codes_dir, records.CODES, split)
        sizes = self.description["splits"][split]
        self.num_items, self.passes = int(sizes["items"]), int(sizes["passes"])
        self.window, self.sample_rate = int(self.description["window_samples"]), int(self.description["sample_rate"])

    def example(self, epoch: int, item: int) -> dict[str, Any]:
        """``codes`` int32 (t,), ``upper_codes`` int32 (u,) if there are; the rest as ``AudioItems.example`` has it."""
        known = self.source[epoch % self.passes * self.num_items + item]
        codes = {key: known[key].astype(np.int32) for key in ("codes", "upper_codes") if key in known}
        numbers = {key: int(known[key]) for key in ("song", "total_length", "offset")}
        return codes | numbers | {key: known[key].decode("utf-8") for key in ("artist", "genre", "lyrics")}


def make_codes_loader(
    codes_dir: str | Path,
    split: str,
    batch_size: int,
    seed: int | None = None,
    *,
    labeller: Labeller | None = None,
    window_samples: int | None = None,
    shuffle: bool | None = None,
    rows: Sequence[int] | None = None,
) -> Loader:
    """{"codes": int32 (b, t), "upper_codes": int32 (b, u) if there are, "y": int32 (b, columns) if ``labeller``}.

    With ``seed`` None (the seed of the crops) or that seed: step for step what ``loader.make_loader`` gives with the
    settings of ``load_description``, encoded. Another seed only changes the order. ``window_samples`` is the prior's,
    to be checked; ``rows`` as in ``Loader``. Raises ``UserError`` if there is not even one batch.
    """
    items = CodesItems(codes_dir, split)
    wanted = labeller.window_samples if labeller is not None and labeller.labels is not None else window_samples
    if wanted is not None and wanted != items.window:
        raise UserError(f"{codes_dir} has windows of {items.window} samples; the prior takes {wanted}: encode again")
    shuffle = split == "train" if shuffle is None else shuffle
    if shuffle and items.num_items < batch_size:
        raise UserError(
            f"{codes_dir}, split {split}: {items.num_items} windows, fewer than one batch of {batch_size}."
            f" Batch sizes up to {items.num_items} are allowed with these codes"
        )
    seed = int(items.description["seed"]) if seed is None else seed
    return Loader(items, batch_size, seed, shuffle=shuffle, labeller=labeller, rows=rows)
