"""SGD on the CUDA kernels: the bits of the CPU's, and not one bit changed of what was not sampled."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from cuda_support import CUDA_BACKENDS, SEEDS, device_of, needs_emulator
from sgd_support import OPTIONS, parameters, sampled_extents, tensors
from torch import Tensor, nn

import spos_kernels as sk
from spos_kernels.cuda.modules import module_of
from spos_kernels.cuda.sgd import PreparedStep, Update
from spos_kernels.gradient_sink import Extent

each_backend = pytest.mark.parametrize("backend", CUDA_BACKENDS)
each_options = pytest.mark.parametrize("options", OPTIONS, ids=str)
pytestmark = pytest.mark.usefixtures("one_thread")
MOMENTUM = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}


def assert_same(ours: Tensor, cpu: Tensor) -> None:
    """To the bit, where the CPU has fused multiply-adds too."""
    ours = ours.detach().cpu()
    if sk.isa() == "portable":
        torch.testing.assert_close(ours, cpu.detach(), rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(ours, cpu.detach())


def number(value: int, backend: str) -> Tensor:
    return torch.tensor(value, dtype=torch.int32, device=device_of(backend))


def pair(values: list[Tensor], backend: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    return parameters([value.to(device_of(backend)) for value in values]), parameters(values)


def set_gradients(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        gradient = torch.randn_like(b)
        a.grad, b.grad = gradient.to(a.device), gradient


@each_backend
@each_options
def test_dense_gradients(options: dict[str, Any], backend: str) -> None:
    ours, cpu = pair(tensors(), backend)
    exact = parameters([value.detach().double() for value in cpu])
    optimizer, expected = sk.SGD(ours, **options), sk.SGD(cpu, **options)
    truth = torch.optim.SGD(exact, **options)
    for step in range(3):
        set_gradients(ours, cpu)
        if step == 1:  # one is not sampled
            ours[3].grad = cpu[3].grad = None
        for a, b in zip(exact, cpu, strict=True):
            a.grad = None if b.grad is None else b.grad.double()
        with sk.use_backend(backend):
            optimizer.step()
        expected.step()
        truth.step()
        for a, b, c in zip(ours, cpu, exact, strict=True):
            assert_same(a, b)
            torch.testing.assert_close(a.detach().cpu().double(), c, rtol=1e-6, atol=1e-6)
    for a, b in zip(ours, cpu, strict=True):
        if options.get("momentum"):
            assert_same(optimizer.state[a]["momentum_buffer"], expected.state[b]["momentum_buffer"])


@each_backend
@each_options
@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 3, 3), (9, 2000), (40, 1030)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_extents(shape: tuple[int, ...], channels_last: bool, options: dict[str, Any], backend: str) -> None:
    value = torch.randn(shape)
    if channels_last:
        if len(shape) < 4:
            pytest.skip("channels_last has 4 dimensions")
        value = value.to(memory_format=torch.channels_last)
    ours, cpu = pair([value], backend)
    sinks = sk.GradientSink(ours), sk.GradientSink(cpu)
    optimizers = sk.SGD(ours, **options, sink=sinks[0]), sk.SGD(cpu, **options, sink=sinks[1])
    for extents in sampled_extents():
        gradient = torch.randn(shape)
        for sink, (parameter,) in zip(sinks, (ours, cpu), strict=True):
            sink.buffer(parameter).fill_(torch.nan)
            for extent in extents:
                sink.accumulate(parameter, extent, extent.of(gradient).to(parameter.device))
        with sk.use_backend(backend):
            optimizers[0].step()
        optimizers[1].step()
        assert_same(ours[0], cpu[0])


@each_backend
@pytest.mark.parametrize("offset", range(4))
def test_every_address(offset: int, backend: str) -> None:
    """Parameters within a flat one, whose gradients and momentum begin at other multiples."""
    for shape in ((5000,), (1, 3), (30, 7), (4, 4, 3, 3)):
        size = torch.Size(shape).numel()
        flat = torch.randn(size + 2 * offset + 8, device=device_of(backend))
        before = flat.clone()
        weight = nn.Parameter(flat[offset : offset + size].view(shape))
        cpu = nn.Parameter(before[offset : offset + size].view(shape).cpu().clone())
        optimizer, expected = sk.SGD([weight], **MOMENTUM), sk.SGD([cpu], **MOMENTUM)
        for _ in range(2):
            gradient = torch.randn(size + 3)
            weight.grad = gradient.to(weight.device)[offset % 2 : offset % 2 + size].view(shape)
            cpu.grad = gradient[offset % 2 : offset % 2 + size].view(shape).clone()
            with sk.use_backend(backend):
                optimizer.step()
            expected.step()
        assert_same(weight, cpu)
        outside = torch.ones(len(flat), dtype=torch.bool)
        outside[offset : offset + size] = False
        assert torch.equal(flat.detach().cpu()[outside], before.cpu()[outside])


@each_backend
def test_groups_have_their_own_values_and_schedulers_work(backend: str) -> None:
    ours, cpu = pair([torch.randn(6, 5), torch.randn(5), torch.randn(70)], backend)

    def optimizer(p: list[nn.Parameter]) -> sk.SGD:
        options = {"weight_decay": 0.1}, {"lr": 0.5, "momentum": 0.0}, {"lr": 0.2, "nesterov": True}
        groups = [{"params": [each], **option} for each, option in zip(p, options, strict=True)]
        return sk.SGD(groups, lr=0.1, momentum=0.9)

    optimizers = optimizer(ours), optimizer(cpu)
    schedulers = [torch.optim.lr_scheduler.LinearLR(each, 0.1, total_iters=3) for each in optimizers]
    for _ in range(4):
        set_gradients(ours, cpu)
        with sk.use_backend(backend):
            optimizers[0].step()
        optimizers[1].step()
        for each in schedulers:
            each.step()
        for a, b in zip(ours, cpu, strict=True):
            assert_same(a, b)


@needs_emulator
def test_one_launch_updates_everything(emulator: ModuleType) -> None:
    values = [torch.randn(64, 64), torch.randn(5), torch.randn(4, 3, 3, 3)]
    groups = [{"params": parameters(values[:2])}, {"params": parameters(values[2:]), "lr": 0.5}]
    optimizer = sk.SGD(groups, lr=0.1, momentum=0.9)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    emulator.configure(count=True)
    emulator.take_counters()
    with sk.use_backend("cuda-emulated"):
        optimizer.step()
    assert emulator.take_counters()["launches"] == 1


def branches(backend: str) -> tuple[list[nn.Parameter], Tensor, dict[Tensor, sk.StepCondition]]:
    """Three banks of one layer, of which `choice` names one, and a parameter of all paths."""
    shapes = (16, 1, 3, 3), (16, 1, 5, 5), (16, 9)
    weights = parameters([torch.randn(shape, device=device_of(backend)) for shape in (*shapes, (70, 3))])
    choice = number(0, backend)
    return weights, choice, {w: sk.StepCondition(choice, i) for i, w in enumerate(weights[:3])}


@each_backend
def test_a_prepared_step_trains_the_branch_that_is_chosen_when_it_runs(backend: str) -> None:
    weights, choice, conditions = branches(backend)
    cpu = parameters([weight.detach().cpu() for weight in weights])
    optimizer, expected = sk.SGD(weights, **MOMENTUM), sk.SGD(cpu, **MOMENTUM)
    set_gradients(weights, cpu)
    with sk.use_backend(backend):
        step = optimizer.prepare(conditions)
    for chosen in (2, 0, 0, 7, 2):  # with 7, none of them
        choice.fill_(chosen)
        weights_before = [weight.detach().clone() for weight in weights]
        momenta_before = [optimizer.state[weight]["momentum_buffer"].clone() for weight in weights]
        for index, (a, b) in enumerate(zip(weights, cpu, strict=True)):
            gradient = torch.randn(b.shape)
            assert a.grad is not None
            a.grad.copy_(gradient)
            b.grad = gradient if index in (chosen, 3) else None
        step.run()
        expected.step()
        for index, (a, b) in enumerate(zip(weights, cpu, strict=True)):
            assert_same(a, b)
            if index not in (chosen, 3):
                assert torch.equal(a, weights_before[index])
                assert torch.equal(optimizer.state[a]["momentum_buffer"], momenta_before[index])
            else:
                assert not torch.equal(a, weights_before[index])
    # The optimizer goes on from where prepared steps left it.
    set_gradients(weights, cpu)
    cpu[1].grad = weights[1].grad = None
    with sk.use_backend(backend):
        optimizer.step()
    expected.step()
    for a, b in zip(weights, cpu, strict=True):
        assert_same(a, b)


@each_backend
def test_learning_rates_are_read_when_a_prepared_step_runs(backend: str) -> None:
    weights, _, _ = branches(backend)
    cpu = parameters([weight.detach().cpu() for weight in weights])
    optimizers = [
        sk.SGD([{"params": p[:2]}, {"params": p[2:], "lr": 0.3, "momentum": 0.0}], lr=0.1, momentum=0.9)
        for p in (weights, cpu)
    ]
    set_gradients(weights, cpu)
    with sk.use_backend(backend):
        step = optimizers[0].prepare()
    for rates in ((0.1, 0.3), (0.05, 0.3), (0.0, 1.5)):
        step.set_rates(rates)
        for group, rate in zip(optimizers[1].param_groups, rates, strict=True):
            group["lr"] = rate
        step.run()
        optimizers[1].step()
        for a, b in zip(weights, cpu, strict=True):
            assert_same(a, b)


WIDTHS = [
    (1 - 2**31, 3),
    (None, 3),
    (4, None),
    (4, 3),
    (0, 3),
    (9, 0),
    (-2, 5),
    (9, 8),
    (100, 100),
    (1, 1),
    (7, None),
    (None, 7),
]


@each_backend
@pytest.mark.parametrize("layout", ["9x8", "9x8x3x3", "channels_last", "9x8x2", "1x8x3x3", "9", "9x1500"])
def test_widths_are_read_when_a_prepared_step_runs(layout: str, backend: str) -> None:
    channels_last = layout == "channels_last"
    shape = (9, 8, 3, 3) if channels_last else tuple(map(int, layout.split("x")))
    value = torch.randn(shape)
    if channels_last:
        value = value.to(memory_format=torch.channels_last)
    one_dimension = len(shape) == 1
    for has_rows in (True, False):
        for has_columns in (False,) if one_dimension else (True, False):
            ours, cpu = pair([value], backend)
            optimizer, expected = sk.SGD(ours, **MOMENTUM), sk.SGD(cpu, **MOMENTUM, sink=(sink := sk.GradientSink(cpu)))
            set_gradients(ours, cpu)
            rows, columns = number(0, backend), number(0, backend)
            condition = sk.StepCondition(rows=rows if has_rows else None, columns=columns if has_columns else None)
            with sk.use_backend(backend):
                step = optimizer.prepare({ours[0]: condition})
            for row_count, column_count in WIDTHS:
                whole = shape[0], 1 if one_dimension else shape[1]
                counts = row_count if has_rows else None, column_count if has_columns else None
                numbers = [w if c is None else c for w, c in zip(whole, counts, strict=True)]
                rows.fill_(numbers[0])
                columns.fill_(numbers[1])
                gradient = torch.randn(shape)
                assert ours[0].grad is not None
                ours[0].grad.copy_(gradient)
                extent = Extent(0, max(0, min(numbers[0], whole[0])), 0, min(numbers[1], whole[1]))
                cpu[0].grad = None
                if extent.row_end and extent.column_end:
                    sink.accumulate(cpu[0], extent, extent.of(gradient))
                step.run()
                expected.step()
                assert_same(ours[0], cpu[0])
                momentum = expected.state[cpu[0]].get("momentum_buffer", torch.zeros(shape))
                assert_same(optimizer.state[ours[0]]["momentum_buffer"], momentum)


@needs_emulator
def test_the_order_of_blocks_does_not_matter(emulator: ModuleType) -> None:
    values, results = tensors(), []
    gradients = [torch.randn_like(value) for value in values]
    for seed in SEEDS:
        emulator.configure(seed)
        weights = parameters(values)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        with sk.use_backend("cuda-emulated"):
            sk.SGD(weights, **MOMENTUM).step()
        results.append(weights)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_emulator
def test_what_was_not_chosen_is_not_read(emulator: ModuleType) -> None:
    weight = nn.Parameter(torch.randn(4096 * 3))
    weight.grad = torch.ones_like(weight)
    choice, moved = number(1, "cuda-emulated"), []
    optimizer = sk.SGD([weight], lr=0.1, momentum=0.9)
    emulator.configure(count=True)
    with sk.use_backend("cuda-emulated"):
        step = optimizer.prepare({weight: sk.StepCondition(choice, 1)})
    for value in (1, 0):
        choice.fill_(value)
        emulator.take_counters()
        step.run()
        moved.append(emulator.take_counters())
    elements = weight.numel()
    assert moved[0]["global_store"] == 2 * elements // (4 * 32)
    assert moved[1]["global_store"] == 0 and moved[1]["global_sectors"] <= 3 * 8 * 8  # each warp reads what decides


@each_backend
def test_autograd_notices_that_a_saved_weight_was_stepped(backend: str) -> None:
    weight = nn.Parameter(torch.randn(4, 4, device=device_of(backend)))
    y = (torch.randn(2, 4, device=weight.device, requires_grad=True) @ weight).sum()
    weight.grad = torch.ones_like(weight)
    with sk.use_backend(backend):
        sk.SGD([weight], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@each_backend
def test_prepare_refuses(backend: str) -> None:
    device = device_of(backend)

    def prepare(weight: nn.Parameter, condition: sk.StepCondition, **options: Any) -> PreparedStep:
        weight.grad = torch.ones_like(weight)
        with sk.use_backend(backend):
            return sk.SGD([weight], lr=0.1, **options).prepare({weight: condition})

    weight, free = nn.Parameter(torch.ones(3, 4, device=device)), sk.StepCondition()
    with pytest.raises(ValueError, match="sink: a prepared step"):
        prepare(weight, free, sink=sk.GradientSink([weight]))
    with pytest.raises(ValueError, match=r"a parameter of shape \[2\], torch.float64, on .*: accepted are dense"):
        prepare(nn.Parameter(torch.ones(2, dtype=torch.float64, device=device)), free)
    with pytest.raises(ValueError, match=r"a parameter of shape \[4, 3\]"):
        prepare(nn.Parameter(torch.ones(3, 4, device=device).t()), free)
    with pytest.raises(TypeError, match="choice of a condition has dtype"):
        prepare(weight, sk.StepCondition(torch.tensor(1, device=device)))
    with pytest.raises(ValueError, match=r"rows of a condition has shape \[2\]: expected one element"):
        prepare(weight, sk.StepCondition(rows=torch.ones(2, dtype=torch.int32, device=device)))
    with pytest.raises(ValueError, match="columns of a condition is on meta"):
        prepare(weight, sk.StepCondition(columns=torch.ones(1, dtype=torch.int32, device="meta")))
    with pytest.raises(ValueError, match="columns of a condition: the parameter has one dimension"):
        prepare(nn.Parameter(torch.ones(3, device=device)), sk.StepCondition(columns=number(1, backend)))
    with pytest.raises(ValueError, match="on 0 devices: accepted is one"), sk.use_backend(backend):
        sk.SGD([nn.Parameter(torch.ones(3))], lr=0.1).prepare()
    with pytest.raises(ValueError, match=r"on cpu: accepted are .* a device with the CUDA kernels"):
        plain = nn.Parameter(torch.ones(3))
        plain.grad = torch.ones(3)
        sk.SGD([plain], lr=0.1).prepare()


@each_backend
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient": torch.zeros(4, 6)}, "gradient: expected shape and strides of its parameter"),
        ({"gradient": torch.zeros(5, 6).double()}, r"gradient: dtype is torch\.float64"),
        ({"buffer": torch.zeros(6, 5).t()}, "momentum_buffer: expected shape and strides"),
        ({"offset": 1}, "extents within their parameter"),
        ({"offset": -1}, "from 0"),
        ({"rows": 6, "length": 6, "stride": 6}, "extents within their parameter"),
        ({"rate": 1}, "rate = 1: expected an integer from 0 to 0"),
        ({"choice": torch.ones(2, dtype=torch.int32)}, "choice: expected one element"),
        ({"row_count": torch.ones(1)}, r"row_count: dtype is torch\.float32"),
        ({"column_unit": 0}, "columns of one = 0"),
    ],
)
def test_the_extension_keeps_memory_safe(changes: dict[str, Any], message: str, backend: str) -> None:
    zeros = [torch.zeros(5, 6, device=device_of(backend)) for _ in range(3)]
    changes = {k: v.to(device_of(backend)) if isinstance(v, Tensor) else v for k, v in changes.items()}
    update = Update(*zeros, 0, 1, 30, 0, 0.9, 0.0, False, 0)._replace(**changes)
    with pytest.raises((ValueError, TypeError), match=message):
        module_of(backend).SgdTable([update], 1)
    table = module_of(backend).SgdTable([], 1)
    with pytest.raises(ValueError, match=r"table has shape \[128\]|table: has shape \[128\]"):
        table.run(torch.zeros(128, dtype=torch.uint8, device=zeros[0].device), zeros[0][0, :1], None, 0)
