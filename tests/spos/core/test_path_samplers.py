"""Ways to draw the paths of training steps: what each promises, counted; gradients of several paths; errors."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from math import gcd

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare
from torch import nn

import spos
from spos import config_file
from spos.config import Config
from spos.identity import hash_weights
from spos.path_samplers import diverse_paths, fair_paths, paths_of_steps
from spos.sampling import OpenOptions
from spos.space import Decision, SearchSpace

from .channels_support import own_net
from .conftest import TRAIN, make_data, make_module

UNLIKELY = 1e-4


def space_of(*sizes: int) -> SearchSpace:
    return SearchSpace([Decision(f"d{i}", "operator", tuple("abcdefghij"[:n])) for i, n in enumerate(sizes)])


def options_of(*sizes: int) -> OpenOptions:
    return OpenOptions(space_of(*sizes), TRAIN, 100)


def config(**changes) -> spos.TrainConfig:
    return dataclasses.replace(TRAIN, **changes)


def one_path_net() -> spos.Supernet:
    return spos.Supernet(make_module(), input_shape=(1, 8, 8))


def uniform(found: Counter, expected: list) -> bool:
    counts = [found.pop(key, 0) for key in expected]
    return not found and chisquare(counts).pvalue > UNLIKELY


@pytest.mark.parametrize("name", ["uniform", "budget", "fair", "diverse", "bins"])
def test_paths_are_a_function_of_seed_and_step(name: str) -> None:
    """Also in a space with widths, with and without their warm-up."""
    net = own_net()
    tried = [config(sampler="budget", cost_bins=4)] if name == "bins" else [config(sampler=name)]
    if name in ("uniform", "fair", "diverse"):
        tried.append(config(sampler=name, width_warmup=0.3))
    for settings in tried:
        forwards = paths_of_steps(net, settings, 40, 1)
        steps = [forwards(step) for step in range(40)]
        again = paths_of_steps(net, settings, 40, 1)
        assert [again(step) for step in reversed(range(40))] == steps[::-1]
        assert len(set(steps)) > 10 and [paths_of_steps(net, settings, 40, 2)(s) for s in range(40)] != steps
        assert all(net.space.arch(arch) == arch for paths in steps for arch in paths)


def test_uniform_is_what_it_was() -> None:
    net = one_path_net()
    paths = paths_of_steps(net, spos.TrainConfig(), 10, 5)
    assert [paths(s) for s in range(10)] == [(net.space.sample(spos.generator(5, "path", s)),) for s in range(10)]


def test_fair_steps_pass_every_option_of_every_block_once() -> None:
    paths = fair_paths(options_of(4, 4, 4), 0)
    orders, pairs = Counter(), Counter()
    for step in range(3000):
        drawn = paths(step)
        assert all(sorted(column) == [0, 1, 2, 3] for column in zip(*drawn, strict=True))
        orders[tuple(arch[1] for arch in drawn)] += 1
        pairs[drawn[0][0], drawn[0][2]] += 1
    assert uniform(orders, list(itertools.permutations(range(4))))  # each order of a block alike often
    assert uniform(pairs, list(itertools.product(range(4), range(4))))  # and blocks independent of each other


@pytest.mark.parametrize("sizes", [(4, 3, 2, 1), (5, 3), (10, 4, 6), (7, 7, 5)])
def test_fair_blocks_with_fewer_options_are_even_in_each_step_and_exact_over_a_cycle(sizes: tuple[int, ...]) -> None:
    passes, paths = max(sizes), fair_paths(options_of(*sizes), 3)
    for position, size in enumerate(sizes):
        cycle = size // gcd(size, passes)
        for start in range(0, 6 * cycle, cycle):
            whole = Counter()
            for step in range(start, start + cycle):
                drawn = paths(step)
                assert len(drawn) == passes
                counts = Counter(arch[position] for arch in drawn)
                assert set(counts) == set(range(size))
                assert set(counts.values()) <= {passes // size, -(-passes // size)}
                whole += counts
            assert set(whole.values()) == {passes * cycle // size}
    extra = Counter()  # which option occurs once more is drawn evenly: of 3 options in 4 passes, in the first step
    for seed in range(900):
        counts = Counter(arch[1] for arch in fair_paths(options_of(4, 3), seed)(0))
        extra[max(counts, key=lambda option: counts[option])] += 1
    assert uniform(extra, [0, 1, 2])


@pytest.mark.parametrize("sizes", [(2, 3), (3, 3), (2, 2, 2), (4, 3)])
def test_diverse_steps_have_the_greatest_sum_of_distances_and_are_uniform_one_by_one(sizes: tuple[int, ...]) -> None:
    space, group = space_of(*sizes), max(sizes)
    every = list(space.enumerate())

    def distances(paths) -> int:
        return sum(a != b for one, other in itertools.combinations(paths, 2) for a, b in zip(one, other, strict=True))

    greatest = max(distances(paths) for paths in itertools.combinations_with_replacement(every, group))
    found: list[Counter] = [Counter() for _ in range(group)]
    for seed in range(40 * len(every)):
        paths = diverse_paths(options_of(*sizes), seed)
        for start in (0, 5 * group):
            drawn = [paths(start + i)[0] for i in range(group)]
            assert distances(drawn) == greatest
        for counter, arch in zip(found, drawn, strict=True):
            counter[arch] += 1
    assert all(uniform(counter, every) for counter in found)


def test_fair_and_diverse_keep_to_a_warm_up() -> None:
    net = own_net()  # an operator of 3 options, then widths of 3, 3 and 2
    for name in ("fair", "diverse"):
        paths = paths_of_steps(net, config(sampler=name, width_warmup=0.5, width_widening=0.2), 100, 0)
        early = {arch for step in range(50) for arch in paths(step)}
        assert {arch[0] for arch in early} == {0, 1, 2} and {arch[1:] for arch in early} == {(2, 2, 1)}
        late = [{arch[i] for step in range(70, 100) for arch in paths(step)} for i in range(4)]
        assert late == [{0, 1, 2}, {0, 1, 2}, {0, 1, 2}, {0, 1}]


def test_a_budget_is_kept_and_drawn_from_uniformly() -> None:
    net = one_path_net()
    costs = {arch: spos.flops(net, arch) for arch in net.space.enumerate()}
    low, high = np.quantile(list(costs.values()), [0.2, 0.8])
    paths = paths_of_steps(net, config(sampler="budget", min_flops=low, max_flops=high), 1, 0)
    allowed = [arch for arch, cost in costs.items() if low <= cost <= high]
    assert 4 < len(allowed) < len(costs) and uniform(Counter(paths(s)[0] for s in range(2000)), allowed)
    most = float(np.median([spos.params(net, arch) for arch in allowed]))
    both = config(sampler="budget", min_flops=low, max_flops=high, max_params=most)
    paths = paths_of_steps(net, both, 1, 0)
    fewer = [arch for arch in allowed if spos.params(net, arch) <= most]
    assert len(fewer) < len(allowed) and uniform(Counter(paths(s)[0] for s in range(2000)), fewer)
    unbounded = paths_of_steps(net, config(sampler="budget"), 1, 0)
    assert uniform(Counter(unbounded(s)[0] for s in range(2000)), list(costs))


def test_bins_of_cost_are_drawn_alike_and_uniformly_inside() -> None:
    """Those that no architecture lies in are left out: here they would be most."""
    net = one_path_net()
    for bounds in ({}, {"min_flops": 20000.0, "max_flops": 70000.0}, {"max_params": 1100.0}):
        cost = spos.params if "max_params" in bounds else spos.flops
        low, high = cost.range(net)
        low = max(low, int(bounds.get(f"min_{cost.name}", 0)))
        high = min(high, int(bounds.get(f"max_{cost.name}", high)))
        bins = 5
        edges = [low + (high + 1 - low) * i // bins for i in range(bins + 1)]
        members: dict[int, list] = {}
        for arch in net.space.enumerate():
            if low <= (value := cost(net, arch)) <= high:
                members.setdefault(next(i for i in range(bins) if edges[i] <= value < edges[i + 1]), []).append(arch)
        paths = paths_of_steps(net, config(sampler="budget", cost_bins=bins, **bounds), 1, 0)
        place = {arch: i for i, archs in members.items() for arch in archs}
        drawn = [paths(step)[0] for step in range(3000)]
        assert uniform(Counter(place[arch] for arch in drawn), list(members)) and len(members) > 1
        for number, archs in members.items():
            assert uniform(Counter(arch for arch in drawn if place[arch] == number), archs)


def by_step(space: SearchSpace, step: int, rng: np.random.Generator) -> list[int]:
    return [step % d.drawn for d in space.decisions]


def two_of_them(space: SearchSpace, step: int, rng: np.random.Generator) -> list[spos.Arch]:
    return [space.sample(rng), space.sample(rng)]


def test_functions_of_ones_own() -> None:
    net = one_path_net()
    paths = paths_of_steps(net, config(), 9, 0, by_step)
    assert [paths(s) for s in range(3)] == [((0, 0, 0),), ((1, 1, 1),), ((2, 0, 0),)]
    named = paths_of_steps(net, config(sampler=f"{__name__}:two_of_them"), 9, 4)
    rng = spos.generator(4, "path", 7)
    assert named(7) == (net.space.sample(rng), net.space.sample(rng))
    for bad, words in (([0, 9, 0], "arch entry 9"), ([], "arch has 0 entries"), ([[0, 0, 0], [0]], "arch has 1 entri")):
        with pytest.raises(ValueError, match=rf"sampler .*test_functions_of_ones_own.* at step 2: {words}"):
            paths_of_steps(net, config(), 9, 0, lambda *_, bad=bad: bad)(2)


def gradients(net: spos.Supernet, data: spos.Data, archs, **changes) -> dict[str, torch.Tensor]:
    """What one step without momentum and decay subtracts, divided by the learning rate."""
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    settings = config(steps=1, momentum=0.0, weight_decay=0.0, **changes)
    spos.train_supernet(net, data, config=settings, sampler=lambda *_: archs)
    return {name: (before[name] - p.detach()) / settings.lr for name, p in net.named_parameters()}


@pytest.mark.parametrize("make", [one_path_net, own_net])
def test_a_step_of_several_paths_adds_up_their_gradients(make) -> None:
    """With plain layers and with slices of different sizes, on the same images: dropout is off, its masks differ."""
    nets = [make() for _ in range(4)]
    for net in nets:
        for layer in net.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
    options = OpenOptions(nets[0].space, TRAIN, 9)
    archs = fair_paths(options, 0)(0)
    assert len(archs) == 3
    together = gradients(nets[0], make_data(), list(archs))
    alone = [gradients(net, make_data(), list(arch)) for net, arch in zip(nets[1:], archs, strict=True)]
    for name, gradient in together.items():
        expected = sum(each[name] for each in alone)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=2e-5, msg=name)
        assert gradient.any() or gradient.dim() == 1, name  # every option of every block was trained


@pytest.mark.parametrize("name", ["budget", "fair", "diverse", "function"])
def test_a_run_says_how_paths_were_drawn_and_is_not_gone_on_with_otherwise(name: str, tmp_path) -> None:
    chosen = config() if name == "function" else config(sampler=name)
    own = two_of_them if name == "function" else None
    net = one_path_net()
    spos.train_supernet(net, make_data(), config=chosen, sampler=own, run=tmp_path)
    with spos.RunDirectory.open(tmp_path, read_only=True) as run:
        if own:
            assert run.identity["sampler"] == f"{__name__}:two_of_them"
        assert run.config["sampler"] == chosen.sampler
        paths = paths_of_steps(net, chosen, TRAIN.steps, 0, own)
        for record in run.records("train"):
            expected = [list(arch) for arch in paths(record["step"] - 1)]
            assert record.get("archs", [record.get("arch")]) == expected
            assert ("archs" in record) == (name in ("fair", "function"))
    weights = hash_weights(net)
    spos.train_supernet(net, make_data(), config=chosen, sampler=own, run=tmp_path)
    assert hash_weights(net) == weights
    with pytest.raises(ValueError, match=r"another (config|sampler)"):
        spos.train_supernet(net, make_data(), config=config(), run=tmp_path)


def test_settings_of_the_command_line() -> None:
    settings = ["train.sampler=budget", "train.max_flops=3e8", "train.cost_bins=7"]
    train = config_file.override(Config(), settings).train
    assert (train.sampler, train.max_flops, train.cost_bins) == ("budget", 3e8, 7)
    assert config_file.loads(config_file.dumps(Config(train=train))).train == train


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler": "even"}, r"TrainConfig.sampler = 'even': expected one of uniform, budget, fair, diverse, or"),
        ({"sampler": by_step}, r"TrainConfig.sampler = <function .*expected one of"),
        ({"sampler": ":f"}, r"TrainConfig.sampler = ':f': expected one of"),
        ({"max_flops": 1e6}, r"TrainConfig.max_flops = 1000000.0: expected 0 unless sampler is 'budget'"),
        ({"sampler": "fair", "min_bitops": 1.0}, r"min_bitops = 1.0: expected 0 unless sampler is 'budget'"),
        ({"sampler": "budget", "max_params": -1.0}, r"max_params = -1.0: expected a non-negative number"),
        ({"sampler": "budget", "cost_bins": 0}, r"cost_bins = 0: expected a positive integer"),
        ({"cost_bins": 3}, r"cost_bins = 3: expected 1 unless sampler is 'budget'"),
    ],
)
def test_bad_settings_are_named(changes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler": "no.such:f"}, r"sampler = 'no.such:f': No module named 'no'; expected 'module:function'"),
        (
            {"sampler": "spos:nothing"},
            r"sampler = 'spos:nothing': .*no attribute 'nothing'; expected 'module:function'",
        ),
        ({"sampler": "spos:__version__"}, r"sampler = 'spos:__version__': it is a str, expected a function"),
        ({"sampler": "budget", "max_flops": 1.0}, r"flops <= 1 cannot be met"),
        (
            {"sampler": "budget", "max_flops": 1e6, "max_params": 1e6, "cost_bins": 2},
            r"cost_bins = 2 with bounds on flops, params: expected bounds on one cost, or 1",
        ),
        ({"sampler": "budget", "width_warmup": 0.5}, r"with sampler = 'budget': expected neither, or one of the samp"),
        ({"sampler": "fair", "width_warmup": 0.5}, r'the space has no decision of the kind "width"'),
    ],
)
def test_what_does_not_fit_a_space_is_named_before_anything_runs(changes, words: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=words):
        spos.train_supernet(one_path_net(), make_data(), config=config(**changes), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_columns_of_a_set_are_independent() -> None:
    """A block of 3 options beside one of 4: what their passes have in common is by chance alone."""
    table = np.zeros((4, 3))
    for seed in range(1500):
        arch = fair_paths(options_of(4, 3), seed)(1)[2]
        table[arch[0], arch[1]] += 1
    assert chi2_contingency(table).pvalue > UNLIKELY
