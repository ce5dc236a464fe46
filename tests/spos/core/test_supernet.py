from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

import spos

X = torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)


def test_space_is_read_off_the_module_tree(net):
    assert [(d.name, d.kind, d.options) for d in net.space.decisions] == [
        ("operator", "operator", ("conv3", "conv5", "skip")),
        ("activation", "activation", ("relu", "gelu")),
        ("branch", "branch", ("two", "one")),
    ]


def test_each_path_is_the_hand_written_network(net):
    net.eval()
    module = net.module
    for arch in net.space.enumerate():
        y = module.stem(X)
        for name, index in zip(("operator", "activation", "branch"), arch, strict=True):
            y = getattr(module, name).branch(index)(y)
        expected = module.head(y)
        assert torch.equal(net(X, arch), expected)
        assert torch.equal(net(X, arch=list(arch)), expected)


def test_block_outside_of_a_path_raises(net):
    with pytest.raises(RuntimeError, match="outside of a path"):
        net.module(X)
    net(X, (0, 0, 0))
    with pytest.raises(RuntimeError, match="outside of a path"):
        net.module(X)  # the path of the call before is gone
    with pytest.raises(ValueError, match="arch has 2 entries"):
        net(X, (0, 0))
    with pytest.raises(RuntimeError, match="outside of a path"):
        net.module(X)


def test_block_added_later_is_refused(net):
    net.module.head.insert(0, spos.ChoiceBlock({"a": nn.Identity(), "b": nn.ReLU()}))
    with pytest.raises(RuntimeError, match="added after its Supernet"):
        net(X, (0, 0, 0))


def test_path_can_be_held_around_recomputation(net):
    class Checkpointed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)

    held = spos.Supernet(Checkpointed(copy.deepcopy(net.module)))
    x = X.clone().requires_grad_()
    with held.path((1, 0, 1)):
        held.module(x).sum().backward()
    assert x.grad is not None


def test_state_dict_has_the_keys_of_the_users_module(net):
    keys = list(net.module.state_dict())
    assert list(net.state_dict()) == keys and keys[0] == "stem.0.weight"
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    net.load_state_dict(other.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert next(iter(nn.Sequential(net).state_dict())) == "0.stem.0.weight"


def test_copies_of_a_supernet_do_not_share(net):
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.module.stem[0].weight.zero_()
    assert net.module.stem[0].weight.abs().sum() > 0
    assert other(X, (0, 1, 1)).shape == (4, 3)


def test_shared_decision_and_shared_block():
    block = {"a": nn.Identity(), "b": nn.ReLU()}
    cells = nn.Sequential(
        spos.ChoiceBlock(block, decision="cell"),
        spos.ChoiceBlock({"a": nn.Identity(), "b": nn.ReLU()}, decision="cell"),
    )
    net = spos.Supernet(cells)
    assert len(net.space) == 1 and torch.equal(net(X, (1,)), X.relu())
    with pytest.raises(ValueError, match="share the decision 'cell' differ"):
        spos.Supernet(nn.Sequential(cells[0], spos.ChoiceBlock({"a": nn.Identity()}, decision="cell")))
    twice = spos.ChoiceBlock({"a": nn.Identity(), "b": nn.Conv2d(1, 1, 1)})
    assert len(spos.Supernet(nn.Sequential(twice, twice)).space) == 1


def nested() -> spos.Supernet:
    inner = spos.ChoiceBlock({"id": nn.Identity(), "conv": nn.Conv2d(1, 1, 3, padding=1)})
    outer = spos.ChoiceBlock({"deep": nn.Sequential(nn.Conv2d(1, 1, 1), inner), "flat": nn.Conv2d(1, 1, 5, padding=2)})
    return spos.Supernet(nn.Sequential(outer), input_shape=(1, 8, 8))


def test_nested_blocks():
    net = nested()
    assert [d.name for d in net.space.decisions] == ["0", "0.0.1"]
    flat = net(X, (1, 0))
    assert torch.equal(flat, net(X, (1, 1))) and not torch.equal(net(X, (0, 0)), net(X, (0, 1)))
    assert {name for name, _ in net.extract((0, 1)).named_parameters()} == {
        "0.0.weight",
        "0.0.bias",
        "0.1.weight",
        "0.1.bias",
    }
    assert torch.equal(net.extract((0, 1))(X), net(X, (0, 1)))


def test_path_parameters_are_those_that_get_gradients(net):
    for arch in net.space.enumerate():
        net.zero_grad(set_to_none=True)
        net(X, arch).sum().backward()
        on_path = {id(p) for p in net.path_parameters(arch)}
        assert on_path == {id(p) for p in net.parameters() if p.grad is not None}


@pytest.mark.parametrize("affine", [True, False])
def test_extract_inherits_and_shares_nothing(net, affine):
    net.train()
    net(X, (1, 0, 0))
    net.eval()
    child = net.extract((1, 0, 0), affine=affine)
    assert not any(isinstance(m, spos.ChoiceBlock) for m in child.modules())
    assert torch.equal(child(X), net(X, (1, 0, 0)))
    before = net(X, (1, 0, 0))
    with torch.no_grad():
        for value in child.state_dict().values():
            value.zero_()
    assert torch.equal(net(X, (1, 0, 0)), before)


def test_extract_copies_nothing_off_the_path(net):
    copied = []

    class Watched(nn.Conv2d):
        def __deepcopy__(self, memo):
            copied.append(self)
            return nn.Identity()

    net.module.operator.add_module("1", Watched(6, 6, 1))
    net.extract((0, 0, 0))
    assert not copied
    net.extract((1, 0, 0))
    assert len(copied) == 1


def test_extract_fresh_is_a_function_of_the_seed(net):
    def weights(child):
        return torch.cat([p.flatten() for p in child.parameters()])

    state = torch.random.get_rng_state()
    one, same, other = (net.extract((0, 0, 0), weights="fresh", seed=s) for s in (5, 5, 6))
    assert torch.equal(weights(one), weights(same)) and not torch.equal(weights(one), weights(other))
    assert not torch.equal(weights(one), weights(net.extract((0, 0, 0))))
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ValueError, match="weights = 'copy'"):
        net.extract((0, 0, 0), weights="copy")


