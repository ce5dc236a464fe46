"""Quantized layers by themselves: what they compute, what they extract to, what a gradient reaches."""

from __future__ import annotations

import io

import onnx.reference
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spos
import spos_kernels as sk
from spos.spaces.resnet_mixed import MixedBlock

from .channels_support import images
from .mixed_support import any_archs, quantized_layers, small_net


def one_layer(**options) -> spos.Supernet:
    torch.manual_seed(0)
    inner, outer = spos.WidthChoice([2, 4]), spos.WidthChoice([3, 5])
    conv = spos.SlicedQuantizedConv2d(inner, outer, 3, 2, 1, bits=spos.BitsChoice(), initial_clip=1.5, **options)
    return spos.Supernet(nn.Sequential(conv), input_shape=(4, 6, 6))


def inputs(channels: int = 4) -> torch.Tensor:
    return 2 * torch.rand(2, channels, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("share_clip", [False, True])
@pytest.mark.parametrize("label", ["w1a1", "w1a2", "w3a3", "w4a4", "w8a8"])
def test_a_layer_quantizes_input_and_slice_and_convolves(share_clip, label):
    net = one_layer(share_clip=share_clip)
    layer = net.module[0]
    with torch.no_grad():
        layer.clip.copy_(torch.linspace(0.5, 1.9, len(layer.clip)))
        layer.weight[3:] *= 100  # outside of the slice: not what its scale goes by
    w_bits, a_bits = int(label[1]), int(label[3])
    arch = net.space.join(width=(0, 0), bits=(net.space.decisions[2].options.index(label),))
    clip = layer.clip[0] if share_clip else layer.clip[a_bits - 1]
    x = sk.fake_quantize(inputs(2), a_bits, "pact", clip)
    weight = sk.fake_quantize(layer.weight[:3, :2], w_bits, "dorefa")
    assert len(x.unique()) <= 2**a_bits and len(weight.unique()) <= 2**w_bits and x.max() <= clip
    expected = F.conv2d(x, weight, layer.bias[:3], stride=2, padding=1)
    with torch.no_grad():
        torch.testing.assert_close(net(inputs(2), arch), expected)
        child = net.extract(arch)
        assert torch.equal(child(inputs(2)), net(inputs(2), arch))
    assert type(child[0]) is spos.QuantizedConv2d and (child[0].w_bits, child[0].a_bits) == (w_bits, a_bits)
    assert child[0].weight.shape == (3, 2, 3, 3) and child[0].clip.shape == (1,) and child[0].clip == clip
    assert child[0].weight.data_ptr() != layer.weight.data_ptr()


def test_children_compute_what_their_paths_do():
    for net in (small_net(), small_net(share_clip=True)):
        for arch in any_archs(net, 6):
            for training in (True, False):
                net.train(training)
                child = net.extract(arch, affine=False)
                assert not any(isinstance(m, spos.SlicedModule) for m in child.modules())
                with torch.no_grad():
                    assert torch.equal(child(images()), net(images(), arch))
    outputs = {net(images(), net.space.uniform(w_bits=w, a_bits=4)).sum().item() for w in range(1, 9)}
    assert len(outputs) == 8  # bits make a difference, those that are not offered too


def test_the_identity_is_in_full_precision_and_the_shortcut_is_not():
    block = MixedBlock(4, 4, 1, [(1, 1)], (1.0,), False, 1.0)
    block.bn2 = nn.Threshold(float("inf"), 0.0)  # silences the convolutions
    x = inputs()
    net = spos.Supernet(block)
    assert torch.equal(net(x, (0, 0)), x)
    strided = MixedBlock(4, 4, 2, [(1, 1)], (1.0,), False, 1.0)
    strided.bn2, strided.downsample[1] = nn.Threshold(float("inf"), 0.0), nn.Identity()
    y = spos.Supernet(strided)(x, (0, 0))
    assert len(y.unique()) <= 9  # sums of four products of ±1 and 0 or 1, without the negative ones
    assert strided.conv1.bits is strided.conv2.bits is strided.downsample[0].bits


def test_gradients_reach_the_clip_in_force_and_the_latent_weight():
    net = one_layer(bias=False)
    layer = net.module[0]
    arch = net.space.join(width=(1, 1), bits=(0,))  # w1a2
    x = inputs().requires_grad_()
    net(x, arch).sum().backward()
    assert layer.clip.grad.nonzero().flatten().tolist() == [1]
    weight = sk.fake_quantize(layer.weight.detach(), 1, "dorefa")
    upstream = torch.nn.grad.conv2d_input(x.shape, weight, torch.ones(2, 5, 3, 3), stride=2, padding=1)
    clipped = x.detach() >= 1.5
    torch.testing.assert_close(layer.clip.grad[1], upstream[clipped].sum())
    torch.testing.assert_close(x.grad, upstream.masked_fill(clipped | (x.detach() <= 0), 0))
    assert layer.weight.grad.count_nonzero() == layer.weight.numel()


def test_a_clip_below_zero_can_return():
    layer = spos.QuantizedConv2d(4, 4, 3, padding=1, w_bits=2, a_bits=2)
    with torch.no_grad():
        layer.clip.fill_(-0.1)
    y = layer(inputs())
    assert y.isfinite().all()
    (y * y.detach().sign()).sum().backward()
    assert layer.clip.grad.abs() > 0


def test_fresh_children_start_anew():
    net = small_net(initial_clip=4.0)
    arch = net.space.uniform(w_bits=3, a_bits=3, width=0.5)
    inherited, fresh = net.extract(arch), net.extract(arch, weights="fresh", seed=1)
    for old, new in zip(inherited.modules(), fresh.modules(), strict=True):
        if isinstance(old, spos.QuantizedConv2d):
            assert new.clip == 4 and old.clip != 4 and not torch.equal(old.weight, new.weight)
            assert (new.w_bits, new.a_bits) == (3, 3)
    again = net.extract(arch, weights="fresh", seed=1)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), again.parameters(), strict=True))
    assert fresh.layer1[0].bits() == (3, 3) and fresh.layer1[0].width() == 8
    assert "w_bits=3, a_bits=3" in repr(fresh)


