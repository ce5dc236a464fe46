from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import spos

from .test_supernet import nested

OFFICIAL = "2,1,0,1,2,0,2,0,2,0,2,3,0,0,0,0,3,2,3,3"


@pytest.fixture(scope="module")
def imagenet() -> spos.Supernet:
    return spos.spaces.get("shufflenet-oneshot")


@pytest.mark.parametrize(
    ("label", "mflops", "mparams"),
    [
        ("choice_3", 295.8, 3.13),
        ("choice_5", 313.7, 3.19),
        ("choice_7", 340.4, 3.28),
        ("choice_x", 358.8, 3.83),
        (OFFICIAL, 322.9, 3.53),
    ],
)
def test_counts_of_the_published_space(imagenet, label, mflops, mparams):
    arch = imagenet.space.uniform(operator=label) if label.startswith("c") else tuple(int(i) for i in label.split(","))
    assert round(spos.flops(imagenet, arch) / 1e6, 1) == mflops
    assert round(spos.params(imagenet, arch) / 1e6, 2) == mparams


def test_tables_agree_with_counting_each_child(net):
    for arch in net.space.enumerate():
        child = net.extract(arch, affine=False)
        assert spos.flops(net, arch) == spos.count_flops(child, (1, 8, 8))
        assert spos.params(net, arch) == sum(p.numel() for p in child.parameters())


def test_flops_by_hand():
    net = spos.Supernet(
        nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            spos.ChoiceBlock({"grouped": nn.Conv2d(4, 4, 1, groups=2), "skip": nn.Identity()}),
            nn.Flatten(),
            nn.Linear(4 * 16, 10),
        ),
        input_shape=(2, 8, 8),
    )
    shared = 2 * 9 * 4 * 16 + 640
    assert spos.flops(net, (1,)) == shared and spos.flops(net, (0,)) == shared + 2 * 4 * 16
    assert spos.params(net, (1,)) == 2 * 9 * 4 + 4 + 640 + 10
    assert spos.flops.table(net).range() == (shared, shared + 128)


def test_nested_costs_and_their_range():
    net = nested()
    costs = {arch: spos.flops(net, arch) for arch in net.space.enumerate()}
    assert costs == {(0, 0): 64, (0, 1): 64 * 10, (1, 0): 64 * 25, (1, 1): 64 * 25}
    assert spos.flops.table(net).range() == (64, 64 * 25)
    assert spos.params.table(net).range() == (2, 26)


def test_shared_decision_and_repeated_block_are_counted_at_each_use():
    def options():
        return {"conv": nn.Conv2d(1, 1, 3, padding=1, bias=False), "skip": nn.Identity()}

    twice = spos.ChoiceBlock(options())
    net = spos.Supernet(
        nn.Sequential(
            spos.ChoiceBlock(options(), decision="d"), spos.ChoiceBlock(options(), decision="d"), twice, twice
        ),
        input_shape=(1, 4, 4),
    )
    assert spos.flops(net, (0, 1)) == spos.flops(net, (1, 0)) == 2 * 9 * 16
    assert spos.params(net, (0, 1)) == 18 and spos.params(net, (1, 0)) == 9


def test_costs_that_do_not_add_up_are_measured_one_by_one():
    net = spos.Supernet(
        nn.Sequential(
            spos.ChoiceBlock({"keep": nn.Identity(), "halve": nn.AvgPool2d(2)}),
            spos.ChoiceBlock({"conv": nn.Conv2d(1, 1, 3, padding=1), "wide": nn.Conv2d(1, 1, 5, padding=2)}),
        ),
        input_shape=(1, 8, 8),
    )
    assert {a: spos.flops(net, a) for a in net.space.enumerate()} == {
        (0, 0): 9 * 64,
        (0, 1): 25 * 64,
        (1, 0): 9 * 16,
        (1, 1): 25 * 16,
    }
    assert spos.flops.table(net).range() is None


