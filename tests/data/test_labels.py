"""Labels against the original, number for number, and the help around them."""

from __future__ import annotations

import json
import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from jukebox_jax import presets
from jukebox_jax.data import labels, lyrics
from jukebox_jax.data.vocabulary import Vocabulary, load_ids, normalise
from jukebox_jax.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
IDS = GOLDEN / "labeller" / "ids"
UNKNOWN = "unknown"


def labeller(case: dict, **options) -> labels.Labeller:
    version = "v3" if case["v3"] else "v2"
    rows = (7898, 604) if case["v3"] else (4111, 120)
    preset = presets.Labels(version, *rows, case["max_genre_words"], case["n_tokens"])
    return labels.Labeller(preset, Vocabulary.load(IDS, version), case["sample_length"], **options)


def golden(name: str) -> list:
    folder = GOLDEN / name
    arrays = np.load(folder / "data.npz")
    cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    return [(case, {k: arrays[k] for k in arrays if k.startswith(f"conf{i}_")}, i) for i, case in enumerate(cases)]


@pytest.mark.parametrize("compat", [False, True])
def test_rows_of_the_original(compat):
    windows = 0
    for case, arrays, number in golden("labeller"):
        ours = labeller(case, compat=compat)
        rows, infos = ours.batch(case["items"])
        np.testing.assert_array_equal(rows, arrays[f"conf{number}_y"])
        for row, info, item in zip(rows, infos, case["items"], strict=True):
            assert info["full_tokens"] == item["full_tokens"]
            assert (info["lyrics"], info["artist"], info["genre"]) == (item["clean"], item["artist"], item["genre"])
            assert ours.describe(row) == item["describe"]
            for window in filter(None, item["windows"]):
                moved, indices = ours.window(row, info, window["start"])
                assert moved.tolist() == window["y"]
                assert (None if indices is None else indices.tolist()) == window["indices"]
                windows += 1
    assert windows > 100


def test_windows_past_the_end_are_refused():
    refused = 0
    for case, _, _ in golden("labeller"):
        ours, step = labeller(case), case["sample_length"] // 2
        for item in case["items"]:
            row, info = ours.label(item)
            for i, window in enumerate(item["windows"]):
                if window is None and case["n_tokens"]:
                    refused += 1
                    with pytest.raises(UserError, match="outside the song"):
                        ours.window(row, info, i * step)
    assert refused > 3


def test_single_and_double_precision_windows():
    differ = 0
    for case, arrays, number in golden("labeller_fp32"):
        ours = labeller(case)
        for i, item in enumerate(case["items"]):
            meta = item | {"lyrics": case["texts"][item["lyrics"]]}
            row, info = ours.label(meta)
            np.testing.assert_array_equal(row, arrays[f"conf{number}_y_label"][i])
            moved, indices = ours.window(row, info, item["start"])
            np.testing.assert_array_equal(moved, arrays[f"conf{number}_y_window"][i])
            assert indices is not None and indices[0] == item["first_index_fp32"]
            assert len(info["full_tokens"]) == item["n_full_tokens"]
            exact = lyrics.lyric_window(
                item["n_full_tokens"], case["n_tokens"], item["total_length"], item["offset"] + item["start"],
                case["sample_length"],
            )  # fmt: skip
            assert exact[0] == item["first_index_fp64"]
            differ += item["differs"] and item["first_index_fp32"] != item["first_index_fp64"]
    assert differ > 5


def test_alphabets():
    assert [len(lyrics.ALPHABETS[v]) for v in ("v2", "v3")] == [80, 79]
    for version, space, newline in (("v2", 77, 79), ("v3", 76, 78)):
        assert lyrics.encode("Az0. \n'", version)[1] == (1, 52, 53, 63, space, newline, 71 if version == "v2" else 70)
    assert lyrics.encode("+", "v2")[1] == (70,) and lyrics.encode("+", "v3")[1] == ()


def test_cleaning_names_what_it_drops():
    text = "naïve ½ €5 🎵 東京 a+b\\c\r\n\ud800"
    assert lyrics.clean(text, "v3").startswith("naive  12 EUR5  Dong Jing  ab\nc\n")
    assert lyrics.dropped(text, "v3") == ["½", "🎵", "+", "\ud800"]
    assert "+" not in lyrics.dropped(text, "v2")
    assert lyrics.dropped("Nothing is lost here.\r\nÉ", "v2") == []


