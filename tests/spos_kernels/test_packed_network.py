"""Networks of packed layers: what their parts hand each other, and the file that they are kept in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import spos_kernels as sk
from spos_kernels import packed_file
from spos_kernels.packed_network import _describe

pytestmark = pytest.mark.usefixtures("one_thread")


DOUBLE = torch.float64


def layer(
    outputs, inputs, kernel=3, *, w_bits=2, a_bits=3, name="", seed=0, dtype=torch.float32, **options
) -> sk.PackedConv2d:
    generator = torch.Generator().manual_seed(100 * outputs + inputs + seed)
    codes = torch.randint(0, 2**w_bits, (outputs, inputs, kernel, kernel), generator=generator, dtype=torch.uint8)
    # of both signs, as a batch normalisation may have
    scale = 0.2 * torch.randn(outputs, generator=generator).to(dtype)
    weight = sk.pack_weight(codes, w_bits, scale=scale, zero_point=(2**w_bits - 1) / 2)
    options = {"padding": kernel // 2, "bias": torch.randn(outputs, generator=generator)} | options
    return sk.PackedConv2d(weight, x_quantizer=sk.Quantizer(0.37, a_bits), layer=name, **options)


def chain() -> sk.PackedBlocks:
    first = sk.PackedBlock(
        layer(5, 4, name="a.1", stride=2), layer(6, 5, w_bits=3, name="a.2"), layer(6, 4, 1, name="a.3", stride=2)
    )
    second = sk.PackedBlock(layer(3, 6, w_bits=1, a_bits=1, name="b.1"), layer(6, 3, w_bits=5, a_bits=8, name="b.2"))
    return sk.PackedBlocks([first, second])


def network() -> sk.PackedNetwork:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]
    return sk.PackedNetwork(nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), chain(), *head))


def images(channels=1, count=3) -> torch.Tensor:
    return torch.randn(count, channels, 13, 13, generator=torch.Generator().manual_seed(1))


def test_codes_and_their_floats_give_the_same():
    conv = layer(5, 4, a_bits=4)
    x = torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(1)) * 3
    x[0, 0, 0] = torch.tensor([0.185, 0.555, 5.55, 1e9, -1e9, float("nan"), 0.0])  # halves of a step among them
    codes = conv.quantize(x)
    assert codes.dtype == torch.uint8 and codes.unique().tolist() == list(range(16))
    assert torch.equal(conv.quantize(codes), codes) and torch.equal(conv(codes), conv(x))
    assert not torch.equal(conv(codes), layer(5, 4, a_bits=4, seed=1)(codes))


def test_a_block_is_its_parts_one_by_one():
    block = chain().blocks[0]
    x = images(4)
    inner = sk.lowbit_conv2d_reference(
        block.conv1.quantize(x), block.conv1.weight, x_quantizer=block.conv1.x_quantizer, stride=2, padding=1,
        bias=block.conv1.bias, out_quantizer=block.conv2.x_quantizer,
    )  # fmt: skip
    beside = block.shortcut(x)
    y = sk.lowbit_conv2d_reference(
        inner, block.conv2.weight, x_quantizer=block.conv2.x_quantizer, padding=1, bias=block.conv2.bias
    )
    expected = (y + beside).relu()
    found, codes = block(x)
    assert codes is None and torch.equal(found, expected) and (found == 0).any() and (found > 0).any()
    found, codes = block(x, block.conv1.quantize(x), sk.Quantizer(0.5, 4))
    assert torch.equal(found, expected)
    assert torch.equal(codes, sk.quantize(expected, 4, "lsq", torch.tensor(0.5)))


def test_a_chain_hands_codes_on_and_gives_what_single_blocks_give():
    blocks, x = chain(), images(4)
    given = {}
    for conv in (part for part in blocks.modules() if isinstance(part, sk.PackedConv2d)):
        conv.register_forward_pre_hook(lambda part, inputs: given.update({part.layer: inputs[0].dtype}))
    together = blocks(x)
    integer = {name for name, dtype in given.items() if dtype == torch.uint8}
    assert integer == {"a.2", "b.1", "b.2"} and given.keys() - integer == {"a.1", "a.3"}
    y = x
    for block in blocks.blocks:
        y, _ = block(y)
    assert torch.equal(together, y)


def test_codes_are_those_that_layers_convolve():
    net, x = network(), images()
    y, codes = net.codes(x)
    assert torch.equal(y, net(x)) and codes.keys() == net.packed_layers().keys() == {"a.1", "a.2", "a.3", "b.1", "b.2"}
    stem = net.network[:2](x)
    assert torch.equal(codes["a.1"][0], net.packed_layers()["a.1"].quantize(stem))
    inner = net.network[2].blocks[0].conv1(stem, out_quantizer=net.packed_layers()["a.2"].x_quantizer)
    assert torch.equal(codes["a.2"][0], inner)
    zeros = {name: [torch.zeros_like(part) for part in maps] for name, maps in codes.items()}
    other, found = net.codes(x, given=zeros)
    assert not torch.equal(other, y) and found["a.2"][0].any()  # found are those that zeros of a.1 give
    assert torch.equal(net.codes(x, given=codes)[0], y)
    assert torch.equal(net(x), y)  # no hook is left


def test_nothing_is_trained():
    net = network().train()
    assert not any(module.training for module in net.modules())
    assert not any(p.requires_grad for p in net.parameters()) and not net(images()).requires_grad
    assert not sk.PackedNetwork(nn.ReLU())(images().requires_grad_()).requires_grad


def test_a_file_holds_the_bits_and_gives_the_same_network(tmp_path: Path):
    net, path = network(), tmp_path / "net.safetensors"
    size = net.save(path)
    assert size == path.stat().st_size and os.listdir(tmp_path) == ["net.safetensors"]
    layers = net.packed_layers().values()
    # outputs times the bytes of their 36 · 2, 45 · 3, 4 · 2, 54 · 1 and 27 · 5 bits
    assert net.packed_bytes == 5 * 9 + 6 * 17 + 6 * 1 + 3 * 7 + 6 * 17
    outputs = sum(part.out_channels for part in layers)
    floats = sum(p.numel() for p in net.parameters())
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert size == 8 + header + net.packed_bytes + 4 * (2 * outputs + floats)  # and nothing else
    again = sk.load_packed(path)
    assert torch.equal(again(images()), net(images())) and again.packed_bytes == net.packed_bytes
    assert repr(again) == repr(net) and not again.training
    assert again.save(path) == size and torch.equal(sk.load_packed(path)(images()), net(images()))


def test_a_file_needs_nothing_of_the_trainer(tmp_path: Path):
    net, path = network(), tmp_path / "net.safetensors"
    net.save(path)
    code = (
        "import sys; sys.modules['spos'] = None; import torch, spos_kernels as sk; torch.set_num_threads(1);"
        "x = torch.randn(3, 1, 13, 13, generator=torch.Generator().manual_seed(1));"
        f"print(sk.load_packed({str(path)!r})(x).tolist())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == str(net(images()).tolist()), result.stderr


def test_every_changed_byte_is_noticed(tmp_path: Path):
    path = tmp_path / "net.safetensors"
    sk.PackedNetwork(nn.Sequential(layer(2, 3))).save(path)
    good = path.read_bytes()
    contents = [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(len(good))]
    contents += [*(good[:length] for length in range(len(good))), good + b"\0"]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(sk.PackedFileError, match=r"net\.safetensors"):
            sk.load_packed(path)


def test_other_files_and_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import safetensors.torch

    path = tmp_path / "other.safetensors"
    with pytest.raises(FileNotFoundError):
        sk.load_packed(path)
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"other\.safetensors has no digest: not written by this library"):
        sk.load_packed(path)
    with monkeypatch.context() as patch:
        patch.setattr(packed_file, "FORMAT", "spos-packed-3")
        network().save(path)
    with pytest.raises(ValueError, match=r"other\.safetensors has format 'spos-packed-3': expected 'spos-packed-2'"):
        sk.load_packed(path)


def test_files_of_the_first_version_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whose scales and biases are float32, and the layers' arithmetic with them."""
    net, path = network(), tmp_path / "old.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(packed_file, "FORMAT", "spos-packed-1")
        net.save(path)
    again = sk.load_packed(path)
    assert torch.equal(again(images()), net(images()))
    assert {part.dtype for part in again.packed_layers().values()} == {torch.float32}


