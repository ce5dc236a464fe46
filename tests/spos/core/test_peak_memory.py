"""Peak memory of activations: against tensors that are alive in torch, by hand, against each child, and counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import spos
from spos import activation_memory
from spos.costs import sampler

from . import channels_support, mixed_support
from .conftest import SEARCH, make_data, make_module
from .test_supernet import nested


class Alive(TorchDispatchMode):
    """The bytes of all storages that are alive at the end of each operation, weights aside."""

    def __init__(self, weights: list[Tensor], *given: Tensor) -> None:
        super().__init__()
        self._weights = {StorageWeakRef(w.untyped_storage()).cdata for w in weights}
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self._add(given)

    def _add(self, tensors: Any) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                if reference.cdata not in self._weights:
                    self._known[reference.cdata] = reference, tensor.untyped_storage().nbytes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._known = {key: known for key, known in self._known.items() if not known[0].expired()}
        self._add(tree_leaves(result))
        self.peak = max(self.peak, sum(size for _, size in self._known.values()))
        return result


class Written(nn.Module):
    """A network in one function, which forgets each tensor after its last use, as few modules do.

    steps: convolution, residual, wide residual, branches, transposition, pool, activation. inplace: ReLU and sums.
    """

    def __init__(self, steps: str, inplace: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps, self.inplace = steps, inplace
        self.stem = nn.Parameter(torch.randn(4, 2, 3, 3))
        self.square, self.point = nn.Parameter(torch.randn(4, 4, 3, 3)), nn.Parameter(torch.randn(4, 4, 1, 1))
        self.widen, self.narrow = nn.Parameter(torch.randn(12, 4, 1, 1)), nn.Parameter(torch.randn(4, 12, 1, 1))
        self.halve = nn.Parameter(torch.randn(2, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.run([x])

    def run(self, box: list[Tensor]) -> Tensor:
        x = F.conv2d(box.pop(), self.stem, padding=1)
        for step in self.steps:
            if step == "c":
                x = F.conv2d(x, self.square, padding=1)
            elif step == "r":
                y = F.conv2d(x, self.square, padding=1)
                y = y.add_(x) if self.inplace else y + x
                x = y
                del y
            elif step == "w":
                y = F.conv2d(x, self.widen)
                y = F.relu(y, inplace=self.inplace)
                y = F.conv2d(y, self.narrow)
                x = y.add_(x) if self.inplace else y + x
                del y
            elif step == "b":
                y, z = F.conv2d(x, self.halve), F.conv2d(x, self.halve)
                del x
                x = torch.cat([y, z], 1)
                del y, z
            elif step == "v":
                x = x.transpose(2, 3).reshape(x.shape)  # a view, and a copy
            elif step == "p":
                x = F.max_pool2d(x, 2)
            elif step == "a":
                x = F.relu(x, inplace=self.inplace)
        return x.mean((2, 3))


@pytest.mark.parametrize("steps", ["", "c", "cc", "ca", "r", "rr", "w", "cpwr", "b", "bcb", "v", "rpwbvra", "awpbpr"])
def test_the_peak_is_that_of_the_tensors_that_are_alive(steps: str) -> None:
    net = Written(steps)
    box = [torch.zeros(1, 2, 8, 8)]
    alive = Alive(list(net.parameters()), *box)
    with torch.no_grad(), alive:
        net.run(box)
    assert alive.peak == spos.count_peak_memory(net, (2, 8, 8)) > 0
    assert spos.count_peak_memory(Written(steps, inplace=False), (2, 8, 8)) == alive.peak


def conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.Hardswish())


class Residual(nn.Module):
    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Padded(nn.Module):
    """Zeros made on the way are there; a weight that is computed, from a constant too, is not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, torch.zeros(1, 3, 8, 8)], 1)
        return F.conv2d(x[:, :1], torch.ones(8, 1, 3, 3) * self.weight, padding=1)


