"""The data set: what is in it, that it is TFDS's, and that no file is lost without a word."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from jukebox_jax.data import builder, records, summary, workers
from jukebox_jax.data.labels import Vocabulary
from jukebox_jax.types import UserError

from .conftest import RATE, SECONDS, song_samples

BUILD = {"sample_rate": RATE, "record_seconds": 1.0, "test_fraction": 0.3, "progress": False, "shard_bytes": 50_000}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def noise(seconds: float, channels: int = 2, rate: int = RATE) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels))


def test_records(dataset_dir: Path):
    found = {}
    for split in ("train", "test"):
        source = tfds.data_source("jukebox_audio", data_dir=dataset_dir, split=split)
        songs = summary.load_songs(dataset_dir, split)
        assert len(source) == sum(song.records for song in songs)
        for song in songs:
            pieces = [source[song.first_record + number] for number in range(song.records)]
            assert [piece["record"] for piece in pieces] == list(range(song.records))
            assert [piece["offset"] for piece in pieces] == [RATE * number for number in range(song.records)]
            assert {(piece["song"], piece["total_length"]) for piece in pieces} == {(song.song, song.total_length)}
            assert {piece["artist"].decode() for piece in pieces} == {song.artist}
            np.testing.assert_array_equal(np.concatenate([p["audio"] for p in pieces]), song_samples(song.file))
            found[song.file] = (
                split,
                pieces[0]["title"].decode(),
                pieces[0]["lyrics"].decode(),
                song.artist,
                song.genre,
            )
    assert sorted(found) == sorted(SECONDS)
    assert found["a/one.wav"][1:] == ("First", "la la la\nna na", "Ann", "Jazz")
    assert found["b/three.wav"][1:] == ("three", "doo doo doo doo doo doo", "Zoë", "Jazz")
    assert sorted(split for split, *_ in found.values()) == ["test"] * 2 + ["train"] * 4


def test_summary_and_labels(dataset_dir: Path):
    table = json.loads((dataset_dir / "summary.json").read_text())
    assert (table["sample_rate"], table["record_samples"], table["skipped"]) == (RATE, RATE, [])
    assert table["splits"]["train"]["songs"] == 4 and table["splits"]["train"]["shards"] > 1
    assert sum(split["seconds"] for split in table["splits"].values()) == pytest.approx(sum(SECONDS.values()))
    assert table["artists"] == {"Ann": 2, "Bob": 2, "Zoë": 2} and table["other_files"] == {".csv": 1}
    vocabulary = Vocabulary.load(dataset_dir / "labels", "v3")
    assert vocabulary.artists == {"unknown": 0, "ann": 1, "bob": 2, "zoë": 3}
    assert vocabulary.genres == {"unknown": 0, "jazz": 1, "pop": 2}


def test_any_number_of_processes_writes_the_same_bytes(music: Path, dataset_dir: Path, tmp_path: Path):
    builder.build(music, tmp_path / "set", workers=2, **BUILD)
    first, second = tree(dataset_dir), tree(tmp_path / "set")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == ["summary.json"]  # it names the folder


def test_resampled_and_few_labels(tmp_path: Path):
    (tmp_path / "in").mkdir()
    with soundfile.SoundFile(tmp_path / "in" / "x.flac", "w", 3000, 1) as file:
        file.artist = "Tag Artist"
        file.write(noise(4, 1, 3000)[:, 0])
    made = builder.build(tmp_path / "in", tmp_path / "out", **BUILD | {"label_version": "v2"})
    assert made.splits.keys() == {"train"} and made.artists == {"Tag Artist": 1} and made.genres == {"unknown": 1}
    assert [finding.file for finding in made.skipped] == ["the test split"]
    source = tfds.data_source("jukebox_audio", data_dir=tmp_path / "out", split="train")
    assert [source[i]["audio"].shape for i in range(len(source))] == [(RATE, 1)] * 4
    assert Vocabulary.load(tmp_path / "out" / "labels", "v2").artists == {"unknown": 0, "tag_artist": 1}


def test_bad_files_are_named(tmp_path: Path):
    """The issue's list of interrupted input."""
    folder, rate = tmp_path / "in", 44100
    folder.mkdir()
    soundfile.write(folder / "good.wav", noise(3, 2, rate), rate)
    soundfile.write(folder / "fine.ogg", noise(2, 1, rate), rate)
    soundfile.write(folder / "cut.mp3", noise(9, 2, rate), rate)
    data = (folder / "cut.mp3").read_bytes()
    (folder / "cut.mp3").write_bytes(data[: len(data) // 2])
    (folder / "empty.mp3").write_bytes(b"")
    (folder / "text.wav").write_text("this is not music\n" * 20)
    soundfile.write(folder / "clip.wav", noise(0.2, 2, rate), rate)
    nan = noise(3, 2, rate)
    nan[100] = np.nan
    soundfile.write(folder / "nan.wav", nan, rate, subtype="FLOAT")
    soundfile.write(folder / "surround.flac", noise(3, 8, 96_000), 96_000)
    (folder / "metadata.csv").write_bytes(
        b"file,artist,genre,title,lyrics\ngood.wav,Ann,Pop,,\nmissing.wav,Bob,Pop,,\ngood.wav,Cid,Pop,,\nfine.ogg,Ren\xe9,Pop,,\n"
    )
    made = builder.build(folder, tmp_path / "out", sample_rate=22050, workers=1, progress=False)
    table = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {entry["file"]: re.split("[:;] ", entry["reason"])[0] for entry in table["skipped"]} == {
        "clip.wav": "0.2 s long",
        "empty.mp3": "the file is empty",
        "text.wav": "not audio that libsndfile can read",
        "metadata.csv, line 3": "there is no file 'missing.wav'",
        "metadata.csv, line 4": "a second row for 'good.wav'",
    }
    notes = {entry["file"]: entry["reason"] for entry in table["notes"]}
    assert "truncated" in notes["cut.mp3"] and "Windows-1252" in notes["metadata.csv, line 5"]
    assert "NaN" in notes["nan.wav"] and notes["surround.flac"] == "8 channels mixed down to stereo"
    songs = [song for split in table["splits"] for song in summary.load_songs(tmp_path / "out", split)]
    assert {song.file for song in songs} == {"good.wav", "fine.ogg", "cut.mp3", "nan.wav", "surround.flac"}
    assert {song.artist for song in songs} == {"Ann", "René", "unknown"}
    shown = made.table()
    assert all(finding.file in shown and finding.reason in shown for finding in made.findings)


def test_a_failing_decoder_costs_one_file(music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    decode = builder.audio.decode

    def fails(path: str, *args):
        if path.endswith(("two.wav", "three.wav")):
            raise MemoryError("no room")
        return decode(path, *args)

    monkeypatch.setattr(builder.audio, "decode", fails)
    made = builder.build(music, tmp_path / "set", workers=1, **BUILD)
    assert [(f.file, f.reason) for f in made.skipped] == [
        ("a/two.wav", "MemoryError: no room"),
        ("b/three.wav", "MemoryError: no room"),
    ]
    for split, size in made.splits.items():
        source = records.open_split(tmp_path / "set", records.AUDIO, split)
        songs = summary.load_songs(tmp_path / "set", split)
        assert [source[song.first_record]["song"] for song in songs] == [song.song for song in songs]
        assert len(source) == size.records and size.songs == len(songs)


def test_when_all_of_one_split_fails_the_rest_is_train(music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    decode = builder.audio.decode

    def fails(path: str, *args):
        if not path.endswith("six.wav"):
            raise builder.audio.Undecodable("no")
        return decode(path, *args)

    monkeypatch.setattr(builder.audio, "decode", fails)
    made = builder.build(music, tmp_path / "set", workers=1, **BUILD)
    assert made.splits.keys() == {"train"} and len(records.open_split(tmp_path / "set", records.AUDIO, "train")) == 10


def test_split_is_by_path_alone():
    songs = [{"song": i, "file": f"{i}.wav", "seconds": 1.0} for i in range(50)]

    def split(songs: list) -> dict[str, str]:
        return {song["file"]: name for name, _, members in builder._plan(songs, 100, 0.2, 1) for song in members}

    first = split(songs)
    assert list(first.values()).count("test") == 10
    more = split([*songs, {"song": 50, "file": "new.wav", "seconds": 9.0}])
    assert sum(first[name] != more[name] for name in first) <= 1
    assert split(songs[:1]) == {"0.wav": "train"} and sorted(split(songs[:2]).values()) == ["test", "train"]


def test_shards_hold_whole_songs_up_to_their_size():
    songs = [{"song": i, "file": f"{i}.wav", "seconds": float(1 + i % 3)} for i in range(20)]
    shards = [members for _, _, members in builder._plan(songs, 100, 0.0, 4000)]
    assert [song["song"] for members in shards for song in members] == list(range(20))
    assert all(sum(song["seconds"] for song in members) <= 10 + 3 for members in shards) and len(shards) == 4


def test_again(music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "set"
    builder.build(music, out, workers=1, **BUILD)
    (out / "mine.txt").write_text("keep")
    before = tree(out)
    with pytest.raises(UserError, match="has a data set already: pass --overwrite"):
        builder.build(music, out, workers=1, **BUILD)

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(builder, "_publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            builder.build(music, out, workers=1, overwrite=True, **BUILD)
    assert tree(out) == before  # the old one stays until the new one is complete
    builder.build(music, out, workers=1, overwrite=True, **BUILD | {"record_seconds": 2.0})
    assert tree(out).keys() == before.keys() and summary.load(out)["record_samples"] == 2 * RATE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_rate": 10}, "sample_rate 10: allowed are 1000 to"),
        ({"record_seconds": 0.0}, "record_seconds 0: allowed are"),
        ({"test_fraction": 1.0}, "test_fraction 1: allowed are 0"),
        ({"label_version": "v4"}, "unknown label version 'v4': allowed are v2, v3"),
        ({"runner": "DirectRuner"}, "Did you mean 'DirectRunner'?"),
    ],
)
def test_bad_arguments(music: Path, tmp_path: Path, change: dict, message: str):
    with pytest.raises(UserError) as error:
        builder.build(music, tmp_path / "out", **BUILD | change)
    assert message in str(error.value) and not (tmp_path / "out").exists()


def test_bad_folders(music: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.wav").write_text("no music")
    for folder, message in [
        (tmp_path / "empy", "is not there; did you mean .*empty"),
        (tmp_path / "file", "is a file, not a folder"),
        (tmp_path / "empty", r"no audio in .*: looked for \.wav.*found nothing"),
        (tmp_path / "bad", "no usable audio in .*: x.wav: not audio that libsndfile can read"),
    ]:
        with pytest.raises(UserError, match=message):
            builder.build(folder, tmp_path / "out", workers=1, **BUILD)
    with pytest.raises(UserError, match="output .* is a file"):
        builder.build(music, tmp_path / "file", **BUILD)
    with pytest.raises(UserError, match="has no data set made by `jukebox dataset`"):
        records.open_split(tmp_path, records.AUDIO, "train")


def test_a_worker_that_fails_ends_the_run():
    with pytest.raises(ZeroDivisionError):
        workers.LocalWorkers(2, progress=False)(_divide, [{"by": 1}, {"by": 0}], what="x", total=2)


def _divide(item: dict, tick) -> dict:
    return {"result": 1 / item["by"]}
