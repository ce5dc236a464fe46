from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spos
from spos.sliced import leading

from .channels_support import images, own_net, small_net


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def some_archs(net: spos.Supernet, count: int = 6) -> list[spos.Arch]:
    rng = spos.generator(0, "archs")
    ends = [spos.Arch([0] * len(net.space)), spos.Arch(len(d.options) - 1 for d in net.space.decisions)]
    return ends + [net.space.sample(rng) for _ in range(count)]


@pytest.fixture(scope="module")
def small() -> spos.Supernet:
    return small_net()


def test_decisions_of_the_space():
    net = spos.spaces.get("shufflenet-oneshot-channels", num_classes=10, image_size=32)
    assert len(net.space) == 40 and net.space.size() == 4**20 * 10**20
    for block in range(20):
        operator, width = net.space.decisions[2 * block : 2 * block + 2]
        assert (operator.name, operator.kind, len(operator.options)) == (f"features.{block}", "operator", 4)
        assert (width.name, width.kind) == (f"features.{block}.width", "width")
        assert width.options == ("0.2", "0.4", "0.6", "0.8", "1.0", "1.2", "1.4", "1.6", "1.8", "2.0")
    block = net.get_submodule("module.features.6")
    assert [block.branch(0).branch_main[i].weight.shape for i in (0, 3, 5)] == [
        (160, 80, 1, 1),
        (160, 1, 3, 3),
        (80, 160, 1, 1),
    ]
    assert [block.branch(3).branch_main[i].weight.shape for i in (2, 7, 12)] == [
        (160, 80, 1, 1),
        (160, 160, 1, 1),
        (80, 160, 1, 1),
    ]


def test_both_decisions_or_either_alone():
    alone = small_net(operators=("choice_5",))
    assert {d.options for d in alone.space.decisions if d.kind == "operator"} == {("choice_5",)}
    assert alone.space.size() == 10**8
    operators = small_net(widths=(1.0,))
    assert operators.space.size() == 4**8 and operators.space.uniform(operator="choice_x", width=1) == (3, 0) * 8
    assert operators.module.features[0].branch(0).branch_main[0].weight.shape == (24, 16, 1, 1)  # of the widest offered
    both = small_net(operators=("choice_x", "choice_3"), widths=(1.5, 0.5))
    assert both.space.decisions[0].options == ("choice_3", "choice_x") and both.space.decisions[1].options == (
        "0.5",
        "1.5",
    )
    with pytest.raises(ValueError, match=r"in 'features\.0': expected one of choice_3, choice_x"):
        both.space.uniform(operator="choice_5", width=0.5)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("shufflenet-oneshot-channels", {"operators": ("choice_4",)}, "operators has 'choice_4': expected some of"),
        ("shufflenet-oneshot-channels", {"operators": "choice_3"}, "operators = 'choice_3'"),
        ("shufflenet-oneshot-channels", {"operators": ()}, r"operators = \(\)"),
        ("shufflenet-oneshot-channels", {"widths": (1.0, 1.0)}, r"widths = \(1.0, 1.0\)"),
        ("shufflenet-oneshot-channels", {"widths": (0.0,)}, r"widths = \(0.0,\): expected different positive"),
        ("shufflenet-oneshot-channels", {"widths": ("1",)}, "widths = "),
        ("shufflenet-oneshot-channels", {"widths": (0.01,)}, r"widths = \[0\]: expected positive integers"),
        ("shufflenet-oneshot", {"widths": (1.0,)}, r"widths = \(1.0,\): only shufflenet-oneshot-channels"),
        ("shufflenet-oneshot-channel", {}, "did you mean 'shufflenet-oneshot-channels'"),
        ("shufflenet-oneshot-channels", {"num_classes": 1}, "num_classes = 1"),
    ],
)
def test_bad_options_are_named(name, options, words):
    with pytest.raises(ValueError, match=words):
        spos.spaces.get(name, **options)


def test_at_half_of_the_outputs_it_is_the_block_space():
    """Ratio 1.0 with weights cut to size computes what the space of operators does."""
    wide, plain = small_net(), spos.spaces.get("shufflenet-oneshot-small", num_classes=3, image_size=8, in_channels=1)
    state = wide.state_dict()
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict({k: leading(state[k], tuple(v.shape)) for k, v in plain.state_dict().items()})
    operators = (0, 1, 2, 3, 3, 2, 1, 0)
    arch = wide.space.join(operator=operators, width=(4,) * 8)
    for training in (False, True):
        outputs = []
        for net, path in ((wide.train(training), arch), (plain.train(training), operators)):
            torch.manual_seed(0)  # the dropout mask
            outputs.append(net(images(), path))
        assert relative(*outputs) < 1e-5
    assert spos.flops(wide, arch) == spos.flops(plain, operators)
    assert spos.params(wide, arch) == spos.params(plain, operators)