def test_counting_leaves_the_net_as_it_was(net):
    net.train()
    net.module.operator.eval()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    spos.flops(net, (0, 0, 0))
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_flops_need_an_input_shape():
    net = spos.Supernet(spos.ChoiceBlock({"a": nn.Conv2d(1, 1, 1)}))
    with pytest.raises(ValueError, match="input_shape is unknown"):
        spos.flops(net, (0,))
    assert spos.params(net, (0,)) == 2


def test_constraints():
    upper, lower = spos.flops <= 330e6, spos.params >= 2_000_000
    assert str(upper) == "flops <= 330000000" and str(lower) == "params >= 2000000"
    assert upper.allows(330_000_000) and not upper.allows(330_000_001)
    assert lower.allows(2_000_000) and not lower.allows(1_999_999)
    assert str(330e6 >= spos.flops) == str(upper)  # noqa: SIM300
    with pytest.raises(TypeError, match="must be written as two"):
        _ = 1e6 <= spos.flops <= 2e6
    for bad in ("1", None, float("nan"), True):
        with pytest.raises(TypeError, match="expected a number"):
            _ = spos.flops <= bad


def test_profile_refuses_what_cannot_be_reached(net):
    low, high = spos.flops.table(net).range()
    assert low == min(spos.flops(net, a) for a in net.space.enumerate())
    assert high == max(spos.flops(net, a) for a in net.space.enumerate())
    with pytest.raises(spos.UnsatisfiableError, match=rf"flops <= {low - 1} .* from {low:,} to {high:,}"):
        spos.profile(net, [spos.flops <= low - 1])
    with pytest.raises(spos.UnsatisfiableError, match=f"{low:,} to {high:,}"):
        spos.profile(net, [spos.flops >= high + 1])
    assert spos.profile(net, [spos.flops <= high]).feasible_fraction == 1
    exact = sum(spos.flops(net, a) <= low for a in net.space.enumerate()) / net.space.size()
    found = spos.profile(net, [spos.flops <= low])
    assert found.ranges == {"flops": (low, high)} and found.feasible_fraction == pytest.approx(exact, abs=0.05)
    with pytest.raises(TypeError, match="constraints has 'flops'"):
        spos.profile(net, ["flops"])


def test_profile_of_several_costs(net):
    archs = list(net.space.enumerate())
    flops, params = (sorted({cost(net, a) for a in archs}) for cost in (spos.flops, spos.params))
    bounds = [spos.flops <= flops[-1], spos.flops >= flops[1], spos.params <= params[-2]]
    found = spos.profile(net, bounds, draws=4000)
    passes = {name: [all(c.allows(c.cost(net, a)) for c in bounds if c.cost.name == name) for a in archs]
              for name in ("flops", "params")}  # fmt: skip
    for name, passing in passes.items():
        share = found.each[name]
        assert share == spos.Share.exact(sum(passing) / len(archs))
    both = sum(map(all, zip(*passes.values(), strict=True)))
    low, high = found.interval
    assert 0 < low < both / len(archs) < high < 1 and high - low < 0.06 and low < found.feasible_fraction < high
    assert found.draws == 4000 and found.acceptance == pytest.approx(both / min(map(sum, passes.values())), abs=0.05)
    one = spos.profile(net, bounds[:2])
    assert (one.feasible_fraction, one.draws, one.acceptance) == (found.each["flops"].fraction, 0, 1.0)
    assert one.interval == (one.feasible_fraction, one.feasible_fraction)
    nothing = spos.profile(net, bounds, draws=0)
    assert nothing.feasible_fraction is nothing.interval is nothing.acceptance is None
    assert spos.profile(net).feasible_fraction == 1.0 and spos.profile(net).each == {}


