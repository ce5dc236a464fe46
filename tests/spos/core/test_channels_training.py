from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

import spos
from spos.identity import hash_weights
from spos.sampling import path_sampler
from spos.steps import make_optimizer, make_sink

from .channels_support import images, own_net, small_net, used
from .conftest import SEARCH, TRAIN, make_data


@pytest.fixture
def saved(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """Copies of every checkpoint that training writes."""
    kept: list[dict[str, torch.Tensor]] = []
    save = spos.RunDirectory.save_checkpoint

    def keep(self, name, tensors, meta):
        kept.append({key: value.clone() for key, value in tensors.items()})
        return save(self, name, tensors, meta)

    monkeypatch.setattr(spos.RunDirectory, "save_checkpoint", keep)
    return kept


@pytest.mark.parametrize("make", [own_net, small_net])
@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"clip_norm": 0.1, "accumulation": 2, "nesterov": True}])
def test_what_a_step_does_not_sample_stays_to_the_bit(make, options, data, tmp_path, saved):
    """Weights, momentum and running statistics outside of the slices of the step's path."""
    net = make()
    config = dataclasses.replace(TRAIN, steps=8, weight_decay=0.1, log_every=1, checkpoint_every=1, **options)
    spos.train_supernet(net, data, config=config, run=tmp_path)
    with spos.RunDirectory.open(tmp_path, read_only=True) as run:
        archs = [record["arch"] for record in run.records("train")]
    assert len(saved) == len(archs) == 8
    for before, after, arch in zip(saved, saved[1:], archs[1:], strict=False):
        masks = used(net, arch)
        moved, pushed = Counter(), 0
        for name, mask in masks.items():
            old, new = before[f"model/{name}"], after[f"model/{name}"]
            assert torch.equal(old[~mask], new[~mask]), name
            if mask.any():
                moved[torch.equal(old[mask], new[mask])] += 1
            old, new = (tensors.get(f"momentum/module.{name}") for tensors in (before, after))
            if new is not None:
                old = torch.zeros_like(new) if old is None else old
                assert torch.equal(old[~mask], new[~mask]), name
                pushed += not torch.equal(old[mask], new[mask])
        assert pushed > 10
        assert moved[False] > 5 * moved[True]  # a bias before a normalisation has no gradient
        assert 0 < sum(int(m.sum()) for m in masks.values()) < sum(m.numel() for m in masks.values())


def test_clipping_counts_the_gradients_of_slices(data):
    moves = []
    for clip_norm in (0.0, 1e-3):
        net = small_net()
        before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
        config = dataclasses.replace(TRAIN, steps=1, weight_decay=0.0, clip_norm=clip_norm)
        spos.train_supernet(net, data, config=config)
        after = torch.cat([p.detach().flatten() for p in net.parameters()])
        moves.append(float((after - before).norm()))
    assert moves[1] == pytest.approx(TRAIN.lr * 1e-3, rel=1e-2) and moves[0] > 10 * moves[1]


def test_a_space_with_widths_is_warmed_up_unless_told_otherwise():
    net, total = small_net(), 200
    default = path_sampler(net.space, spos.TrainConfig(), total, 3)
    asked = path_sampler(net.space, spos.TrainConfig(width_warmup=0.5, width_widening=0.075), total, 3)
    never = path_sampler(net.space, spos.TrainConfig(width_warmup=0.0), total, 3)
    assert [default(step) for step in range(total)] == [asked(step) for step in range(total)]
    assert [never(step) for step in range(total)] == [
        net.space.sample(spos.generator(3, "path", s)) for s in range(total)
    ]
    assert [default(step) for step in range(100)] != [never(step) for step in range(100)]


