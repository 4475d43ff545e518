"""The original's own numbers, through ``jukebox verify``: every public case. No constant of a case is in the code.

The copies in ``golden/`` lack what would make the repository grow without proving more: second views of the same
numbers (logits of draws that are compared as codes, audio that other arrays' audio repeats).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from jukebox_jax.cli import verify
from jukebox_jax.cli.verify_cases.case import Case
from jukebox_jax.models import vqvae
from jukebox_jax.ops import conv_stack

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(p.name for p in GOLDEN.iterdir() if any((p / name).exists() for name in ("hps.json", "windows.json")))
# One CPU trains through ops/conv_products.py; these two as other platforms do, through XLA's convolutions.
ELSEWHERE = ("vqvae_train_init", "vqvae_train_restart")


def test_no_case_is_missing():
    assert len(CASES) == 31


@pytest.mark.parametrize("name", CASES)
def test_every_array_is_the_originals(name, monkeypatch):
    if name in ELSEWHERE:
        monkeypatch.setattr(vqvae, "whole", conv_stack.whole)
    case = Case(GOLDEN / name, None)
    report = verify.run(case, verify.family(case), exact_codes=True)
    assert report.rows
    assert not report.failed, "\n".join(str(row) for row in report.rows if not row.passed)
    assert not report.unchecked
