from __future__ import annotations

import pytest
import torch
from torch import nn

import spos

from .channels_support import own_net, small_net

# The architecture of operators and channels that the authors released: 328 M FLOPs and 3.4 M parameters.
OPERATORS = (0, 0, 3, 1, 1, 1, 0, 0, 2, 0, 2, 1, 1, 0, 2, 0, 2, 1, 3, 2)
RATIOS = (6, 5, 3, 5, 2, 6, 3, 4, 2, 5, 7, 5, 4, 6, 7, 4, 4, 5, 4, 3)  # 0 is 0.2, 1 is 0.4, …


@pytest.fixture(scope="module")
def imagenet() -> spos.Supernet:
    return spos.spaces.get("shufflenet-oneshot-channels")


@pytest.mark.parametrize(("widths", "mflops", "mparams"), [(RATIOS, 327.9, 3.41), ((4,) * 20, 318.7, 3.32)])
def test_counts_of_the_published_architecture(imagenet, widths, mflops, mparams):
    arch = imagenet.space.join(operator=OPERATORS, width=widths)
    assert round(spos.flops(imagenet, arch) / 1e6, 1) == mflops
    assert round(spos.params(imagenet, arch) / 1e6, 2) == mparams


def test_tables_agree_with_counting_each_child_and_ranges_are_exact():
    net = own_net()
    counted = {}
    for arch in net.space.enumerate():
        child = net.extract(arch)
        counted[arch] = (spos.count_flops(child, (1, 8, 8)), sum(p.numel() for p in net_parameters(net, arch)))
        assert (spos.flops(net, arch), spos.params(net, arch)) == counted[arch]
    assert len(set(counted.values())) > 20
    for index, cost in enumerate((spos.flops, spos.params)):
        assert cost.table(net).additive
        values = [c[index] for c in counted.values()]
        assert cost.table(net).range() == (min(values), max(values))


def net_parameters(net: spos.Supernet, arch) -> list[torch.Tensor]:
    """The parameters of the child, without the scales and shifts that extraction adds where the supernet has none."""
    return list(net.extract(arch, affine=False).parameters())


def test_tables_of_the_library_space():
    net = small_net()
    rng = spos.generator(0, "archs")
    archs = [net.space.sample(rng) for _ in range(20)]
    for arch in archs:
        child = net.extract(arch, affine=False)
        assert spos.flops(net, arch) == spos.count_flops(child, (1, 8, 8))
        assert spos.params(net, arch) == sum(p.numel() for p in child.parameters())
    base = archs[0]
    for cost in (spos.flops, spos.params):
        low = high = cost(net, base)  # blocks are free of each other, so the extremes are those of each block
        for block in range(8):
            others = [(*base[: 2 * block], o, w, *base[2 * block + 2 :]) for o in range(4) for w in range(10)]
            costs = [cost(net, other) - cost(net, base) for other in others]
            low, high = low + min(costs), high + max(costs)
        assert cost.table(net).range() == (low, high)


def test_ranges_where_widths_meet_in_a_ring():
    """Every convolution meets two widths, the last one those of both ends: no order of the decisions is a tree."""
    torch.manual_seed(0)
    choices = [spos.WidthChoice(w) for w in ([1, 5, 7], [2, 3, 9], [1, 4, 6], [2, 8])]

    class Ring(nn.Module):
        def __init__(self):
            super().__init__()
            ends = [*choices, choices[0]]
            self.convs = nn.ModuleList(spos.SlicedConv2d(ends[i], ends[i + 1], 1, bias=False) for i in range(4))
            self.first = spos.SlicedConv2d(1, choices[0], 1, bias=False)
            self.pick = spos.ChoiceBlock({"all": nn.Identity(), "half": nn.AvgPool2d(1)})

        def forward(self, x):
            x = self.first(x)
            for conv in self.convs:
                x = conv(self.pick(x))
            return x

    net = spos.Supernet(Ring(), input_shape=(1, 4, 4))
    for cost in (spos.flops, spos.params):
        values = [cost(net, arch) for arch in net.space.enumerate()]
        assert cost.table(net).range() == (min(values), max(values))
    arch = (1, 2, 0, 1, 0)
    assert spos.params(net, arch) == 5 + 5 * 9 + 9 * 1 + 1 * 8 + 8 * 5
    assert spos.flops(net, arch) == 16 * spos.params(net, arch)


def test_a_range_over_too_many_decisions_that_meet_is_not_known():
    choices = [spos.WidthChoice(list(range(1, 11))) for _ in range(8)]

    class Met(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(spos.SlicedConv2d(a, b, 1) for a in choices for b in choices if a is not b)

    net = spos.Supernet(Met())
    assert spos.params.table(net).range() is None
    assert spos.params(net, (0,) * 8) == 8 * 7 * 2


def test_widths_that_a_module_uses_by_itself_are_measured_one_by_one():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.width = spos.WidthChoice([1, 2, 4])
            self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)

        def forward(self, x):
            return nn.functional.conv2d(x, self.conv.weight[: self.width()], padding=1)

    net = spos.Supernet(nn.Sequential(Own()), input_shape=(4, 4, 4))
    assert [spos.flops(net, (i,)) for i in range(3)] == [w * 4 * 9 * 16 for w in (1, 2, 4)]
    assert spos.flops.table(net).range() is None


def test_budgets_of_widths_are_checked_before_anything_runs():
    net = small_net()
    low, high = spos.flops.table(net).range()
    with pytest.raises(spos.UnsatisfiableError, match=f"{low:,} to {high:,}"):
        spos.profile(net, [spos.flops <= low - 1])
    found = spos.profile(net, [spos.flops <= (low + high) // 2], draws=500)
    assert found.ranges == {"flops": (low, high)} and 0.5 < found.feasible_fraction <= 1


def test_a_decision_of_widths_and_branches_at_once():
    """A branch, and the widths inside of it and outside, that go by one decision."""
    width = spos.WidthChoice([1, 2], decision="size")

    def pair(kernel):
        conv = spos.SlicedConv2d(1, width, kernel, padding=kernel // 2)
        return nn.Sequential(conv, spos.SlicedConv2d(width, 1, 1))

    block = spos.ChoiceBlock({"1": pair(3), "2": pair(5)}, kind="width", decision="size")
    net = spos.Supernet(nn.Sequential(block, pair(1)), input_shape=(1, 4, 4))
    assert len(net.space) == 1
    costs = [spos.flops(net, (i,)) for i in range(2)]
    assert costs == [16 * (9 + 1 + 1 + 1), 16 * (2 * 25 + 2 + 2 + 2)]
    assert costs == [spos.count_flops(net.extract((i,)), (1, 4, 4)) for i in range(2)]
    assert spos.flops.table(net).additive and spos.flops.table(net).range() == tuple(costs)