def test_steps_on_one_path_are_those_of_the_child_under_torch(data):
    """The library's optimizer on slices, with clipping, against torch's on the extracted child."""
    net = small_net(widths=(0.6, 2.0)).double()
    arch = net.space.join(operator=(0, 1, 2, 3) * 2, width=(1, 0) * 4)
    config = dataclasses.replace(TRAIN, weight_decay=0.1, nesterov=True)
    child = net.extract(arch, affine=False)
    sink = make_sink(net)
    ours = make_optimizer(net, config, sink)
    groups = [
        {"params": g["params"], "weight_decay": g["weight_decay"]} for g in make_optimizer(child, config).param_groups
    ]
    theirs = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True)
    x = images().double()
    for _ in range(3):
        torch.manual_seed(0)
        with sink:
            net.train()(x, arch).square().mean().backward()
        torch.manual_seed(0)
        child.train()(x).square().mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(child.parameters(), 0.5)
        torch.testing.assert_close(sink.clip_grad_norm_(0.5), norm)
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    for (name, a), b in zip(net.extract(arch, affine=False).named_parameters(), child.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=name)


def drawn(net: spos.Supernet, config: spos.TrainConfig, step: int, seeds: int = 300) -> list[Counter]:
    """How often each option of each decision is drawn at a step."""
    found = [Counter() for _ in net.space.decisions]
    for seed in range(seeds):
        for counter, index in zip(found, path_sampler(net.space, config, 100, seed)(step), strict=True):
            counter[index] += 1
    return found


def test_widths_open_from_wide_to_narrow():
    net = own_net()  # an operator of 3 options, then widths of 3, 3 and 2
    config = dataclasses.replace(TRAIN, width_warmup=0.5, width_widening=0.2)
    for step, expected in (
        (0, ({0, 1, 2}, {2}, {2}, {1})),
        (49, ({0, 1, 2}, {2}, {2}, {1})),
        (50, ({0, 1, 2}, {1, 2}, {1, 2}, {0, 1})),
        (69, ({0, 1, 2}, {1, 2}, {1, 2}, {0, 1})),
        (70, ({0, 1, 2}, {0, 1, 2}, {0, 1, 2}, {0, 1})),
        (99, ({0, 1, 2}, {0, 1, 2}, {0, 1, 2}, {0, 1})),
    ):
        counts = drawn(net, config, step)
        assert [set(c) for c in counts] == [set(e) for e in expected], step
        for counter in counts:  # uniformly among those open: within five standard deviations
            share = 1 / len(counter)
            assert all(abs(n / 300 - share) < 5 * (share / 300) ** 0.5 for n in counter.values())


def test_ten_ratios_open_one_after_the_other():
    net = spos.spaces.get("shufflenet-oneshot-channels-small", num_classes=3, image_size=8)
    config = dataclasses.replace(TRAIN, width_warmup=0.1, width_widening=0.8)
    narrowest = [min(min(c) for c in drawn(net, config, step, 60)[1::2]) for step in range(5, 100, 10)]
    assert narrowest == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    at_once = dataclasses.replace(TRAIN, width_warmup=0.1)
    assert min(drawn(net, at_once, 9, 60)[1]) == 9 and min(drawn(net, at_once, 10, 60)[1]) == 0


def test_width_decisions_that_are_choice_blocks_warm_up_too():
    """Labels that are numbers say which option is the widest, whatever their order."""

    def convs(*widths):
        return {str(w): torch.nn.Sequential(torch.nn.Conv2d(1, w, 1), torch.nn.Conv2d(w, 1, 1)) for w in widths}

    blocks = [spos.ChoiceBlock(convs(*w), kind="width") for w in ((8, 4, 2), (2, 4, 8))]
    blocks.append(spos.ChoiceBlock({"slim": torch.nn.Identity(), "fat": torch.nn.ReLU()}, kind="width"))
    net = spos.Supernet(torch.nn.Sequential(*blocks))
    config = dataclasses.replace(TRAIN, width_warmup=0.5, width_widening=0.5)
    assert path_sampler(net.space, config, 100, 0)(0) == (0, 2, 1)
    assert [set(c) for c in drawn(net, config, 60)] == [{0, 1}, {1, 2}, {0, 1}]


def test_without_a_warm_up_paths_are_the_uniform_ones_and_after_it_too():
    net = small_net()
    plain = path_sampler(net.space, TRAIN, 100, 7)
    warmed = path_sampler(net.space, dataclasses.replace(TRAIN, width_warmup=0.3), 100, 7)
    for step in range(100):
        expected = net.space.sample(spos.generator(7, "path", step))
        assert plain(step) == expected
        assert (warmed(step) == expected) == (step >= 30)
        assert warmed(step)[::2] == expected[::2] or step < 30


