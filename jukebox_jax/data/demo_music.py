"""The demo's music: a small band of four plays twelve old tunes in four styles, rendered with a soundfont.

    render("runs/demo/music")    # 24 songs, about 14 minutes, and metadata.csv

Tunes and words are in the public domain (``tunes``); ``arrange`` writes the parts; tinysoundfont plays them on
TimGM6mb, the soundfont (GPL-2) that comes with the package pretty_midi. The same arguments give the same files.
"""

from __future__ import annotations

import csv
import importlib.util
import re
import unicodedata
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float
from tqdm import tqdm

from jukebox_jax.data.arrange import BANDS, BASS, CHORDS, DRUMS, MELODY, SECOND, STYLES, Band, Event, Style, arrange
from jukebox_jax.data.tunes import TUNES, Tune
from jukebox_jax.types import UserError

COLUMNS = ("file", "artist", "genre", "title", "lyrics", "licence")
TAIL = 1.5  # seconds after the last note is struck for everything to ring out


def render(
    output_dir: str | Path,
    *,
    seconds_per_song: float | int = 36,
    songs_per_artist: int = 6,
    sample_rate: int = 44_100,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write ``4 * songs_per_artist`` mono 16-bit FLAC files of about ``seconds_per_song`` each; returns metadata.csv.

    Songs are whole verses, so their lengths differ; a limit shorter than a verse cuts it at a barline. The words of the
    verses that are played are the lyrics (nobody sings them). ``seed`` deals tunes, keys and tempos anew.
    """
    if seconds_per_song < 2 or songs_per_artist < 1:
        raise UserError(
            "the demo's music needs at least 1 song per artist and 2 seconds per song, not "
            f"{songs_per_artist} songs of {seconds_per_song:g} s"
        )
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    font, rows = _soundfont().read_bytes(), []
    songs = deal(songs_per_artist, seed)
    for number, (band, style, tune) in enumerate(tqdm(songs, desc="music", unit="song", disable=not progress)):
        rng = np.random.default_rng([seed, number])
        events, end, verses = arrange(tune, band, style, rng, seconds=seconds_per_song)
        audio = _room(play(events, band, end + TAIL, sample_rate, font), sample_rate)
        name = f"{_slug(band.name)}-{number:03}-{_slug(tune.title)}-{style.name}.flac"
        soundfile.write(output / name, _level(audio), sample_rate, subtype="PCM_16")
        licence = "Public domain tune and words; rendered with the soundfont TimGM6mb (GPL-2)"
        rows.append((name, band.name, style.name, tune.title, _words(tune, verses), licence))
    with open(output / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    return output / "metadata.csv"


def deal(songs_per_artist: int, seed: int) -> list[tuple[Band, Style, Tune]]:
    """Who plays what: every band goes through the styles in turn, and tunes are dealt from a shuffled pack."""
    rng = np.random.default_rng(seed)
    songs, pack = [], []
    for index, band in enumerate(BANDS):
        for song in range(songs_per_artist):
            pack = pack or list(rng.permutation(len(TUNES)))
            songs.append((band, STYLES[(index + song) % len(STYLES)], TUNES[pack.pop()]))
    return songs


def play(
    events: list[Event], band: Band, seconds: float | int, sample_rate: int, font: bytes
) -> Float[np.ndarray, "a"]:
    """The sound of ``events``, mono float32, ``seconds`` long."""
    import tinysoundfont

    synth = tinysoundfont.Synth(samplerate=sample_rate, gain=-6.0)
    sound = synth.sfload(font)
    for channel, voice in ((MELODY, band.melody), (SECOND, band.second), (CHORDS, band.chords), (BASS, band.bass)):
        synth.program_select(channel, sound, 0, voice.program)
    synth.program_select(DRUMS, sound, 128, 0, True)
    switches = [(e.start, 1, e.channel, e.pitch, e.velocity) for e in events]
    switches += [(e.start + e.length, 0, e.channel, e.pitch, 0) for e in events]
    blocks, position, total = [], 0, round(seconds * sample_rate)
    for time, on, channel, pitch, velocity in [*sorted(switches), (seconds, 0, MELODY, 0, 0)]:
        ahead = min(round(time * sample_rate), total) - position
        if ahead > 0:
            blocks.append(np.frombuffer(synth.generate(ahead), np.float32).reshape(-1, 2).mean(axis=1))
            position += ahead
        if on:
            synth.noteon(channel, pitch, velocity)
        else:
            synth.noteoff(channel, pitch)
    return np.concatenate(blocks)


def _room(audio: Float[np.ndarray, "a"], sample_rate: int) -> Float[np.ndarray, "a"]:
    """A little of a room: decaying noise, 0.9 s to -60 dB, the same for every song."""
    length = round(0.9 * sample_rate)
    decay = 10 ** (-3 * np.arange(length) / length)
    echo = np.random.default_rng(0).standard_normal(length) * decay
    size = 1 << (len(audio) + length - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(echo / np.linalg.norm(echo), size), size)[: len(audio)]
    return (audio + 0.25 * wet).astype(np.float32)


def _level(audio: Float[np.ndarray, "a"], rms: float = 0.1, peak: float = 0.95) -> Float[np.ndarray, "a"]:
    """Scale to an RMS of -20 dB, less where a peak would clip."""
    gain = min(rms / np.sqrt(np.mean(np.square(audio))), peak / np.abs(audio).max())
    return (audio * gain).astype(np.float32)


def _words(tune: Tune, verses: float | int) -> str:
    """The words of so many verses; of a part of one, as many whole words as that part of its characters."""
    if verses >= 1:
        return "\n\n".join([tune.words] * round(verses))
    part = tune.words[: round(verses * len(tune.words)) + 1]
    return re.sub(r"\S*$", "", part).strip()


def _soundfont() -> Path:
    """Where pretty_midi keeps its soundfont, without importing it."""
    spec = importlib.util.find_spec("pretty_midi")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("no module named 'pretty_midi'", name="pretty_midi")
    return Path(spec.origin).parent / "TimGM6mb.sf2"


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "_", plain).strip("_")
