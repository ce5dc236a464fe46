"""Candidates scored together get what each gets alone, to the bit, and what they share runs once."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import nn

import spos
from spos import prefix_sharing
from spos.prefix_sharing import Trie, stages_of

from .channels_support import own_net
from .conftest import make_data, make_module
from .mixed_support import small_net


def shufflenet(name: str) -> spos.Supernet:
    net = spos.spaces.get(name, num_classes=3, image_size=32, in_channels=1)
    torch.manual_seed(1)
    for weight in net.parameters():  # as released, outputs are all but 0
        torch.nn.init.normal_(weight, 0, 0.3)
    return net


class Counting(nn.Module):
    """A layer that keeps a count of its calls, in a new tensor each time, and uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return x * (1 + 0.1 * self.calls)


def in_place() -> spos.Supernet:
    """Options that change their input in place, or return it as it is, or a view of it."""
    torch.manual_seed(0)

    def options() -> spos.ChoiceBlock:
        norm = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        return spos.ChoiceBlock(
            {"relu": nn.ReLU(inplace=True), "skip": nn.Identity(), "view": nn.Unflatten(1, (2, 2)), "norm": norm}
        )

    def views() -> spos.ChoiceBlock:
        return spos.ChoiceBlock(
            {"flat": nn.Flatten(1), "hard": nn.Sequential(nn.Hardtanh(inplace=True), nn.Flatten(1))}
        )

    def flat() -> spos.ChoiceBlock:
        return spos.ChoiceBlock({"elu": nn.ELU(inplace=True), "skip": nn.Identity()})

    stem = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4))
    return spos.Supernet(nn.Sequential(stem, options(), views(), flat(), Counting(), nn.Linear(64, 3)))


NETS: dict[str, Callable[[], tuple[spos.Supernet, int]]] = {
    "own module": lambda: (spos.Supernet(make_module()), 8),
    "in place": lambda: (in_place(), 8),
    "operators": lambda: (shufflenet("shufflenet-oneshot-small"), 32),
    "operators and widths": lambda: (shufflenet("shufflenet-oneshot-channels-small"), 32),
    "bits and widths": lambda: (small_net(), 8),
}


def batches(side: int) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
    data = make_data(side=side, images=48)
    return data.calibration_batches(18, 8, 0), data.validation_batches(0, 7, 0)


def drawn(net: spos.Supernet, count: int = 7) -> list[spos.Arch]:
    """Architectures of which some share much, and one occurs twice."""
    rng = spos.generator(0, "archs")
    first = net.space.sample(rng)
    near = [spos.Arch((*first[:-1], i)) for i in range(net.space.decisions[-1].drawn)]
    return [first, *near, *(net.space.sample(rng) for _ in range(count)), first]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("memory", [prefix_sharing.MEMORY, 0])
