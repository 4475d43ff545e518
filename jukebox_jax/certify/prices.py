"""What an hour of a chip costs. Prices change: give your own with ``--price_per_chip_hour`` or ``--prices=FILE``.

``PRICES``: US dollars per chip and hour, Google Cloud's on-demand list prices in the United States
(cloud.google.com/tpu/pricing). v5e and v5p as "How to Scale Your Model" (jax-ml.github.io/scaling-book, inference)
quotes that page in February 2025; v6e, "starting at", as quoted from it in 2025 and again in August 2026. Read second
hand on 2026-11-23: the page itself could not be opened. For tpu7x Google names an account team, and we found no price
that more than one source gives.
"""

from __future__ import annotations

import json
from pathlib import Path

from jukebox_jax.certify.topology import CHIPS
from jukebox_jax.types import UserError, choose

PRICES: dict[str, float | None] = {"v5e": 1.20, "v5p": 4.20, "v6e": 2.70, "tpu7x": None}


def load(path: str | None = None) -> dict[str, float | None]:
    """The built-in table, with the entries of a JSON file such as ``{"v5e": 0.6}`` in place of its own.

    Raises:
        UserError: not a table of positive numbers by kind of chip.
    """
    if path is None:
        return dict(PRICES)
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--prices={path} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise UserError(f'--prices={path} should hold a table such as {{"v5e": 0.6}}')
    for kind, price in given.items():
        choose("kind of chip", kind, CHIPS)
        if isinstance(price, bool) or not isinstance(price, (int, float)) or not price > 0:
            raise UserError(f"--prices={path}: the price of {kind} is {price!r}, not dollars per chip and hour")
    return PRICES | given


def price(kind: str, path: str | None = None, per_chip_hour: float | None = None) -> float | None:
    """Dollars per chip and hour; None where nobody said."""
    if per_chip_hour is not None and not per_chip_hour > 0:
        raise UserError(f"--price_per_chip_hour={per_chip_hour}: it must be above 0")
    return load(path)[kind] if per_chip_hour is None else per_chip_hour