def exact_network() -> sk.PackedNetwork:
    stem = sk.StemConv2d(torch.randn(4, 1, 3, 3), torch.rand(4).double() / 3, torch.rand(4).double() / 3, stride=2,
                         padding=1, relu=True, max_pool=True)  # fmt: skip
    blocks = [
        sk.PackedBlock(layer(3, 4, name=f"{n}.1", dtype=DOUBLE), layer(4, 3, name=f"{n}.2", dtype=DOUBLE)) for n in "ab"
    ]
    return sk.PackedNetwork(nn.Sequential(stem, sk.PackedBlocks(blocks), nn.Flatten()))


def test_float64_stays_float64_in_a_file_and_between_blocks(tmp_path: Path):
    net, path = exact_network(), tmp_path / "net.safetensors"
    net.save(path)
    again = sk.load_packed(path)
    assert torch.equal(again(images()), net(images())) and repr(again) == repr(net)
    given: list[torch.dtype] = []
    for block in again.network[1].blocks:
        block.register_forward_pre_hook(lambda m, inputs: given.append(inputs[0].dtype))
    y = again(images())
    assert given == [DOUBLE] * 2 and y.dtype == torch.float32
    assert {part.bias.dtype for part in again.packed_layers().values()} == {DOUBLE}
    with pytest.raises(ValueError, match="expected the same dtype"):
        sk.PackedBlock(layer(3, 4), layer(4, 3, dtype=DOUBLE))
    with pytest.raises(ValueError, match="expected the same dtype"):
        sk.PackedBlocks([again.network[1].blocks[0], sk.PackedBlock(layer(3, 4), layer(4, 3))])


