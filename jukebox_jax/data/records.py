"""TFDS data sets of ArrayRecord shards, written and read without TensorFlow.

Each worker writes whole shards with TFDS's serialiser; ``tfds.folder_dataset.write_metadata`` then makes the folder a
TFDS data set: ``tfds.data_source(name, data_dir=DIR, split=...)`` and ``tfds.builder`` read it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core import example_serializer

from jukebox_jax.data.audio import publish
from jukebox_jax.types import UserError, choose

VERSION = "1.0.0"
AUDIO = "jukebox_audio"
CODES = "jukebox_codes"
OPTIONS = "group_size:1,uncompressed"  # 16-bit sound hardly shrinks, and reading is 2-3 times as fast


@dataclass(frozen=True)
class Shard:
    """A written shard: where, how many records, how many bytes."""

    path: str
    records: int
    bytes: int


def audio_features() -> Any:
    """One record of audio: a piece of a song, and all that is known of the song."""
    f = tfds.features
    return f.FeaturesDict(
        {
            "audio": f.Tensor(shape=(None, None), dtype=np.int16, encoding=f.Encoding.BYTES, doc="frames x channels"),
            "song": f.Scalar(np.int64, doc="id of the song, unique over all splits"),
            "record": f.Scalar(np.int64, doc="position of this record in its song"),
            "offset": f.Scalar(np.int64, doc="first frame of this record in its song"),
            "total_length": f.Scalar(np.int64, doc="frames in the song"),
            "artist": f.Text(),
            "genre": f.Text(),
            "title": f.Text(),
            "lyrics": f.Text(),
        }
    )


def codes_features(*, upper: bool) -> Any:
    """One window of codes: which item of the audio loader it is, in which pass, and what labels are made from."""
    f = tfds.features
    codes = {key: f.Tensor(shape=(None,), dtype=np.uint16, encoding=f.Encoding.BYTES) for key in _code_keys(upper)}
    numbers = {key: f.Scalar(np.int64) for key in ("item", "pass", "song", "offset", "total_length")}
    return f.FeaturesDict(codes | numbers | {key: f.Text() for key in ("artist", "genre", "lyrics")})


def _code_keys(upper: bool) -> tuple[str, ...]:
    return ("codes", "upper_codes") if upper else ("codes",)


def write_shard(path: str, features: Any, examples: Iterable[Mapping[str, Any]]) -> Shard:
    """Write examples to one ArrayRecord file, one record per group, as they come. Nothing is left for no example.

    The file appears at ``path`` (which may be remote) only when it is complete. The same examples give the same bytes.
    """
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    folder = None if "://" in path else os.path.dirname(path)
    handle, partial = tempfile.mkstemp(dir=folder, prefix=".partial_")
    os.close(handle)
    records = 0
    try:
        writer = ArrayRecordWriter(partial, OPTIONS)
        for example in examples:
            proto = serializer.get_tf_example(features.encode_example(dict(example)))
            writer.write(proto.SerializeToString(deterministic=True))  # its map has no order of its own
            records += 1
        writer.close()
        size = os.path.getsize(partial)
        if records:
            os.chmod(partial, 0o644)
            publish(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
    return Shard(path, records, size if records else 0)


def finish(
    folder: epath.PathLike, name: str, features: Any, shards: Mapping[str, list[Shard]], description: str
) -> None:
    """Rename the shards of each split, in order, as TFDS has it, in ``folder`` (the version folder); add metadata."""
    infos = []
    for split, written in shards.items():
        written = [shard for shard in written if shard.records]
        template = _template(folder, name).replace(split=split)
        for shard, path in zip(written, template.sharded_filepaths(len(written)), strict=True):
            epath.Path(shard.path).rename(path)
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.records for shard in written],
                num_bytes=sum(shard.bytes for shard in written),
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=infos,
        filename_template=_template(folder, name),
        check_data=False,
        description=description,
    )


def _template(folder: epath.PathLike, name: str) -> Any:
    return tfds.core.ShardedFileTemplate(data_dir=epath.Path(folder), dataset_name=name, filetype_suffix="array_record")


def version_folder(dataset_dir: str | Path, name: str) -> Path:
    """Where the shards of a data set lie: the layout of TFDS."""
    return Path(dataset_dir) / name / VERSION


def open_split(dataset_dir: str | Path, name: str, split: str) -> Any:
    """The random-access records of a split (``tfds.data_source``). Raises ``UserError`` if there are none."""
    folder = version_folder(dataset_dir, name)
    command = "dataset" if name == AUDIO else "encode"
    if not (folder / "dataset_info.json").is_file():
        raise UserError(f"{dataset_dir} has no data set made by `jukebox {command}` (no {name}/{VERSION} in it)")
    builder = tfds.builder_from_directory(folder)
    choose(f"split of {dataset_dir}", split, builder.info.splits)
    return tfds.data_source(f"{name}:{VERSION}", data_dir=os.fspath(dataset_dir), split=split)
