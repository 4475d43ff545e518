"""Every part on every mesh of eight virtual devices, trained and sampled: five minutes, mostly compilation.

python tests/chaos/all_meshes.py
"""

import os
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    folder = Path(__file__).parents[1]
    tests = [str(folder / "train" / "test_meshes.py"), str(folder / "sample" / "test_programs.py")]
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", "-v", *tests], env=os.environ | {"ALL_MESHES": "1"}))
