"""The tools for the kernels are scripts, of one folder for CUDA and one for Triton, that import each other by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "gpu"))
sys.path.append(str(Path(__file__).parents[2] / "tools" / "triton"))  # behind: both have a static.py
