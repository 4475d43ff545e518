"""What was compared: a row per array, with its differences and whether they are within tolerance."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jukebox_jax.cli.verify_cases.case import Case

TOLERANCE = 1e-4  # of the value, plus the same of the array's largest
NEAR_TIE = 1e-4  # gap between the nearest and the second nearest code below which rounding may decide


@dataclass(frozen=True)
class Row:
    """``absolute``: largest difference; ``relative``: the same, over the largest expected value."""

    array: str
    absolute: float
    relative: float
    tolerance: str
    passed: bool
    note: str = ""

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAILED"
        note = f"  ({self.note})" if self.note else ""
        return f"  {self.array:<58} {self.absolute:>9.2e} {self.relative:>9.2e} {self.tolerance:>9}  {verdict}{note}"


class Report:
    """Rows of one case. Arrays that the case does not have are passed over."""

    def __init__(self, case: Case, exact_codes: bool = False):
        self.case, self.exact_codes = case, exact_codes
        self.rows: list[Row] = []

    @property
    def failed(self) -> int:
        return sum(not row.passed for row in self.rows)

    @property
    def unchecked(self) -> list[str]:
        """Arrays that were neither compared nor an input of ours."""
        return [name for name in self.case.arrays if name not in self.case.seen]

    def close(self, name: str, actual: Any, *, rtol: float = TOLERANCE, scale: float = 0.0, extra: float = 0.0) -> None:
        """Floats: ``|actual - expected| <= rtol (|expected| + max(max|expected|, scale)) + extra``."""
        if name not in self.case.arrays:
            return
        expected = self.case.input(name).astype(np.float64)
        largest = np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))
        allowed = rtol * np.abs(expected) + rtol * max(largest, scale) + extra
        self.compare(name, actual, expected, np.where(np.isfinite(allowed), allowed, 0), f"{rtol:.0e}")

    def compare(
        self, name: str, actual: Any, expected: np.ndarray, allowed: Any, tolerance: str, outliers: float = 0.0
    ) -> None:
        """Floats within ``allowed`` (broadcast), but for a share of ``outliers``."""
        actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        if actual.shape != expected.shape:
            return self.fail(name, f"shape {list(actual.shape)}, expected {list(expected.shape)}")
        with np.errstate(invalid="ignore"):
            difference = np.where(actual == expected, 0, np.abs(actual - expected))
        difference = np.where(np.isnan(difference), np.inf, difference)
        bad = difference > allowed
        worst = float(difference.max(initial=0.0))
        largest = np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))
        relative = worst / float(largest) if largest else worst
        passed = bool(bad.mean() <= outliers) if bad.size else True
        first = np.argwhere(bad)[:1].tolist()
        note = f"{bad.sum()} of {bad.size} differ, first at {first[0]}" if bad.any() else ""
        self.rows.append(Row(name, worst, relative, tolerance, passed, note))

    def equal(self, name: str, actual: Any, margin: str = "") -> None:
        """Integers, exactly. Without --exact-codes near-ties (array ``margin``) may differ."""
        if name not in self.case.arrays:
            return
        expected, actual = self.case.input(name), np.asarray(actual)
        if actual.shape != expected.shape:
            return self.fail(name, f"shape {list(actual.shape)}, expected {list(expected.shape)}")
        ties = np.zeros(expected.shape, bool)
        if margin in self.case.arrays and not self.exact_codes:
            ties = self.case.input(margin) < NEAR_TIE
        wrong = (actual != expected) & ~ties
        worst = float(np.max(np.abs(actual.astype(np.int64) - expected), initial=0))
        note = f"{wrong.sum()} of {wrong.size} differ, first at {np.argwhere(wrong)[0].tolist()}" if wrong.any() else ""
        if not wrong.any() and worst:
            note = f"{(actual != expected).sum()} near-ties differ"
        relative = worst / max(1.0, float(np.max(np.abs(expected), initial=0)))
        self.rows.append(Row(name, worst, relative, "exact", not wrong.any(), note))

    def same(self, name: str, actual: Any, expected: Any) -> None:
        """Anything that is not an array of the case: text, lists, tables."""
        good = actual == expected
        note = "" if good else f"{str(actual)[:60]!r}, expected {str(expected)[:60]!r}"
        self.rows.append(Row(name, 0.0 if good else 1.0, 0.0 if good else 1.0, "exact", bool(good), note))

    def fail(self, name: str, why: str) -> None:
        """A row that failed without numbers."""
        self.rows.append(Row(name, np.inf, np.inf, "", False, why))

    @contextlib.contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Turn an error of our code into a row that failed, and go on."""
        try:
            yield
        except Exception as error:  # whatever it is, it belongs into the report
            self.fail(what, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def records(self) -> list[dict[str, Any]]:
        """As JSON."""
        finite = lambda x: x if np.isfinite(x) else None  # noqa: E731
        return [
            {"array": r.array, "absolute": finite(r.absolute), "relative": finite(r.relative),
             "tolerance": r.tolerance, "passed": r.passed, "note": r.note}
            for r in self.rows
        ]  # fmt: skip
