from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import spos
from spos.identity import hash_weights


@pytest.fixture
def sets(data):
    return data.calibration_batches(48, 16, 0), data.validation_batches(0, 16, 0)


def test_a_score_is_that_of_the_recalibrated_child(net, sets):
    calibration, validation = sets
    arch = (1, 0, 0)
    [score] = spos.evaluate_population(net, [arch], calibration, validation)
    child = net.extract(arch, affine=False)
    spos.recalibrate(child, calibration)
    child.eval()
    with torch.no_grad():
        logits = torch.cat([child(x) for x, _ in validation])
    labels = torch.cat([y for _, y in validation])
    assert score.accuracy == float((logits.argmax(1) == labels).double().mean()) and score.images == len(labels)
    assert score.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-6)
    assert score.top5 == 1.0  # three classes


def test_recalibration_is_the_mean_over_batches():
    norm = nn.BatchNorm1d(2, momentum=0.3)
    batches = [torch.randn(n, 2) * n for n in (4, 7, 5)]
    norm.running_mean.fill_(9.0)
    spos.recalibrate(nn.Sequential(norm), batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var(0) for b in batches]).mean(0))
    assert norm.momentum == 0.3 and norm.training


def test_recalibration_runs_everything_but_the_norms_in_eval_mode():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2)).train()
    x = torch.randn(64, 2)
    spos.recalibrate(model, [x])
    torch.testing.assert_close(model[1].running_mean, x.mean(0))
    assert model[0].training


def test_recalibration_passes_statistics_of_earlier_layers_on():
    """In training mode a layer normalises by its batch, so later layers see what training showed them."""
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    spos.recalibrate(model, [torch.randn(64, 2) * 5 + 3])
    torch.testing.assert_close(model[1].running_mean, torch.zeros(2), atol=1e-5, rtol=0)


def test_scores_do_not_depend_on_order_or_company(net, sets):
    archs = list(net.space.enumerate())
    alone = {a: spos.evaluate_population(copy.deepcopy(net), [a], *sets)[0] for a in archs}
    assert len(set(alone.values())) > 3
    for order in itertools.islice(itertools.permutations(archs[:5]), 0, 120, 29):
        assert spos.evaluate_population(net, order, *sets) == [alone[a] for a in order]
    assert spos.evaluate_population(net, archs[::-1] + archs, *sets) == [alone[a] for a in archs[::-1] + archs]


def test_evaluation_leaves_the_net_as_it_was(net, sets):
    net.train()
    net.module.branch.eval()
    before, modes = hash_weights(net), [m.training for m in net.modules()]
    momenta = [m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    spos.evaluate_population(net, [(0, 0, 0), (2, 1, 1)], *sets)
    assert hash_weights(net) == before and [m.training for m in net.modules()] == modes
    assert [m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)] == momenta


def test_an_interrupted_evaluation_leaves_the_net_as_it_was(net, sets):
    before = hash_weights(net)

    def images():
        yield sets[0][0]
        raise KeyboardInterrupt

    class Interrupting(list):
        def __iter__(self):
            return images()

    with pytest.raises(KeyboardInterrupt):
        spos.evaluate_population(net, [(0, 0, 0)], Interrupting(sets[0]), sets[1])
    assert hash_weights(net) == before and all(m.training for m in net.modules())
    assert all(m.momentum == 0.1 for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_stale_statistics_do_not_matter(net, sets):
    other = copy.deepcopy(net)
    for layer in other.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.fill_(100.0)
    archs = [(0, 0, 0), (1, 1, 1)]
    assert spos.evaluate_population(net, archs, *sets) == spos.evaluate_population(other, archs, *sets)


def test_each_score_is_reported_as_it_is_done(net, sets):
    seen = []
    scores = spos.evaluate_population(
        net, [[0, 0, 0], (1, 1, 1)], *sets, on_score=lambda arch, score: seen.append((arch, score))
    )
    assert seen == [((0, 0, 0), scores[0]), ((1, 1, 1), scores[1])]


def test_top5_counts_the_first_five():
    class Fixed(nn.Module):
        def forward(self, x):
            return -torch.arange(8.0).expand(len(x), 8)

    score = spos.classify(Fixed(), [(torch.zeros(8, 1), torch.arange(8))])
    assert (score.accuracy, score.top5, score.images) == (1 / 8, 5 / 8, 8)


def test_misuse_is_named(net, sets):
    with pytest.raises(ValueError, match="calibration is empty"):
        spos.evaluate_population(net, [(0, 0, 0)], [], sets[1])
    with pytest.raises(ValueError, match="validation is empty"):
        spos.evaluate_population(net, [(0, 0, 0)], sets[0], [])
    with pytest.raises(ValueError, match="arch has 1 entries"):
        spos.evaluate_population(net, [(0, 0, 0), (0,)], *sets)
    with pytest.raises(TypeError, match="net is a Sequential"):
        spos.evaluate_population(net.module, [(0, 0, 0)], *sets)


def test_outputs_that_are_not_finite_are_wrong_and_rank_last(net, sets):
    with torch.no_grad():
        net.module.operator.branch(0)[0].weight.fill_(float("nan"))
    bad, good = spos.evaluate_population(net, [(0, 0, 0), (2, 0, 0)], *sets)
    assert (bad.accuracy, bad.top5, bad.loss) == (0.0, 0.0, 1e6) and good.accuracy > 0


def test_buffers_of_any_layer_are_put_back(sets):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), spos.ChoiceBlock({"count": Counting()}), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = spos.Supernet(nn.Sequential(*layers))
    first, second = spos.evaluate_population(net, [(0,), (0,)], *sets)
    assert first == second and net.module[1].branch(0).calls == 0
