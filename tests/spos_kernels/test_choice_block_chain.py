"""A chain of blocks as one operation: to the bit what the blocks are one by one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from choice_block_support import copied, make_branch, make_layer, named_tensors
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import spos_kernels as sk
from spos_kernels import _C, Branch, Link

pytestmark = pytest.mark.usefixtures("one_thread")

KERNELS = sys.modules["spos_kernels.choice_block_kernels"]


def make_links(affine: bool = False) -> tuple[Link, ...]:
    """From [N, 5, H, W]: a 1×1 to 6, then stride 2 to 16, stride 1 of both kinds, stride 2, a last 1×1."""
    return (
        Link(Branch((make_layer((6, 5, 1, 1), affine),)), whole=True),
        Link(make_branch("5", 6, 7, 10, 2, affine), 2),
        Link(make_branch("x", 16, 17, 8, 1, affine)),
        Link(make_branch("3", 16, 3, 8, 1, affine)),
        Link(make_branch("7", 16, 9, 5, 2, affine), 2),
        Link(Branch((make_layer((4, 21, 1, 1), affine),)), whole=True),
    )


def copies(links: Sequence[Link], dtype: torch.dtype = torch.float32) -> tuple[Link, ...]:
    return tuple(link._replace(branch=copied(link.branch, dtype)) for link in links)


def tensors_of(links: Sequence[Link], *fields: str) -> list[Tensor]:
    return [t for link in links for _, field, t in named_tensors(link.branch) if not fields or field in fields]


def trained(links: Sequence[Link]) -> list[Tensor]:
    return tensors_of(links, "weight", "gamma", "beta")


def one_by_one(x: Tensor, links: Sequence[Link], **options: Any) -> Tensor:
    for link in links:
        if link.whole:
            x = sk.conv_norm_relu(x, link.branch.main[0], **options)
        else:
            x = sk.choice_block(x, [link.branch], 0, stride=link.stride, **options)
    return x


def results(function: Callable[..., Tensor], x: Tensor, links: Sequence[Link], **options: Any) -> list[Tensor]:
    """The output, all gradients, all tensors after the call."""
    x = x.detach().requires_grad_()
    y = function(x, links, **options)
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y, *torch.autograd.grad(y, [x, *trained(links)], dy), *tensors_of(links)]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 7, 6), (2, 5, 5, 1), (17, 5, 9, 9)])
def test_it_is_the_blocks_one_by_one_to_the_bit(
    shape: tuple[int, ...], affine: bool, training: bool, momentum: float | None
) -> None:
    torch.manual_seed(0)
    links, x = make_links(affine), torch.randn(shape).to(memory_format=torch.channels_last)
    options = {"training": training, "momentum": momentum}
    chain = results(sk.choice_block_chain, x, copies(links), **options)
    for a, b in zip(chain, results(one_by_one, x, copies(links), **options), strict=True):
        assert torch.equal(a, b)
    reference = results(sk.choice_block_chain_reference, x.double(), copies(links, torch.float64), **options)
    gradients = slice(2, 2 + len(trained(links)))  # together: some are zero, up to rounding
    for part in (slice(0, 1), slice(1, 2), gradients, slice(gradients.stop, None)):
        a, b = (torch.cat([t.double().flatten() for t in found[part]]) for found in (chain, reference))
        assert (a - b).norm() <= 1e-4 * b.norm()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_stem_of_images(kernel: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    native = _C.choice_block_forward
    monkeypatch.setattr(_C, "choice_block_forward", lambda *args: (calls.append(len(args[2])), native(*args))[1])
    links = (Link(Branch((make_layer((6, 3, kernel, kernel)),)), stride, whole=True), *make_links()[1:])
    x = torch.randn(3, 3, 9, 8).to(memory_format=torch.channels_last)
    ours, plain = copies(links), copies(links, torch.float64)
    y = sk.choice_block_chain(x, ours)
    expected = sk.choice_block_chain_reference(x.double(), plain)
    dy = torch.randn_like(y)
    found = [torch.cat([t.flatten() for t in torch.autograd.grad(y, trained(ours), dy)])]
    found.append(torch.cat([t.flatten() for t in torch.autograd.grad(expected, trained(plain), dy.double())]))
    for a, b in ((y, expected), found):
        assert (a - b).norm() <= 1e-4 * b.norm()
    assert calls == [len(links)]
    x.requires_grad_()  # then the stem runs on torch's operations, and the rest block by block
    assert torch.autograd.grad(sk.choice_block_chain(x, copies(links)).sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch", [2, 24])
def test_without_gradients_too(batch: int, training: bool) -> None:
    """A batch of 24 goes through in pieces, one of 2 layer by layer."""
    links, x = make_links(), torch.randn(batch, 5, 8, 8)
    ours, other = copies(links), copies(links)
    with torch.no_grad():
        y = sk.choice_block_chain(x, ours, training=training)
        assert torch.equal(y, one_by_one(x, other, training=training))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(ours), tensors_of(other), strict=True))


def test_one_call_of_the_extension_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (calls.append(name), kernel(*args))[1]

    for name in ("choice_block_forward", "choice_block_backward", "choice_block_run"):
        monkeypatch.setattr(_C, name, counted(name, getattr(_C, name)))
    links = copies(make_links())
    sk.choice_block_chain(torch.randn(2, 5, 6, 6), links).sum().backward()
    with torch.no_grad():
        sk.choice_block_chain(torch.randn(2, 5, 6, 6), links, training=False)
    assert calls == ["choice_block_forward", "choice_block_backward", "choice_block_run"]


@pytest.mark.parametrize("frozen", range(7))
def test_gradients_that_are_not_asked_for_stop_the_way_back(frozen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first blocks frozen: those of the others are the same as ever."""
    blocks: list[int] = []
    native = _C.choice_block_backward
    monkeypatch.setattr(_C, "choice_block_backward", lambda *args: blocks.append(native(*args)))
    links, x = copies(make_links()), torch.randn(2, 5, 6, 6)
    full = results(sk.choice_block_chain, x, copies(links))
    assert blocks == [len(links)]
    for tensor in trained(links[:frozen]):
        tensor.requires_grad_(False)
    y = sk.choice_block_chain(x, links)
    assert y.requires_grad == (frozen < len(links))
    if frozen < len(links):
        y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape))
        assert blocks[-1] == len(links) - frozen
        for tensor, expected in zip(trained(links), full[2:], strict=False):
            assert (tensor.grad is None) != tensor.requires_grad
            assert tensor.grad is None or torch.equal(tensor.grad, expected)


