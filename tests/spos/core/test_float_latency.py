"""Latencies of float networks: which blocks are timed, in which network, and what sums of them come to."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import spos
import spos_kernels as sk
from spos import latency_measurement
from spos.blocks import blocks_of
from spos.latency_measurement import other_machine, spread_networks, time_networks
from spos.spaces import shufflenet

from . import channels_support
from .conftest import SEARCH, make_data, make_module
from .test_supernet import nested


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes in convolutions alone, a nanosecond for each weight."""
    now = [0]
    monkeypatch.setattr(latency_measurement.time, "perf_counter_ns", lambda: now[0])
    for kind in (nn.Conv2d, sk.DepthwiseConv2d):
        forward = kind.forward

        def run(self: nn.Conv2d, x: torch.Tensor, forward: Any = forward) -> torch.Tensor:
            now[0] += self.weight.numel()
            y: torch.Tensor = forward(self, x)
            return y

        monkeypatch.setattr(kind, "forward", run)


def weights(net: spos.Supernet, arch: spos.Arch) -> int:
    return sum(m.weight.numel() for m in net.extract(arch).modules() if isinstance(m, nn.Conv2d))


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("make", [make_module, channels_support.own_module, lambda: nested().module])
def test_the_sum_of_what_was_measured_is_that_of_any_network(make: Any) -> None:
    net = spos.Supernet(make(), input_shape=(1, 8, 8)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    spos.measure_latency(net, batch=2, rounds=2)
    archs = list(itertools.islice(net.space.enumerate(), 30))
    expected = [weights(net, arch) / 1e6 for arch in archs]
    assert [spos.latency(net, arch) for arch in archs] == expected
    assert time_networks(net, archs, rounds=1) == expected
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes and not any(p.grad is not None for p in net.parameters())


@pytest.mark.usefixtures("clock")
def test_a_search_keeps_to_the_budget() -> None:
    net, data = spos.Supernet(make_module(), input_shape=(1, 8, 8)), make_data()
    spos.measure_latency(net, rounds=1)
    low, high = spos.latency.range(net) or (0, 0)
    assert low < high
    found = spos.evolve(net, data, constraints=[spos.latency <= (low + high) / 2], config=SEARCH)
    assert all(c.latency == spos.latency(net, c.arch) <= (low + high) / 2 for c in found.history)
    assert time_networks(net, [found.best.arch], rounds=1) == [found.best.latency]


def test_the_network_is_the_child_on_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole as one chain, blocks one by one by the fused block, in eval mode, channels last, without gradients."""
    chains, blocks = [], []
    chain, block = shufflenet.choice_block_chain, shufflenet.choice_block

    def run_chain(x: torch.Tensor, links: Any, **options: Any) -> torch.Tensor:
        chains.append((len(links), options["training"], x.is_contiguous(memory_format=torch.channels_last)))
        assert not torch.is_grad_enabled()
        y: torch.Tensor = chain(x, links, **options)
        return y

    def run_block(x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        blocks.append(options["training"])
        y: torch.Tensor = block(x, *arguments, **options)
        return y

    monkeypatch.setattr(shufflenet, "choice_block_chain", run_chain)
    monkeypatch.setattr(shufflenet, "choice_block", run_block)
    net = channels_support.small_net(operators=("choice_3", "choice_x"), widths=(0.5, 1.0, 2.0))
    table = spos.measure_latency(net, batch=2, rounds=2)
    assert [b.name for b in table.blocks] == [f"features.{i}" for i in range(8)]
    assert all(len(b.nanoseconds) == 6 and min(b.nanoseconds.values()) > 0 for b in table.blocks)
    assert ("choice_x", "2.0") in table.blocks[0].nanoseconds
    # six networks, two rounds, each whole twice and block by block once
    assert chains == [(10, False, True)] * 24 and blocks == [False] * (6 * 2 * 8)
    assert 0 < spos.latency(net, net.space.sample(spos.generator(0, "arch"))) < 1000
    assert table.machine["device"] == "cpu" and table.machine["backend"] == "cpu" and table.machine["threads"] == 1
    assert other_machine(table, net) == ""
    with sk.use_backend("reference"):
        assert other_machine(table, net) == "backend cpu, now reference"
        assert spos.measure_latency(net, rounds=1).machine["backend"] == "reference"


def test_widths_that_meet_in_one_module_are_one_block() -> None:
    """With what stands between the sliced layers; widths that others read as well stay with single layers."""
    width, shared = spos.WidthChoice([4, 8]), spos.WidthChoice([2, 4])

    def block(width: spos.WidthChoice) -> nn.Module:
        first = [spos.SlicedConv2d(1, width, 1), spos.SlicedBatchNorm2d(width), nn.ReLU()]
        return nn.Sequential(*first, spos.SlicedConv2d(width, 1, 1))

    net = spos.Supernet(nn.Sequential(block(width), block(shared), block(shared)), input_shape=(1, 8, 8))
    assert blocks_of(net) == [("0", (0,)), *((f"{i}.{j}", (1,)) for i in (1, 2) for j in (0, 1, 3))]
    table = spos.measure_latency(net, rounds=1)
    assert [b.name for b in table.blocks] == ["0", "1.0", "1.1", "1.3", "2.0", "2.1", "2.3"]


@pytest.mark.usefixtures("clock")
def test_a_module_that_several_options_share() -> None:
    same = nn.Identity()
    blocks = [spos.ChoiceBlock({"conv": nn.Conv2d(1, 1, k, padding=k // 2), "skip": same}) for k in (1, 3)]
    net = spos.Supernet(nn.Sequential(*blocks), input_shape=(1, 8, 8))
    spos.measure_latency(net, rounds=1)
    costs = {arch: spos.latency(net, arch) * 1e6 for arch in net.space.enumerate()}
    assert costs == {(0, 0): 10, (0, 1): 1, (1, 0): 9, (1, 1): 0}


def test_networks_to_compare_with_are_wide_apart() -> None:
    net = channels_support.small_net()
    archs = spread_networks(net, 10)
    means = [sum(arch[1::2]) / 8 for arch in archs]
    assert means[0] < 2 and means[-1] > 7 and max(archs[0][1::2]) <= 2 and min(archs[-1][1::2]) >= 7
    assert len({arch[::2] for arch in archs}) > 5 and archs == spread_networks(net, 10) != spread_networks(net, 10, 1)
    assert len(spread_networks(net, 1)) == 1
