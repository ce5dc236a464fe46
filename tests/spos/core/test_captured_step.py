"""spos.train_supernet and evaluate_population through captured launches: as launch by launch, resumable, or refused."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import spos
import spos_kernels as sk
from spos.captured_step import CapturedEvaluation, CapturedStep, reason_against
from spos.evaluation import evaluate_population
from spos.run_directory import RunDirectoryError
from spos.spaces.shufflenet import ShuffleNetOneShot, Spec, channels_last
from spos_kernels.cuda.modules import availability, module_of

from .conftest import make_data

needs_emulator = pytest.mark.skipif(not availability("cuda-emulated")[0], reason=availability("cuda-emulated")[1])
CONFIG = spos.TrainConfig(
    steps=5, batch_size=6, lr=0.1, weight_decay=1e-2, clip_norm=1.0, log_every=2, checkpoint_every=2, nesterov=True
)


BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not availability(name)[0], reason=availability(name)[1]))
    for name in ("cuda-emulated", "cuda")
]


@pytest.fixture(autouse=True, params=BACKENDS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks are made on the GPU, or run in the emulator."""
    monkeypatch.setattr(sys.modules[__name__], "DEVICE", "cuda" if request.param == "cuda" else "cpu")
    with sk.use_backend(request.param):
        yield


DEVICE = "cpu"


def nothing(module: Any) -> None:
    pass


def supernet(dropout: float = 0.1, edit: Any = nothing) -> spos.Supernet:
    network = ShuffleNetOneShot(Spec(4, ((8, 2), (12, 1)), 16), 3, 8, 1)
    network.dropout.p = dropout
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    edit(network)
    return channels_last(spos.Supernet(network, input_shape=(1, 8, 8), name="tiny")).to(DEVICE)


def records(directory: Any) -> list[dict[str, Any]]:
    with spos.RunDirectory.open(directory, read_only=True) as run:
        return [{k: v for k, v in r.items() if k != "seconds"} for r in run.records("train")]