def test_a_call_that_autograd_refuses_moves_no_statistics() -> None:
    links = copies(make_links())
    before = [t.clone() for t in tensors_of(links)]

    def full(_: Tensor) -> Tensor:
        raise RuntimeError("the disk is full")

    with torch.inference_mode():
        x = torch.randn(2, 5, 6, 6).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="Inference tensors"):
        sk.choice_block_chain(x, links)
    with torch.autograd.graph.saved_tensors_hooks(full, lambda t: t), pytest.raises(RuntimeError, match="full"):
        sk.choice_block_chain(torch.randn(2, 5, 6, 6), links)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(links), strict=True))


def test_forward_mode_has_its_tangent() -> None:
    links = copies(make_links())
    x, tangent = torch.randn(2, 5, 6, 6), torch.randn(2, 5, 6, 6)
    found = []
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        for function in (sk.choice_block_chain, sk.choice_block_chain_reference):
            y = function(dual, links, training=False)
            found.append(torch.autograd.forward_ad.unpack_dual(y).tangent)
        with sk.use_backend("cpu"), pytest.raises(RuntimeError, match="does not support forward-mode AD"):
            sk.choice_block_chain(dual, links, training=False)
    assert torch.equal(*found)


def test_a_value_that_is_no_number_shows_in_the_statistics() -> None:
    links = copies(make_links())
    sk.choice_block_chain(torch.full((2, 5, 6, 6), torch.nan), links)
    assert all(t.isnan().all() for t in tensors_of(links, "running_mean", "running_var"))


def test_gradcheck() -> None:
    links = copies(make_links(affine=True)[1:4], torch.float64)
    names = [trained((link,)) for link in links]
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()

    def function(x: Tensor, *_: Tensor) -> Tensor:  # gradcheck moves the tensors in place
        return sk.choice_block_chain(x, links)

    with sk.use_backend("cpu"):
        assert torch.autograd.gradcheck(function, [x, *(t for tensors in names for t in tensors)], eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_the_same_bits_for_any_number_of_threads(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    links, x = make_links(affine=True), torch.randn(9, 5, 11, 10).to(memory_format=torch.channels_last)
    found = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(KERNELS, "threads_for", lambda _, threads=threads: threads)
        found.append(results(sk.choice_block_chain, x, copies(links), training=training))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_a_dispatch_mode_sees_the_blocks_forward_and_backward() -> None:
    seen: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    links, x = make_links(), torch.randn(2, 5, 6, 6).to(memory_format=torch.channels_last)
    expected = results(sk.choice_block_chain, x, copies(links))
    own = copies(links)
    leaf = x.clone(memory_format=torch.channels_last).requires_grad_()
    y = sk.choice_block_chain(leaf, own)  # the eager way, then a mode around the way back
    with Mode():
        gradients = torch.autograd.grad(y, [leaf, *trained(own)], torch.linspace(-1, 1, y.numel()).reshape(y.shape))
    assert seen.count("spos_kernels.choice_block_backward.default") == len(links)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected[1:], strict=False))
    seen.clear()
    with Mode():
        sk.choice_block_chain(x, copies(links))
    assert seen.count("spos_kernels.choice_block.default") == 4  # the last 1×1 is no such block


