"""Twelve tunes in the public domain, with a verse of their words: the demo's songbook.

Notation (a small part of ABC): a letter is a note, ``C`` middle C, ``c`` the one above, ``,`` and ``'`` an octave down
and up, ``^ _ =`` sharp, flat, natural; ``z`` is a rest. A number after it is its length in units (``G2``, ``G3/2``,
``G/2``); ``|`` is for the eye. ``"Am"`` in quotes is the chord from there on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

_SCALE = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_QUALITIES = {"": (0, 4, 7), "m": (0, 3, 7), "7": (0, 4, 7, 10), "m7": (0, 3, 7, 10)}
_TOKEN = re.compile(
    r'"(?P<root>[A-G])(?P<flat>[#b]?)(?P<quality>m7|m|7|)"'
    r"|(?P<accidental>[\^_=]?)(?P<letter>[A-Ga-gz])(?P<octave>[,']*)(?P<length>\d*(?:/\d+)?)"
    r"|[|\s]+"
)


class Note(NamedTuple):
    """A note of the melody; times in beats, pitch as a MIDI number."""

    start: float
    length: float
    pitch: int


class Chord(NamedTuple):
    """A chord from ``start`` (beats) on: pitch classes, the root first."""

    start: float
    pitches: tuple[int, ...]


class Score(NamedTuple):
    notes: list[Note]
    chords: list[Chord]
    beats: float


@dataclass(frozen=True)
class Tune:
    """One verse. ``metre`` is beats per group (2 or 3), ``unit`` beats per unit of length, ``sharps`` the key."""

    title: str
    origin: str
    metre: int
    sharps: int
    melody: str
    words: str
    unit: float = 1.0
    pace: float = 1.0  # of the style's tempo

    def score(self) -> Score:
        """The melody, its chords and its length, with the key signature applied."""
        order = "FCGDAEB" if self.sharps > 0 else "BEADGCF"
        signature = {letter: (1 if self.sharps > 0 else -1) for letter in order[: abs(self.sharps)]}
        notes, chords, time, position = [], [], 0.0, 0
        while position < len(self.melody):
            token = _TOKEN.match(self.melody, position)
            if token is None:
                raise ValueError(f"{self.title}: can't read {self.melody[position : position + 8]!r}")
            position = token.end()
            if token["root"]:
                root = _SCALE[token["root"]] + {"#": 1, "b": -1, "": 0}[token["flat"]]
                chords.append(Chord(time, tuple((root + i) % 12 for i in _QUALITIES[token["quality"]])))
            elif token["letter"]:
                length = _length(token["length"]) * self.unit
                if token["letter"] != "z":
                    notes.append(Note(time, length, _pitch(token, signature)))
                time += length
        return Score(notes, chords, time)


def _pitch(token: re.Match[str], signature: dict[str, int]) -> int:
    letter = token["letter"].upper()
    bend = {"^": 1, "_": -1, "=": 0, "": signature.get(letter, 0)}[token["accidental"]]
    octave = 12 * (token["letter"].islower() + token["octave"].count("'") - token["octave"].count(","))
    return 60 + _SCALE[letter] + bend + octave


def _length(text: str) -> float:
    return float(Fraction(f"1{text}" if text.startswith("/") else text or "1"))


TUNES = (
    Tune(
        "Twinkle, Twinkle, Little Star", "French tune (1761), words by Jane Taylor (1806)", 2, 0,
        '"C"C C G G|"F"A A "C"G2|"F"F F "C"E E|"G7"D D "C"C2|'
        '"C"G G "F"F F|"C"E E "G"D2|"C"G G "F"F F|"C"E E "G7"D2|'
        '"C"C C G G|"F"A A "C"G2|"F"F F "C"E E|"G7"D D "C"C2|',
        "Twinkle, twinkle, little star,\nhow I wonder what you are!\nUp above the world so high,\n"
        "like a diamond in the sky.\nTwinkle, twinkle, little star,\nhow I wonder what you are!",
    ),
    Tune(
        "Frère Jacques", "French traditional (18th century)", 2, 0,
        '"C"C "G7"D "C"E C|"C"C "G7"D "C"E C|"C"E "F"F "C"G2|"C"E "F"F "C"G2|'
        '"C"G/2 A/2 G/2 F/2 "Am"E C|"C"G/2 A/2 G/2 F/2 "Am"E C|"C"C "G7"G, "C"C2|"C"C "G7"G, "C"C2|',
        "Frère Jacques, frère Jacques,\ndormez-vous, dormez-vous?\nSonnez les matines, sonnez les matines!\n"
        "Din, dan, don. Din, dan, don.",
    ),
    Tune(
        "Ode to Joy", "Ludwig van Beethoven (1824), words by Friedrich Schiller (1785)", 2, 2,
        '"D"F F G A|"A7"A G F E|"D"D D E F|"D"F3/2 E/2 "A7"E2|"D"F F G A|"A7"A G F E|"D"D D E F|"A7"E3/2 D/2 "D"D2|'
        '"A7"E E "D"F D|"A7"E F/2 G/2 "D"F D|"A7"E F/2 G/2 "Bm"F E|"Em"D E "A7"A,2|'
        '"D"F F G A|"A7"A G F E|"D"D D E F|"A7"E3/2 D/2 "D"D2|',
        "Freude, schöner Götterfunken,\nTochter aus Elysium,\nwir betreten feuertrunken,\nHimmlische, dein Heiligtum!\n"
        "Deine Zauber binden wieder,\nwas die Mode streng geteilt;\nalle Menschen werden Brüder,\n"
        "wo dein sanfter Flügel weilt.",
    ),
    Tune(
        "Greensleeves", "English traditional (1580)", 3, 0,
        '"Am"z2 A|c2 d e3/2 ^f/2 e|"G"d2 B G3/2 A/2 B|"Am"c2 A A3/2 ^G/2 A|"E"B2 ^G E2 A|'
        '"Am"c2 d e3/2 ^f/2 e|"G"d2 B G3/2 A/2 B|"Am"c3/2 B/2 A "E7"^G3/2 ^F/2 ^G|"Am"A3 A3|'
        '"C"g3 g3/2 ^f/2 e|"G"d2 B G3/2 A/2 B|"Am"c2 A A3/2 ^G/2 A|"E"B2 ^G E3|'
        '"C"g3 g3/2 ^f/2 e|"G"d2 B G3/2 A/2 B|"Am"c3/2 B/2 A "E7"^G3/2 ^F/2 ^G|"Am"A3 A3|',
        "Alas, my love, you do me wrong,\nto cast me off discourteously,\nfor I have loved you so long,\n"
        "delighting in your company.\nGreensleeves was all my joy,\nGreensleeves was my delight,\n"
        "Greensleeves was my heart of gold,\nand who but my lady Greensleeves?",
        pace=1.15,
    ),
    Tune(
        "Amazing Grace", "American hymn tune (1829), words by John Newton (1779)", 3, 1,
        '"G"z2 D|G2 B/2 G/2|B2 A|"C"G2 E|"G"D2 D|G2 B/2 G/2|"Em"B2 A|"D"d3|"D7"d2 B|'
        '"G"d2 B/2 G/2|B2 A|"C"G2 E|"G"D2 D|"Em"G2 B/2 G/2|"D7"B2 A|"G"G3|G3|',
        "Amazing grace! How sweet the sound\nthat saved a wretch like me!\nI once was lost, but now am found,\n"
        "was blind, but now I see.",
        pace=0.8,
    ),
    Tune(
        "Auld Lang Syne", "Scots traditional, words by Robert Burns (1788)", 2, 1,
        '"G"z D|G3/2 G/2 G B|"D7"A3/2 G/2 A B|"G"G3/2 G/2 "G7"B d|"C"e3 e|'
        '"G"d3/2 B/2 B G|"D7"A3/2 G/2 A B|"C"G3/2 E/2 "D7"E D|"G"G3 e|'
        '"G"d3/2 B/2 B G|"D7"A3/2 G/2 A e|"G"d3/2 B/2 "G7"B d|"C"e3 e|'
        '"G"d3/2 B/2 B G|"D7"A3/2 G/2 A B|"C"G3/2 E/2 "D7"E D|"G"G4|',
        "Should auld acquaintance be forgot,\nand never brought to mind?\nShould auld acquaintance be forgot,\n"
        "and auld lang syne?\nFor auld lang syne, my jo,\nfor auld lang syne,\nwe'll tak a cup o' kindness yet,\n"
        "for auld lang syne.",
    ),
    Tune(
        "Jingle Bells", "James Lord Pierpont (1857)", 2, 1,
        '"G"B B B2|B B B2|B d G3/2 A/2|B4|"C"c c c3/2 c/2|"G"c B B B/2 B/2|"A7"B A A B|"D7"A2 d2|'
        '"G"B B B2|B B B2|B d G3/2 A/2|B4|"C"c c c3/2 c/2|"G"c B B B/2 B/2|"D7"d d c A|"G"G4|',
        "Jingle bells, jingle bells,\njingle all the way!\nOh, what fun it is to ride\nin a one-horse open sleigh!\n"
        "Jingle bells, jingle bells,\njingle all the way!\nOh, what fun it is to ride\nin a one-horse open sleigh!",
        pace=1.15,
    ),
    Tune(
        "Cradle Song", "Johannes Brahms (1868), words from Des Knaben Wunderhorn (1808)", 3, 0,
        '"C"z2 E/2 E/2|G2 E/2 E/2|G2 E/2 G/2|c B3/2 A/2|A G "G7"D/2 E/2|F2 D/2 E/2|F2 D/2 F/2|'
        'B/2 A/2 G B|"C"c2 C/2 C/2|"F"c2 A/2 F/2|"C"G2 E/2 C/2|"G7"F G A|"C"G2 C/2 C/2|'
        '"F"c2 A/2 F/2|"C"G2 E/2 C/2|"G7"F E D|"C"C3|',
        "Guten Abend, gut' Nacht,\nmit Rosen bedacht,\nmit Näglein besteckt,\nschlupf unter die Deck:\n"
        "morgen früh, wenn Gott will,\nwirst du wieder geweckt,\nmorgen früh, wenn Gott will,\n"
        "wirst du wieder geweckt.",
        pace=0.85,
    ),
    Tune(
        "Drunken Sailor", "Sea shanty (before 1839)", 2, 0,
        '"Dm"A A/2 A/2 A A/2 A/2|A D F A|"C"G G/2 G/2 G G/2 G/2|G C E G|'
        '"Dm"A A/2 A/2 A A/2 A/2|A B c d|"C"c A G E|"Dm"D2 D2|'
        '"Dm"A2 A3/2 A/2|A D F A|"C"G2 G3/2 G/2|G C E G|"Dm"A2 A3/2 A/2|A B c d|"C"c A G E|"Dm"D2 D2|',
        "What shall we do with the drunken sailor,\nwhat shall we do with the drunken sailor,\n"
        "what shall we do with the drunken sailor\nearly in the morning?\nWay hay and up she rises,\n"
        "way hay and up she rises,\nway hay and up she rises\nearly in the morning!",
        pace=1.1,
    ),
    Tune(
        "Silent Night", "Franz Xaver Gruber (1818), words by Joseph Mohr (1816)", 3, 0,
        '"C"G3/2 A/2 G|E3|G3/2 A/2 G|E3|"G7"d2 d|B3|"C"c2 c|G3|"F"A2 A|c3/2 B/2 A|"C"G3/2 A/2 G|E3|'
        '"F"A2 A|c3/2 B/2 A|"C"G3/2 A/2 G|E3|"G7"d2 d|f3/2 d/2 B|"C"c3|e3|"C"c G E|"G7"G3/2 F/2 D|"C"C3|C3|',
        "Stille Nacht, heilige Nacht!\nAlles schläft, einsam wacht\nnur das traute, hochheilige Paar.\n"
        "Holder Knabe im lockigen Haar,\nschlaf in himmlischer Ruh,\nschlaf in himmlischer Ruh!",
    ),
    Tune(
        "Yankee Doodle", "Anglo-American traditional (18th century)", 2, 1,
        '"G"G G A B|G B "D7"A D|"G"G G A B|G2 "D7"F2|"G"G G A B|"C"c B A G|"D7"F D E F|"G"G2 G2|'
        '"C"E3/2 F/2 E D|E F G2|"G"D3/2 E/2 D C|B,2 D2|"C"E3/2 F/2 E D|E F G E|"G"D G "D7"F A|"G"G2 G2|',
        "Yankee Doodle went to town\na-riding on a pony,\nstuck a feather in his cap\nand called it macaroni.\n"
        "Yankee Doodle, keep it up,\nYankee Doodle dandy,\nmind the music and the step,\nand with the girls be handy.",
        unit=0.5, pace=0.9,
    ),
    Tune(
        "Au clair de la lune", "French traditional (18th century)", 2, 0,
        '"C"C C C D|E2 "G7"D2|"C"C E "G7"D D|"C"C4|"C"C C C D|E2 "G7"D2|"C"C E "G7"D D|"C"C4|'
        '"G"D D D D|"D7"A,2 A,2|"D7"D C B, A,|"G"G,4|"C"C C C D|E2 "G7"D2|"C"C E "G7"D D|"C"C4|',
        "Au clair de la lune,\nmon ami Pierrot,\nprête-moi ta plume\npour écrire un mot.\nMa chandelle est morte,\n"
        "je n'ai plus de feu;\nouvre-moi ta porte,\npour l'amour de Dieu.",
    ),
)  # fmt: skip
