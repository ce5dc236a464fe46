"""SGD of what was sampled: equal to torch's on that, and not one bit changed elsewhere."""

import copy
from typing import Any

import pytest
import torch
from isa_support import ISAS
from sgd_support import OPTIONS, parameters, sampled_extents, tensors
from torch import nn

import spos_kernels as sk
from spos_kernels import _C
from spos_kernels.gradient_sink import Extent


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_gradients_give_what_torch_gives(options: dict[str, Any], dtype: torch.dtype) -> None:
    values = tensors(dtype)
    ours, theirs = parameters(values), parameters(values)
    optimizer, expected = sk.SGD(ours, **options), torch.optim.SGD(theirs, **options)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    for step in range(4):
        for a, b in zip(ours, theirs, strict=True):
            gradient = torch.randn(a.shape, dtype=dtype)  # contiguous, also for those that are not
            a.grad, b.grad = gradient.clone(), gradient.clone()
        if step == 2:  # one is not sampled
            ours[3].grad = theirs[3].grad = None
        optimizer.step()
        expected.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 3, 3), (9, 8, 1, 1), (9, 8, 2)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_extents_give_what_torch_gives_element_by_element(
    options: dict[str, Any], shape: tuple[int, ...], layout: str
) -> None:
    value = torch.randn(shape)
    if layout == "channels_last":
        if len(shape) < 4:
            pytest.skip("channels_last has 4 dimensions")
        value = value.to(memory_format=torch.channels_last)
    if layout == "transposed":
        value = value.transpose(0, 1).contiguous().transpose(0, 1)
    (weight,) = parameters([value])
    sink = sk.GradientSink([weight])
    optimizer = sk.SGD([weight], **options, sink=sink)
    # torch's SGD knows parameters only: one for each element, stepped when that element was sampled.
    elements = [nn.Parameter(element.clone()) for element in value.flatten()]
    expected = torch.optim.SGD(elements, **options)
    for extents in sampled_extents():
        sink.buffer(weight).fill_(float("nan"))
        gradient, touched = torch.randn(shape), torch.zeros(shape, dtype=torch.bool)
        for extent in extents:
            sink.accumulate(weight, extent, extent.of(gradient))
            extent.of(touched).fill_(True)
        for element, g, sampled in zip(elements, gradient.flatten(), touched.flatten(), strict=True):
            element.grad = g.clone() if sampled else None
        before = weight.detach().clone()
        state = optimizer.state.get(weight, {}).get("momentum_buffer")
        momentum = None if state is None else state.clone()
        optimizer.step()
        expected.step()
        result = torch.stack([e.detach() for e in elements]).view(shape)
        torch.testing.assert_close(weight.detach(), result, rtol=1e-6, atol=1e-6)
        assert torch.equal(weight[~touched], before[~touched])
        if momentum is not None:
            assert torch.equal(optimizer.state[weight]["momentum_buffer"][~touched], momentum[~touched])
        assert sink.extents(weight) == ()


def test_a_sampled_network_trains_as_torch_trains_its_slice() -> None:
    width = 5
    weights = parameters([0.1 * torch.randn(shape) for shape in ((9, 6, 3, 3), (9, 1, 3, 3), (4, 9))])
    sliced = parameters([weights[0][:width], weights[1][:width], weights[2][:, :width]])
    sink = sk.GradientSink(weights)
    optimizer = sk.SGD(weights, lr=0.01, momentum=0.9, weight_decay=1e-3, nesterov=True, sink=sink)
    expected = torch.optim.SGD(sliced, lr=0.01, momentum=0.9, weight_decay=1e-3, nesterov=True)
    before = [w.detach().clone() for w in weights]
    for _ in range(3):
        x = torch.randn(2, 6, 8, 8)
        with sink:
            y = sk.sliced_conv2d(x, weights[0], out_channels=width, padding=1).relu()
            y = sk.sliced_conv2d(y, weights[1], padding=1, groups=width).mean((2, 3))
            sk.sliced_linear(y, weights[2]).square().sum().backward()
        optimizer.step()
        expected.zero_grad()
        y = nn.functional.conv2d(x, sliced[0], padding=1).relu()
        y = nn.functional.conv2d(y, sliced[1], padding=1, groups=width).mean((2, 3))
        nn.functional.linear(y, sliced[2]).square().sum().backward()
        expected.step()
    for index, (whole, part) in enumerate(zip(weights, sliced, strict=True)):
        used = (slice(None), slice(width)) if index == 2 else (slice(width),)
        torch.testing.assert_close(whole[used], part, rtol=1e-4, atol=1e-5)
        assert not torch.equal(whole[used], before[index][used])
        rest = torch.ones_like(whole, dtype=torch.bool)
        rest[used] = False
        assert torch.equal(whole[rest], before[index][rest])
        assert not optimizer.state[whole]["momentum_buffer"][rest].any()


