"""What does not fit when named arrays meet the names and shapes that were expected: one readable table."""

from __future__ import annotations

from collections.abc import Mapping

from jukebox_jax.types import UserError

SHOWN = 20  # rows printed per kind of mismatch

Shape = tuple[int, ...]


class Mismatch(UserError):
    """``summary`` is one line; ``table`` has a row per name that is missing, extra or of another shape."""

    def __init__(self, summary: str, table: str):
        super().__init__(f"{summary}\n{table}")
        self.summary, self.table = summary, table


def mismatch(what: str, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> Mismatch | None:
    """What does not fit, as an error to raise; None when everything fits. ``what`` names the input."""
    missing = [(name, f"expected {_shape(expected[name])}") for name in expected if name not in found]
    extra = [(name, f"found {_shape(found[name])}") for name in found if name not in expected]
    other = [
        (name, f"expected {_shape(expected[name])}, found {_shape(found[name])}")
        for name in expected
        if name in found and tuple(found[name]) != tuple(expected[name])
    ]
    rows: list[tuple[str, str, str]] = []
    for kind, entries in (("missing", missing), ("extra", extra), ("other shape", other)):
        rows += [(kind, name if name.isprintable() else repr(name), detail) for name, detail in entries[:SHOWN]]
        if len(entries) > SHOWN:
            rows.append((kind, f"... and {len(entries) - SHOWN} more", ""))
    if not rows:
        return None
    width = max(len(name) for _, name, _ in rows)
    lines = [f"  {kind:<11}  {name:<{width}}  {detail}".rstrip() for kind, name, detail in rows]
    counts = f"{len(missing)} missing, {len(extra)} extra, {len(other)} of another shape"
    return Mismatch(f"{what} does not fit: {counts}", "\n".join(lines))


def require_match(what: str, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Raise ``Mismatch`` unless names and shapes agree exactly."""
    error = mismatch(what, found, expected)
    if error is not None:
        raise error


def _shape(shape: Shape) -> str:
    return "x".join(map(str, shape)) if len(shape) else "scalar"