def _set(*keys, value):
    def change(described, tensors):
        for key in keys[:-1]:
            described = described[key]
        described[keys[-1]] = value

    return change


BLOCKS = ("layers", 2, "blocks")
CONV = (*BLOCKS, 0, "conv1")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set(*CONV, "w_bits", value=9), r"w_bits = 9: expected an integer from 1 to 8"),
        (_set(*CONV, "w_bits", value=3), r"packed has shape \[5, 9\]"),
        (_set(*CONV, "shape", value=[5, 4, 3]), "not enough values"),
        (_set(*CONV, "shape", value=[4, 4, 3, 3]), "expected a row for each of 4 outputs"),
        (_set(*CONV, "shape", value=[5, 0, 3, 3]), r"shape \[5, 0, 3, 3\]: expected four positive sizes"),
        (_set(*CONV, "zero_point", value=0.3), "zero_point = 0.3: accepted are multiples"),
        (_set(*CONV, "x_quantizer", value={"scale": 0.0}), "x_quantizer.scale = 0.0: expected a finite number"),
        (_set(*CONV, "x_quantizer", value={"step": 1.0}), "unexpected keyword argument 'step'"),
        (_set(*CONV, "stride", value="2"), "stride = '2': expected an integer from 1"),
        (_set(*CONV, "bias", value=False), r"network\.2\.0\.conv1\.bias belongs to no layer"),
        (_set(*BLOCKS, 1, "conv3", value={}), "'shape' is missing"),
        (_set(*BLOCKS, value=[]), "blocks is empty"),
        (_set("layers", 0, "kind", value="conv3d"), "network.0 is a 'conv3d': expected packed layers and conv2d"),
        (_set("layers", 0, "in_channels", value=2), "size mismatch"),
        (_set("layers", value=None), "NoneType"),
        (lambda d, t: d.clear(), "'kind' is missing"),
        (lambda d, t: d["layers"][2]["blocks"].pop(), "belongs to no layer"),
        (lambda d, t: d["layers"][2]["blocks"][0].pop("shortcut"), "the identity maps 4 channels to 4: expected 4 to"),
        (lambda d, t: t.pop("network.5.weight"), "'network.5.weight' is missing"),
        (lambda d, t: t.update(more=torch.zeros(1)), "more belongs to no layer"),
        (lambda d, t: t["network.2.1.conv2.packed"][0, -1].fill_(255), "bits set behind the codes of a row"),
        (lambda d, t: t["network.2.0.conv2.scale"].fill_(float("nan")), "scale has a value that is not finite"),
        (lambda d, t: t["network.2.0.conv2.bias"].fill_(float("inf")), "bias has a value that is not finite"),
        (lambda d, t: t.update({"network.0.bias": torch.zeros(4).double()}), "network.0.bias has dtype torch.float64"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path: Path, change, words: str):
    tensors: dict[str, torch.Tensor] = {}
    described = _describe(network().network, "network", tensors)
    tensors = {name: value.clone() for name, value in tensors.items()}
    change(described, tensors)
    path = tmp_path / "net.safetensors"
    packed_file.write(path, tensors, described)
    with pytest.raises(sk.PackedFileError, match=rf"net\.safetensors does not fit together: .*{words}"):
        sk.load_packed(path)