def test_scores_are_those_of_one_after_another(name: str, memory: int) -> None:
    net, side = NETS[name]()
    calibration, validation = batches(side)
    archs = drawn(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    apart = spos.evaluate_population(copy.deepcopy(net), archs, calibration, validation, share_prefixes=False)
    together = spos.evaluate_population(net, archs, calibration, validation, memory=memory)
    assert together == apart
    assert len({score.loss for score in apart}) > 3  # they tell architectures apart
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes


def test_what_is_kept_is_not_changed_through_a_view_of_it() -> None:
    """An option that returns its input, or a view, with one way on from it, which changes that in place."""
    net = in_place()
    calibration, validation = batches(8)
    archs = [net.space.arch(a) for a in ((1, 1, 0), (2, 1, 1), (0, 0, 1), (3, 0, 1))]
    apart = spos.evaluate_population(copy.deepcopy(net), archs, calibration, validation, share_prefixes=False)
    assert spos.evaluate_population(net, archs, calibration, validation) == apart


def test_as_many_passes_as_nodes() -> None:
    net = spos.Supernet(make_module())
    calibration, _ = batches(8)
    archs = list(net.space.enumerate())
    trie = Trie(net, archs)
    assert [stage.decisions for stage in trie.stages] == [(), (0,), (1,), (2,)]
    nodes = 1 + 3 + 3 * 2 + 3 * 2 * 2
    assert len(trie.nodes) == nodes and len(archs) == 12
    seen: list[int] = []
    with trie.in_place():
        trie.walk(calibration[0], lambda candidates, _: seen.extend(candidates))
    assert sorted(seen) == list(range(12)) and (trie.passes, trie.repeated) == (nodes, 0)

    tight = Trie(net, archs, memory=0)
    with tight.in_place():
        tight.walk(calibration[0], lambda *_: None)
    # Each further child of a node costs the whole way from the images down to it again.
    assert tight.repeated == 2 * 1 + 3 * 2 + 6 * 3
    assert tight.passes == nodes + tight.repeated


def test_memory_is_kept_to() -> None:
    net, side = NETS["operators"]()
    archs, image = drawn(net), batches(side)[0][0]
    whole = Trie(net, archs)
    largest = 0
    for memory in (0, 1 << 17, 1 << 30):
        trie = Trie(net, archs, memory=memory)
        held: list[int] = []
        with trie.in_place(), torch.no_grad():
            trie.walk(image, lambda *_, trie=trie, held=held: held.append(trie._held))
        assert max(held) <= memory and trie._held == 0
        largest = max(largest, max(held))
    assert largest > 1 << 17 and len(whole.nodes) < len(archs) * len(whole.stages)


def test_what_is_no_chain_is_scored_one_by_one_and_says_so(data: spos.Data) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = make_module()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) + self.body(-x)

    calibration, validation = data.calibration_batches(32, 16, 0), data.validation_batches(0, 16, 0)
    net = spos.Supernet(Branching())
    with pytest.warns(
        UserWarning, match=r"scored one by one, for Branching is no torch\.nn\.Sequential and has no method sta"
    ):
        scores = spos.evaluate_population(net, [(0, 0, 0), (1, 0, 0)], calibration, validation)
    assert scores == spos.evaluate_population(
        net, [(0, 0, 0), (1, 0, 0)], calibration, validation, share_prefixes=False
    )

    norm = nn.BatchNorm2d(1)
    blocks = [spos.ChoiceBlock({"a": nn.ReLU(), "b": nn.Tanh()}) for _ in range(2)]
    twice = nn.Sequential(norm, blocks[0], norm, blocks[1], nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="a BatchNorm2d is called in two stages, and would mix their statistics"):
        stages_of(spos.Supernet(twice))
    with pytest.warns(UserWarning, match="called in two stages"):
        spos.evaluate_population(spos.Supernet(copy.deepcopy(twice)), [(0, 0), (1, 1)], calibration, validation)


def test_a_module_says_itself_what_it_calls() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 6, 3)
            self.choice = spos.ChoiceBlock({"relu": nn.ReLU(), "tanh": nn.Tanh()})
            self.rest = nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), out=nn.Linear(6, 3)))

        def stages(self) -> list[nn.Module]:
            return [self.first, self.choice, self.rest]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rest(self.choice(self.first(x)))

    net = spos.Supernet(Own())
    assert [(len(s.modules), s.decisions) for s in stages_of(net)] == [(1, ()), (4, (0,))]
    _, validation = batches(8)
    assert spos.evaluate_population(net, [(0,), (1,)], [], validation) == spos.evaluate_population(
        net, [(0,), (1,)], [], validation, share_prefixes=False
    )
    with pytest.raises(ValueError, match="calibration is empty"):
        spos.evaluate_population(spos.Supernet(make_module()), [(0, 0, 0), (1, 0, 0)], [], validation)


def test_an_error_half_way_leaves_the_supernet_as_it_was() -> None:
    net, side = NETS["bits and widths"]()
    calibration, validation = batches(side)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(RuntimeError):
        spos.evaluate_population(net, drawn(net), [*calibration, torch.zeros(1, 2, 8, 8)], validation)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(m.momentum is not None for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_progress_is_told_batch_by_batch() -> None:
    net, side = NETS["own module"]()
    calibration, validation = batches(side)
    told: list[float] = []
    spos.evaluate_population(net, [(0, 0, 0), (1, 0, 0)], calibration, validation, on_batch=told.append)
    assert told == sorted(told) and told[-1] == 1 and len(told) == len(calibration) + len(validation)


def test_widths_of_ones_own_module() -> None:
    net = own_net()
    calibration, validation = batches(8)
    archs = drawn(net, 4)
    assert len(stages_of(net)) > 3
    apart = spos.evaluate_population(net, archs, calibration, validation, share_prefixes=False)
    assert spos.evaluate_population(net, archs, calibration, validation) == apart
