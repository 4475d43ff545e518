"""The original's own numbers, through ``jukebox verify``. No constant of a case is in the code.

Pipelines, the VQ-VAE and training steps have tests of their own beside the modules; here are the layers and the priors.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from jukebox_jax.cli import verify
from jukebox_jax.cli.verify_cases.case import Case

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["attention", "prior_uncond", "prior_top_5b", "prior_top_end_of_song"])
def test_every_array_is_the_originals(name):
    case = Case(GOLDEN / name, None)
    report = verify.run(case, verify.family(case), exact_codes=True)
    assert len(report.rows) > 10
    assert not report.failed, "\n".join(str(row) for row in report.rows if not row.passed)
    assert not report.unchecked
