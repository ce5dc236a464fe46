"""Latencies: every block at every option in the table, sums, budgets, files; a clock of our own instead of time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import spos
import spos_kernels as sk
from spos import latency_measurement
from spos.run_directory import RunDirectoryError

from .conftest import SEARCH, make_data
from .mixed_support import small_net

OFFERED = ("w2a2", "w1a4", "w4a4")


def cost_of(block: sk.PackedBlock) -> int:
    """What a block takes by the clock of the tests, in nanoseconds: anything that tells options apart."""
    layer = block.conv1
    return 1000 * layer.w_bits + 10 * layer.a_bits + layer.out_channels


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes in packed blocks, as `cost_of` says, and 7 ns in each run of a network."""
    now = [0]
    monkeypatch.setattr(latency_measurement.time, "perf_counter_ns", lambda: now[0])
    block, network = sk.PackedBlock.forward, sk.PackedNetwork.forward

    def run_block(self: sk.PackedBlock, *inputs: Any, **options: Any) -> Any:
        now[0] += cost_of(self)
        return block(self, *inputs, **options)

    def run_network(self: sk.PackedNetwork, images: torch.Tensor) -> torch.Tensor:
        now[0] += 7
        return network(self, images)

    monkeypatch.setattr(sk.PackedBlock, "forward", run_block)
    monkeypatch.setattr(sk.PackedNetwork, "forward", run_network)


def expected(net: spos.Supernet, arch: spos.Arch) -> int:
    packed = spos.deploy(net.extract(arch).eval())
    return 7 + sum(cost_of(m) for m in packed.modules() if isinstance(m, sk.PackedBlock))


@pytest.mark.usefixtures("clock")
def test_the_sum_of_what_was_measured_is_that_of_any_network() -> None:
    net = small_net(bits=OFFERED)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    table = spos.measure_latency(net, batch=2, rounds=2)
    assert [b.name for b in table.blocks] == [f"layer{i}.{j}" for i, n in ((1, 2), (2, 3), (3, 3)) for j in range(n)]
    assert all(len(b.nanoseconds) == 3 * 3 and set(b.spread.values()) == {0.0} for b in table.blocks)
    assert set(table.blocks[0].nanoseconds) == {(b, w) for b in OFFERED for w in ("0.5", "1.0", "1.5")}
    assert (table.rest, table.batch, table.input_shape) == (7, 2, (1, 8, 8))
    rng = spos.generator(0, "archs")
    archs = [net.space.sample(rng) for _ in range(6)]
    assert [spos.latency(net, arch) for arch in archs] == [expected(net, arch) / 1e6 for arch in archs]
    assert latency_measurement.time_networks(net, archs, rounds=2) == [expected(net, arch) / 1e6 for arch in archs]
    narrow, wide = (net.space.uniform(bits=bits, width=width) for bits, width in (("w1a4", 0.5), ("w4a4", 1.5)))
    assert spos.latency.range(net) == (expected(net, narrow) / 1e6, expected(net, wide) / 1e6)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.usefixtures("clock")
def test_a_search_keeps_to_the_budget() -> None:
    net, data = small_net(bits=OFFERED), make_data()
    with pytest.raises(ValueError, match=r"has no table of latencies: expected spos\.measure_latency"):
        spos.evolve(net, data, constraints=[spos.latency <= 1.0], config=SEARCH)
    spos.measure_latency(net, rounds=1)
    low, high = spos.latency.range(net) or (0, 0)
    budget = low + 0.4 * (high - low)
    found = spos.evolve(net, data, constraints=[spos.latency <= budget], config=SEARCH)
    assert all(c.latency == spos.latency(net, c.arch) <= budget for c in found.history)
    with pytest.raises(spos.UnsatisfiableError, match="latency"):
        spos.profile(net, [spos.latency <= low / 2])


@pytest.mark.usefixtures("clock")
def test_options_that_were_not_measured_are_refused() -> None:
    net = small_net(bits=OFFERED)
    spos.measure_latency(net, rounds=1)
    with pytest.raises(ValueError, match=r"layer1\.0 was not measured at w3a3 1\.0: expected options that a search"):
        spos.latency(net, net.space.uniform(w_bits=3, a_bits=3))