def test_a_write_that_fails_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "net.safetensors"
    network().save(path)
    good = path.read_bytes()
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *_: (_ for _ in ()).throw(OSError("disk full")))
            with pytest.raises(OSError, match="disk full"):
                sk.PackedNetwork(layer(2, 3)).save(path)
        assert path.read_bytes() == good and os.listdir(tmp_path) == ["net.safetensors"]


def test_a_module_of_ones_own_runs_but_has_no_file(tmp_path: Path):
    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    net = sk.PackedNetwork(nn.Sequential(layer(2, 1), Twice()))
    assert torch.equal(net(images()), 2 * net.network[0](images()))
    with pytest.raises(ValueError, match=r"network\.1 is a Twice, which a file cannot describe: expected packed"):
        net.save(tmp_path / "net.safetensors")
    assert os.listdir(tmp_path) == []


WEIGHT = layer(4, 2).weight


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: sk.PackedConv2d(torch.zeros(2), x_quantizer=sk.Quantizer(1.0)), TypeError, "expected a PackedWeight"),
        (lambda: sk.PackedConv2d(sk.pack_weight(torch.zeros(2, 2, 1, 1, dtype=torch.uint8), 1),
                                 x_quantizer=sk.Quantizer(1.0)), ValueError, "weight has no scale"),
        (lambda: sk.PackedConv2d(sk.pack_weight(torch.zeros(2, 2, 1, 1, dtype=torch.uint8), 1, scale=torch.ones(2),
                                                zero_point=torch.tensor([0.0, 1.0])),
                                 x_quantizer=sk.Quantizer(1.0)), ValueError, "zero points that differ"),
        (lambda: layer(4, 2, groups=3), ValueError, "groups = 3: expected a divisor of the weight's 4 outputs"),
        (lambda: layer(4, 2, padding=-1), ValueError, "padding = -1: expected an integer from 0"),
        (lambda: layer(4, 2, bias=torch.zeros(3)), ValueError, r"bias is torch.float32 \[3\]: expected"),
        (lambda: layer(4, 2, name=3), TypeError, "layer = 3: expected a name"),
        (lambda: sk.PackedConv2d(WEIGHT, x_quantizer=0.1), TypeError, "x_quantizer is a float: expected a Quantizer"),
        (lambda: sk.PackedBlock(layer(4, 2), layer(2, 3)), ValueError, "conv2 has 3 input channels: expected 4"),
        (lambda: sk.PackedBlock(layer(4, 2), layer(3, 4)), ValueError, "the identity maps 2 channels to 2: expected 2"),
        (lambda: sk.PackedBlock(layer(4, 2), layer(3, 4), layer(4, 2)), ValueError, "shortcut maps 2 channels to 4"),
        (lambda: sk.PackedBlocks([]), ValueError, "blocks is empty"),
        (lambda: sk.PackedBlocks([*chain().blocks][::-1] * 2), ValueError, "one of 6 output channels is before"),
        (lambda: sk.PackedNetwork(3), TypeError, "network is a int: expected a torch.nn.Module"),
        (lambda: network()(images().double()), TypeError, "images is torch.float64: expected a torch.float32 tensor"),
    ],
)  # fmt: skip
def test_misuse_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
