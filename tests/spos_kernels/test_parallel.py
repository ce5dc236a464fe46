"""What OpenMP does not grant is done all the same, with the same bits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys, torch
sys.path.insert(0, {tests!r})
from choice_block_support import copied, make_branch
import spos_kernels as sk
kernels = sys.modules["spos_kernels.choice_block_kernels"]
torch.manual_seed(0)
branch, x = make_branch("5", 32, 24, 17, 1), torch.randn(16, 32, 9, 9)
results = []
for threads in (1, 8):
    kernels.threads_for = lambda _, threads=threads: threads
    own = copied(branch)
    leaf = x.clone().requires_grad_()
    y = sk.choice_block(leaf, [own], 0)
    y.square().sum().backward()
    results.append([y, leaf.grad, *(layer.weight.grad for layer in own.main)])
assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
print("same bits")
"""


@pytest.mark.parametrize("granted", [1, 2, 3])
def test_tasks_of_threads_that_are_not_granted_are_done(granted: int) -> None:
    program = PROGRAM.format(tests=os.path.dirname(__file__))
    environment = os.environ | {"OMP_THREAD_LIMIT": str(granted), "OMP_WAIT_POLICY": "passive"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "same bits"