@pytest.mark.parametrize("make", [own_net, small_net])
@pytest.mark.parametrize("training", [False, True])
def test_the_child_computes_what_the_path_does(make, training):
    net = make().double()  # statistics of few elements lose too many digits of float32
    for arch in some_archs(net):
        child = net.train(training).extract(arch)
        plain = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
        assert not any(isinstance(m, spos.SlicedModule | spos.ChoiceBlock | spos.WidthChoice) for m in child.modules())
        assert all(type(m) in plain for m in child.modules() if next(m.parameters(recurse=False), None) is not None)
        outputs = []
        for call in (lambda x, child=child: child(x), lambda x, arch=arch: net(x, arch)):
            torch.manual_seed(0)  # the dropout mask
            outputs.append(call(images().double()))
        assert relative(*outputs) < 1e-10
        if training:  # and leaves the same statistics behind
            after = net.extract(arch)
            for (name, a), b in zip(child.named_buffers(), after.buffers(), strict=True):
                torch.testing.assert_close(a, b, msg=name)


def test_the_child_has_the_slices_and_shares_nothing(small):
    arch = small.space.uniform(operator="choice_3", width=0.6)
    child = small.eval().extract(arch)
    main = child.features[0].branch_main
    assert (main[0].in_channels, main[0].out_channels, main[3].groups, main[5].in_channels) == (16, 14, 14, 14)
    assert main[0].weight.shape == (14, 16, 1, 1) and main[1].running_mean.shape == (14,)
    assert all(m.affine for m in child.modules() if isinstance(m, nn.BatchNorm2d))
    before = small(images(), arch)
    with torch.no_grad():
        for value in child.state_dict().values():
            value.zero_()
    assert torch.equal(small(images(), arch), before)
    one, same, other = (small.extract(arch, weights="fresh", seed=s) for s in (5, 5, 6))
    first, second, third = (torch.cat([p.detach().flatten() for p in c.parameters()]) for c in (one, same, other))
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert float(one.features[7].branch_main[0].weight.detach().std()) == pytest.approx(1 / 96, rel=0.1)


def test_the_child_exports(small):
    arch = small.space.sample(spos.generator(3, "archs"))
    child = small.eval().extract(arch).eval()
    exported = torch.export.export(child, (images(),)).module()
    assert relative(exported(images()), small(images(), arch)) < 1e-5


def test_gradients_are_those_of_the_child_and_zero_outside_of_the_slices():
    net = small_net().double().train()
    arch = net.space.join(operator=(0, 1, 2, 3) * 2, width=(0, 2, 9, 4, 1, 8, 3, 5))
    child = net.extract(arch, affine=False)
    for call in (lambda: net(images().double(), arch), lambda: child(images().double())):
        torch.manual_seed(0)
        F.cross_entropy(call(), torch.arange(4) % 3).backward()
    theirs = list(child.parameters())
    for parameter, expected in zip(net.path_parameters(arch), theirs, strict=True):
        inside = leading(parameter.grad, tuple(expected.shape))
        torch.testing.assert_close(inside, expected.grad, rtol=1e-8, atol=1e-10)
        rest = parameter.grad.clone()
        leading(rest, tuple(expected.shape)).zero_()
        assert not rest.any()


