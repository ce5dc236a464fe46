"""Deployed children: the same codes as the child has, layer by layer and end to end, on integers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import spos
import spos_kernels as sk
from spos import deployment
from spos.spaces.resnet_mixed import MixedBlock

from .channels_support import images, randomized
from .mixed_support import any_archs, small_net

PAIRS = [(1, 1), (1, 2), (3, 3), (4, 4), (8, 8)]


def small_child(w_bits=2, a_bits=3, width=0.5) -> nn.Module:
    net = small_net()
    child = net.extract(net.space.uniform(w_bits=w_bits, a_bits=a_bits, width=width)).eval()
    torch.manual_seed(5)
    for layer in child.modules():
        if isinstance(layer, nn.BatchNorm2d):  # factors of both signs
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias, 0.5)
    return child


def quantized(child: nn.Module) -> dict[str, spos.QuantizedConv2d]:
    return {name: m for name, m in child.named_modules() if isinstance(m, spos.QuantizedConv2d)}


def assert_same(child: nn.Module, x: torch.Tensor, differing: int = 0) -> sk.PackedNetwork:
    """That a child's deployed network has its codes, but for so many, and, given these, its layers' results."""
    deployed = spos.deploy(child)
    found = spos.compare_deployed(child, deployed, x)
    assert found.differing <= differing and found.rounded <= differing and found.agreement == 1
    layers = spos.compare_layers(child, deployed, x)
    assert [one.layer for one in layers if not one.exact or one.error > 1] == []
    assert {one.layer for one in layers} == quantized(child).keys() and sum(one.codes for one in layers) == found.codes
    with torch.no_grad():
        torch.testing.assert_close(deployed(x), child(x), rtol=1e-4, atol=1e-4)
    return deployed


@pytest.mark.parametrize("pair", PAIRS)
def test_every_layer_is_the_childs_and_so_are_all_codes(pair):
    child = small_child(*pair)
    deployed = assert_same(child, images(8))
    for name, layer in deployed.packed_layers().items():
        own = quantized(child)[name]
        assert (layer.w_bits, layer.a_bits) == pair == (own.w_bits, own.a_bits)
        codes = sk.quantize(own.weight.detach(), own.w_bits, "dorefa")
        assert torch.equal(sk.unpack_weight(layer.weight), codes)
        assert layer.x_quantizer.scale == own.clip.item() / (2 ** pair[1] - 1)


def test_any_architecture_of_the_space():
    net = small_net()
    for arch in any_archs(net, 4):
        assert_same(net.extract(arch, affine=False).eval(), images(4))


def codes_of_random_networks() -> tuple[int, int]:
    """Of networks of 4 and 8 bits for images of 32 pixels: codes that differ from the child's in float64, and all."""
    differing = codes = 0
    x = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    for bits in (4, 8):
        net = randomized(spos.spaces.get("resnet-mixed-small", num_classes=3, image_size=32))
        child = net.extract(net.space.uniform(w_bits=bits, a_bits=bits, width=1.0)).eval()
        torch.manual_seed(3)
        for layer in quantized(child).values():
            nn.init.uniform_(layer.clip, 0.5, 3)
        found = spos.compare_deployed(child, spos.deploy(child), x)
        differing, codes = differing + found.differing, codes + found.codes
    return differing, codes


def test_no_code_differs_from_float64():
    differing, codes = codes_of_random_networks()
    assert differing == 0 and codes > 1_000_000


def test_in_float32_codes_would_differ(monkeypatch):
    """Those of the test above, with layers of float32, or the stem alone."""
    packed = deployment._Conversion._packed
    with monkeypatch.context() as patch:
        patch.setattr(deployment._Conversion, "_packed", lambda *args: packed(*args[:-1], torch.float32))
        assert codes_of_random_networks()[0] > 300
    monkeypatch.setattr(deployment._Conversion, "_stem", lambda *_: None)
    assert codes_of_random_networks()[0] > 300


def test_codes_are_compared_with_those_of_the_childs_own_layers():
    child, x = small_child(), images(8)
    given: dict[str, torch.Tensor] = {}
    for name, layer in quantized(child).items():
        layer.register_forward_pre_hook(lambda m, inputs, name=name: given.update({name: inputs[0]}))
    with torch.no_grad():
        child(x)
    _, codes = spos.deploy(child).codes(x)
    assert codes.keys() == given.keys() and len(codes) == 19
    for name, layer in quantized(child).items():
        assert torch.equal(codes[name][0], sk.quantize(given[name], layer.a_bits, "pact", layer.clip.detach()))


