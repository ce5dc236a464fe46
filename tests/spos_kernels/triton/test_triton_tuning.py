"""What the tuner keeps on disk: times and driver are made up, so that no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

FUNCTION = """
import triton.language as tl

def scaled_kernel(x, size, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(x + at, {factor} * tl.load(x + at, mask=at < size), mask=at < size)
"""

# In a process of its own, because Triton is not to be the interpreter. A new Kernel has nothing in memory.
SCRIPT = """
import json, types
import torch, triton
from triton.backends.compiler import GPUTarget
import double, triple
from spos_kernels.triton.launch import Kernel

def run(module=double, device="A", size=8, shared=1024):
    torch.cuda.get_device_name = lambda: device
    triton.runtime.driver.set_active(types.SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        utils=types.SimpleNamespace(get_device_properties=lambda _: {"max_shared_mem": shared}),
    ))
    kernel = Kernel(
        module.scaled_kernel,
        [triton.Config({"BLOCK": block}) for block in (32, 64, 128)],
        key=["size"],
        fits=lambda configuration, arguments, shared: configuration.kwargs["BLOCK"] <= shared,
    )
    timed, launched = [], []

    def bench(*arguments, config, **constants):
        timed.append(config.kwargs["BLOCK"])
        return [1 / timed[-1]] * 3

    kernel._tuner._bench = bench
    kernel.jit.run = lambda *arguments, **constants: launched.append(constants["BLOCK"])
    for _ in range(2):
        kernel.launch((1,), torch.zeros(8), size)
    return timed, launched

print(json.dumps([run(), run(), run(device="B"), run(module=triple), run(size=9), run(shared=64), run(device="B")]))
"""


def test_choices_are_kept_by_device_and_source(tmp_path: Path) -> None:
    for name, factor in (("double", 2.0), ("triple", 3.0)):
        (tmp_path / f"{name}.py").write_text(FUNCTION.format(factor=factor))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    all_timed, none_timed = [[32, 64, 128], [128, 128]], [[], [128, 128]]
    first, again, other_device, other_source, other_size, less_shared, other_again = json.loads(done.stdout)
    assert first == other_device == other_source == other_size == all_timed
    assert again == other_again == none_timed
    assert less_shared == [[32, 64], [64, 64]]