def test_torch_compile_takes_it_in_one_graph() -> None:
    links, x = copies(make_links()), torch.randn(2, 5, 6, 6)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x, links: sk.choice_block_chain(x, links, training=False), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(x, links), sk.choice_block_chain(x, links, training=False))


def test_other_layouts_and_types_take_the_other_way() -> None:
    links = make_links()
    for x in (torch.randn(2, 5, 6, 6), torch.randn(2, 9, 6, 6).to(memory_format=torch.channels_last)[:, 2:7]):
        ours, plain = copies(links), copies(links)
        torch.testing.assert_close(sk.choice_block_chain(x, ours), sk.choice_block_chain_reference(x, plain))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = torch.randn(2, 5, 6, 6).bfloat16()
        y = sk.choice_block_chain(half, copies(links))
    torch.testing.assert_close(y, sk.choice_block_chain_reference(half.float(), copies(links)))
    with sk.use_backend("reference"):
        ours = sk.choice_block_chain(x, copies(links))
    assert torch.equal(ours, sk.choice_block_chain_reference(x, copies(links)))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"links": ()}, ValueError, "links is empty: expected at least one Link"),
        ({"links": None}, TypeError, "links is a NoneType: expected a sequence of Link"),
        ({"links": make_links()[0]}, TypeError, "links is a Link: expected a sequence of Link"),
        ({"links": [None]}, TypeError, r"links\[0\] is a NoneType: expected a Link"),
        ({"links": [Link(())]}, TypeError, r"links\[0\]\.branch is a tuple: expected a Branch"),
        ({"links": [make_links()[0]._replace(whole=1)]}, TypeError, r"links\[0\]\.whole = 1: expected a bool"),
        ({"links": [make_links()[0]._replace(stride=2)]}, ValueError, r"links\[0\]: stride = 2, padding = 0: a 1×1"),
        ({"links": [Link(Branch((None,)), whole=True)]}, TypeError, r"links\[0\]\.branch\.main\[0\] is a NoneType"),
        ({"links": [Link(Branch("a"), whole=True)]}, ValueError, r"links\[0\] is whole: expected a tuple of one"),
        ({"links": [Link(Branch(5), whole=True)]}, ValueError, r"links\[0\] is whole: expected a tuple of one"),
        (
            {"links": [Link(Branch((sk.ConvBN(torch.tensor(1.0)),)), whole=True)]},
            ValueError,
            r"links\[0\]\.branch\.main\[0\]\.weight has shape \[\]: expected \[O, I, k, k\]",
        ),
        ({"links": make_links()[1:]}, ValueError, r"links\[0\]: branches\[0\]\.main\[0\]\.weight .* 5 channels arr"),
        ({"links": (*make_links()[:2], make_links()[4])}, None, ""),
        ({"links": (*make_links()[:2], make_links()[5])}, ValueError, r"links\[2\]: layer\.weight has shape"),
        ({"links": (*make_links(), make_links()[3]._replace(stride=3))}, ValueError, r"links\[6\]: stride = 3"),
        ({"x": torch.zeros(2, 5, 6, 6).half()}, TypeError, r"links\[0\]: x has dtype torch\.float16"),
        ({"x": "x"}, TypeError, "x: expected a torch.Tensor, got str"),
        ({"momentum": 2.0}, ValueError, r"momentum = 2\.0"),
        ({"eps": -1.0}, ValueError, r"eps = -1\.0"),
        ({"training": None}, TypeError, "training = None: expected a bool"),
    ],
)
@pytest.mark.parametrize("function", [sk.choice_block_chain, sk.choice_block_chain_reference])
def test_bad_arguments_are_refused_before_anything_runs(
    function: Any, changes: dict[str, Any], error: type[Exception] | None, message: str
) -> None:
    given = {"x": torch.randn(2, 5, 6, 6), "links": make_links()} | changes
    x, links = given.pop("x"), given.pop("links")
    if error is None:
        function(x, links, **given)
        return
    before = (
        [t.clone() for t in tensors_of(links)] if isinstance(links, tuple) and links and type(links[0]) is Link else []
    )
    with pytest.raises(error, match=message):
        function(x, links, **given)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(links) if before else [], strict=True))