@pytest.mark.usefixtures("clock")
def test_a_table_is_kept_in_a_file(tmp_path: Path) -> None:
    net, path, bad = small_net(bits=OFFERED), tmp_path / "latency.json", tmp_path / "bad.json"
    table = spos.measure_latency(net, rounds=1)
    spos.save_latency(table, path)
    again = spos.load_latency(path)
    assert again == table
    other = small_net(bits=OFFERED)
    again.attach(other)
    arch = net.space.sample(spos.generator(0, "arch"))
    assert spos.latency(other, arch) == spos.latency(net, arch)
    for kind in ({}, {"bits": OFFERED, "widths": (1.0,)}):
        with pytest.raises(ValueError, match="is of another network, resnet-mixed-small for images of"):
            again.attach(small_net(**kind))

    whole = json.loads(path.read_text())
    for change in ({"schema": 2}, {"blocks": 3}, {"rest": -1}, {"rest": 10**30}, {"batch": "8"}, {"machine": None},
                   {"space": 3}, {"input_shape": "x"}):  # fmt: skip
        bad.write_text(json.dumps(whole | change))
        with pytest.raises(RunDirectoryError, match=r"bad\.json"):
            spos.load_latency(bad)
    for text in (path.read_text()[:-40], "[]", json.dumps({k: v for k, v in whole.items() if k != "rest"})):
        bad.write_text(text)
        with pytest.raises(RunDirectoryError, match="is damaged"):
            spos.load_latency(bad)
    with pytest.raises(FileNotFoundError):
        spos.load_latency(tmp_path / "none.json")

    def changed(change: Callable[[list[Any]], object]) -> spos.LatencyTable:
        content = json.loads(path.read_text())
        change(content["blocks"])
        bad.write_text(json.dumps(content))
        return spos.load_latency(bad)

    for change in (list.clear, list.pop, lambda b: b.append(b[0]), lambda b: b[0].update(decisions=[])):
        with pytest.raises(ValueError, match="has other blocks than resnet-mixed-small: expected layer1"):
            changed(change).attach(net)
    for change in (lambda b: b[0]["times"].pop(), lambda b: b[0]["times"][0].update(options=["w9a9", "1.0"])):
        with pytest.raises(ValueError, match=r"has other options of layer1\.0 than"):
            changed(change).attach(net)
    with pytest.raises(RunDirectoryError, match=r"options of layer1\.0 occur twice"):
        changed(lambda b: b[0]["times"].append(b[0]["times"][0]))


@pytest.mark.usefixtures("clock")
def test_a_search_does_not_go_on_with_another_table(tmp_path: Path) -> None:
    net, data = small_net(bits=OFFERED), make_data()
    spos.measure_latency(net, rounds=1)
    first = spos.evolve(net, data, config=SEARCH, run=tmp_path / "run")
    assert spos.evolve(net, data, config=SEARCH, run=tmp_path / "run") == first
    table = spos.measure_latency(net, rounds=1)
    dataclasses.replace(table, rest=8).attach(net)
    with pytest.raises(RunDirectoryError, match="another latency"):
        spos.evolve(net, data, config=SEARCH, run=tmp_path / "run")


