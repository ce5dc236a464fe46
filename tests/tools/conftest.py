"""The tools for the CUDA kernels are scripts of one folder that import each other by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "gpu"))