def test_children_export_with_the_same_outputs():
    net = one_layer()
    child = net.extract(net.space.join(width=(1, 1), bits=(2,))).eval()
    x = inputs()
    file = io.BytesIO()
    torch.onnx.export(child, (x,), dynamo=True, verbose=False).save(file)
    model = onnx.load_from_string(file.getvalue())
    assert {node.domain for node in model.graph.node} == {""}  # operations that every runtime knows
    evaluator = onnx.reference.ReferenceEvaluator(model)
    [outputs] = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})
    expected = child(x).detach()
    for found in (torch.from_numpy(outputs), torch.export.export(child, (x,)).module()(x).detach()):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_shared_clip_is_one():
    alone, shared = small_net(), small_net(share_clip=True)
    assert {len(layer.clip) for layer in quantized_layers(alone)} == {8}
    assert {len(layer.clip) for layer in quantized_layers(shared)} == {1}
    arch = alone.space.uniform(w_bits=2, a_bits=2)
    assert spos.params(alone, arch) == spos.params(shared, arch)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: spos.QuantizedConv2d(4, 4, 3, w_bits=9, a_bits=2), ValueError, "w_bits = 9: expected an integer"),
        (lambda: spos.QuantizedConv2d(4, 4, 3, w_bits=2, a_bits=True), TypeError, "a_bits = True: expected an integer"),
        (
            lambda: spos.QuantizedConv2d(4, 4, 3, w_bits=2, a_bits=2, initial_clip=0),
            ValueError,
            "initial_clip = 0: expected a positive number",
        ),
        (lambda: spos.SlicedQuantizedConv2d(4, 4, 3, bits=(2, 2)), TypeError, "bits is a tuple: expected a spos.Bits"),
        (lambda: one_layer().module[0].extract((0, 0, 64)), IndexError, "out of range"),
        (lambda: one_layer()(inputs(), (0, 0, 0)), ValueError, "input has 4 channels: SlicedQuantizedConv2d takes 2"),
        (
            lambda: spos.spaces.get("shufflenet-oneshot", bits=["w2a2"]),
            ValueError,
            r"bits = \['w2a2'\]: only resnet18-mixed and resnet34-mixed and resnet-mixed-small take it",
        ),
        (lambda: small_net(operators=("choice_3",)), ValueError, "operators = .* take it, not resnet-mixed-small"),
        (lambda: small_net(widths=(0.0,)), ValueError, r"widths = \(0.0,\): expected different positive ratios"),
        (lambda: spos.spaces.get("resnet18-mixd"), ValueError, "did you mean 'resnet18-mixed'"),
    ],
)
def test_misuse_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