def test_least_times_and_spreads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of times that vary from run to run: the clock gives each reading one nanosecond more than the one before."""
    now = [0, 0]

    def clock() -> int:
        now[1] += 1
        now[0] += now[1]
        return now[0]

    monkeypatch.setattr(latency_measurement.time, "perf_counter_ns", clock)
    net = small_net(bits=("w2a2",), widths=(1.0,))
    table = spos.measure_latency(net, rounds=5)
    ticks = 2 + 2 + 2 * 8  # readings a round: of the warm-up, of the whole, of each block
    for number, block in enumerate(table.blocks):
        times = [ticks * r + 4 + 2 * number + 2 for r in range(5)]
        assert block.nanoseconds == {("w2a2", "1.0"): times[0]}
        assert block.spread[("w2a2", "1.0")] == pytest.approx(3 * ticks / times[2], abs=1e-4)


def qconv(inputs: Any, outputs: Any, kernel: int, bits: spos.BitsChoice | None = None) -> nn.Module:
    bits = bits or spos.BitsChoice(OFFERED)
    return spos.SlicedQuantizedConv2d(inputs, outputs, kernel, 1, kernel // 2, bits=bits)


class Own(nn.Module):
    """A convolution of searched bits that is called in a module of one's own, and one in a row of layers."""

    def __init__(self) -> None:
        super().__init__()
        width = spos.WidthChoice([2, 4])
        self.first = qconv(1, width, 3)
        self.norm = spos.SlicedBatchNorm2d(width)
        more = qconv(width, 3, 1)
        self.rest = nn.Sequential(more, nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(self.norm(self.first(x)))


def test_layers_of_a_network_of_ones_own() -> None:
    net = spos.Supernet(Own(), input_shape=(1, 8, 8))
    table = spos.measure_latency(net, rounds=2)
    assert [(b.name, len(b.nanoseconds)) for b in table.blocks] == [("first", 6), ("rest.0", 6)]
    assert all(time > 0 for b in table.blocks for time in b.nanoseconds.values())
    assert 0 < spos.latency(net, net.space.sample(spos.generator(0, "arch"))) < 1000


def heavy() -> nn.Module:
    return nn.Sequential(*(nn.Conv2d(4, 4, 7, padding=3) for _ in range(8)))


class Held(nn.Module):
    """A block with a choice of branches as a part, beside a list of blocks and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.choice = spos.ChoiceBlock({"light": nn.Conv2d(4, 4, 1), "heavy": heavy(), "none": nn.Identity()})
        branches = {"one": nn.Sequential(qconv(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), "two": heavy()}
        self.blocks = nn.ModuleList([spos.ChoiceBlock(branches)])
        self.twice = qconv(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(self.twice(self.blocks[0](self.choice(x)).relu()).relu())


class Skipping(Held):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(x)


def test_every_choice_is_in_the_block_that_takes_its_time() -> None:
    """Also choices of float layers, branches in rows of layers, which are renumbered, and a layer called twice."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout()]
    row = [
        spos.ChoiceBlock({"q": nn.Sequential(qconv(4, 4, 1), nn.BatchNorm2d(4)), "float": heavy()}) for _ in range(2)
    ]
    far = [nn.Conv2d(4, 32, 7), nn.Conv2d(32, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = spos.Supernet(nn.Sequential(*stem, *row, Held(), *far), input_shape=(1, 16, 16))
    table = spos.measure_latency(net, batch=4, rounds=5)
    assert [b.name for b in table.blocks] == ["3", "4", "5.choice", "5.blocks.0", "5.twice"]
    for name, heavier in (("3", "float"), ("4", "float"), ("5.choice", "heavy"), ("5.blocks.0", "two")):
        [times] = [block.nanoseconds for block in table.blocks if block.name == name]
        assert max(times, key=times.__getitem__)[0] == heavier, times
    assert next(b for b in table.blocks if b.name == "5.choice").nanoseconds[("none",)] < 100_000
    with pytest.raises(ValueError, match=r"3\.choice is not called in the network"):
        spos.measure_latency(spos.Supernet(nn.Sequential(*stem, Skipping()), input_shape=(1, 16, 16)), rounds=1)


def test_calls_of_a_block_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by one at each reading."""
    monkeypatch.setattr(latency_measurement.time, "perf_counter_ns", iter(range(10**9)).__next__)
    net = spos.Supernet(nn.Sequential(nn.Conv2d(1, 4, 3), Held()), input_shape=(1, 16, 16))
    times = {block.name: set(block.nanoseconds.values()) for block in spos.measure_latency(net, rounds=2).blocks}
    assert times == {"1.choice": {1}, "1.blocks.0": {1}, "1.twice": {2}}


def test_too_many_combinations_are_refused_before_anything_is_made() -> None:
    bits, widths = spos.BitsChoice("any"), [spos.WidthChoice(list(range(1, 30))) for _ in range(2)]
    wide = nn.Sequential(qconv(1, widths[0], 3, bits), spos.SlicedConv2d(widths[0], widths[1], 1))
    with pytest.raises(ValueError, match=r"0 has 1,856 combinations of options: expected at most 1,000"):
        spos.measure_latency(spos.Supernet(wide, input_shape=(1, 8, 8)), rounds=1)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: spos.Supernet(Own()), {}, "input_shape is unknown"),
        (small_net, {"batch": 0}, "batch = 0: expected a positive integer"),
        (small_net, {"rounds": 1.5}, "rounds = 1.5: expected a positive integer"),
        (nn.Identity, {}, "net is a Identity"),
    ],
)
def test_what_cannot_be_measured_is_named(make: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        spos.measure_latency(make(), **options)