def test_between_convolutions_there_is_nothing_but_codes_and_the_residual():
    deployed, given = spos.deploy(small_child()), {}
    for name, layer in deployed.packed_layers().items():
        layer.register_forward_pre_hook(lambda m, inputs, name=name: given.update({name: inputs[0].dtype}))
    deployed(images())
    floats = {name for name, dtype in given.items() if dtype == torch.float64}
    assert set(given.values()) == {torch.uint8, torch.float64}
    assert floats == {"layer1.0.conv1"} | {f"layer{n}.0.downsample.0" for n in (1, 2, 3)}
    kinds = {type(m) for m in deployed.modules()}
    assert nn.BatchNorm2d not in kinds and spos.QuantizedConv2d not in kinds
    assert [type(m) for m in deployed.network] == [
        sk.StemConv2d,
        sk.PackedBlocks,
        nn.AdaptiveAvgPool2d,
        nn.Flatten,
        nn.Linear,
    ]


def test_a_clip_below_what_is_allowed_is_what_the_layer_makes_of_it():
    child = small_child()
    with torch.no_grad():
        child.layer1[0].conv2.clip.fill_(-0.1)
        child.layer2[0].conv1.clip.fill_(0.0005)
    deployed = assert_same(child, images(4))
    assert deployed.packed_layers()["layer1.0.conv2"].x_quantizer.scale == pytest.approx(1e-3 / 7, rel=1e-4)


def test_the_child_is_left_as_it_was():
    child = small_child().train()
    before = copy.deepcopy(child.state_dict())
    deployed = spos.deploy(child)
    spos.compare_deployed(child, deployed, images())
    assert child.training and all(p.requires_grad for p in child.parameters())
    assert all(torch.equal(value, before[name]) for name, value in child.state_dict().items())
    y = deployed(images())
    with torch.no_grad():
        for value in child.state_dict().values():
            value.zero_()
    assert torch.equal(deployed(images()), y)


def test_the_file_is_as_small_as_the_bits_promise(tmp_path: Path):
    sizes = {}
    for w_bits in (1, 2, 4):
        child = small_child(w_bits, 2, 1.0)
        deployed = spos.deploy(child)
        sizes[w_bits] = deployed.save(tmp_path / "packed.safetensors")
        weights = sum(layer.weight.numel() for layer in quantized(child).values())
        outputs = 16 + sum(
            layer.out_channels for layer in quantized(child).values()
        )  # of float64, in the scale and bias
        assert deployed.packed_bytes == weights * w_bits / 8
        again = sk.load_packed(tmp_path / "packed.safetensors")
        assert torch.equal(again(images()), deployed(images()))
    assert (
        sizes[2] - sizes[1] == pytest.approx(weights / 8, rel=0.01)
        and sizes[4] < deployed.packed_bytes + 24_000 + 8 * outputs
    )


