"""A small folder of music whose samples tell where they come from, and the data set made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from jukebox_jax.data import builder

RATE = 2000
SECONDS = {"a/one.wav": 7.0, "a/two.wav": 3.3, "b/three.wav": 12.5, "b/four.wav": 5.0, "five.wav": 1.2, "six.wav": 9.9}
METADATA = """file,artist,genre,title,lyrics
a/one.wav,Ann,Jazz,First,"la la la
na na"
a/two.wav,Ann,Pop,,
b/three.wav,Zoë,Jazz,,doo doo doo doo doo doo
b/four.wav,Zoë,Pop,,
five.wav,Bob,Pop,,
six.wav,Bob,Jazz,,hey
"""


def song_samples(name: str) -> np.ndarray:
    """int16 (a, 2): left is the position in the song, right says which song it is."""
    length = round(SECONDS[name] * RATE)
    right = np.full(length, 100 * (1 + sorted(SECONDS).index(name)))
    return np.stack([np.arange(length), right], 1).astype(np.int16)


@pytest.fixture(scope="session")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six songs in wav files, with metadata.csv."""
    folder = tmp_path_factory.mktemp("music")
    for name in SECONDS:
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, song_samples(name), RATE)
    (folder / "metadata.csv").write_text(METADATA, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def dataset_dir(music: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of ``music``: records of one second, several shards, a quarter of the songs for test."""
    output = tmp_path_factory.mktemp("data") / "set"
    builder.build(
        music,
        output,
        sample_rate=RATE,
        record_seconds=1.0,
        test_fraction=0.3,
        workers=1,
        progress=False,
        shard_bytes=50_000,
    )
    return output