def test_training_captured_is_training_launch_by_launch(tmp_path: Any) -> None:
    """Without dropout, whose draws differ, five steps end with the same weights, statistics, momenta and records."""
    assert reason_against(supernet(), CONFIG) is None
    nets = {}
    for capture in (True, False):
        nets[capture] = supernet(dropout=0.0)
        spos.train_supernet(nets[capture], make_data(), config=CONFIG, run=tmp_path / str(capture), capture=capture)
    before, moved = supernet().state_dict(), 0
    for (name, ours), theirs in zip(nets[True].state_dict().items(), nets[False].state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")
        moved += not torch.equal(ours, before[name])
    assert moved > 20
    captured, plain = records(tmp_path / "True"), records(tmp_path / "False")
    assert [r["arch"] for r in captured] == [r["arch"] for r in plain] and len(captured) == 3
    for ours, theirs in zip(captured, plain, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["accuracy"] == theirs["accuracy"] and ours["lr"] == theirs["lr"]
    momenta = []
    for capture in (True, False):
        with spos.RunDirectory.open(tmp_path / str(capture), read_only=True) as run:
            checkpoint = run.load_checkpoint("supernet")
            assert checkpoint is not None
            momenta.append({k: v for k, v in checkpoint.tensors.items() if k.startswith("momentum/")})
    for name, theirs in momenta[1].items():
        torch.testing.assert_close(momenta[0][name], theirs, rtol=2e-3, atol=2e-4)


@needs_emulator
def test_all_steps_replay_the_launches_of_the_first() -> None:
    if DEVICE == "cuda":
        pytest.skip("the emulator counts launches")
    emulator = module_of("cuda-emulated")
    net, data = supernet(), make_data()
    step = CapturedStep(net, lambda number: (number % 4,) * 3, CONFIG, 0)
    batches = data.training_batches(6, 0).iterate(0, 3)
    window, launches, first = spos.steps.Window(), [], net.state_dict()
    first = {name: value.clone() for name, value in net.state_dict().items()}
    for number in range(3):
        emulator.take_counters()
        step.take(batches, number, 0.1, window)
        launches.append(emulator.take_counters()["launches"])
    assert launches[0] == launches[1] == launches[2] > 40
    assert window.batches == 3 and window.images == 18
    untouched = [n for n, v in net.state_dict().items() if torch.equal(v, first[n])]
    assert untouched and all(".choice_x." in name or ".3." in name for name in untouched)  # the fourth choice's


def test_labels_images_and_weights_that_do_not_fit_are_refused() -> None:
    net = supernet()
    step = CapturedStep(net, lambda _: (0, 0, 0), CONFIG, 0)
    x = torch.randn(6, 1, 8, 8, device=DEVICE)
    y = torch.tensor([0, 1, 2, 0, 1, 2])

    def take(labels: torch.Tensor) -> None:
        step.take(iter([(x, labels)]), 0, 0.1, spos.steps.Window())

    take(y)
    with pytest.raises(ValueError, match="labels are 0 to 3: expected 0 to 2"):
        take(torch.tensor([0, 1, 2, 3, 1, 2]))
    with pytest.raises(ValueError, match="labels are -1 to 2"):
        take(torch.tensor([0, 1, 2, -1, 1, 2]))
    with pytest.raises(TypeError, match=r"images are torch.uint8: expected torch.float32"):
        CapturedEvaluation(net).logits((0, 0, 0), torch.zeros(2, 1, 8, 8, dtype=torch.uint8, device=DEVICE))
    weight = next(net.parameters())
    weight.data = weight.data.clone(memory_format=torch.preserve_format)
    with pytest.raises(RuntimeError, match="is not where it was when the step was captured"):
        take(y)


def test_interrupted_and_resumed_to_the_bit(tmp_path: Any) -> None:
    whole = supernet()
    spos.train_supernet(whole, make_data(), config=CONFIG, run=tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int, values: Any) -> None:
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        spos.train_supernet(supernet(), make_data(), config=CONFIG, run=tmp_path / "cut", progress=stop)
    resumed = supernet()
    spos.train_supernet(resumed, make_data(), config=CONFIG, run=tmp_path / "cut")
    for (name, ours), theirs in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    with pytest.raises(RunDirectoryError, match="config"):
        spos.train_supernet(supernet(), make_data(), config=CONFIG, run=tmp_path / "cut", capture=False)


def test_scores_of_captured_evaluation_are_those_of_the_reference() -> None:
    net, data = supernet(), make_data()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    calibration = [x for x, _ in data.training_batches(6, 0).iterate(0, 3)]
    validation = list(data.training_batches(6, 1).iterate(0, 3))
    validation.append((validation[0][0][:5], validation[0][1][:5]))  # a last batch of another size
    archs = [(0, 1, 2), (3, 3, 3), (2, 0, 1), (0, 1, 2)]
    assert reason_against(net) is None
    ours = evaluate_population(net, archs, calibration, validation, share_prefixes=False)
    with sk.use_backend("reference"):
        theirs = evaluate_population(net, archs, calibration, validation, share_prefixes=False)
    assert ours[0] == ours[3] and len({score.loss for score in ours}) == 3
    for a, b in zip(ours, theirs, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert (a.accuracy, a.top5, a.images) == (b.accuracy, b.top5, b.images)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match="calibration is empty"):
        evaluate_population(net, archs[:1], [], validation)


def observed() -> spos.Supernet:
    net = supernet()
    next(m for m in net.modules() if isinstance(m, nn.ReLU)).register_forward_hook(lambda *_: None)
    return net


def with_other_momentum() -> spos.Supernet:
    net = supernet()
    net.module.conv_last[1].momentum = 0.3  # type: ignore[index, union-attr]
    return net


def frozen() -> spos.Supernet:
    net = supernet()
    next(net.parameters()).requires_grad_(False)
    return net


def fix_a_block(module: Any) -> None:
    module.features[1] = module.features[1].branch(2)


def share_a_block(module: Any) -> None:
    module.features.insert(2, module.features[1])


def tie_two_blocks(module: Any) -> None:
    one, other = (module.features[i].branch(0).branch_main[3] for i in (0, 1))
    assert one.weight.shape == other.weight.shape
    other.weight = one.weight


def slice_the_classifier(module: Any) -> None:
    weight = module.classifier[0].weight
    module.classifier[0].weight = nn.Parameter(torch.full((len(weight), weight.shape[1] + 5), 7.0)[:, :-5])


def drop_all(module: Any) -> None:
    module.dropout.p = 1.0


def test_a_gpu_without_a_captured_step_is_said() -> None:
    config = dataclasses.replace(CONFIG, steps=1, accumulation=2)
    with pytest.warns(UserWarning, match="tiny: its steps are not captured, .* for accumulation = 2"):
        spos.train_supernet(supernet(), make_data(), config=config)
    with sk.use_backend("auto"), warnings.catch_warnings():
        warnings.simplefilter("error")
        spos.train_supernet(supernet().cpu(), make_data(), config=config)


def test_ties_within_a_block_are_no_reason() -> None:
    def tie(module: Any) -> None:
        first, second = (module.features[1].branch(i).branch_main[0] for i in (0, 1))
        second.weight = first.weight

    assert reason_against(supernet(edit=tie), CONFIG) is None


@pytest.mark.parametrize(
    ("make", "changes", "reason"),
    [
        (lambda: supernet(edit=fix_a_block), {}, "not one choice each"),
        (lambda: supernet(edit=share_a_block), {}, "not one choice each"),
        (lambda: supernet(edit=tie_two_blocks), {}, "a weight is in several"),
        (lambda: supernet(edit=slice_the_classifier), {}, "dense in memory"),
        (lambda: supernet(edit=drop_all), {}, "dropout of 1.0"),
        (supernet, {"accumulation": 2}, "accumulation = 2"),
        (supernet, {"bf16": True}, "bf16 = true"),
        (supernet, {"sampler": "fair"}, "several paths in a step"),
        (lambda: spos.unfuse(supernet()), {}, "one kernel runs them"),
        (lambda: supernet().double(), {}, "GPU|float32"),
        (observed, {}, "a hook"),
        (with_other_momentum, {}, "differ in momentum"),
        (frozen, {}, "float32 and trained"),
        (lambda: spos.Supernet(nn.Sequential(supernet().module.features[0]), input_shape=(4, 8, 8)), {}, "Sequential"),
    ],
)
def test_why_not(make: Any, changes: dict[str, Any], reason: str) -> None:
    net, config = make(), dataclasses.replace(CONFIG, **changes)
    with pytest.raises(TypeError, match=reason):
        CapturedStep(net, lambda _: (0,) * 3, config, 0)
    if not changes:
        with pytest.raises(TypeError, match=reason):
            CapturedEvaluation(net)


def test_on_the_cpu_nothing_is_captured() -> None:
    with sk.use_backend("auto"):
        assert reason_against(supernet().cpu()) == "its weights are not on a GPU that the kernels are compiled for"
