"""The choice block's CUDA kernels: against float64, in guarded memory, for all element types; launches, same bits."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from choice_block_support import (
    CHOICES,
    Case,
    Guards,
    Inputs,
    Results,
    assert_accurate,
    copied,
    draw,
    expected,
    make_branch,
    map_tensors,
    run,
    size_of,
)
from cuda_support import CUDA_BACKENDS, SEEDS, device_of, needs_emulator
from test_choice_block import CUMULATIVE, MOMENTA, OFFSETS, OPTIONS, SHAPES
from torch import Tensor

import spos_kernels as sk
from spos_kernels import Branch
from spos_kernels.cuda.modules import module_of

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = OPTIONS + SHAPES[:13] + OFFSETS[:-1:5] + CUMULATIVE[::5] + MOMENTA


def moved(inputs: Inputs, device: str) -> Inputs:
    def to_device(tensor: Tensor, _: str) -> Tensor:
        return tensor.detach().to(device).requires_grad_(tensor.requires_grad)

    return Inputs(inputs.x.to(device), map_tensors(inputs.branch, to_device), inputs.dy.to(device))


def run_on(backend: str, inputs: Inputs, case: Case) -> Results:
    with sk.use_backend(backend):
        results = run(sk.choice_block, moved(inputs, device_of(backend)), case)
    return {name: tensor.cpu() for name, tensor in results.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_float32_is_accurate(backend: str, case: Case) -> None:
    inputs, _, _ = expected(case)
    assert_accurate(run_on(backend, inputs.to(torch.float32), case), case)


@needs_emulator
@pytest.mark.parametrize("case", OPTIONS[::3] + SHAPES[:9:2], ids=str)
def test_float32_is_accurate_in_guarded_slices(case: Case, emulator: ModuleType) -> None:
    """Everything read lies inside of NaN, everything written is poisoned; blocks and warps go in a random order."""
    inputs, _, _ = expected(case)
    guards = Guards()
    inputs = Inputs(
        guards.channel_slice(inputs.x),
        map_tensors(copied(inputs.branch), lambda tensor, _: guards.slice_of_wider(tensor)),
        guards.channel_slice(inputs.dy),
    )
    emulator.configure(seed=7)
    with sk.use_backend("cuda-emulated"), guards.around_allocations():
        results = run(sk.choice_block, inputs, case)
    guards.assert_intact()
    assert_accurate(results, case)


def far_from_kinks(branch: Branch) -> Branch:
    """Some channels are alive for every input, the others dead: rounding decides nothing."""

    def shift(tensor: Tensor, field: str) -> Tensor:
        if field != "beta":
            return tensor
        return torch.where(torch.arange(len(tensor)) % 4 == 3, -9.0, 9.0)

    return map_tensors(branch, shift)


def rounded(branch: Branch, dtype: torch.dtype) -> Branch:
    return map_tensors(branch, lambda tensor, field: tensor.to(dtype) if field == "weight" else tensor)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_halves_are_as_accurate_as_torch(backend: str, dtype: torch.dtype, stride: int, choice: str) -> None:
    case = Case(choice, stride, 3, 32, 7, 6, 16, 16, affine=True)
    torch.manual_seed(1)
    branch = far_from_kinks(make_branch(choice, case.channels, case.mid, case.out, stride, affine=True))
    x, dy = torch.randn(case.x_shape).to(dtype), torch.randn(case.y_shape).to(dtype)
    exact_inputs = Inputs(x.double(), copied(rounded(branch, dtype), torch.float64), dy.double())
    exact = run(sk.choice_block_reference, exact_inputs, case)

    def half_inputs() -> Inputs:
        leaves = map_tensors(
            rounded(branch, dtype), lambda t, field: t.clone().requires_grad_(field in ("weight", "gamma", "beta"))
        )
        return Inputs(x.clone(), leaves, dy)

    ours = run_on(backend, half_inputs(), case)
    with pytest.MonkeyPatch.context() as patch:  # the reference refuses halves on the CPU; torch itself does not
        patch.setattr(sys.modules["spos_kernels.choice_block_reference"], "check_dtype", lambda x: None)
        theirs = run(sk.choice_block_reference, half_inputs(), case)
    for name, right in exact.items():
        if name.endswith("num_batches_tracked"):
            continue
        weight_like = name in ("y", "dx") or name.endswith("weight")
        assert ours[name].dtype == (dtype if weight_like else torch.float32), name
        error = float((ours[name].double() - right).norm())
        by_torch = float((theirs[name].double() - right).norm())
        assert error <= 2 * by_torch + 4 * torch.finfo(dtype).eps * size_of(name, exact), (name, error, by_torch)


@needs_emulator
@pytest.mark.parametrize(
    ("stride", "choice", "launches", "inference"), [(1, "5", 4, 1), (1, "x", 7, 3), (2, "3", 6, 2), (2, "x", 9, 4)]
)
def test_launches(emulator: ModuleType, stride: int, choice: str, launches: int, inference: int) -> None:
    case = Case(choice, stride)
    inputs = draw(case)
    with sk.use_backend("cuda-emulated"):
        emulator.take_counters()
        y = sk.choice_block(inputs.x.requires_grad_(), [copied(inputs.branch)], 0, stride=stride)
        assert emulator.take_counters()["launches"] == launches
        y.backward(inputs.dy)
        assert emulator.take_counters()["launches"] == launches
        with torch.no_grad():
            sk.choice_block(inputs.x, [inputs.branch], 0, stride=stride, training=False)
        assert emulator.take_counters()["launches"] == inference


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
@pytest.mark.parametrize(
    "case", [Case("x", 2, 2, 34, 15, 14, 33, 40), Case("7", 1, 6, 130, 7, 7, 65, 64, True)], ids=str
)
def test_same_bits_from_run_to_run_and_in_any_order_of_blocks(backend: str, case: Case) -> None:
    inputs = draw(case)
    results = []
    for seed in (*SEEDS, 0):
        if backend == "cuda-emulated":
            module_of(backend).configure(seed=seed)
        results.append(run_on(backend, inputs.to(torch.float32), case))
    if backend == "cuda-emulated":
        module_of(backend).configure()
    for other in results[1:]:
        for name, tensor in results[0].items():
            assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
@pytest.mark.parametrize(
    "case",
    [Case(c, s, affine=True, training=False) for c in CHOICES for s in (1, 2)]
    + [dataclasses.replace(case, training=False) for case in SHAPES[:-1:2]]
    + [dataclasses.replace(SHAPES[17], training=False)],  # whose maps do not fit into shared memory
    ids=str,
)
def test_inference_without_keeping_anything_is_the_same(backend: str, case: Case) -> None:
    inputs = moved(draw(case), device_of(backend))
    with sk.use_backend(backend):
        kept = sk.choice_block(inputs.x.requires_grad_(), [inputs.branch], 0, **case.options)
        with torch.no_grad():
            assert torch.equal(kept, sk.choice_block(inputs.x, [inputs.branch], 0, **case.options))


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_operators_are_the_same_and_pass_opcheck(backend: str) -> None:
    case = Case("5", 2, affine=True)
    inputs = moved(draw(case), device_of(backend))
    bank = [t for chain in inputs.branch for layer in chain for t in layer[:3] if t is not None]
    arguments = (inputs.x, bank, None, [True] * 5, 3, 2, False, 1e-5, backend)
    y, _, _ = torch.ops.spos_kernels.choice_block(*arguments)
    with sk.use_backend(backend):
        assert torch.equal(y, sk.choice_block(inputs.x, [inputs.branch], 0, **case.options))
    for tensor in (inputs.x, *bank):
        tensor.requires_grad_()
    torch.library.opcheck(torch.ops.spos_kernels.choice_block, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_a_pointwise_convolution_with_its_normalisation(backend: str) -> None:
    device = device_of(backend)
    x = torch.randn(3, 33, 9, 8, device=device).requires_grad_()
    branch = make_branch("3", 66, 70, 9, 1, affine=True)
    layer = map_tensors(branch, lambda tensor, _: tensor.to(device)).main[0]
    expected_y = F.relu(
        F.batch_norm(F.conv2d(x, layer.weight), None, None, layer.gamma, layer.beta, training=True)
    ).detach()
    with sk.use_backend(backend):
        torch.testing.assert_close(sk.conv_norm_relu(x, layer), expected_y)


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_what_is_refused_names_the_argument(backend: str) -> None:
    branch = map_tensors(make_branch("3", 10, 7, 9, 1, affine=True), lambda t, _: t.to(device_of(backend)))
    x = torch.randn(2, 10, 5, 5, device=device_of(backend))
    doubles = map_tensors(branch, lambda t, f: t if f == "num_batches_tracked" else t.double())
    with sk.use_backend(backend):
        with pytest.raises(TypeError, match=r"x has dtype torch\.float64: backend .* accepts torch\.float32"):
            sk.choice_block(x.double(), [doubles], 0)
        with pytest.raises(TypeError, match=r"main\[0\]\.weight has dtype torch\.float32: expected that of x"):
            sk.choice_block(x.half(), [branch], 0)
        halves = map_tensors(branch, lambda t, f: t if f == "num_batches_tracked" else t.half())
        with pytest.raises(TypeError, match=r"main\[0\]\.gamma has dtype torch\.float16: expected with x in"):
            sk.choice_block(x.half(), [halves], 0)
    with sk.use_backend("reference"), pytest.raises(TypeError, match=r"accepted are torch\.float32 and torch\.float64"):
        sk.choice_block(x.half(), [branch], 0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("choice", ["3", "x"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_nan_goes_where_it_goes_in_torch(backend: str, stride: int, choice: str, training: bool) -> None:
    """ReLU keeps it, so that a network that has diverged shows it, in y and in the running statistics."""
    case = Case(choice, stride, 2, 16, 7, 6, 12, 24, True)
    branch = copied(make_branch(choice, case.channels, case.mid, case.out, stride, True))
    x = torch.randn(case.x_shape).contiguous(memory_format=torch.channels_last)
    x[0, 1, 2, 3] = float("nan")
    found = []
    for name in (backend, "reference"):
        device = device_of(name)
        moved_branch = map_tensors(copied(branch), lambda tensor, _, d=device: tensor.detach().clone().to(d))
        with sk.use_backend(name), torch.no_grad():
            y = sk.choice_block(x.to(device), [moved_branch], 0, stride=stride, training=training)
        means = [layer.running_mean.cpu().isnan() for layer in (*moved_branch.main, *moved_branch.proj)]
        found.append((y.cpu().isnan(), means))
    (ours, our_means), (theirs, their_means) = found
    assert theirs.any() and torch.equal(ours, theirs)
    assert all(torch.equal(a, b) for a, b in zip(our_means, their_means, strict=True))
