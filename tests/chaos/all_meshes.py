"""Every part on every mesh of eight virtual devices (tests/train/test_meshes.py): four minutes, mostly compilation.

python tests/chaos/all_meshes.py
"""

import os
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    tests = Path(__file__).parents[1] / "train" / "test_meshes.py"
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", "-v", str(tests)], env=os.environ | {"ALL_MESHES": "1"}))
