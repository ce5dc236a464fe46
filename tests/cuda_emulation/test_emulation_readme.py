"""The README's example compiles as printed; without its barrier it gives the report that is printed."""

from __future__ import annotations

import re
import subprocess

import pytest
from emulation import CACHE, CHECKED, RUNTIME, linked

README = (RUNTIME / "README.md").read_text()
KERNEL, TEST = re.findall(r"```cpp\n(.*?)```", README, re.DOTALL)
REPORT = re.search(r"^    (reverse\.cu:.*)\n    (.*)$", README, re.MULTILINE)
INCLUDE, LOOP = TEST.split("\n\n", 1)


@pytest.mark.parametrize("barrier", ["__syncthreads();", ""])
def test_example(barrier: str) -> None:
    assert "    __syncthreads();\n" in KERNEL
    code = KERNEL.replace("__syncthreads();", barrier)
    folder = CACHE / ("example" if barrier else "example-without-barrier")
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "reverse.cu"
    source.write_text(
        f"{code}\n#include <cstdio>\n{INCLUDE}\nint main() {{\nstatic float in[1024], out[1024];\n"
        f"const size_t bytes = sizeof in;\nconst int blocks = 4;\n{LOOP}}}\n"
    )
    program = linked("reverse", [source], CHECKED, [])
    output = subprocess.run([program], capture_output=True, text=True, check=True).stdout.replace(f"{folder}/", "")
    if barrier:
        assert output == ""
        return
    assert REPORT
    pattern = re.sub(r"\\\((\d+|\w+),0,0\\\)", r"\\(\\d+,0,0\\)", re.escape(f"{REPORT[1]} {REPORT[2]}"))
    assert re.search(pattern, output), (pattern, output)
