"""The demo's music: the notation, the arrangements, and the sound itself."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import soundfile

from jukebox_jax.data import arrange, demo_music, lyrics, tunes
from jukebox_jax.types import UserError


@pytest.mark.parametrize("tune", tunes.TUNES, ids=lambda tune: tune.title)
def test_tunes_are_whole_and_singable(tune):
    score = tune.score()
    assert score.beats % tune.metre == 0 and score.chords[0].start == 0
    assert all(a.start + a.length <= b.start for a, b in zip(score.notes, score.notes[1:], strict=False))
    assert all(55 <= note.pitch <= 79 for note in score.notes)
    assert lyrics.dropped(tune.words, "v3") == [] and tune.words.count("\n") >= 3
    on_chord = [note.pitch % 12 in arrange._at(score.chords, note.start) for note in score.notes]
    assert np.mean(on_chord) > 0.6  # the harmony belongs to the melody


def test_notation():
    tune = tunes.Tune("x", "", 2, 2, '"F#m"F3/2 ^c/2|"G7"_B,2 z =C\'|', "")
    score = tune.score()
    assert score.notes == [(0, 1.5, 66), (1.5, 0.5, 73), (2, 2, 58), (5, 1, 72)]
    assert score.chords == [(0, (6, 9, 1)), (2, (7, 11, 2, 5))] and score.beats == 6
    with pytest.raises(ValueError, match="can't read 'H'"):
        tunes.Tune("x", "", 2, 0, "C H", "").score()


def test_metres_are_bent_beat_by_beat():
    twos = tunes.Score([tunes.Note(1, 1, 60), tunes.Note(2, 1.5, 62)], [tunes.Chord(2, (0, 4, 7))], 4)
    threes = arrange._bend(twos, 2, 3)
    assert threes.notes == [(2, 1, 60), (3, 2.5, 62)] and threes.chords[0].start == 3 and threes.beats == 6
    fours = arrange._bend(tunes.Score([tunes.Note(3, 1, 60), tunes.Note(5, 1, 62)], [], 6), 3, 2)
    assert fours.notes == [(4, 2, 60), (7, 1, 62)] and fours.beats == 8


@pytest.mark.parametrize("style", arrange.STYLES, ids=lambda style: style.name)
@pytest.mark.parametrize("band", arrange.BANDS, ids=lambda band: band.name)
def test_arrangements_keep_the_tune(band, style):
    tune = tunes.TUNES[0]
    events, end, verses = arrange.arrange(tune, band, style, np.random.default_rng(3), seconds=60)
    melody = [e.pitch for e in events if e.channel == arrange.MELODY]
    steps = np.diff(melody)[: len(tune.score().notes) - 1]
    assert steps.tolist() == np.diff([note.pitch for note in tune.score().notes]).tolist()
    assert verses == round(verses) >= 1 and 35 < end < 85
    assert {e.channel for e in events} >= {arrange.MELODY, arrange.CHORDS, arrange.BASS}
    drummed = any(e.channel == arrange.DRUMS for e in events)
    assert drummed == (band.drum_velocity > 0 and style.name != "lullaby")
    assert all(0 <= e.start <= end + 0.1 and e.length > 0 and 21 <= e.pitch <= 108 for e in events)


def test_a_note_sounds_at_its_pitch():
    event = arrange.Event(0.0, 0.9, arrange.MELODY, 69, 100)
    audio = demo_music.play([event], arrange.BANDS[1], 1.0, 16_000, demo_music._soundfont().read_bytes())
    assert audio.shape == (16_000,) and audio.dtype == np.float32
    peak = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))[:600].argmax()  # bins of 1 Hz
    assert abs(peak - 440) <= 3


def test_render_writes_a_data_set(tmp_path):
    table = demo_music.render(
        tmp_path / "a", seconds_per_song=4, songs_per_artist=1, sample_rate=16_000, progress=False
    )
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["artist"] for r in rows] == [b.name for b in arrange.BANDS]
    assert {r["genre"] for r in rows} == {s.name for s in arrange.STYLES} and len({r["title"] for r in rows}) == 4
    for row in rows:
        audio, rate = soundfile.read(tmp_path / "a" / row["file"])
        assert rate == 16_000 and audio.ndim == 1 and 3 < len(audio) / rate < 8
        assert 0.05 < np.sqrt(np.mean(audio**2)) < 0.11 and np.abs(audio).max() < 0.96
        seconds = audio[: len(audio) // rate * rate].reshape(-1, rate)
        assert (np.sqrt(np.mean(seconds**2, axis=1)) > 0.01).all()  # never silent
        assert 0 < len(row["lyrics"]) < 120 and "Public domain" in row["licence"]


def test_render_repeats_itself_and_the_seed_changes_it(tmp_path):
    size = {"seconds_per_song": 2, "songs_per_artist": 1, "sample_rate": 8_000, "progress": False}
    folders = [demo_music.render(tmp_path / str(i), seed=seed, **size).parent for i, seed in enumerate((0, 0, 1))]
    first, again, other = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders)
    assert first == again and first != other


def test_no_tune_is_dealt_twice_to_a_band():
    songs = demo_music.deal(6, seed=5)
    assert len(songs) == 24 and all(sum(tune is t for _, _, t in songs) == 2 for tune in tunes.TUNES)
    for band in arrange.BANDS:
        mine = [(style.name, tune.title) for b, style, tune in songs if b is band]
        assert len({tune for _, tune in mine}) == 6 and len({style for style, _ in mine}) == 4


def test_words_follow_the_verses():
    tune = tunes.TUNES[1]
    assert demo_music._words(tune, 2.0) == f"{tune.words}\n\n{tune.words}"
    part = demo_music._words(tune, 0.5)
    assert tune.words.startswith(part) and 0.4 < len(part) / len(tune.words) <= 0.5
    assert tune.words[len(part)] in " \n"


def test_too_short_is_refused(tmp_path):
    with pytest.raises(UserError, match="2 seconds per song, not 6 songs of 0.5 s"):
        demo_music.render(tmp_path, seconds_per_song=0.5)
