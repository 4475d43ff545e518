"""``index.html``: one file that plays and shows every item, level by level. It needs no network and no other file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from jukebox_jax.sample import page
from jukebox_jax.sample.stream import compressed_suffix

_TYPES = {".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".png": "image/png"}
_PIECE = 3 << 18  # bytes read at once: a multiple of 3, so that base64 pieces join


@dataclass(frozen=True)
class Item:
    """One item on the page. ``lyrics`` are the cleaned ones; ``alignment`` a grey PNG, time x characters, of them."""

    number: int
    labels: Mapping[str, str]  # name to value, shown in this order
    lyrics: str = ""
    alignment: Path | None = None


def write(
    path: Path,
    items: Sequence[Item],
    levels: Sequence[Mapping[str, Any]],
    *,
    title: str,
    summary: str,
    command: str,
    rate: int,
    footer: str,
) -> None:
    """Write the page from the files beside it: ``level_{l}/item_{n}`` with the suffixes of ``stream.write_audio``.

    ``levels`` (top first) have: level, seconds (of audio), and what the table shows: codes (per item), codes_per_second
    of audio, windows, draw_seconds, drawn_per_second, decode_seconds. Sound is copied piece by piece, never held whole.
    """
    staged = path.with_name(path.name + ".new")
    with open(staged, "wb") as file:
        _text(file, page.HEAD, title=title, summary=summary, style=page.STYLE)
        for item in items:
            _item(file, path.parent, item, sorted(levels, key=lambda level: level["level"]), rate)
        file.write(_table(levels, command).encode())
        _text(file, page.TAIL, footer=footer, script=page.SCRIPT)
    staged.replace(path)


def _item(file: BinaryIO, folder: Path, item: Item, levels: Sequence[Mapping[str, Any]], rate: int) -> None:
    names = [item.labels[key] for key in ("artist", "genre") if item.labels.get(key)]
    title = f"{item.number} · {' — '.join(names)}" if names else str(item.number)
    chips = "".join(
        f"<span>{_escape(key)} {_escape(value)}</span>"
        for key, value in item.labels.items()
        if key not in ("artist", "genre")
    )
    seconds = max(level["seconds"] for level in levels)
    _text(file, page.ITEM_HEAD, number=item.number, title=title, seconds=f"{seconds:.4f}", raw={"chips": chips})
    for level in levels:
        stem = folder / f"level_{level['level']}" / f"item_{item.number}"
        audio, picture = stem.with_suffix(compressed_suffix(rate)), stem.with_suffix(".png")
        note = f"{level['codes_per_second']:,.0f} codes/s"
        files = {"picture": picture, "audio": audio}
        _text(file, page.LEVEL, level=level["level"], number=item.number, note=note, files=files)
    if item.lyrics:
        mapped = " data-map" if item.alignment else ""
        file.write(f'<div class="lyrics"{mapped} aria-label="lyrics">{_escape(item.lyrics)}</div>\n'.encode())
    if item.alignment:
        frame = (
            "<details><summary>lyric alignment: time down, characters across</summary>"
            '<img class="map" alt="attention from music to lyrics" src="{{map}}"></details>\n'
        )
        _text(file, frame, files={"map": item.alignment})
    file.write(b"</article>\n")


def _table(levels: Sequence[Mapping[str, Any]], command: str) -> str:
    heads = ("level", "audio", "codes per item", "windows", "drawing", "codes drawn per s", "decoding")
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{cell}</td>"
            for cell in (
                level["level"],
                f"{level['seconds']:.2f} s",
                f"{level['codes']:,}",
                f"{level['windows']:,}",
                _duration(level["draw_seconds"]),
                f"{level['drawn_per_second']:,.0f}" if level["drawn_per_second"] else "–",
                _duration(level["decode_seconds"]),
            )
        )
        + "</tr>"
        for level in levels
    )
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        '<section class="card"><h2>How long each level took</h2><div class="wide"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div><pre>{_escape(command)}</pre></section>\n"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest:.0f} s" if minutes else f"{rest:.1f} s"


def _text(
    file: BinaryIO,
    frame: str,
    *,
    raw: Mapping[str, str] | None = None,
    files: Mapping[str, Path] | None = None,
    **texts: Any,
) -> None:
    """Fill in a frame: texts are escaped, raw ones and the page's own style and script are not, files are embedded."""
    raw = dict(raw or {}) | {key: texts.pop(key) for key in ("style", "script") if key in texts}
    for index, part in enumerate(re.split(r"\{\{(\w+)\}\}", frame)):
        if index % 2 == 0:
            file.write(part.encode())
        elif files and part in files:
            _embed(file, files[part])
        else:
            file.write((raw[part] if part in raw else _escape(texts[part])).encode())


def _embed(file: BinaryIO, path: Path) -> None:
    file.write(f"data:{_TYPES[path.suffix]};base64,".encode())
    with open(path, "rb") as source:
        while piece := source.read(_PIECE):
            file.write(base64.b64encode(piece))


def _escape(value: Any) -> str:
    return html.escape(str(value))
