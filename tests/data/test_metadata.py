"""metadata.csv: every way to write it that means something is read, and the rest is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from jukebox_jax.data import metadata
from jukebox_jax.data.metadata import Finding
from jukebox_jax.types import UserError

FILES = ["a.wav", "b/Größe.flac", "b/c.mp3", "d/c.mp3"]


def read(tmp_path: Path, content: bytes | str) -> tuple[dict, list[Finding]]:
    (tmp_path / "metadata.csv").write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return metadata.read_metadata(str(tmp_path), FILES)


def reasons(findings: list[Finding]) -> list[str]:
    return [f"{finding.file}: {finding.reason}" for finding in findings]


def test_none(tmp_path: Path):
    assert metadata.read_metadata(str(tmp_path), FILES) == ({}, [])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_separators_and_encodings(tmp_path: Path, separator: str, encoding: str):
    lines = [["File", "Artist", "Lyrics"], ["a.wav", "Zoë", '"one\ntwo"'], [r"b\Größe.flac", "X", ""]]
    rows, findings = read(tmp_path, "\r\n".join(separator.join(line) for line in lines).encode(encoding))
    assert rows["a.wav"]["artist"] == "Zoë" and rows["a.wav"]["lyrics"].splitlines() == ["one", "two"]
    assert rows["b/Größe.flac"]["artist"] == "X"
    bad = [finding for finding in findings if "UTF-8" in finding.reason]
    assert [finding.file for finding in bad] == (
        ["metadata.csv, line 2", "metadata.csv, line 4"] if encoding == "cp1252" else []
    )


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.wav", "a.wav"),
        ("./a.wav", "a.wav"),
        ("A.WAV", "a.wav"),
        ("/home/me/music/a.wav", "a.wav"),
        ("Gro\u0308\u00dfe.flac", "b/Größe.flac"),  # o and a combining diaeresis, as macOS writes it
        ("b/c.mp3", "b/c.mp3"),
        ("/old/place/d/c.mp3", "d/c.mp3"),
        ("c.mp3", None),  # which?
        ("x/a.wav", "a.wav"),
        ("x/b/a.wav", "a.wav"),
        ("e/Größe.flac", None),  # another folder's
    ],
)
def test_which_file_is_meant(tmp_path: Path, name: str, file: str | None):
    rows, findings = read(tmp_path, f"file,artist\n{name},Ann\n")
    assert list(rows) == ([file] if file else [])
    assert any("there is no file" in finding.reason for finding in findings) == (file is None)


def test_what_is_wrong_is_named(tmp_path: Path):
    rows, findings = read(
        tmp_path,
        "file,artist,genre,year\na.wav,Ann,Jazz,1999\n\nnope.wav,Bob,Pop,\na.wav,Cid,Pop,\n,Dan,,\nb/c.mp3,Eve,Pop,1,2,3\n",
    )
    assert rows == {"a.wav": {"artist": "Ann", "genre": "Jazz"}, "b/c.mp3": {"artist": "Eve", "genre": "Pop"}}
    assert reasons(findings) == [
        "metadata.csv: columns not used: year",
        "metadata.csv, line 4: there is no file 'nope.wav'; did you mean 'a.wav'?",
        "metadata.csv, line 5: a second row for 'a.wav': the first one counts",
        "metadata.csv, line 6: no file named",
        "metadata.csv, line 7: 2 more fields than columns: left out",
        "metadata.csv: 2 files are not in it (tags used): b/Größe.flac, d/c.mp3",
    ]
    assert [finding.kind for finding in findings] == ["note", "skipped", "skipped", "skipped", "note", "note"]


def test_without_a_file_column(tmp_path: Path):
    with pytest.raises(UserError, match="needs a column 'file'; it has song, artist"):
        read(tmp_path, "song,artist\na.wav,Ann\n")
    with pytest.raises(UserError, match="needs a column 'file'; it has none"):
        read(tmp_path, "")


def test_long_lyrics(tmp_path: Path):
    rows, _ = read(tmp_path, f'file,lyrics\na.wav,"{"la " * 100_000}"\n')
    assert len(rows["a.wav"]["lyrics"]) == 300_000


def test_describe():
    tags = {"artist": "Tag Artist", "title": "Tag", "comment": "no"}
    assert metadata.describe("b/c.mp3", {"artist": "Row;  Artist\n"}, tags) == {
        "artist": "Row, Artist",
        "genre": "unknown",
        "title": "Tag",
        "lyrics": "",
    }
    empty = metadata.describe("b/caf\udce9.mp3", {"artist": " ", "lyrics": "one;\ntwo"}, {})
    assert empty == {"artist": "unknown", "genre": "unknown", "title": "caf?", "lyrics": "one;\ntwo"}


def test_find_audio(tmp_path: Path):
    for name in ("b.wav", "sub/A.FLAC", "sub/deep/x.opus", "cover.jpg", "sub/notes", "old.m4a", "metadata.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling.wav").symlink_to(tmp_path / "nowhere.wav")
    files, findings, others = metadata.find_audio(str(tmp_path))
    assert files == ["b.wav", "dangling.wav", "sub/A.FLAC", "sub/deep/x.opus"]
    assert [finding.file for finding in findings] == ["old.m4a"] and "convert it" in findings[0].reason
    assert others == {"(no extension)": 1, ".csv": 1, ".jpg": 1}