def test_a_gradient_in_grad_and_in_the_sink_is_their_sum() -> None:
    (a,), (b,) = parameters([torch.ones(6, 4)]), parameters([torch.ones(6, 4)])
    sink = sk.GradientSink([a])
    optimizer, expected = sk.SGD([a], lr=0.5, momentum=0.9, sink=sink), torch.optim.SGD([b], lr=0.5, momentum=0.9)
    a.grad, b.grad = torch.ones(6, 4), torch.ones(6, 4)
    sink.accumulate(a, Extent(0, 2, 0, 3), torch.full((2, 3), 2.0))
    b.grad[:2, :3] += 2
    for _ in range(2):  # the second step has the same .grad, as torch has it
        optimizer.step()
        expected.step()
        torch.testing.assert_close(a, b)


def test_zero_grad_forgets_both() -> None:
    (a,) = parameters([torch.ones(6, 4)])
    sink = sk.GradientSink([a])
    optimizer = sk.SGD([a], lr=0.5, sink=sink)
    a.grad = torch.ones(6, 4)
    sink.accumulate(a, Extent(0, 2, 0, 3), torch.ones(2, 3))
    optimizer.zero_grad()
    optimizer.step()
    assert a.grad is None and torch.equal(a, torch.ones(6, 4))


def test_one_call_of_the_extension_steps_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [{"params": parameters([torch.randn(3, 4), torch.randn(5)])}, {"params": parameters([torch.randn(2)])}]
    sink = sk.GradientSink([groups[0]["params"][0]])
    optimizer = sk.SGD(groups, lr=0.1, momentum=0.9, sink=sink)
    sink.accumulate(groups[0]["params"][0], Extent(0, 2, 0, 2), torch.ones(2, 2))
    groups[0]["params"][1].grad, groups[1]["params"][0].grad = torch.ones(5), torch.ones(2)
    calls: list[int] = []
    kernel = _C.sgd_step
    monkeypatch.setattr(_C, "sgd_step", lambda updates, *rest: (calls.append(len(updates)), kernel(updates, *rest)))
    optimizer.step()
    assert calls == [3]


def test_groups_have_their_own_values_and_schedulers_work() -> None:
    values = [torch.randn(6, 5), torch.randn(5)]
    ours, theirs = parameters(values), parameters(values)
    groups = lambda p: [{"params": [p[0]], "weight_decay": 0.1}, {"params": [p[1]], "lr": 0.5, "momentum": 0.0}]  # noqa: E731
    optimizer = sk.SGD(groups(ours), lr=0.1, momentum=0.9, weight_decay=0.0)
    expected = torch.optim.SGD(groups(theirs), lr=0.1, momentum=0.9, weight_decay=0.0)
    pairs = [
        (torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=3), torch.optim.lr_scheduler.StepLR(o, 2))
        for o in (optimizer, expected)
    ]
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for o, schedulers in zip((optimizer, expected), pairs, strict=True):
            o.step()
            for scheduler in schedulers:
                scheduler.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("source", ["ours", "torch"])
