from __future__ import annotations

import pytest
from torch import nn

import spos
from spos.measurement import BITOPS_UNIT

from .channels_support import own_net
from .mixed_support import any_archs, small_net


@pytest.mark.parametrize(
    ("name", "published", "official_params", "layers", "gmacs"),
    [
        ("resnet18-mixed", (6.32, 14.21, 25.27), 11_689_512 - 9_600, 19, 1.814),
        ("resnet34-mixed", (13.21, 29.72, 52.83), 21_797_672 - 17_024, 35, 3.664),
    ],
)
def test_the_published_bit_operations(name, published, official_params, layers, gmacs):
    """Uniform rows of arXiv 1904.00420, table 6; parameters are torchvision's without batch normalisation's."""
    net = spos.spaces.get(name)
    archs = [net.space.uniform(w_bits=bits, a_bits=bits) for bits in (2, 3, 4)]
    assert tuple(round(spos.bitops(net, arch), 2) for arch in archs) == published
    assert spos.params(net, archs[0]) == official_params + layers  # one clip for each quantized layer
    assert round(spos.flops(net, archs[0]) / 1e9, 3) == gmacs
    assert len(net.space) == layers - 3  # two decisions for each block of two layers, and three shortcuts


def test_tables_agree_with_counting_each_child():
    net = small_net()
    assert all(cost.table(net).additive for cost in (spos.bitops, spos.flops, spos.params))
    for arch in any_archs(net, 12):
        child = net.extract(arch, affine=False)
        assert spos.bitops(net, arch) == spos.count_bitops(child, (1, 8, 8)) > 0
        assert spos.flops(net, arch) == spos.count_flops(child, (1, 8, 8))
        assert spos.params(net, arch) == sum(p.numel() for p in child.parameters())


def test_bit_operations_by_hand():
    """The stem and the classifier count nothing; the 1×1 shortcut has the bits of its block."""
    net = small_net(widths=(1.0,))
    first, second = 9 * 16 * 16 * 16, 2 * 9 * 16 * 16 * 16  # 4×4 maps
    shortcut = 16 * 16 * 16
    arch = list(net.space.uniform(w_bits=1, a_bits=1))
    others = spos.bitops(net, arch) * BITOPS_UNIT
    bits = net.space.decisions[0].options
    for label, factor in (("w2a4", 8), ("w7a5", 35)):
        arch[0] = bits.index(label)
        added = (factor - 1) * (2 * first + shortcut)
        assert spos.bitops(net, arch) * BITOPS_UNIT - others == added
    arch[2] = bits.index("w8a8")
    assert spos.bitops(net, arch) * BITOPS_UNIT - others == added + 63 * second


def test_the_range_is_exact_and_of_what_is_offered():
    net = small_net()
    base = [0] * len(net.space)
    start = spos.bitops(net, base)
    low = high = start
    for block in range(8):  # blocks are free of each other
        pairs = [(b, w) for b in range(6) for w in range(3)]
        costs = [spos.bitops(net, (*base[: 2 * block], *p, *base[2 * block + 2 :])) - start for p in pairs]
        low, high = low + min(costs), high + max(costs)
    assert spos.bitops.range(net) == (low, high)
    assert spos.bitops(net, net.space.uniform(w_bits=8, a_bits=8)) > high
    assert spos.bitops.range(small_net(bits="any"))[1] > high


def test_bit_operations_are_a_constraint_like_any_other():
    net = small_net()
    low, high = spos.bitops.range(net)
    bound = spos.bitops <= (low + high) / 3
    assert str(bound).startswith("bitops <= 0.00") and bound.allows(low) and not bound.allows(high)
    found = spos.profile(net, [bound, spos.params >= 1], draws=400)
    assert found.ranges["bitops"] == (low, high) and 0.02 < found.feasible_fraction < 0.98
    with pytest.raises(spos.UnsatisfiableError, match=f"reaches bitops from {low:,} to {high:,}"):
        spos.profile(net, [spos.bitops <= low * 0.99])
    with pytest.raises(TypeError, match="chained"):
        bool(1 <= spos.bitops <= 2)


def test_networks_without_bits_have_no_bit_operations():
    net = own_net()
    with pytest.raises(ValueError, match="custom has no quantized layer: bitops are known of"):
        spos.bitops(net, [0] * len(net.space))


def test_branches_of_fixed_bits_count():
    """A choice among layers of fixed bits, as a user may write it."""

    def conv(bits: int) -> nn.Module:
        return spos.QuantizedConv2d(2, 4, 3, padding=1, bias=False, w_bits=bits, a_bits=2)

    block = spos.ChoiceBlock({"low": conv(1), "high": nn.Sequential(conv(4), nn.ReLU()), "plain": nn.Conv2d(2, 4, 1)})
    net = spos.Supernet(nn.Sequential(block, nn.Conv2d(4, 4, 1)), input_shape=(2, 4, 4))
    macs = 9 * 2 * 4 * 16
    assert [spos.bitops(net, (i,)) * BITOPS_UNIT for i in range(3)] == [2 * macs, 8 * macs, 0]
    assert spos.bitops.table(net).additive
    assert [spos.flops(net, (i,)) for i in range(3)] == [macs + 256, macs + 256, 128 + 256]