def test_a_warm_up_needs_widths(net, data, tmp_path):
    config = dataclasses.replace(TRAIN, width_warmup=0.5)
    with pytest.raises(ValueError, match=r"width_warmup = 0\.5 .* the space has no decision of the kind \"width\""):
        spos.train_supernet(net, data, config=config, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width_warmup": -0.1}, r"TrainConfig.width_warmup = -0\.1: expected a fraction"),
        ({"width_widening": 1.5}, r"TrainConfig.width_widening = 1\.5: expected a fraction"),
        ({"width_warmup": 0.75, "width_widening": 0.5}, r"width_widening = 0\.5: expected at most 0\.25, what"),
    ],
)
def test_bad_warm_ups_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        spos.TrainConfig(**changes)


class Stop(Exception):
    pass


def test_training_stopped_in_the_warm_up_goes_on_to_the_same_bits(data, tmp_path):
    config = dataclasses.replace(TRAIN, steps=12, checkpoint_every=3, width_warmup=0.25, width_widening=0.5)
    whole = small_net()
    spos.train_supernet(whole, data, config=config, run=tmp_path / "whole")

    def stop(name, step, *rest):
        if step == 8:
            raise Stop

    with pytest.raises(Stop):
        spos.train_supernet(small_net(), data, config=config, run=tmp_path / "cut", progress=stop)
    resumed = small_net()
    spos.train_supernet(resumed, data, config=config, run=tmp_path / "cut")
    assert hash_weights(resumed) == hash_weights(whole)
    tensors = []
    for name in ("whole", "cut"):
        with spos.RunDirectory.open(tmp_path / name, read_only=True) as run:
            tensors.append(run.load_checkpoint("supernet").tensors)
    assert tensors[0].keys() == tensors[1].keys() and any(k.startswith("momentum/") for k in tensors[0])
    assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())


@pytest.mark.parametrize("make", [own_net, small_net])
def test_a_score_does_not_depend_on_others_and_leaves_the_statistics(make, data):
    net = make()
    calibration = data.calibration_batches(32, 16, 0)
    validation = data.validation_batches(0, 30, 0)
    rng = spos.generator(5, "archs")
    archs = [net.space.sample(rng) for _ in range(4)]
    before = hash_weights(net)
    together = spos.evaluate_population(net, archs, calibration, validation)
    assert hash_weights(net) == before
    assert together == [spos.evaluate_population(net, [a], calibration, validation)[0] for a in archs]
    assert together[::-1] == spos.evaluate_population(net, archs[::-1], calibration, validation)
    for arch, score in zip(archs, together, strict=True):
        child = net.extract(arch)
        spos.recalibrate(child, calibration)
        alone = spos.classify(child, validation)
        assert alone.accuracy == score.accuracy and alone.loss == pytest.approx(score.loss, rel=1e-4)


@pytest.mark.parametrize("method", [spos.evolve, spos.random_search])
def test_the_search_varies_widths_and_keeps_to_the_budget(method, data):
    net = small_net()
    low, high = spos.flops.table(net).range()
    budget = (low + high) // 2
    config = dataclasses.replace(SEARCH, population=6, generations=2, mutations=4, crossovers=4)
    result = method(net, data, constraints=[spos.flops <= budget], config=config)
    assert len(result.history) == 22
    assert all(c.flops <= budget and c.flops == spos.flops(net, c.arch) for c in result.history)
    for candidate in result.history[:3]:
        child = net.extract(candidate.arch, affine=False)
        assert candidate.flops == spos.count_flops(child, (1, 8, 8))
        assert candidate.params == sum(p.numel() for p in child.parameters())
    genes = [{c.arch[i] for c in result.history} for i in range(len(net.space))]
    assert all(len(g) > 1 for g in genes)


def test_the_child_retrains(data):
    net = small_net()
    child = net.extract(net.space.sample(spos.generator(1, "archs")), weights="fresh")
    config = spos.RetrainConfig(steps=3, batch_size=16, lr=0.05, calibration_images=32)
    result = spos.retrain(child, make_data(), config=config)
    assert result.steps == 3 and 0 <= result.test_accuracy <= 1
