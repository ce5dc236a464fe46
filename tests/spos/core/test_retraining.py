from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

import spos
import spos_kernels as sk
from spos.identity import hash_weights

CONFIG = spos.RetrainConfig(steps=60, batch_size=16, lr=0.2, log_every=10, checkpoint_every=10, calibration_images=64)


def child_of(net: spos.Supernet) -> nn.Module:
    return net.extract((0, 0, 1), weights="fresh")


def watched(data, monkeypatch) -> list[int]:
    reads = []
    plain = data.test_batches

    def test_batches(batch_size):
        reads.append(batch_size)
        return plain(batch_size)

    monkeypatch.setattr(data, "test_batches", test_batches)
    return reads


def test_retraining_learns_and_reads_the_test_set_once(net, data, tmp_path, monkeypatch):
    reads = watched(data, monkeypatch)
    child = child_of(net)
    result = spos.retrain(child, data, config=CONFIG, arch=(0, 0, 1), run=tmp_path / "run")
    assert result.test_accuracy > 0.7 and result.test_images == sum(len(y) for _, y in data.test_batches(50))
    assert reads[:-1] == [250]
    again = spos.retrain(child_of(net), data, config=CONFIG, arch=(0, 0, 1), run=tmp_path / "run")
    assert again == result and len(reads) == 2
    with spos.RunDirectory.open(tmp_path / "run", read_only=True) as run:
        stored = run.read_json("result")
    assert stored["arch"] == [0, 0, 1] and stored["flops"] == spos.flops(net, (0, 0, 1))
    assert stored["params"] == sum(p.numel() for p in child.parameters())


def test_a_finished_run_gives_its_weights_back(net, data, tmp_path):
    first, second = child_of(net), child_of(net)
    spos.retrain(first, data, config=CONFIG, run=tmp_path)
    spos.retrain(second, data, config=CONFIG, run=tmp_path)
    assert hash_weights(first) == hash_weights(second)


def test_the_search_and_the_training_never_touch_the_test_set(net, data, monkeypatch):
    reads = watched(data, monkeypatch)
    spos.train_supernet(net, data, config=spos.TrainConfig(steps=2, batch_size=16))
    spos.evolve(net, data, config=spos.SearchConfig(population=2, generations=1, mutations=1, crossovers=1))
    assert reads == []


def test_validation_images_join_only_where_asked(net, data, monkeypatch):
    asked = []
    plain = data.training_batches
    monkeypatch.setattr(
        data, "training_batches", lambda *a, include_validation: asked.append(include_validation) or plain(*a)
    )
    for use in (True, False):
        spos.retrain(child_of(net), data, config=dataclasses.replace(CONFIG, steps=1, use_validation=use))
    assert asked == [True, False]


def test_statistics_are_recomputed_after_training(net, data):
    kept, recomputed = child_of(net), child_of(net)
    spos.retrain(kept, data, config=dataclasses.replace(CONFIG, calibration_images=0))
    spos.retrain(recomputed, data, config=CONFIG)
    weights = [torch.cat([p.flatten() for p in c.parameters()]) for c in (kept, recomputed)]
    assert torch.equal(*weights) and hash_weights(kept) != hash_weights(recomputed)


def test_fuse_swaps_the_kernels_in_and_unfuse_takes_them_out():
    torch.manual_seed(0)
    child = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.Sequential(nn.Conv2d(4, 4, 5, 2, 2, groups=4, bias=False), nn.ReLU()),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),  # has a bias
        nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False),  # two outputs a channel
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False),
        nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False, padding_mode="reflect"),
        nn.Conv2d(8, 8, 1, groups=8, bias=False),
    )
    x = torch.randn(2, 4, 9, 9)
    keys, expected, weight = list(child.state_dict()), child(x), child[0].weight
    fused = spos.fuse(child)
    swapped = [name for name, m in fused.named_modules() if isinstance(m, sk.DepthwiseConv2d)]
    assert swapped == ["0", "1.0"] and list(fused.state_dict()) == keys and fused[0].weight is weight
    torch.testing.assert_close(fused(x), expected, rtol=1e-5, atol=1e-6)
    plain = spos.unfuse(fused)
    assert not any(isinstance(m, sk.DepthwiseConv2d) for m in plain.modules()) and plain[0].weight is weight
    assert isinstance(spos.fuse(copy.deepcopy(child[0])), sk.DepthwiseConv2d)


def test_child_is_plain_again_after_retraining(data):
    net = spos.spaces.get("shufflenet-oneshot-small", num_classes=3, image_size=8, in_channels=1)
    seen = set()
    child = net.extract((0, 1, 2, 3) * 2, weights="fresh")
    child.features.register_forward_hook(lambda m, i, o: seen.add(type(m[0].branch_main[3])))
    spos.retrain(child, data, config=dataclasses.replace(CONFIG, steps=1))
    assert seen == {sk.DepthwiseConv2d}
    assert not any(isinstance(m, sk.DepthwiseConv2d) for m in child.modules())


def test_another_architecture_of_the_same_weights_is_not_continued(net, data, tmp_path):
    spos.retrain(net.extract((0, 0, 1), weights="fresh"), data, config=CONFIG, run=tmp_path)
    with pytest.raises(ValueError, match="another architecture"):
        spos.retrain(net.extract((0, 1, 1), weights="fresh"), data, config=CONFIG, run=tmp_path)


def test_fuse_leaves_hooked_and_computed_weights_alone():
    def conv():
        return nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)

    hooked, normed = conv(), torch.nn.utils.weight_norm(conv())
    hooked.register_forward_hook(lambda *_: None)
    for layer in (hooked, normed):
        assert spos.fuse(layer) is layer


def test_another_architecture_is_not_continued(net, data, tmp_path):
    spos.retrain(child_of(net), data, config=CONFIG, run=tmp_path)
    with pytest.raises(ValueError, match="another architecture"):
        spos.retrain(net.extract((1, 0, 1), weights="fresh"), data, config=CONFIG, run=tmp_path)
