"""Fake quantization on the CUDA kernels: the bits of the reference where the operation has but one right answer."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from cuda_support import CUDA_BACKENDS, DTYPES, SEEDS, device_of, needs_emulator
from fake_quantize_support import (
    CASES,
    CHANNELS_LAST,
    DOREFA,
    KINDS,
    LAYOUTS,
    SMALL,
    Case,
    Guarded,
    Kind,
    arguments,
    assert_accurate_sum,
    assert_right_dorefa,
    flat,
)
from torch import Tensor
from torch.library import opcheck

import spos_kernels as sk
from spos_kernels import fake_quantize_kernels as kernels
from spos_kernels.cuda import fake_quantize as cuda
from spos_kernels.cuda.modules import module_of
from spos_kernels.fake_quantize_reference import Call, codes_reference, reference

OPS = torch.ops.spos_kernels
ALIGNED, ODD = 64, 67  # elements in front of a tensor in its buffer
each_backend = pytest.mark.parametrize("backend", CUDA_BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
pytestmark = pytest.mark.usefixtures("one_thread")
# Runs that several blocks share, whole and beginning within a vector; columns in several groups of rows.
LARGE = [Case((1, 700_001)), Case((2, 5, 331, 67), 1), Case((9000, 24), 1), Case((3, 6000), 0)]


def on_device(call: Call, backend: str, dtype: torch.dtype = torch.float32) -> Call:
    """The call with x of this type; what is learned stays float32."""
    tensors = (None if t is None else t.to(device_of(backend)) for t in (call.x.to(dtype), *call[1:3]))
    x, learned, zero_point = tensors
    assert x is not None
    return Call(x, learned, zero_point, call.quantizer)


def widened(call: Call) -> Call:
    return call._replace(x=call.x.float())


def run(
    call: Call, dy: Tensor, backend: str, needs: tuple[bool, bool] = (True, True), margin: int = ALIGNED
) -> dict[str, Tensor | None]:
    """All passes on guarded memory: y, codes, dx, dscale; for dorefa scale, which is its maximum."""
    x = Guarded(call.x, call.x.dtype, call.x, margin).view
    dy = Guarded(call.x, call.x.dtype, dy, margin).view
    runs = kernels._runs(x, call.quantizer.axis)
    options = call.quantizer, runs, backend
    scale, outputs = call.learned, {}
    if scale is None:
        outputs["scale"] = Guarded(x.new_empty(runs[0]), torch.float32)
        cuda.maximum(flat(x), outputs["scale"].view, runs, backend)
        scale = outputs["scale"].view
    outputs["y"] = Guarded(x, x.dtype, margin=margin)
    outputs["codes"] = Guarded(x, call.quantizer.codes, margin=margin)
    cuda.forward(flat(x), scale, call.zero_point, flat(outputs["y"].view), *options)
    cuda.codes(flat(x), scale, call.zero_point, flat(outputs["codes"].view), *options)
    if needs[0]:
        outputs["dx"] = Guarded(x, x.dtype, margin=margin)
    if needs[1] and call.learned is not None:
        outputs["dscale"] = Guarded(scale, torch.float32)
    dx, dscale = (outputs[name].view if name in outputs else None for name in ("dx", "dscale"))
    gradients = None if dx is None else flat(dx), dscale
    cuda.backward(flat(dy), flat(x), scale, call.zero_point, *gradients, *options)
    for output in outputs.values():
        output.assert_intact()
    return {name: output.view.cpu() for name, output in outputs.items()}


def assert_right(call: Call, backend: str, dtype: torch.dtype = torch.float32, margin: int = ALIGNED) -> None:
    """The fp32 result of x as it is, rounded to the type of x."""
    call = on_device(call, backend, dtype)
    dy = torch.randn_like(call.x)
    got = run(call, dy, backend, margin=margin)
    call, dy = on_device(widened(call), "cpu"), dy.cpu()
    if call.learned is None:
        assert_right_dorefa(call, got["y"], got["codes"], dy, got["dx"])
        return
    x = call.x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(reference(call._replace(x=x)), x, dy.float())
    assert torch.equal(got["y"], reference(call).to(dtype))
    assert torch.equal(got["codes"], codes_reference(call))
    assert torch.equal(got["dx"], dx.to(dtype))
    assert_accurate_sum(call, dy.float(), got["dscale"])


@each_backend
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case(case: Case, kind: Kind, backend: str) -> None:
    assert_right(arguments(case, kind, 4), backend)


@each_backend
@each_dtype
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_number_of_bits_and_every_type(bits: int, dtype: torch.dtype, backend: str) -> None:
    for kind in KINDS:
        for case in (Case((3, 17, 4, 4), 1, CHANNELS_LAST), Case((4, 130), 0)):
            assert_right(arguments(case, kind, bits), backend, dtype)


@each_backend
@each_dtype
@pytest.mark.parametrize("margin", [ALIGNED, ODD])
def test_every_address(margin: int, dtype: torch.dtype, backend: str) -> None:
    for case in (*SMALL, Case((2, 3, 13, 13), 1)):
        for kind in (DOREFA, Kind("pact"), Kind("lsq", True, True)):
            assert_right(arguments(case, kind, 3), backend, dtype, margin)


@each_backend
@pytest.mark.parametrize("kind", [DOREFA, Kind("lsq", True, True)], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_what_many_blocks_share(case: Case, kind: Kind, backend: str) -> None:
    assert_right(arguments(case, kind, 4), backend)


@needs_emulator
@pytest.mark.parametrize("kind", [DOREFA, Kind("pact"), Kind("lsq")], ids=str)
def test_same_bits_in_every_order_of_blocks(kind: Kind, emulator: ModuleType) -> None:
    for case in (Case((40_000,)), Case((3, 1000), 0), Case((900, 24), 1), Case((2, 9, 5, 5), 1)):
        call = arguments(case, kind, 5)
        dy, results = torch.randn_like(call.x), []
        for seed in SEEDS:
            emulator.configure(seed)
            results.append(run(call, dy, "cuda-emulated"))
        for other in results[1:]:
            for name, value in results[0].items():
                assert torch.equal(value, other[name]), name


@each_backend
def test_one_gradient_alone_has_the_bits_of_both(backend: str) -> None:
    for case in (Case((3, 4097)), Case((4, 33, 9, 9), 1, CHANNELS_LAST), Case((9, 400), 0)):
        for kind in (Kind("pact"), Kind("lsq", True, True)):
            call = on_device(arguments(case, kind, 3), backend)
            dy = torch.randn_like(call.x)
            both = run(call, dy, backend)
            assert torch.equal(both["dx"], run(call, dy, backend, (True, False))["dx"])
            assert torch.equal(both["dscale"], run(call, dy, backend, (False, True))["dscale"])


@each_backend
@each_dtype
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("case", [Case((70,)), Case((3, 200), 0), Case((9, 33), 1)], ids=str)
def test_nan_stays_nan_and_gets_the_lowest_code(case: Case, kind: Kind, dtype: torch.dtype, backend: str) -> None:
    call = on_device(arguments(case, kind, 4), backend, dtype)
    hit = torch.zeros(call.x.numel(), dtype=torch.bool)
    hit[[0, 3, 17, 69]] = True
    call.x[hit.view(case.shape).to(call.x.device)] = torch.nan
    got = run(call, torch.ones_like(call.x), backend)
    call = on_device(widened(call), "cpu")
    y = got["y"].float()
    torch.testing.assert_close(y, reference(call).to(dtype).float(), equal_nan=True, rtol=0, atol=0)
    assert (got["codes"][y.isnan()] == call.quantizer.low).all()
    assert torch.equal(got["codes"], codes_reference(call))
    if kind.method == "dorefa":
        assert torch.equal(got["dx"].isnan(), y.isnan())
    else:
        assert not got["dx"][call.x.isnan()].any()
    if kind.method == "lsq":
        others = [d for d in range(call.x.ndim) if d != call.quantizer.axis]
        assert torch.equal(got["dscale"].isnan(), call.x.isnan().amax(others).view(got["dscale"].shape))


@each_backend
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("value", [0.0, 1e-40])
def test_a_channel_of_zeros_has_a_value_and_no_gradient(value: float, axis: int | None, backend: str) -> None:
    for bits in range(1, 9):
        call = on_device(arguments(Case((5, 140), axis), DOREFA, bits), backend)
        call = call._replace(x=torch.full_like(call.x, value))
        got, levels = run(call, torch.ones_like(call.x), backend), 2**bits - 1
        assert (got["codes"] == round(levels / 2)).all() and not got["dx"].any()
        assert torch.equal(got["y"], reference(call).cpu())


@each_backend
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [None, 1, -1])
def test_the_public_operation_on_every_layout(axis: int | None, layout: str, kind: Kind, backend: str) -> None:
    wide = torch.randn(3, 40, 7, 7, device=device_of(backend))
    x = LAYOUTS[layout](wide).detach().requires_grad_()
    count = 1 if axis is None else x.shape[axis]
    learned = None
    if kind.method != "dorefa":
        learned = (torch.rand(2 * count, device=x.device) + 0.1)[::2].requires_grad_()
    zero_point = torch.ones(count, dtype=torch.int32, device=x.device) if kind.affine else None
    given = (x, 3, kind.method, learned)
    options: dict[str, Any] = {"signed": kind.signed, "zero_point": zero_point, "axis": axis}
    with sk.use_backend(backend):
        y, codes = sk.fake_quantize(*given, **options), sk.quantize(*given, **options)
    expected = sk.fake_quantize_reference(*given, **options)
    assert y.stride() == codes.stride() == torch.empty_like(x).stride()
    torch.testing.assert_close(y, expected)
    assert torch.equal(codes, sk.quantize_reference(*given, **options))
    tensors = [x] if learned is None else [x, learned]
    for weight in (torch.ones((), device=x.device), torch.randn(x.shape, device=x.device)):
        gradients = torch.autograd.grad((y * weight).sum(), tensors, retain_graph=True)
        right = torch.autograd.grad((expected * weight).sum(), tensors, retain_graph=True)
        for a, b in zip(gradients, right, strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@each_backend
@each_dtype
@pytest.mark.parametrize("own", [False, True])
def test_what_is_learned_may_have_the_type_of_x_or_float32(own: bool, dtype: torch.dtype, backend: str) -> None:
    call = on_device(arguments(Case((4, 30), 1), Kind("lsq", True), 4), backend, dtype)
    assert call.learned is not None
    x = call.x.requires_grad_()
    step = call.learned.to(dtype if own else torch.float32).requires_grad_()
    with sk.use_backend(backend):
        y = sk.fake_quantize(x, 4, "lsq", step, signed=True, axis=1)
        y.float().sum().backward()
    assert y.dtype == x.dtype and x.grad is not None and x.grad.dtype == x.dtype
    assert step.grad is not None and step.grad.dtype == step.dtype
    wide, wide_step = x.detach().float(), step.detach().float().requires_grad_()
    expected = sk.fake_quantize_reference(wide, 4, "lsq", wide_step, signed=True, axis=1)
    assert torch.equal(y, expected.to(dtype))
    expected.sum().backward()
    assert wide_step.grad is not None
    torch.testing.assert_close(step.grad, wide_step.grad.to(step.dtype))


@each_backend
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_operators(kind: Kind, backend: str) -> None:
    case = Case((2, 6, 5, 5), 1, CHANNELS_LAST)
    call = on_device(arguments(case, kind, 4), backend)
    x = torch.randn_like(call.x).requires_grad_()
    scale = call.learned
    if scale is None:
        opcheck(OPS.fake_quantize_maximum.default, (x.detach(), 1, backend))
        scale = OPS.fake_quantize_maximum(x.detach(), 1, backend)
    options = (call.zero_point, *call.quantizer)
    opcheck(OPS.fake_quantize.default, (x, scale.requires_grad_(kind.method != "dorefa"), *options, backend))
    x, scale = x.detach(), scale.detach()
    opcheck(OPS.quantize.default, (x, scale, *options, backend))
    needs = True, kind.method != "dorefa"
    opcheck(OPS.fake_quantize_backward.default, (torch.randn_like(x), x, scale, *options, *needs, backend))


@each_backend
def test_backward_runs_where_forward_ran(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    backward = cuda.backward
    monkeypatch.setattr(cuda, "backward", lambda *given: (ran.append(given[-1]), backward(*given)))
    x = torch.randn(40, device=device_of(backend), requires_grad=True)
    step = torch.tensor(0.1, device=x.device, requires_grad=True)
    with sk.use_backend(backend):
        y = sk.fake_quantize(x, 4, "lsq", step)
        with pytest.raises(RuntimeError, match=f"backend '{backend}' has no double backward"):
            torch.autograd.grad(y.sum(), x, create_graph=True, retain_graph=True)
    y.sum().backward()
    assert ran == [backend]


@each_backend
def test_compile_breaks_no_graph(backend: str) -> None:
    def network(x: Tensor, clip: Tensor) -> Tensor:
        return sk.fake_quantize(sk.fake_quantize(x, 4, "pact", clip) * 2, 2, "dorefa", axis=1)

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 5, device=device_of(backend), requires_grad=True)
    clip = torch.tensor(1.0, device=x.device, requires_grad=True)
    expected = network(x, clip)
    with sk.use_backend(backend):
        y = compiled(x, clip)
    torch.testing.assert_close(y, expected)
    for a, b in zip(*(torch.autograd.grad(each.square().sum(), [x, clip]) for each in (y, expected)), strict=True):
        torch.testing.assert_close(a, b)
    torch.compiler.reset()


@needs_emulator
@pytest.mark.parametrize(
    ("case", "kind", "launches"),
    [
        (Case((64, 64)), Kind("lsq"), 1),  # one block has it all
        (Case((160, 256)), Kind("lsq"), 2),
        (Case((40, 1024), 0), Kind("lsq"), 1),  # a channel is one block's
        (Case((256, 32), 1), Kind("pact"), 2),
    ],
    ids=str,
)
def test_every_byte_is_moved_once(case: Case, kind: Kind, launches: int, emulator: ModuleType) -> None:
    """Forward 8 bytes an element in accesses of 16, backward 12; what else is read stays in the caches."""
    call = arguments(case, kind, 4)
    learned, size = call.learned, call.x.numel()
    assert learned is not None
    runs = kernels._runs(call.x, case.axis)
    emulator.configure(count=True)
    emulator.take_counters()
    cuda.forward(call.x, learned, None, torch.empty_like(call.x), call.quantizer, runs, "cuda-emulated")
    forward = emulator.take_counters()
    gradients = torch.empty_like(call.x), torch.empty_like(learned)
    cuda.backward(call.x, call.x, learned, None, *gradients, call.quantizer, runs, "cuda-emulated")
    backward = emulator.take_counters()
    steps = 4 * size if case.axis == 1 else 2 * size  # a small tensor: each thread reads them for a vector or two
    assert 8 * size <= forward["global_bytes"] <= 8 * size + steps
    assert forward["global_store"] == size // (4 * 32)
    assert 12 * size <= backward["global_bytes"] <= 12 * size + steps
    assert (forward["launches"], backward["launches"]) == (1, launches)


@each_backend
def test_values_are_not_looked_at(backend: str) -> None:
    x = torch.randn(3, 40, device=device_of(backend))
    step = torch.tensor([0.0, torch.nan, -1.0], device=x.device)
    zero_point = torch.tensor([2**31 - 1, -(2**31), 3], dtype=torch.int32, device=x.device)
    with sk.use_backend(backend):
        y = sk.fake_quantize(x, 4, "lsq", step, zero_point=zero_point, axis=0)
        codes = sk.quantize(x, 4, "lsq", step, axis=0)
    assert y[1].isnan().all() and codes.max() <= 15 and (codes[1] == 0).all()


@each_backend
@pytest.mark.parametrize(
    ("x", "learned", "error", "message"),
    [
        (torch.zeros(2, 6).double(), torch.ones(()).double(), TypeError, "x has dtype torch.float64: backend"),
        (torch.zeros(2, 6).int(), torch.ones(()), TypeError, "x has dtype torch.int32: accepted are torch.float32"),
        (torch.zeros(2, 6), torch.ones(()).half(), TypeError, "learned has dtype torch.float16: expected that of x"),
        (torch.zeros(2, 6), torch.ones(2), ValueError, r"learned has shape \[2\]"),
    ],
)
def test_bad_input(x: Tensor, learned: Tensor, error: type[Exception], message: str, backend: str) -> None:
    x, learned = x.to(device_of(backend)), learned.to(device_of(backend))
    for function in (sk.fake_quantize, sk.quantize):
        with sk.use_backend(backend), pytest.raises(error, match=message):
            function(x, 4, "lsq", learned)


@each_backend
def test_the_extension_refuses_what_would_not_be_safe(backend: str) -> None:
    module, device = module_of(backend), device_of(backend)
    x, y, step = (torch.zeros(shape, device=device) for shape in ((4, 6), (4, 6), (6,)))
    good = ("lsq", 4, False, 6, 1, 0)
    module.fake_quantize_forward(x, step, None, y, *good)
    zeros = torch.zeros(6, dtype=torch.int32, device=device)
    for given, error, message in [
        ((x[:, ::2], step, None, y, *good), ValueError, "dense"),
        ((x, step[:5], None, y, *good), ValueError, "scale: expected one value for each of 6 channels"),
        ((x, None, None, y, *good), TypeError, "scale: expected a torch.Tensor"),
        ((x, step.half(), None, y, *good), TypeError, "scale: dtype is torch.float16"),
        ((x, step, zeros[1:], y, *good), ValueError, "zero_point: expected one value"),
        ((x, step, step, y, *good), TypeError, "zero_point: dtype is torch.float32"),
        ((x, step, None, y.half(), *good), TypeError, "y and x differ in dtype"),
        ((x, step, None, y.t(), *good), ValueError, "y: expected shape and strides of x"),
        ((x, step[:5], None, y, *good[:3], 5, 1, 0), ValueError, "no multiple"),
        ((x, step, None, y, "lsq", 9, *good[2:]), ValueError, "bits = 9"),
        ((x, step, None, y, "LSQ", *good[1:]), ValueError, "method = 'LSQ'"),
    ]:
        with pytest.raises(error, match=message):
            module.fake_quantize_forward(*given)
    with pytest.raises(TypeError, match=r"codes: dtype is torch\.float32"):
        module.fake_quantize_codes(x, step, None, y, *good)
    with pytest.raises(ValueError, match="dscale: method dorefa has none"):
        module.fake_quantize_backward(x, x, step, None, y, step, step, "dorefa", *good[1:])
    with pytest.raises(ValueError, match="workspace: expected 24 elements"):
        module.fake_quantize_backward(x, x, step, None, y, step, step, *good)
