from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

import spos
from spos.identity import hash_weights
from spos.steps import make_optimizer
from spos.training import learning_rate

from .conftest import TRAIN, make_data, make_module


def config(**changes) -> spos.TrainConfig:
    return dataclasses.replace(TRAIN, **changes)


def test_one_step_is_sgd_on_the_drawn_path_and_moves_nothing_else(net, data):
    before = copy.deepcopy(net)
    spos.train_supernet(net, data, config=config(steps=1, weight_decay=0.1, label_smoothing=0.2), seed=3)
    arch = net.space.sample(spos.generator(3, "path", 0))
    x, y = data.training_batches(16, 3).batch(0)
    with torch.random.fork_rng():
        torch.manual_seed(spos.draws.torch_seed(3, "layers", 0))
        loss = F.cross_entropy(before.train()(x, arch), y, label_smoothing=0.2)
    on_path = list(before.path_parameters(arch))
    gradients = dict(zip(map(id, on_path), torch.autograd.grad(loss, on_path), strict=True))
    assert 0 < len(gradients) < len(list(before.parameters()))
    moved = 0
    for (name, old), new in zip(before.named_parameters(), net.parameters(), strict=True):
        expected = old
        if id(old) in gradients:
            decay = 0.1 * old if old.dim() > 1 else 0
            expected = old - TRAIN.lr * (gradients[id(old)] + decay)
        assert torch.equal(new, old) or id(old) in gradients, name
        moved += not torch.equal(new, old)
        torch.testing.assert_close(new, expected, rtol=1e-6, atol=1e-8)
    assert moved > 5


def test_off_path_weights_momentum_and_statistics_stay_to_the_bit(net, data):
    """After some steps everything has momentum; one more step may touch what it sampled and nothing else."""
    settings = config(weight_decay=0.1)
    optimizer = make_optimizer(net, settings)
    stream = data.training_batches(16, 0)
    archs = [(0, 0, 0), (1, 1, 1), (2, 0, 0), (0, 1, 1)]
    for step, arch in enumerate(archs):
        frozen = {k: v.clone() for k, v in net.state_dict().items()}
        momentum = {p: s["momentum_buffer"].clone() for p, s in optimizer.state.items()}
        optimizer.zero_grad(set_to_none=True)
        x, y = stream.batch(step)
        F.cross_entropy(net.train()(x, arch), y).backward()
        optimizer.step()
        on_path = {id(p) for p in net.path_parameters(arch)}
        on_path |= {id(b) for m in net.path_modules(arch) for b in m.buffers(recurse=False)}
        moved = 0
        for (name, value), (_, old) in zip(net.state_dict(keep_vars=True).items(), frozen.items(), strict=True):
            if id(value) in on_path:
                moved += not torch.equal(value, old)
            else:
                assert torch.equal(value, old), name
        assert moved > 5
        for parameter, buffer in momentum.items():
            if id(parameter) not in on_path:
                assert torch.equal(optimizer.state[parameter]["momentum_buffer"], buffer)
    skipped = {id(p) for p in net.module.operator.branch(2).parameters()}
    assert {id(p) for p in optimizer.state} == {id(p) for p in net.parameters()} - skipped


def test_weight_decay_is_for_more_than_one_dimension(net):
    groups = make_optimizer(net, config(weight_decay=0.3)).param_groups
    decayed = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert {(p.dim() > 1, decayed[id(p)]) for p in net.parameters()} == {(True, 0.3), (False, 0.0)}


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.5), ("cosine", 0.5 * (1 + math.cos(math.pi / 2)))])
def test_learning_rate(schedule, middle):
    settings = config(lr=2.0, schedule=schedule)
    assert learning_rate(settings, 0, 10) == 2.0
    assert learning_rate(settings, 5, 10) == pytest.approx(2.0 * middle)
    rates = [learning_rate(settings, s, 10) for s in range(10)]
    assert rates == sorted(rates, reverse=True) and rates[-1] > 0


def test_accumulation_equals_one_large_batch_without_batch_statistics():
    data = make_data(crop_padding=0)  # augmentation is drawn for each batch

    def trained(**changes):
        net = spos.Supernet(make_module(), input_shape=(1, 8, 8))
        net.module.head[2].p = 0.0
        for layer in net.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.train = lambda mode=True, layer=layer: layer
                layer.training = False
        spos.train_supernet(net, data, config=config(steps=3, log_every=1, **changes))
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    small, large = trained(batch_size=10, accumulation=3), trained(batch_size=30)
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-6)
    assert not torch.equal(small, trained(batch_size=10))


def test_clipping_bounds_the_step(data):
    moves = []
    for clip_norm in (0.0, 1e-3):
        net = spos.Supernet(make_module(), input_shape=(1, 8, 8))
        before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
        spos.train_supernet(net, data, config=config(steps=1, weight_decay=0.0, clip_norm=clip_norm))
        after = torch.cat([p.detach().flatten() for p in net.parameters()])
        moves.append(float((after - before).norm()))
    assert moves[1] == pytest.approx(TRAIN.lr * 1e-3, rel=1e-2) and moves[0] > 10 * moves[1]