@pytest.mark.parametrize(
    ("module", "maps"),
    [
        (nn.Identity(), 1),
        (conv(1, 4), 5),
        (nn.Sequential(conv(1, 4), conv(4, 8), conv(8, 2)), 12),
        (nn.Sequential(conv(1, 2), Residual(conv(2, 6), conv(6, 2))), 10),  # 2 held, 6 into 2
        (nn.Sequential(conv(1, 2), Residual(nn.ReLU(), conv(2, 3), conv(3, 2))), 7),  # ReLU may not write over it
        (nn.Sequential(conv(1, 2), Residual(Residual(conv(2, 4), conv(4, 2)))), 8),  # one map held twice
        (nn.Sequential(conv(1, 2), Residual(nn.Sequential(conv(2, 2), Residual(conv(2, 4), conv(4, 2))))), 10),
        (Padded(), 12),  # four read of 4, 8 made
        (nn.Sequential(conv(1, 3), nn.Flatten(), nn.Linear(192, 64)), 4),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1)), 2),
    ],
)
def test_by_hand(module: nn.Module, maps: int) -> None:
    """In maps of 8 × 8."""
    assert spos.count_peak_memory(module, (1, 8, 8)) == maps * 8 * 8 * 4
    if any(True for _ in module.parameters()):
        assert spos.count_peak_memory(module.double(), (1, 8, 8)) == maps * 8 * 8 * 8


def test_modes_and_hooks_are_left_as_they_were() -> None:
    module = conv(1, 2).train()
    module[1].eval()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    spos.count_peak_memory(module, (1, 8, 8))
    assert [m.training for m in module] == [True, False, True]
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def chain() -> nn.Module:
    """Blocks one after another, whose largest is the peak."""
    torch.manual_seed(0)
    kinds = [{f"{n}": nn.Sequential(conv(4, n), conv(n, 4)) for n in widths} for widths in ((1, 9), (3, 7, 9), (5,))]
    kinds[2]["skip"] = nn.Identity()
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(conv(1, 4), *(spos.ChoiceBlock(k) for k in kinds), *head)


def held() -> nn.Module:
    """A choice inside of a residual, beside which its input is held."""
    torch.manual_seed(0)
    branches = {"wide": nn.Sequential(conv(2, 7), conv(7, 2)), "plain": conv(2, 2)}
    return nn.Sequential(conv(1, 2), Residual(spos.ChoiceBlock(branches)), Residual(spos.ChoiceBlock(branches)))


def skipped() -> nn.Module:
    """Where the block is skipped, one map is both sides of the sum: what is outside depends on the choice."""
    branches = {"conv": conv(8, 8), "skip": nn.Identity()}
    return nn.Sequential(conv(1, 8), Residual(spos.ChoiceBlock(branches)), conv(8, 2))


def pooled() -> nn.Module:
    first = spos.ChoiceBlock({"keep": nn.Identity(), "halve": nn.AvgPool2d(2)})
    return nn.Sequential(first, spos.ChoiceBlock({"narrow": conv(1, 2), "wide": conv(1, 4)}))


@pytest.mark.parametrize(
    ("make", "additive"),
    [
        (make_module, True),
        (chain, True),
        (lambda: nested().module, True),
        (held, False),  # the same branches in both
        (skipped, False),
        (pooled, False),
        (channels_support.own_module, False),
    ],
)
def test_tables_agree_with_tracing_each_child(make: Any, additive: bool) -> None:
    net = spos.Supernet(make(), input_shape=(1, 8, 8))
    archs = list(net.space.enumerate())
    counts = {arch: spos.count_peak_memory(net.extract(arch), (1, 8, 8)) for arch in archs}
    assert {arch: spos.peak_memory(net, arch) for arch in archs} == counts
    assert spos.peak_memory.table(net).additive == additive
    assert spos.peak_memory.range(net) == ((min(counts.values()), max(counts.values())) if additive else None)


@pytest.mark.parametrize("make", [channels_support.small_net, mixed_support.small_net])
def test_the_spaces_of_the_library_have_tables(make: Any) -> None:
    net = make(widths=(0.5, 1.5))
    table = spos.peak_memory.table(net)
    assert table.additive
    rng = spos.generator(0, "archs")
    for _ in range(8):
        arch = net.space.sample(rng)
        assert spos.peak_memory(net, arch) == spos.count_peak_memory(net.extract(arch), net.input_shape)
    low, high = spos.peak_memory.range(net)
    narrow, wide = (
        [spos.Arch(width if d.kind == "width" else option for d in net.space.decisions) for option in range(4)]
        for width in (0, 1)
    )
    assert min(spos.peak_memory(net, arch) for arch in narrow) == low
    assert max(spos.peak_memory(net, arch) for arch in wide) == high > low


