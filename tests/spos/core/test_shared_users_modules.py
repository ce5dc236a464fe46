"""Users' own modules: where prefixes are shared, and where not, scores are those of each architecture by itself."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import spos
from spos.prefix_sharing import as_it_lies


def conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def choice(*more: nn.Module) -> spos.ChoiceBlock:
    return spos.ChoiceBlock({"conv": conv(8, 8), "skip": nn.Identity(), **{f"own{i}": m for i, m in enumerate(more)}})


def head() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


class InPlaceInEvaluation(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.running_mean is None or self.running_var is None:
            return super().forward(x)
        return x.sub_(self.running_mean[:, None, None]).mul_((self.running_var + self.eps).rsqrt()[:, None, None])


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.1 * self.calls)


class Crop(nn.Module):
    """Its result is a view with gaps, whose strides decide in which order the next layer adds."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 1:, 1:]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class OnFirst(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.module(pair[0]), pair[1]


class Add(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0] + pair[1]


class WithStages(nn.Module):
    """A submodule has the name that a chain's method has."""

    def __init__(self, kind: Callable[[list[nn.Module]], nn.Module]) -> None:
        super().__init__()
        self.stem, self.stages, self.head = conv(1, 8), kind([choice(), choice()]), head()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:  # type: ignore[union-attr]
            x = stage(x)
        return self.head(x)


class InPlace(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.sub_(0.3).div_(2.0))


def own_norm() -> nn.Module:
    return nn.Sequential(InPlaceInEvaluation(8, affine=False), nn.Conv2d(8, 8, 1))


SHARED: dict[str, Callable[[], nn.Module]] = {
    "normalises in place in evaluation": lambda: nn.Sequential(
        conv(1, 8), choice(own_norm()), choice(own_norm()), choice(own_norm()), head()
    ),
    "counts above a fork": lambda: nn.Sequential(conv(1, 8), Counter(), choice(Counter()), choice(), choice(), head()),
    "views with gaps": lambda: nn.Sequential(
        conv(1, 8), choice(Crop()), choice(nn.BatchNorm2d(8), nn.BatchNorm2d(8, 1e-4)), choice(), head()
    ),
    "changes its images": lambda: nn.Sequential(InPlace(conv(1, 8)), choice(), choice(), head()),
}
ALONE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a Sequential named stages": (lambda: WithStages(lambda parts: nn.Sequential(*parts)), "has no method stages"),
    "a ModuleList named stages": (lambda: WithStages(nn.ModuleList), "has no method stages"),
    "pairs": (
        lambda: nn.Sequential(conv(1, 8), Pair(), OnFirst(choice()), OnFirst(choice()), Add(), head()),
        "a Pair returns a tuple",
    ),
    "changes its images": (
        lambda: InPlace(nn.Sequential(conv(1, 8), choice(), choice(), head())),
        "has no method stages",
    ),
}
Images = tuple[list[Tensor], list[tuple[Tensor, Tensor]]]


def images() -> Images:
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(8, 1, 8, 8, generator=generator)

    return [draw() for _ in range(3)], [(draw(), torch.randint(3, (8,), generator=generator)) for _ in range(3)]


def scored(net: spos.Supernet, archs: list[spos.Arch], **options: object) -> list[spos.Score]:
    return spos.evaluate_population(net, archs, *copy.deepcopy(images()), **options)  # type: ignore[arg-type]


def one_by_one(net: spos.Supernet, archs: list[spos.Arch]) -> list[spos.Score]:
    """Each in a supernet and on images that nothing else has touched."""
    return [scored(copy.deepcopy(net), [arch], share_prefixes=False)[0] for arch in archs]


def supernet(make: Callable[[], nn.Module]) -> tuple[spos.Supernet, list[spos.Arch]]:
    torch.manual_seed(0)
    net = spos.Supernet(make(), input_shape=(1, 8, 8))
    return net, [net.space.sample(spos.generator(0, "test", i)) for i in range(10)]


@pytest.mark.parametrize("memory", [1 << 30, 20_000, 0])
@pytest.mark.parametrize("name", SHARED)
def test_shared_to_the_bit(name: str, memory: int) -> None:
    net, archs = supernet(SHARED[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scored(net, archs, memory=memory) == one_by_one(net, archs)


@pytest.mark.parametrize("name", ALONE)
def test_what_is_no_chain_of_tensors_is_scored_one_by_one(name: str) -> None:
    make, reason = ALONE[name]
    net, archs = supernet(make)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.warns(UserWarning, match=f"candidates are scored one by one, for .*{reason}"):
        found = scored(net, archs)
    assert found == one_by_one(net, archs)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_copies_lie_as_what_they_are_copies_of() -> None:
    x = torch.randn(2, 8, 6, 6)
    nhwc = x.to(memory_format=torch.channels_last)
    for view in (x, nhwc, x[:, ::2], nhwc[:, 1:4], x[:, :, 1:, 1:], nhwc[:, :, :3, ::2], x[:1, :1].expand(2, 8, 6, 6)):
        copied = as_it_lies(view)
        assert copied.stride() == view.stride() and torch.equal(copied, view)
        assert copied.untyped_storage().data_ptr() != view.untyped_storage().data_ptr()