def test_state_dict_round_trip(source: str) -> None:
    values = [torch.randn(6, 5), torch.randn(9, 8, 3, 3).to(memory_format=torch.channels_last), torch.randn(4)]
    old, new = parameters(values), parameters(values)
    kind: Any = sk.SGD if source == "ours" else torch.optim.SGD
    first = kind(old, lr=0.1, momentum=0.9)
    second = sk.SGD(new, lr=99.0)
    for p in old[:2]:
        p.grad = torch.randn(p.shape)
    first.step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    with torch.no_grad():
        for a, b in zip(old, new, strict=True):
            b.copy_(a)
    for a, b in zip(old, new, strict=True):
        a.grad = torch.randn(a.shape)
        b.grad = a.grad.clone()
    first.step()
    second.step()
    for a, b in zip(old, new, strict=True):
        torch.testing.assert_close(a, b)


def test_the_closure_is_called_and_its_loss_returned() -> None:
    (a,) = parameters([torch.ones(3)])
    optimizer = sk.SGD([a], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = a.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 3.0
    torch.testing.assert_close(a.detach(), torch.full((3,), 0.8))


def test_autograd_notices_that_a_saved_weight_was_stepped() -> None:
    (a,) = parameters([torch.randn(4, 4)])
    y = (torch.randn(2, 4, requires_grad=True) @ a).sum()
    a.grad = torch.ones(4, 4)
    sk.SGD([a], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("nesterov", [False, True])
def test_same_bits_for_every_thread_count_and_however_a_parameter_is_cut(isa: _C.Isa, nesterov: bool) -> None:
    start = [torch.randn(70, 999), torch.randn(70, 999), torch.randn(70, 999)]
    factors = (0.1, 0.9, 0.01, nesterov)
    whole = [t.clone() for t in start]
    _C.sgd_step([(*whole, 0, 1, 70 * 999, 0, *factors)], isa, 1)
    for threads in (1, 2, 3, 8):
        parts = [t.clone() for t in start]
        columns = [(0, 1), (1, 17), (18, 981)]
        _C.sgd_step([(*parts, first, 70, count, 999, *factors) for first, count in columns], isa, threads)
        for a, b in zip(parts, whole, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr = -1\.0: accepted are numbers from 0"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"lr": 0.1, "momentum": -0.5}, r"momentum = -0\.5"),
        ({"lr": 0.1, "weight_decay": -1e-4}, "weight_decay = -0.0001"),
        ({"lr": 0.1, "nesterov": True}, "nesterov = True: needs a momentum above 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sk.SGD(parameters([torch.ones(3)]), **options)


def test_sparse_gradients_are_refused() -> None:
    (a,) = parameters([torch.ones(3, 3)])
    a.grad = torch.zeros(3, 3).to_sparse()
    with pytest.raises(TypeError, match=r"a gradient has layout torch\.sparse_coo"):
        sk.SGD([a], lr=0.1).step()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({1: torch.zeros(4, 6)}, "gradient: expected shape and strides of its parameter"),
        ({1: torch.zeros(5, 6, dtype=torch.float64)}, "gradient and parameter differ in dtype"),
        ({2: torch.zeros(6, 5).t()}, "momentum_buffer: expected shape and strides"),
        ({3: 1, 5: 30}, "extents within their parameter"),
        ({3: -1}, "from 0"),
        ({4: 6, 5: 6, 6: 6}, "extents within their parameter"),
    ],
)
def test_the_extension_keeps_memory_safe(changes: dict[int, Any], message: str) -> None:
    update = [torch.zeros(5, 6), torch.zeros(5, 6), torch.zeros(5, 6), 0, 1, 30, 0, 0.1, 0.9, 0.0, False]
    for position, value in changes.items():
        update[position] = value
    with pytest.raises((ValueError, TypeError), match=message):
        _C.sgd_step([tuple(update)], _C.best_isa(), 1)
