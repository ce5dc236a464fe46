"""Training with choices of bits: what moves, what decays, and that a killed run ends where another does."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import spos
from spos.identity import hash_weights
from spos.steps import make_optimizer, make_sink

from .conftest import TRAIN
from .mixed_support import quantized_layers, small_net, used


@pytest.mark.parametrize("share_clip", [False, True])
def test_what_a_step_does_not_sample_stays_to_the_bit(share_clip, data, tmp_path, monkeypatch):
    """Weights outside of the slices, and the clips of other numbers of bits: values, momentum and decay."""
    saved: list[dict[str, torch.Tensor]] = []
    save = spos.RunDirectory.save_checkpoint

    def keep(self, name, tensors, meta):
        saved.append({key: value.clone() for key, value in tensors.items()})
        return save(self, name, tensors, meta)

    monkeypatch.setattr(spos.RunDirectory, "save_checkpoint", keep)
    net = small_net(share_clip=share_clip)
    config = dataclasses.replace(TRAIN, steps=6, weight_decay=0.1, log_every=1, checkpoint_every=1)
    spos.train_supernet(net, data, config=config, run=tmp_path)
    with spos.RunDirectory.open(tmp_path, read_only=True) as run:
        archs = [record["arch"] for record in run.records("train")]
    clips = [f"{name}.clip" for name, layer in net.module.named_modules() if hasattr(layer, "clip")]
    assert len(clips) == 19 and len(saved) == 6
    for before, after, arch in zip(saved, saved[1:], archs[1:], strict=False):
        for name, mask in used(net, arch).items():
            for prefix in ("model/", "momentum/module."):
                old, new = before.get(prefix + name), after.get(prefix + name)
                if new is None:
                    continue
                old = torch.zeros_like(new) if old is None else old
                assert torch.equal(old[~mask], new[~mask]), name
                if name in clips:
                    assert mask.sum() == 1 and (old[mask] != new[mask]).all(), name


def test_the_clip_decays_and_other_parameters_of_one_dimension_do_not():
    net = small_net()
    child = net.extract(net.space.uniform(w_bits=2, a_bits=2))
    for model in (net, child):
        config = spos.TrainConfig(lr=0.5, weight_decay=0.1, momentum=0.0)
        optimizer = make_optimizer(model, config)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        decays = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
        assert decays == {n for n in before if n.endswith("clip") or before[n].dim() > 1}
        assert any(n.endswith("clip") for n in decays) and any(n.endswith("bias") for n in before)
        name = next(n for n in decays if n.endswith("clip"))
        torch.testing.assert_close(model.get_parameter(name), before[name] * (1 - 0.5 * 0.1))


def test_a_clip_that_became_nan_is_a_divergence(data):
    with pytest.raises(spos.DivergenceError, match=r"diverged, .* at step [1-9]: lower lr"):
        spos.train_supernet(small_net(), data, config=dataclasses.replace(TRAIN, lr=1e38, steps=50, log_every=50))


def test_a_resumed_run_ends_with_the_same_bits(data, tmp_path):
    hashes = []
    for stops in ((), (4,)):
        net = small_net()
        directory = tmp_path / str(len(hashes))

        def stop(name, step, total, info, stops=stops):
            if step in stops:
                raise KeyboardInterrupt

        config = dataclasses.replace(TRAIN, log_every=1, checkpoint_every=3)
        if stops:
            with pytest.raises(KeyboardInterrupt):
                spos.train_supernet(net, data, config=config, run=directory, progress=stop)
            net = small_net()
        spos.train_supernet(net, data, config=config, run=directory)
        hashes.append(hash_weights(net))
    assert hashes[0] == hashes[1]


def test_the_supernet_and_its_children_learn(data, tmp_path):
    net = spos.spaces.get("resnet-mixed-small", num_classes=3, image_size=8, in_channels=1, initial_clip=3.0)
    config = dataclasses.replace(TRAIN, steps=40, lr=0.1, log_every=10)
    result = spos.train_supernet(net, data, config=config)
    assert result.accuracy > 0.5  # chance is 0.33
    arch = net.space.uniform(w_bits=3, a_bits=3)
    child = net.extract(arch, weights="fresh")
    clips = [m.clip.item() for m in child.modules() if isinstance(m, spos.QuantizedConv2d)]
    settings = spos.RetrainConfig(steps=40, batch_size=16, lr=0.1, log_every=10, calibration_images=64)
    outcome = spos.retrain(child, data, config=settings, arch=arch, run=tmp_path)
    assert outcome.test_accuracy > 0.6
    assert all(m.clip != old for m, old in zip(_quantized(child), clips, strict=True))
    with spos.RunDirectory.open(tmp_path, read_only=True) as run:
        stored = run.read_json("result")
    assert stored["bitops"] == spos.bitops(net, arch) and stored["flops"] == spos.flops(net, arch)


def test_gradients_of_clips_go_where_those_of_slices_do(data):
    net = small_net()
    sink = make_sink(net)
    arch = net.space.uniform(w_bits=2, a_bits=4)
    x = next(iter(data.validation_batches(0, 16, 0)))[0]
    with sink:
        net(x, arch).square().sum().backward()
    for layer in quantized_layers(net):
        assert layer.clip.grad is None and layer.weight.grad is None
        assert [(e.row_begin, e.row_end) for e in sink.extents(layer.clip)] == [(3, 4)]
        outputs, inputs = layer.slices(arch)["weight"]
        assert [tuple(e) for e in sink.extents(layer.weight)] == [(0, outputs, 0, inputs)]


def _quantized(child: nn.Module) -> list[spos.QuantizedConv2d]:
    return [m for m in child.modules() if isinstance(m, spos.QuantizedConv2d)]
