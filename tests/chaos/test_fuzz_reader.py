"""The whole run of ``fuzz_reader.py``, under ``make chaos``; 150 of it are in the default suite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_thousand_mutated_files():
    script = Path(__file__).parent / "fuzz_reader.py"
    done = subprocess.run([sys.executable, script, "1000"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1000 mutated files" in done.stdout