def test_bf16_runs_the_layers_in_bf16_and_keeps_float32_weights(net, data):
    seen = set()
    net.module.stem[0].register_forward_hook(lambda _, i, o: seen.add(o.dtype))
    spos.train_supernet(net, data, config=config(steps=2, bf16=True))
    assert seen == {torch.bfloat16} and {p.dtype for p in net.parameters()} == {torch.float32}


def test_same_seed_same_bits_other_seed_other_bits(data):
    hashes = []
    for seed in (0, 0, 1):
        net = spos.Supernet(make_module(), input_shape=(1, 8, 8))
        torch.rand(seed + 3)  # torch's global generator has no say
        spos.train_supernet(net, data, config=TRAIN, seed=seed)
        hashes.append(hash_weights(net))
    assert hashes[0] == hashes[1] != hashes[2]


def test_training_learns_and_records_what_it_did(net, data, tmp_path):
    calls = []
    settings = config(steps=120, log_every=40, lr=0.2)
    result = spos.train_supernet(net, data, config=settings, run=tmp_path, progress=lambda *a: calls.append(a))
    with spos.RunDirectory.open(tmp_path, read_only=True) as run:
        records = run.records("train")
        stored = run.read_json("result")
    assert [r["step"] for r in records] == [40, 80, 120] and result.steps == 120
    assert records[-1]["loss"] < records[0]["loss"] - 0.1 and records[-1]["accuracy"] > 0.6
    assert [r["lr"] for r in records] == pytest.approx([0.2 * (1 - s / 120) for s in (39, 79, 119)])
    assert records[0]["arch"] == list(net.space.sample(spos.generator(0, "path", 39)))
    assert records[-1]["epoch"] == pytest.approx(120 / (len(data.train) // 16))
    assert stored["loss"] == result.loss == records[-1]["loss"]
    assert [(c[0], c[1], c[2]) for c in calls] == [("supernet", s, 120) for s in (40, 80, 120)]
    assert all(p.grad is None for p in net.parameters())


def test_epochs_give_the_number_of_steps(net, data):
    stream = data.training_batches(16, 0)
    total = spos.training.total_steps
    assert total(config(steps=None, epochs=2), stream) == 2 * stream.steps_per_epoch
    assert total(config(steps=None, epochs=2, accumulation=2), stream) == stream.steps_per_epoch
    assert total(config(steps=None, epochs=1e-6), stream) == 1


def test_divergence_is_an_error_and_the_last_good_checkpoint_stays(net, data, tmp_path):
    settings = config(steps=400, lr=1e12, log_every=1, checkpoint_every=1)
    with pytest.raises(spos.DivergenceError, match=r"at step \d+: lower lr = 1000000000000\.0 or set clip_norm"):
        spos.train_supernet(net, data, config=settings, run=tmp_path)
    with spos.RunDirectory.open(tmp_path, read_only=True) as run:
        assert all(math.isfinite(r["loss"]) for r in run.records("train"))


def test_data_that_do_not_fit_are_refused(net, data):
    with pytest.raises(ValueError, match=r"shape \(1, 16, 16\): custom was built for \(1, 8, 8\)"):
        spos.train_supernet(net, make_data(side=16), config=TRAIN)
    with pytest.raises(TypeError, match="net is a Sequential"):
        spos.train_supernet(net.module, data, config=TRAIN)
    unknown = spos.Supernet(make_module())
    spos.train_supernet(unknown, data, config=config(steps=1))
    assert unknown.input_shape == (1, 8, 8)


def test_nothing_that_is_not_finite_is_ever_saved(net, data, tmp_path):
    settings = config(steps=400, lr=1e30, log_every=100, checkpoint_every=1)
    with pytest.raises(spos.DivergenceError, match="is not finite at step"):
        spos.train_supernet(net, data, config=settings, run=tmp_path)
    with spos.RunDirectory.open(tmp_path, read_only=True) as run:
        found = run.load_checkpoint("supernet")
    assert found is None or all(v.isfinite().all() for v in found.tensors.values() if v.is_floating_point())


def test_a_refused_start_leaves_no_run_behind(net, data, tmp_path):
    with pytest.raises(ValueError, match="batch_size = 1000"):
        spos.train_supernet(net, data, config=config(batch_size=1000), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(TypeError, match="data is a list"):
        spos.train_supernet(net, [], config=TRAIN)


def test_other_augmentation_is_another_run(net, tmp_path):
    spos.train_supernet(net, make_data(), config=TRAIN, run=tmp_path)
    with pytest.raises(ValueError, match="another data"):
        spos.train_supernet(net, make_data(crop_padding=2), config=TRAIN, run=tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("lr", 0.0, "TrainConfig.lr = 0.0: expected a positive number"),
        ("momentum", 1.0, r"TrainConfig.momentum = 1.0: expected a number in \[0, 1\)"),
        ("batch_size", 1, "TrainConfig.batch_size = 1: expected an integer of at least 2"),
        ("schedule", "step", "TrainConfig.schedule = 'step': expected 'linear' or 'cosine'"),
        ("steps", 0, "TrainConfig.steps = 0"),
        ("accumulation", 0, "TrainConfig.accumulation = 0"),
        ("label_smoothing", 1.0, "TrainConfig.label_smoothing = 1.0"),
    ],
)
def test_bad_settings_are_named(field, value, words):
    with pytest.raises(ValueError, match=words):
        config(**{field: value})