def test_tensors_of_each_convolution_and_its_normalisation(small):
    """What a fused kernel takes: running the tensors by hand gives the branch's outputs."""
    net = small.eval()
    arch = net.space.join(operator=(3, 0) * 4, width=(2, 9, 0, 4) * 2)
    block = net.module.features[0].branch(3)
    x = torch.randn(2, 16, 8, 8)
    with net.path(arch):
        for branch in (block.branch_main, block.branch_proj):
            y = x
            for weight, gamma, beta, mean, var, count in block.conv_norms(branch):
                assert count.dim() == 0 and gamma is beta is None
                groups = y.shape[1] if weight.shape[1] == 1 else 1
                stride = 2 if y is x else 1
                y = F.conv2d(y, weight, None, stride, weight.shape[-1] // 2, 1, groups)
                y = F.batch_norm(y, mean, var)
                y = F.relu(y) if groups == 1 else y
            assert relative(y, branch(x)) < 1e-5
        assert block.conv_norms(block.branch_main)[1][0].shape == (14, 16, 1, 1)
        assert block.conv_norms(block.branch_main)[1][0]._base is block.branch_main[2].weight


def test_a_users_own_module_reads_the_width():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.width = spos.WidthChoice([1, 3])

        def forward(self, x):
            return x[:, : self.width()] * self.width()

    net = spos.Supernet(nn.Sequential(Scaled()))
    assert net.space.decisions == (spos.Decision("0.width", "width", ("1", "3")),)
    x = torch.randn(2, 5, 4, 4)
    for arch, width in (((0,), 1), ((1,), 3)):
        assert torch.equal(net(x, arch), x[:, :width] * width)
        child = net.extract(arch)
        assert torch.equal(child(x), x[:, :width] * width)
        assert torch.equal(torch.export.export(child, (x,)).module()(x), x[:, :width] * width)
    with pytest.raises(RuntimeError, match="WidthChoice was called outside of a path"):
        net.module(x)


def test_decisions_of_ones_own_module_are_read_off_the_tree():
    net = own_net()
    assert [(d.name, d.kind, d.options) for d in net.space.decisions] == [
        ("block", "operator", ("dw", "conv", "skip")),
        ("inner", "width", ("narrow", "middle", "wide")),
        ("chain.0.out_width", "width", ("2", "4", "8")),
        ("chain.3.out_width", "width", ("4", "6")),
    ]
    assert copy.deepcopy(net).space == net.space
    assert net.space.describe((0, 1, 2, 0))["inner"] == "middle"
    assert net.space.labels((0, 1, 2, 0)) == {"operator": ["dw"], "width": ["middle", "8", "4"]}
    assert not any("width" in key for key in net.state_dict())


def test_separate_lists_join_to_an_architecture(small):
    operators, widths = (0, 0, 3, 1, 1, 1, 0, 0), (6, 5, 3, 5, 2, 6, 3, 9)
    arch = small.space.join(operator=operators, width=widths)
    assert arch[::2] == operators and arch[1::2] == widths
    with pytest.raises(ValueError, match="width has 7 entries: expected 8"):
        small.space.join(operator=operators, width=widths[1:])
    with pytest.raises(ValueError, match="expected exactly"):
        small.space.join(operator=operators)
    with pytest.raises(ValueError, match=r"arch entry 10 for 'features\.7\.width'"):
        small.space.join(operator=operators, width=(*widths[1:], 10))


@pytest.mark.parametrize("options", [{"momentum": None}, {"track_running_stats": False}])
def test_normalisation_with_a_cumulative_mean_and_without_statistics(options):
    width = spos.WidthChoice([2, 3])
    layers = nn.Sequential(spos.SlicedConv2d(1, width, 1), spos.SlicedBatchNorm2d(width, **options))
    net = spos.Supernet(layers.double())
    child = net.train().extract((0,))
    for training in (True, True, True, False):
        x = torch.randn(4, 1, 5, 5, dtype=torch.float64)
        torch.testing.assert_close(net.train(training)(x, (0,)), child.train(training)(x))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: spos.WidthChoice([]), r"widths = \[\]: expected positive integers"),
        (lambda: spos.WidthChoice([0, 4]), "expected positive integers"),
        (lambda: spos.WidthChoice([4.0]), "expected positive integers"),
        (lambda: spos.WidthChoice([4, 4]), "expected ascending ones"),
        (lambda: spos.WidthChoice.scaled(2, (0.5, 0.7)), r"widths = \[1, 1\]: expected ascending"),
        (lambda: spos.WidthChoice([4], labels=["a", "b"]), r"labels = \['a', 'b'\]: expected one for each"),
        (lambda: spos.SlicedConv2d(4, spos.WidthChoice([4]), 3, groups=spos.WidthChoice([4])), "groups is a WidthCh"),
        (lambda: spos.SlicedConv2d(4, spos.WidthChoice([2, 3]), 3, groups=2), "groups = 2: .* not of 3"),
        (lambda: spos.Supernet(nn.Identity()), "contains no ChoiceBlock, WidthChoice or BitsChoice"),
    ],
)
def test_misuse_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_layers_that_do_not_fit_are_named():
    first, second = spos.WidthChoice([2, 4]), spos.WidthChoice([2, 4])
    for layer in (spos.SlicedConv2d(second, 1, 1), spos.SlicedBatchNorm2d(second)):
        net = spos.Supernet(nn.Sequential(spos.SlicedConv2d(1, first, 1), layer))
        with pytest.raises(ValueError, match=f"input has 4 channels: {type(layer).__name__} takes 2 on this path"):
            net(images(), (1, 0))
        first.position = second.position = None
    tied = nn.Sequential(spos.SlicedConv2d(1, first, 1), spos.SlicedConv2d(1, second, 1))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="'0' and '1' share a weight that is sliced"):
        spos.Supernet(tied)
    late = own_net()
    late.module.stem.append(spos.SlicedConv2d(4, spos.WidthChoice([4, 5]), 1))
    with pytest.raises(RuntimeError, match="this WidthChoice was added after its Supernet"):
        late(images(), (0, 0, 0, 0))