def test_profile_of_a_cost_that_cannot_be_counted():
    """By draws from the whole space, or from those within the bounds of one that can."""
    first = spos.ChoiceBlock({"keep": nn.Identity(), "halve": nn.AvgPool2d(2)})
    convs = [spos.ChoiceBlock({str(k): nn.Conv2d(1, 1, k, padding=k // 2) for k in (1, 3, 5)}) for _ in range(2)]
    net = spos.Supernet(nn.Sequential(first, *convs), input_shape=(1, 8, 8))
    archs = list(net.space.enumerate())
    bounds = [spos.flops <= 1000, spos.params <= 30]
    alone = [sum(c.allows(c.cost(net, a)) for a in archs) / len(archs) for c in bounds]
    both = sum(all(c.allows(c.cost(net, a)) for c in bounds) for a in archs) / len(archs)
    found = spos.profile(net, bounds, draws=1000)
    assert found.ranges["flops"] is None and found.each["flops"].draws == 1000
    assert found.each["flops"].interval[0] < alone[0] < found.each["flops"].interval[1]
    assert found.each["params"] == spos.Share.exact(alone[1])
    assert found.interval[0] < both < found.interval[1] and found.acceptance == found.feasible_fraction / alone[1]
    single = spos.profile(net, bounds[:1], draws=1000)
    assert single.draws == 1000 and single.each["flops"].fraction == single.feasible_fraction == single.acceptance


def test_weights_shared_by_branches_count_once_on_a_path():
    conv = nn.Conv2d(1, 1, 3, padding=1)
    for first, second in (({"a": conv, "skip": nn.Identity()}, {"a": conv, "skip": nn.Identity()}),
                          ({"a": conv, "skip": nn.Identity()}, {"skip": nn.Identity(), "a": conv})):  # fmt: skip
        net = spos.Supernet(nn.Sequential(spos.ChoiceBlock(first), spos.ChoiceBlock(second)), input_shape=(1, 4, 4))
        for arch in net.space.enumerate():
            assert spos.params(net, arch) == sum(p.numel() for p in net.path_parameters(arch))
            assert spos.flops(net, arch) == spos.count_flops(net.extract(arch), (1, 4, 4))


def test_attention_is_counted():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.inner(x, x, x, need_weights=False)[0]

    net = spos.Supernet(spos.ChoiceBlock({"attend": Attention(), "skip": nn.Identity()}), input_shape=(5, 8))
    fast = torch.backends.mha.get_fastpath_enabled()
    assert spos.flops(net, (0,)) == 5 * 8 * 8 * 4 + 2 * 5 * 5 * 8 and spos.flops(net, (1,)) == 0
    assert torch.backends.mha.get_fastpath_enabled() == fast
    child = net.extract((0,), weights="fresh", seed=1)
    assert not torch.equal(child.inner.in_proj_weight, net.module.branch(0).inner.in_proj_weight)


def test_shapes_inside_of_containers_are_seen():
    class OnLists(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, xs):
            return [self.layer(x) for x in xs]

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = spos.ChoiceBlock({"keep": OnLists(nn.Identity()), "halve": OnLists(nn.AvgPool2d(2))})
            convs = {str(k): OnLists(nn.Conv2d(1, 1, k, padding=k // 2)) for k in (3, 5)}
            self.conv = spos.ChoiceBlock(convs)

        def forward(self, x):
            return self.conv(self.pool([x]))[0]

    net = spos.Supernet(Network(), input_shape=(1, 8, 8))
    counts = {tuple(a): spos.flops(net, a) for a in net.space.enumerate()}
    assert counts == {(0, 0): 9 * 64, (0, 1): 25 * 64, (1, 0): 9 * 16, (1, 1): 25 * 16}


def test_tables_do_not_travel_with_a_net_and_follow_frozen_weights(net):
    arch = (0, 0, 0)
    trained = spos.params(net, arch)
    assert spos.flops(net, arch) == spos.flops(pickle.loads(pickle.dumps(net)), arch)
    frozen = [p.requires_grad_(False) for p in net.module.stem.parameters()]
    assert spos.params(net, arch) == trained - sum(p.numel() for p in frozen)


def test_constraints_come_as_a_list(net):
    with pytest.raises(TypeError, match=r"expected a list, \[flops <= 10\]"):
        spos.profile(net, spos.flops <= 10)
    assert str(spos.flops <= np.int64(10)) == "flops <= 10"
