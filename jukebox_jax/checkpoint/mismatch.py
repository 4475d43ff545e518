"""What does not fit when named arrays meet the names and shapes that were expected: one readable table."""

from __future__ import annotations

from collections.abc import Mapping

from jukebox_jax.types import UserError

SHOWN = 20  # rows printed per kind of mismatch

Shape = tuple[int, ...]


def mismatch_table(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> str | None:
    """Rows of names that are missing, extra or of another shape; None when everything fits."""
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
    head = f"{len(missing)} missing, {len(extra)} extra, {len(other)} of another shape"
    return "\n".join([head, *lines])


def require_match(what: str, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Raise ``UserError`` with the table unless names and shapes agree exactly."""
    table = mismatch_table(found, expected)
    if table:
        raise UserError(f"{what} does not fit: {table}")


def _shape(shape: Shape) -> str:
    return "x".join(map(str, shape)) if len(shape) else "scalar"
