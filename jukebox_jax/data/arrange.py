"""From a tune to the notes of a band: the demo's artists are bands, its genres are styles of accompaniment.

A style has a metre of its own. A tune in another metre is bent to it, beat by beat: twos become threes by holding the
first beat (2 -> 3), threes become fours the same way (3 -> 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jukebox_jax.data.tunes import Chord, Score, Tune

MELODY, SECOND, CHORDS, BASS, DRUMS = 0, 1, 2, 3, 9  # MIDI channels; 9 is percussion by convention
_DRUM_KEYS = {"kick": 36, "stick": 37, "snare": 38, "hat": 42, "pedal": 44, "ride": 51}
INTRO_GROUPS = 2
_Raw = tuple[float | int, float | int, int, int]  # start and length in beats, channel, pitch


class Voice(NamedTuple):
    """An instrument (General MIDI program), its octave shift in semitones, and its loudness (MIDI velocity)."""

    program: int
    shift: int
    velocity: int


@dataclass(frozen=True)
class Band:
    """An "artist": who plays the melody, the second voice, the chords and the bass, and whether there are drums."""

    name: str
    melody: Voice
    second: Voice
    chords: Voice
    bass: Voice
    drum_velocity: int = 0


class Hit(NamedTuple):
    """One accompaniment event in a group of beats. ``what``: root, fifth, walk, chord, an arpeggio step or a drum."""

    what: str | int
    beat: float
    length: float = 0.25


@dataclass(frozen=True)
class Style:
    """A "genre". ``patterns`` maps a metre to the hits of one group; with one entry, every tune is bent to it."""

    name: str
    tempo: float  # beats per minute
    patterns: dict[int, tuple[Hit, ...]]
    swing: bool = False
    melody_legato: float = 0.92


class Event(NamedTuple):
    """A sounding note; times in seconds."""

    start: float
    length: float
    channel: int
    pitch: int
    velocity: int


# The velocities balance the parts: the melody a few dB over the chords and the bass, by their RMS alone.
BANDS = (
    Band("Piano Trio", Voice(40, 12, 70), Voice(40, 0, 48), Voice(0, 0, 112), Voice(42, 0, 80), 52),
    Band("Brass Band", Voice(56, 0, 112), Voice(57, 0, 64), Voice(60, 0, 40), Voice(58, 0, 88), 62),
    Band("String Quartet", Voice(40, 12, 92), Voice(41, 0, 64), Voice(45, 0, 72), Voice(42, 0, 84)),
    Band("Music Box", Voice(10, 12, 120), Voice(10, 12, 84), Voice(8, 12, 80), Voice(11, 12, 44)),
)
_ARPEGGIO = (0, 1, 2, 3, 2, 1)
STYLES = (
    Style("waltz", 156.0, {3: (
        Hit("root", 0, 0.9), Hit("chord", 1, 0.6), Hit("chord", 2, 0.6), Hit("kick", 0), Hit("hat", 1), Hit("hat", 2),
    )}),
    Style("march", 116.0, {2: (
        Hit("root", 0, 0.45), Hit("chord", 0.5, 0.3), Hit("fifth", 1, 0.45), Hit("chord", 1.5, 0.3),
        Hit("kick", 0), Hit("kick", 1), Hit("snare", 0.5), Hit("snare", 1.5), Hit("snare", 1.75),
    )}, melody_legato=0.8),
    Style("lullaby", 84.0, {
        2: (Hit("root", 0, 1.9), *(Hit(_ARPEGGIO[i], i / 2, 0.9) for i in range(4))),
        3: (Hit("root", 0, 2.9), *(Hit(_ARPEGGIO[i], i / 2, 0.9) for i in range(6))),
    }, melody_legato=0.98),
    Style("swing", 138.0, {2: (
        Hit("root", 0, 0.9), Hit("walk", 1, 0.9), Hit("chord", 0.5, 0.35), Hit("chord", 1.5, 0.2),
        Hit("ride", 0), Hit("ride", 1), Hit("ride", 1.5), Hit("pedal", 1), Hit("kick", 0), Hit("stick", 1.5),
    )}, swing=True, melody_legato=0.85),
)  # fmt: skip


def arrange(
    tune: Tune, band: Band, style: Style, rng: np.random.Generator, *, seconds: float | int
) -> tuple[list[Event], float, float]:
    """The band's notes for about ``seconds`` of the tune: whole verses, or the beginning of one.

    ``rng`` draws key, tempo, and the small unevenness of hands. Returns ``(events, end, verses)``: the time of the last
    barline in seconds, and how many verses were played (a fraction if less than one).
    """
    metre = tune.metre if tune.metre in style.patterns else next(iter(style.patterns))
    score = _bend(tune.score(), tune.metre, metre)
    beat = 60 / (style.tempo * tune.pace * rng.uniform(0.95, 1.05))
    key = int(rng.integers(-3, 4))
    verse = score.beats * beat
    verses = max(1, round((seconds - INTRO_GROUPS * metre * beat) / verse))
    beats = verses * score.beats
    if verse > 1.2 * seconds:  # not even one: stop at a barline
        beats = max(1, math.floor(seconds / (metre * beat)) - INTRO_GROUPS) * metre
    chords = [Chord(verse * score.beats + c.start, c.pitches) for verse in range(verses) for c in score.chords]

    raw = _accompany(chords, beats, metre, style.patterns[metre], rng)
    intro = INTRO_GROUPS * metre
    for number in range(verses):
        for note in score.notes:
            start, pitch = number * score.beats + note.start, note.pitch
            if start >= beats:
                break
            raw.append((start, note.length * style.melody_legato, MELODY, pitch))
            if number % 2 == 1:  # every other verse in two parts
                raw.append((start, note.length * style.melody_legato, SECOND, _below(pitch, _at(chords, start))))
    raw += _final_chord(_at(chords, beats - 0.01), beats, metre)

    voices = {MELODY: band.melody, SECOND: band.second, CHORDS: band.chords, BASS: band.bass}
    events = []
    for start, length, channel, pitch in raw:
        if channel == DRUMS:
            shift, velocity = 0, band.drum_velocity
        else:
            shift, velocity = voices[channel].shift + key, voices[channel].velocity
        if not velocity:
            continue
        accent = 6 if start % metre == 0 else 0
        time = (intro + (_swing(start) if style.swing else start)) * beat + rng.uniform(0, 0.012)
        loud = int(np.clip(velocity + accent + rng.integers(-5, 6), 1, 127))
        events.append(Event(time, length * beat, channel, pitch + shift, loud))
    events.sort()
    return events, (intro + beats) * beat, beats / score.beats


def _bend(score: Score, metre: int, target: int) -> Score:
    """The score with its beats moved to another metre."""
    if metre == target:
        return score
    source, bent = ([0, 1, 2], [0, 2, 3]) if metre == 2 else ([0, 1, 2, 3], [0, 2, 3, 4])

    def at(beat: float | int) -> float:
        group, rest = divmod(beat, metre)
        return group * bent[-1] + float(np.interp(rest, source, bent))

    notes = [n._replace(start=at(n.start), length=at(n.start + n.length) - at(n.start)) for n in score.notes]
    return Score(notes, [c._replace(start=at(c.start)) for c in score.chords], at(score.beats))


def _swing(beat: float | int) -> float:
    """Off-beat quavers fall on the last third of the beat."""
    whole, rest = divmod(beat, 1)
    return whole + float(np.interp(rest, [0, 0.5, 1], [0, 2 / 3, 1]))


def _accompany(
    chords: list[Chord], beats: float | int, metre: int, pattern: tuple[Hit, ...], rng: np.random.Generator
) -> list[_Raw]:
    """(start, length, channel, pitch) of chords, bass and drums; the introduction has negative beats."""
    raw: list[_Raw] = []
    for group in range(-INTRO_GROUPS, round(beats / metre)):
        for what, beat, length in pattern:
            start = group * metre + beat
            pitches = _at(chords, start)
            root = _low(pitches[0])
            voicing = sorted(55 + (p - 55) % 12 for p in pitches[:4])
            if isinstance(what, int):
                steps = [*voicing, *(p + 12 for p in voicing)]
                raw.append((start, length, CHORDS, steps[what]))
            elif what == "chord":
                raw += [(start, length, CHORDS, p) for p in voicing]
            elif what == "root":
                raw.append((start, length, BASS, root))
            elif what == "fifth":
                raw.append((start, length, BASS, root - 5))
            elif what == "walk":
                ahead = _low(_at(chords, start + 1)[0])
                step = root + int(rng.choice([pitches[1] - pitches[0], 7])) % 12
                raw.append((start, length, BASS, step if ahead == root else ahead + int(rng.choice([-1, 2]))))
            else:
                raw.append((start, length, DRUMS, _DRUM_KEYS[what]))
    return raw


def _at(chords: list[Chord], beat: float | int) -> tuple[int, ...]:
    """The chord that sounds at ``beat``; before the first one, the first one."""
    sounding = [c.pitches for c in chords if c.start <= beat + 1e-6]
    return sounding[-1] if sounding else chords[0].pitches


def _below(pitch: int, chord: tuple[int, ...]) -> int:
    """The next chord tone at least a third under the melody."""
    return max(p for p in range(pitch - 15, pitch - 2) if p % 12 in chord)


def _final_chord(chord: tuple[int, ...], beat: float | int, metre: int) -> list[_Raw]:
    """Everybody holds the last chord for one group."""
    held = [(CHORDS, 55 + (p - 55) % 12) for p in chord[:3]]
    return [(beat, float(metre), *note) for note in [*held, (BASS, _low(chord[0])), (MELODY, 60 + chord[0])]]


def _low(pitch_class: int) -> int:
    """The pitch class in the bass, from the low E up."""
    return 40 + (pitch_class - 40) % 12