class Own(nn.Module):
    """A user's own network: quantized layers in a Sequential, alone, grouped, and in one of the library's blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Sequential(conv(4, 6, bias=True, groups=2), nn.BatchNorm2d(6)),
            nn.ReLU(),
            nn.Dropout(0.5),
            conv(6, 6, groups=6, bias=False),
            nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
        )
        self.norm = nn.BatchNorm2d(6)
        self.block = spos.Supernet(MixedBlock(6, 6, 1, [(2, 3)], (1.0,), False, 2.0)).extract((0, 0))
        self.last = self.again = conv(6, 2, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.features(x)).relu()
        return (self.last(self.block(y)) + self.again(y)).mean((2, 3))


def conv(inputs, outputs, **options) -> spos.QuantizedConv2d:
    return spos.QuantizedConv2d(inputs, outputs, 3, padding=1, w_bits=3, a_bits=4, initial_clip=2.0, **options)


def test_a_module_of_ones_own(tmp_path: Path):
    torch.manual_seed(0)
    child = randomized(Own()).eval()
    deployed = assert_same(child, images(8))
    assert [type(m) for m in deployed.network.features] == [
        nn.Conv2d,
        nn.ReLU,
        sk.PackedConv2d,
        nn.ReLU,
        sk.PackedConv2d,
        nn.Conv2d,
    ]
    fused = spos.deploy(spos.fuse(copy.deepcopy(child)))
    assert type(fused.network.features[-1]) is nn.Conv2d and torch.equal(fused(images()), deployed(images()))
    assert type(deployed.network.norm) is nn.BatchNorm2d and type(deployed.network.block) is sk.PackedBlocks
    assert deployed.network.last is deployed.network.again and len(deployed.codes(images())[1]["last"]) == 2
    with pytest.raises(ValueError, match="network is a Own, which a file cannot describe"):
        deployed.save(tmp_path / "own.safetensors")
    sequence = nn.Sequential(child.features, child.norm, nn.ReLU(), child.block, nn.AvgPool2d(2), nn.MaxPool2d(2))
    deployed = assert_same(nn.Sequential(sequence, nn.Flatten()), images(8))
    deployed.save(tmp_path / "sequence.safetensors")
    assert torch.equal(sk.load_packed(tmp_path / "sequence.safetensors")(images()), deployed(images()))


def test_a_block_that_was_changed_keeps_its_own_forward():
    child = small_child()
    child.layer2[1].bn2 = nn.Identity()
    seen: list[int] = []
    child.layer3[1].relu.register_forward_hook(lambda *_: seen.append(1))
    deployed = assert_same(child, images(4))
    seen.clear()
    deployed(images())
    assert len(seen) == 2
    assert [type(m) for m in deployed.network][1:-3] == [sk.PackedBlocks, MixedBlock] * 2 + [sk.PackedBlocks]


def test_differences_are_found():
    child, x = small_child(), images(8)
    deployed = spos.deploy(child)
    good = spos.compare_deployed(child, deployed, [x[:3], x[3:]])
    assert good == spos.compare_deployed(child, deployed, x) and good.images == 8 and good.rate < 1e-4
    layer = deployed.packed_layers()["layer2.1.conv1"]
    layer.bias = layer.bias + layer.bias.abs() * 1e-13
    errors = {one.layer: one.error for one in spos.compare_layers(child, deployed, x) if one.error > 1}
    assert errors.keys() == {"layer2.1.conv1"}
    layer.bias = layer.bias + 0.5
    bad = spos.compare_deployed(child, deployed, x)
    assert bad.differing > bad.rounded > 100  # conv2's input alone, where layers are given the child's codes
    layer.weight.packed.bitwise_xor_(255)
    assert not all(one.error <= 1 for one in spos.compare_layers(child, deployed, x))


def nan_child() -> nn.Module:
    child = small_child()
    child.layer1[0].bn1.running_var[1] = float("nan")
    return child


class Odd(spos.QuantizedConv2d):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: spos.deploy(3), TypeError, "child is a int: expected a torch.nn.Module"),
        (lambda: spos.deploy(nn.Linear(2, 2)), ValueError, r"child has no spos.QuantizedConv2d: expected at least one"),
        (lambda: spos.deploy(small_net()), ValueError, r"still a choice: expected a child, such as net.extract"),
        (lambda: spos.deploy(small_net().module), ValueError, r"still a choice"),
        (
            lambda: spos.deploy(small_child().double()),
            TypeError,
            "conv1.weight has dtype torch.float64: expected torch",
        ),
        (lambda: spos.deploy(nan_child()), ValueError, "layer1.0.bn1.running_var has a value that is not finite"),
        (
            lambda: spos.deploy(nn.Sequential(Odd(2, 2, 3, w_bits=2, a_bits=2))),
            ValueError,
            "0 is a Odd: expected a forward like QuantizedConv2d's",
        ),
        (
            lambda: spos.compare_deployed(small_child(), spos.deploy(small_child(width=1.0)), images()),
            ValueError,
            r"deployed has inputs \[\[4, 16, 4, 4\]\] of 'layer1.0.conv2': expected those of child, \[\[4, 8, 4, 4\]\]",
        ),
        (
            lambda: spos.compare_deployed(small_child(), spos.deploy(conv(1, 1)), images()),
            ValueError,
            r"deployed has inputs \[\[4, 1, 8, 8\]\] of '': expected those of child, \[\]",
        ),
        (
            lambda: spos.compare_deployed(small_child(), spos.deploy(small_child()), images(0)),
            ValueError,
            "images is empty: expected at least one image",
        ),
        (
            lambda: spos.compare_layers(small_child(), spos.deploy(conv(1, 1)), images()),
            ValueError,
            "deployed has other quantized layers than child: , layer1.0.conv1",
        ),
    ],
)
def test_misuse_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