def test_fresh_weights_need_an_initialisation():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x * self.scale

    net = spos.Supernet(spos.ChoiceBlock({"bare": Bare(), "skip": nn.Identity()}))
    with pytest.raises(TypeError, match="Bare has parameters but no reset_parameters"):
        net.extract((0,), weights="fresh")
    assert isinstance(net.extract((1,), weights="fresh"), nn.Identity)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: spos.ChoiceBlock({}), ValueError, "options is empty"),
        (lambda: spos.ChoiceBlock({"a": 3}), TypeError, r"options\['a'\] is a int"),
        (lambda: spos.ChoiceBlock({1: nn.Identity()}), TypeError, "the label 1"),
        (lambda: spos.Supernet(nn.Identity()), ValueError, "contains no ChoiceBlock"),
        (lambda: spos.Supernet("net"), TypeError, "module is a str"),
        (lambda: spos.Supernet(spos.ChoiceBlock({"a": nn.Identity()}))(), TypeError, "arch is missing"),
        (lambda: spos.Supernet(spos.ChoiceBlock({"a": nn.Identity()}))(X), TypeError, "image-like tensor"),
    ],
)
def test_misuse_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_extract_replaces_a_block_that_is_met_again_inside_of_another():
    shared = spos.ChoiceBlock({"id": nn.Identity(), "conv": nn.Conv2d(1, 1, 3, padding=1)})
    outer = spos.ChoiceBlock({"deep": nn.Sequential(nn.Conv2d(1, 1, 1), shared), "skip": nn.Identity()})
    for order in ((shared, outer), (outer, shared)):
        net = spos.Supernet(copy.deepcopy(nn.Sequential(*order)))
        for arch in net.space.enumerate():
            child = net.extract(arch)
            assert not any(isinstance(m, spos.ChoiceBlock) for m in child.modules())
            assert torch.equal(child(X), net(X, arch))


def test_a_block_has_one_place_in_one_supernet():
    blocks = nn.Sequential(*(spos.ChoiceBlock({"a": nn.Identity(), "b": nn.ReLU()}) for _ in range(2)))
    spos.Supernet(blocks)
    spos.Supernet(blocks)  # the same places again
    with pytest.raises(ValueError, match="has another place in another Supernet: wrap a copy"):
        spos.Supernet(blocks[1])


def test_keys_of_a_module_that_has_a_child_named_module():
    inner = nn.Sequential(
        OrderedDict(module=nn.Linear(2, 2), weight=spos.ChoiceBlock({"a": nn.Linear(2, 2), "b": nn.Identity()}))
    )
    net = spos.Supernet(inner)
    assert list(net.state_dict()) == list(inner.state_dict())
    net.load_state_dict(net.state_dict())


def test_extracted_affine_parameters_have_the_nets_dtype():
    norm = nn.BatchNorm1d(2, affine=False, track_running_stats=False)
    net = spos.Supernet(nn.Sequential(nn.Linear(2, 2), norm, spos.ChoiceBlock({"a": nn.Identity()}))).double()
    assert {p.dtype for p in net.extract(iter([0])).parameters()} == {torch.float64}
