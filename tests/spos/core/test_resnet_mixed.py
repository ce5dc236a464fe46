from __future__ import annotations

import pytest
import torch
from torch import nn

import spos
from spos.run_folder import describe_space


@pytest.mark.parametrize(
    ("name", "blocks", "final"),
    [("resnet18-mixed", 8, 512), ("resnet34-mixed", 16, 512), ("resnet-mixed-small", 8, 64)],
)
def test_decisions_are_the_blocks(name, blocks, final):
    with torch.device("meta"):
        net = spos.spaces.get(name, num_classes=10, image_size=32)
    kinds = [(d.kind, d.drawn) for d in net.space.decisions]
    assert kinds == [("bits", 6), ("width", 3)] * blocks and net.space.size() == 18**blocks
    assert [d.name for d in net.space.decisions][:4] == [
        "layer1.0.bits",
        "layer1.0.width",
        "layer1.1.bits",
        "layer1.1.width",
    ]
    assert net.module.fc.in_features == final and net.module.fc.out_features == 10
    last = net.module.get_submodule(f"layer{net.module.stage_count}")[-1]
    assert last.width.widths == (final // 2, final, final * 3 // 2)
    assert (last.conv1.in_channels, last.conv1.out_channels) == (final, final * 3 // 2)
    assert (last.conv2.in_channels, last.conv2.out_channels) == (final * 3 // 2, final)


@pytest.mark.parametrize(("size", "sides"), [(224, [56, 28, 14, 7]), (32, [32, 16, 8, 4])])
def test_resolutions_are_those_of_the_official_network_and_of_small_images(size, sides):
    net = spos.spaces.get("resnet18-mixed", num_classes=4, image_size=size)
    blocks = describe_space(net)["blocks"]
    assert [b["output"] for b in blocks] == [[64 << i, s, s] for i, s in enumerate(sides) for _ in range(2)]
    assert [(b["decision"], b["widths"]) for b in blocks] == [(2 * i, [2 * i + 1]) for i in range(8)]
    stem = net.module.conv1
    assert type(stem) is nn.Conv2d and type(net.module.fc) is nn.Linear  # in full precision
    assert (stem.kernel_size, stem.stride) == (((7, 7), (2, 2)) if size == 224 else ((3, 3), (1, 1)))
    assert isinstance(net.module.maxpool, nn.MaxPool2d if size == 224 else nn.Identity)


def test_weights_are_channels_last_and_follow_from_the_seed():
    nets = [spos.spaces.get("resnet-mixed-small", num_classes=4, image_size=8, seed=seed) for seed in (1, 1, 2)]
    weights = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    conv = nets[0].module.layer2[0].conv1
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert nets[0](torch.zeros(2, 3, 8, 8), nets[0].space.uniform(w_bits=1, a_bits=2)).shape == (2, 4)
    assert conv.weight.std().item() == pytest.approx((2 / (48 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 1}, "num_classes = 1: expected an integer of at least 2"),
        ({"image_size": 4}, "image_size = 4: expected an integer of at least 8"),
        ({"in_channels": 0}, "in_channels = 0: expected a positive integer"),
        ({"bits": []}, "expected different pairs, at least one"),
        ({"initial_clip": -1.0}, "initial_clip = -1.0: expected a positive number"),
    ],
)
def test_bad_sizes_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        spos.spaces.get("resnet-mixed-small", **options)