def test_id_table_rules(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("Speaker;3\nspeaker;7\n;0\nCÉLINE;5\nspace ;6\n\n", encoding="utf-8")
    assert load_ids(path) == {"speaker": 7, "": 0, "céline": 5, "space ": 6}
    for bad in ("no number;x\n", "a;b;1\n", "only a name\n", ""):
        path.write_text("ok;1\n" * bool(bad) + bad, encoding="utf-8")
        with pytest.raises(UserError, match="name;id"):
            load_ids(path)
    path.write_bytes(b"caf\xe9;1\n")
    with pytest.raises(UserError, match="UTF-8"):
        load_ids(path)


def test_normalisation():
    assert normalise("Céline Dion", "v2") == "c_line_dion"
    assert normalise("__AC/DC  (Live!)", "v2") == "ac_dc_live"
    assert normalise("Céline DION ", "v3") == "céline dion "


def test_invisible_marks_are_a_fallback_only():
    table = {"jazz fusion\u200e": 107, "jazz fusion": 295, "samba\u200f": 9, "trailing ": 4, UNKNOWN: 0}
    vocabulary = Vocabulary("v3", {UNKNOWN: 0, "céline dion": 1}, table)
    assert vocabulary.genre_ids("Jazz Fusion") == [295] and vocabulary.genre_ids("jazz fusion\u200e") == [107]
    assert vocabulary.genre_ids("Samba") == [9] and vocabulary.genre_ids("trailing") == [4]
    assert vocabulary.genre_ids("Samba", compat=True) == [0]
    assert vocabulary.artist_id(unicodedata.normalize("NFD", "Céline Dion")) == 1


def test_unknown_names_are_id_0_or_refused(caplog):
    v2 = Vocabulary.load(IDS, "v2")
    with caplog.at_level(logging.WARNING):
        assert v2.artist_id("Frank Sinata") == v2.artist_id("Frank Sinata") == 0
    assert len(caplog.records) == 1 and "frank_sinata" in caplog.text
    assert v2.genre_ids("jazz zzyx") == [9, 0]
    with pytest.raises(UserError, match="'frank_sinatra'"):
        v2.artist_id("Frank Sinata", strict=True)
    with pytest.raises(UserError, match="unknown genre 'zzyx'.*'unknown'"):
        v2.genre_ids("jazz zzyx", strict=True)
    for nobody in ("", UNKNOWN, "Unknown", None):
        assert v2.artist_id(nobody, strict=True) == 0 and v2.genre_ids(nobody, strict=True) == [0]
    _, info = labels.Labeller(presets.Labels(), v2, 64).label(
        {"artist": "Nobody Atall", "genre": "Jazz Zzyx", "lyrics": None, "total_length": 100, "offset": 0}
    )
    assert info["unknown"] == ["nobody_atall", "zzyx"]


def test_vocabulary_of_ones_own_data(tmp_path):
    ours = Vocabulary.from_names(["Björk", "AC;DC", "björk ", "", "unknown"], ["Trip Hop", "rock"])
    assert ours.artists == {"unknown": 0, "ac,dc": 1, "björk": 2} and ours.genres["trip hop"] == 2
    ours.save(tmp_path / "labels")
    again = Vocabulary.load(tmp_path / "labels", "v3")
    assert again == ours and again.artist_id("AC;DC", strict=True) == 1
    assert (again.num_artists, again.num_genres) == (3, 3)
    words = Vocabulary.from_names(["AC/DC"], ["Trip Hop", "Hip Hop"], "v2")
    assert words.genres == {"unknown": 0, "hip": 1, "hop": 2, "trip": 3} and words.artists["ac_dc"] == 1
    with pytest.raises(UserError, match=r"v2_artist_ids.txt.*v3_artist_ids.txt"):
        Vocabulary.load(tmp_path / "labels", "v2")
    with pytest.raises(UserError, match="semicolon"):
        Vocabulary("v3", {"a;b": 0}, {"x": 0}).save(tmp_path)


def test_search_puts_the_obvious_first():
    v3 = Vocabulary("v3", {"the beatles": 1, "beatles revival": 2, "beat": 3, "beatles": 4, UNKNOWN: 0}, {UNKNOWN: 0})
    assert [name for name, _ in v3.search("Beatles", "artist")][:3] == ["beatles", "beatles revival", "the beatles"]
    assert v3.search("beetles", "artist", limit=1) == [("beatles", 4)]
    assert Vocabulary.load(IDS, "v2").search("elle", "artist") == [("ella_fitzgerald", 1042)]
    assert Vocabulary.load(IDS, "v2").search("Céline", "artist")[0] == ("c_line_dion", 557)


def song(**changes) -> dict:
    meta = {"artist": "Ella Fitzgerald", "genre": "jazz", "lyrics": "", "total_length": 44100 * 60, "offset": 0}
    return meta | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_length": 180}, r"180 samples is 0.00408163 s.* 23.8 to 600 s \(1049580 to 26459999 samples"),
        ({"total_length": 600 * 44100}, "600 s"),
        ({"offset": -1}, "offset -1"),
        ({"offset": 44100 * 60}, "allowed are 0 to 2645999"),
        ({"total_length": 599 * 44100, "offset": 590 * 44100}, "up to 600 s"),
        ({"total_length": 2.5}, "whole number"),
        ({"total_length": float("nan")}, "whole number"),
        ({"artist": 7}, "artist must be text"),
        ({"genre": "jazz blues rock pop country hip hop"}, "7 words; this model takes at most 5"),
    ],
)
def test_bad_descriptions_end_in_one_clear_line(changes, message):
    ours = labels.Labeller(presets.PRIOR_5B_LYRICS.labels, Vocabulary.load(IDS, "v2"), 1048576)
    ours.label(song())
    with pytest.raises(UserError, match=message):
        ours.label(song(**changes))


def test_sampling_windows_end_where_the_model_does():
    ours = labels.Labeller(presets.PRIOR_5B.labels, Vocabulary.load(IDS, "v2"), 1048576)
    row, info = ours.label(song(total_length=599 * 44100))
    assert ours.window(row, info, 570 * 44100)[0][1] == 570 * 44100
    with pytest.raises(UserError, match="up to 600 s"):
        ours.window(row, info, 580 * 44100)


def test_without_labels():
    ours = labels.Labeller(None, None, 64)
    row, info = ours.label({"artist": "x"})
    assert row.shape == (0,) and ours.columns == 0 and info["artist"] == "n/a" and info["full_tokens"] == []
    assert ours.batch([{}, {}])[0].shape == (2, 0) and ours.window(row, info, 8)[1] is None


def test_vocabulary_must_fit_the_model():
    v2 = Vocabulary.load(IDS, "v2")
    with pytest.raises(UserError, match="v3 vocabulary; there is v2"):
        labels.Labeller(presets.PRIOR_1B_LYRICS.labels, v2, 64)
    with pytest.raises(UserError, match="up to id 1042, but the model has 100 artist"):
        labels.Labeller(presets.Labels(num_artists=100), v2, 64)
