"""The pass that keeps nothing, which eval mode takes without gradients, against the reference in double precision."""

import sys

import pytest
import torch
from choice_block_support import CHOICES, copied, make_branch
from isa_support import ISAS

import spos_kernels as sk
from spos_kernels import _C

MODULE = sys.modules["spos_kernels.choice_block_kernels"]

# batch, channels, height, width, mid, out. From eight pieces of images up, the pass takes some images through all
# layers; below, it runs layer by layer.
SHAPES = [
    (8, 10, 7, 6, 7, 5),
    (9, 6, 1, 1, 2, 3),
    (40, 34, 3, 5, 33, 17),
    (16, 64, 16, 15, 32, 32),
    (11, 130, 2, 2, 129, 65),
    (1, 32, 14, 14, 16, 16),
]


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("stride", [1, 2])
def test_it_equals_the_reference(
    stride: int, choice: str, shape: tuple[int, ...], isa: _C.Isa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "ISA", isa)
    torch.manual_seed(0)
    batch, channels, height, width, mid, out = shape
    branch = make_branch(choice, channels, mid, out, stride, affine=channels % 4 == 2)
    x = torch.randn(batch, channels, height, width)
    options = {"stride": stride, "training": False}
    with torch.no_grad():
        ours = sk.choice_block(x, (branch,), 0, **options)
        torchs = sk.choice_block_reference(x, (branch,), 0, **options)
        exact = sk.choice_block_reference(x.double(), (copied(branch, torch.float64),), 0, **options)
    scale = exact.norm().item()
    allowed = 2 * (torchs - exact).norm().item() + 4 * torch.finfo(torch.float32).eps * scale
    assert (ours - exact).norm().item() <= allowed


def test_it_is_taken_without_gradients_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    native = _C.choice_block_run

    def counted(*arguments: object) -> int:
        calls.append(native(*arguments))  # type: ignore[arg-type]
        return calls[-1]

    monkeypatch.setattr(_C, "choice_block_run", counted)
    branch = make_branch("5", 8, 8, 4, 1)
    x = torch.randn(16, 8, 5, 5)
    sk.choice_block(x.requires_grad_(), (branch,), 0, training=False)
    assert not calls
    with torch.no_grad():
        sk.choice_block(x, (branch,), 0, training=True)
        sk.choice_block(x, (branch,), 0, training=False)
        sk.choice_block(x[:1], (branch,), 0, training=False)
    assert calls == [0, 1, 0]


@pytest.mark.parametrize("stride", [1, 2])
def test_same_bits_for_every_number_of_threads(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    branch = make_branch("x", 66, 33, 33, stride)
    x = torch.randn(24, 66, 9, 9)
    results = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(MODULE, "threads_for", lambda _, threads=threads: threads)
        with torch.no_grad():
            results.append(sk.choice_block(x, (branch,), 0, stride=stride, training=False))
    assert all(torch.equal(result, results[0]) for result in results)