def test_bits_that_are_not_offered_have_a_peak_too() -> None:
    net = mixed_support.small_net()
    w4, w8 = (net.space.uniform(w_bits=b, a_bits=b) for b in (4, 8))
    assert spos.peak_memory(net, w4) == spos.peak_memory(net, w8)


def test_counting_is_exact() -> None:
    net = spos.Supernet(chain(), input_shape=(1, 8, 8))
    peaks = [spos.peak_memory(net, arch) for arch in net.space.enumerate()]
    net2 = channels_support.small_net(operators=("choice_3", "choice_x"), widths=(0.5, 2.0))
    for some, all_peaks in ((net, peaks), (net2, None)):
        low, high = spos.peak_memory.range(some)
        middle = (low + high) // 2
        within = [spos.peak_memory >= low + 1, spos.peak_memory <= high - 1]
        bounds = [[spos.peak_memory <= middle], [spos.peak_memory >= middle], within, [spos.peak_memory <= high]]
        for constraints in bounds:
            passes = [all(c.allows(p) for c in constraints) for p in all_peaks] if all_peaks else None
            found = spos.profile(some, constraints)
            exact = sampler(some, constraints)
            assert found.draws == 0 and exact is not None and found.feasible_fraction == exact.count / some.space.size()
            if passes is not None:
                assert exact.count == sum(passes)
                assert {exact.arch(i) for i in range(exact.count)} == {
                    a for a, good in zip(some.space.enumerate(), passes, strict=True) if good
                }
            rng = spos.generator(0, "draws")
            for arch in (exact.sample(rng) for _ in range(50)):
                assert all(c.allows(spos.peak_memory(some, arch)) for c in constraints)


def test_a_search_keeps_to_the_bound() -> None:
    net, data = spos.Supernet(chain(), input_shape=(1, 8, 8)), make_data()
    low, high = spos.peak_memory.range(net)
    found = spos.evolve(net, data, constraints=[spos.peak_memory <= low, spos.flops <= 1e9], config=SEARCH)
    assert all(spos.peak_memory(net, c.arch) <= low < high for c in found.history)
    with pytest.raises(spos.UnsatisfiableError, match=rf"peak_memory <= {low - 1} .* from {low:,} to {high:,}"):
        spos.evolve(net, data, constraints=[spos.peak_memory <= low - 1], config=SEARCH)


def test_beside_another_cost_it_is_drawn_from_or_tried() -> None:
    net = channels_support.small_net(operators=("choice_3", "choice_x"), widths=(0.5, 1.0, 2.0))
    memory, flops = (cost.range(net) for cost in (spos.peak_memory, spos.flops))
    both = [spos.peak_memory <= memory[0], spos.flops <= (flops[0] + flops[1]) // 2]
    found = spos.profile(net, both, draws=300)
    exact = sampler(net, both)
    allowed = spos.costs.feasible(net, both)
    draws = [allowed(exact.sample(rng)) for rng in [spos.generator(5, "draws")] for _ in range(1000)]
    assert all(spos.peak_memory(net, exact.sample(spos.generator(6, "draw", i))) <= memory[0] for i in range(20))
    assert found.draws == 300 and found.acceptance == pytest.approx(sum(draws) / 1000, abs=0.1)
    assert found.feasible_fraction == pytest.approx(found.acceptance * exact.count / net.space.size())


def test_too_many_combinations_are_traced_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spos.blocks.MOST_NETWORKS", 1)
    net = spos.Supernet(make_module(), input_shape=(1, 8, 8))
    assert not spos.peak_memory.table(net).additive
    arch = net.space.sample(spos.generator(0, "arch"))
    assert spos.peak_memory(net, arch) == spos.count_peak_memory(net.extract(arch), (1, 8, 8))
    traced: list[Any] = []
    monkeypatch.setattr(activation_memory, "trace", lambda *a: traced.append(a))
    assert spos.peak_memory(net, arch) > 0 and not traced  # kept


def test_images_of_unknown_shape() -> None:
    with pytest.raises(ValueError, match="input_shape is unknown"):
        spos.peak_memory(spos.Supernet(make_module()), (0, 0, 0))
