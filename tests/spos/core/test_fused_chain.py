"""When a network's blocks run as one operation, and when they run one by one: the results are the same."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spos
import spos_kernels as sk
from spos.spaces.shufflenet import ShuffleBlock
from spos_kernels import _C

KERNELS = sys.modules["spos_kernels.choice_block_kernels"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks each call of the extension's forward pass runs."""
    found: list[int] = []
    native = _C.choice_block_forward
    monkeypatch.setattr(_C, "choice_block_forward", lambda *args: (found.append(len(args[2])), native(*args))[1])
    return found


@pytest.fixture
def net() -> spos.Supernet:
    return spos.spaces.get("shufflenet-oneshot-small", num_classes=5, image_size=16).train()


def state_after(net: nn.Module, *arch: spos.Arch) -> list[Tensor]:
    """The output, all gradients, all buffers after one training step's passes."""
    torch.manual_seed(0)
    y = net(torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last), *arch)
    net.zero_grad(set_to_none=True)
    y.square().sum().backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return [y, *gradients, *net.buffers()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_path_is_one_call_and_the_same_to_the_bit_as_block_by_block(net: spos.Supernet, calls: list[int]) -> None:
    arch = net.space.sample(spos.generator(0, "path", 0))
    other = copy.deepcopy(net)
    other.module.features.register_forward_hook(lambda *_: None)
    chain, single = state_after(net, arch), state_after(other, arch)
    assert calls == [len(arch) + 2] + [1] * (len(arch) + 2)
    assert equal(chain, single)


def test_numbers_of_channels_too(calls: list[int]) -> None:
    net = spos.spaces.get("shufflenet-oneshot-channels-small", num_classes=5, image_size=16).train()
    other = copy.deepcopy(net)
    other.module.features.register_forward_hook(lambda *_: None)
    arch = net.space.sample(spos.generator(0, "path", 0))
    assert equal(state_after(net, arch), state_after(other, arch))
    assert calls[0] == len(arch) // 2 + 2 and set(calls[1:]) == {1}


def hook(module: nn.Module, seen: list[str]) -> None:
    module.register_forward_hook(lambda *_: seen.append("hook"))


def pre_hook(module: nn.Module, seen: list[str]) -> None:
    module.register_forward_pre_hook(lambda *_: seen.append("hook"))


def backward_hook(module: nn.Module, seen: list[str]) -> None:
    module.register_full_backward_hook(lambda *_: seen.append("hook"))


def wrapper(module: nn.Module, seen: list[str]) -> None:
    call = module.forward
    module.forward = lambda x: (seen.append("hook"), call(x))[1]


@pytest.mark.parametrize("observe", [hook, pre_hook, backward_hook, wrapper])
@pytest.mark.parametrize("place", ["first_conv", "features", "features.3", "features.3.1", "conv_last"])
def test_whoever_watches_a_block_sees_its_call(
    net: spos.Supernet, observe: Callable[[nn.Module, list[str]], None], place: str
) -> None:
    seen: list[str] = []
    arch = (1,) * len(net.space)
    expected = state_after(copy.deepcopy(net), arch)
    observe(net.module.get_submodule(place), seen)
    found = state_after(net, arch)
    assert seen == ["hook"]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture
def watched() -> Iterator[list[str]]:
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m).__name__))
    yield seen
    handle.remove()


def test_a_hook_of_all_modules_sees_every_block(net: spos.Supernet, watched: list[str]) -> None:
    state_after(net, (0,) * len(net.space))
    assert watched.count("ShuffleBlock") == len(net.space)


class Doubled(ShuffleBlock):
    """A user's own block."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_class_derived_from_a_block_keeps_its_forward(net: spos.Supernet, calls: list[int]) -> None:
    arch = (0,) * len(net.space)
    plain = copy.deepcopy(net)
    block = net.module.get_submodule("features.0.0")
    block.__class__ = Doubled
    first: list[Tensor] = []
    for model in (net, plain):
        model.module.get_submodule("features.0").register_forward_hook(lambda _m, _i, y: first.append(y.detach()))
        state_after(model, arch)
    assert torch.equal(first[0], 2 * first[1])


class Counted(ShuffleBlock):
    """One that does more at each call than its forward."""

    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        Counted.calls += 1
        return super().__call__(*args, **kwargs)


def test_a_class_derived_from_a_block_keeps_its_call(net: spos.Supernet) -> None:
    net.module.get_submodule("features.0.0").__class__ = Counted
    state_after(net, (0,) * len(net.space))
    assert Counted.calls == 1


def test_layers_that_the_kernel_does_not_know_are_run_one_by_one(net: spos.Supernet) -> None:
    branch: Any = net.module.get_submodule("features.1.0.branch_main")
    branch[0] = nn.Conv2d(branch[0].in_channels, branch[0].out_channels, 1).to(memory_format=torch.channels_last)
    nn.init.constant_(branch[0].bias, 3.0)
    arch = (0,) * len(net.space)
    plain = copy.deepcopy(net)
    net.eval(), plain.eval()
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad(), sk.use_backend("reference"):
        expected = plain(x, arch)
    with torch.no_grad():
        torch.testing.assert_close(net(x, arch), expected)


@pytest.mark.parametrize("change", ["momentum", "eps", "eval", "unfused"])
def test_a_block_that_differs_is_run_by_itself(net: spos.Supernet, calls: list[int], change: str) -> None:
    arch = (0,) * len(net.space)
    block: Any = net.module.get_submodule("features.2.0")
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        if change == "momentum":
            norm.momentum = 0.5
        elif change == "eps":
            norm.eps = 1e-3
        elif change == "eval":
            norm.eval()
    block.fused = change != "unfused"
    reference = copy.deepcopy(net)
    ours = state_after(net, arch)
    assert set(calls) == {1}
    with sk.use_backend("reference"):
        plain = state_after(reference, arch)
    for a, b in zip(ours, plain, strict=True):
        assert (a.double() - b).norm() <= 1e-3 * b.double().norm() + 1e-5


def test_an_extracted_network_takes_it_once_fused_and_compiles(net: spos.Supernet, calls: list[int]) -> None:
    child = spos.fuse(net.extract((0, 1, 2, 3) * 2)).train()
    state_after(child)
    assert calls == [10]
    child.eval()
    x = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last)
    torch.compiler.reset()
    compiled = torch.compile(child, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), child(x))
