"""Latencies: every block at every option in the table, sums, budgets, files; a clock of our own instead of time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import spos
import spos_kernels as sk
from spos import latency_table
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
    monkeypatch.setattr(latency_table.time, "perf_counter_ns", lambda: now[0])
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
    assert set(table.blocks[0].nanoseconds) == {f"{b} {w}" for b in OFFERED for w in ("0.5", "1.0", "1.5")}
    assert (table.rest, table.batch, table.input_shape) == (7, 2, (1, 8, 8))
    rng = spos.generator(0, "archs")
    for arch in [net.space.sample(rng) for _ in range(6)]:
        assert spos.latency(net, arch) == expected(net, arch) / 1e6
        assert latency_table.time_network(net, arch, rounds=2) == expected(net, arch) / 1e6
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
    net = small_net(bits=OFFERED)
    table = spos.measure_latency(net, rounds=1)
    table.save(tmp_path / "latency.json")
    again = spos.LatencyTable.load(tmp_path / "latency.json")
    assert again == table
    other = small_net(bits=OFFERED)
    again.attach(other)
    arch = net.space.sample(spos.generator(0, "arch"))
    assert spos.latency(other, arch) == spos.latency(net, arch)
    with pytest.raises(ValueError, match="the table is of resnet-mixed-small for images of"):
        again.attach(small_net())

    content = json.loads((tmp_path / "latency.json").read_text())
    for change in ({"schema": 2}, {"blocks": 3}, {"rest": -1}, {"batch": "8"}, {"machine": None, "more": 1}):
        (tmp_path / "bad.json").write_text(json.dumps(content | change))
        with pytest.raises(RunDirectoryError, match=r"bad\.json"):
            spos.LatencyTable.load(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text((tmp_path / "latency.json").read_text()[:-40])
    with pytest.raises(RunDirectoryError, match="is damaged"):
        spos.LatencyTable.load(tmp_path / "bad.json")
    del content["blocks"][0]["nanoseconds"]["w2a2 1.0"]
    (tmp_path / "bad.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"does not fit the space: layer1\.0"):
        spos.LatencyTable.load(tmp_path / "bad.json").attach(net)
    with pytest.raises(FileNotFoundError):
        spos.LatencyTable.load(tmp_path / "none.json")


class Own(nn.Module):
    """A convolution of searched bits that is called in a module of one's own, and one in a row of layers."""

    def __init__(self) -> None:
        super().__init__()
        bits, width = spos.BitsChoice(OFFERED), spos.WidthChoice([2, 4])
        self.first = spos.SlicedQuantizedConv2d(1, width, 3, 1, 1, bits=bits)
        self.norm = spos.SlicedBatchNorm2d(width)
        more = spos.SlicedQuantizedConv2d(width, 3, 1, bits=spos.BitsChoice(OFFERED))
        self.rest = nn.Sequential(more, nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(self.norm(self.first(x)))


def test_layers_of_a_network_of_ones_own() -> None:
    net = spos.Supernet(Own(), input_shape=(1, 8, 8))
    table = spos.measure_latency(net, rounds=2)
    assert [(b.name, len(b.nanoseconds)) for b in table.blocks] == [("first", 6), ("rest.0", 6)]
    assert all(time > 0 for b in table.blocks for time in b.nanoseconds.values())
    assert 0 < spos.latency(net, net.space.sample(spos.generator(0, "arch"))) < 1000


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: spos.spaces.get("shufflenet-oneshot", num_classes=3, image_size=32), {}, "has no quantized layer"),
        (lambda: spos.Supernet(Own()), {}, "input_shape is unknown"),
        (small_net, {"batch": 0}, "batch = 0: expected a positive integer"),
        (small_net, {"rounds": 1.5}, "rounds = 1.5: expected a positive integer"),
        (nn.Identity, {}, "net is a Identity"),
    ],
)
def test_what_cannot_be_measured_is_named(make: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        spos.measure_latency(make(), **options)
