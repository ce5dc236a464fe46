"""Choice blocks, SGD, a whole training step on the Triton kernels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from choice_block_support import CHOICES, Case, assert_accurate, copied, expected, make_branch, map_tensors, run
from torch import Tensor, nn

import spos_kernels as sk
from spos_kernels.cuda.graphs import capture
from spos_kernels.cuda.modules import availability, is_interpreted, module_of, stream_of
from spos_kernels.cuda.network_pass import Network, Part
from spos_kernels.cuda.sgd import PreparedStep, Update
from spos_kernels.cuda.training_step import Descent, TrainingStep
from spos_kernels.layout import empty_nhwc

if availability("triton")[0]:
    from spos_kernels.triton import choice_block, choice_block_memory

pytestmark = pytest.mark.usefixtures("one_thread")


def on(device: str, branch: sk.Branch, grad: bool = False) -> sk.Branch:
    def move(tensor: Tensor, field: str) -> Tensor:
        return tensor.detach().to(device).requires_grad_(grad and field in ("weight", "gamma", "beta"))

    return map_tensors(branch, move)


@pytest.mark.parametrize(
    "case",
    [
        Case("3", 1, 2, 6, 5, 4, 5, 4),
        Case("5", 2, 2, 5, 5, 6, 6, 7, affine=True),
        Case("7", 1, 3, 70, 3, 3, 34, 33),
        Case("x", 2, 2, 6, 5, 4, 7, 5, affine=True, momentum=None),
        Case("x", 1, 2, 6, 4, 5, 5, 3, affine=True),
        Case("5", 1, 2, 6, 5, 5, 7, 5, affine=True, training=False),
    ],
    ids=str,
)
def test_block_is_accurate(case: Case, device: str) -> None:
    inputs, _, _ = expected(case)
    inputs = inputs.to(torch.float32)
    moved = type(inputs)(inputs.x.to(device), on(device, inputs.branch, grad=True), inputs.dy.to(device))
    with sk.use_backend("triton"):
        results = run(sk.choice_block, moved, case)
    assert_accurate({name: tensor.cpu() for name, tensor in results.items()}, case)


@pytest.mark.parametrize(
    ("case", "most"),
    [
        (Case("3", 1, 1, 6, 23, 25, 4, 5), None),  # 18 parts of 32 pixels, 3 of a weight's gradient
        (Case("5", 2, 2, 4, 13, 13, 3, 3, affine=True), 2),  # programs with several tiles
    ],
    ids=str,
)
def test_many_programs_share_a_sum(case: Case, most: int | None, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if most is not None:
        for module in (choice_block, choice_block_memory):
            monkeypatch.setattr(module, "MOST_PARTS", most)
    inputs, _, _ = expected(case)
    inputs = inputs.to(torch.float32)
    moved = type(inputs)(inputs.x.to(device), on(device, inputs.branch, grad=True), inputs.dy.to(device))
    with sk.use_backend("triton"):
        results = run(sk.choice_block, moved, case)
    assert_accurate({name: tensor.cpu() for name, tensor in results.items()}, case)


def test_more_channels_than_counters_are_refused(device: str) -> None:
    case = Case("3", 1, 1, 4, 2, 1, 16385, 2)
    branch = on(device, make_branch("3", case.channels, case.mid, case.out, 1))
    with (
        sk.use_backend("triton"),
        pytest.raises(ValueError, match="a layer has 16,385 channels, expected at most 16,384"),
    ):
        sk.choice_block(torch.zeros(case.x_shape, device=device), [branch], 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_block_of_halves(dtype: torch.dtype, device: str) -> None:
    case = Case("5", 2, 2, 6, 6, 5, 9, 8, affine=True)
    branch = copied(make_branch("5", case.channels, case.mid, case.out, 2, True))
    halves = map_tensors(branch, lambda t, field: t.detach().to(device, dtype if field == "weight" else t.dtype))
    x = torch.randn(case.x_shape).to(device, dtype)
    with sk.use_backend("triton"), torch.no_grad():
        y = sk.choice_block(x, [halves], 0, stride=2)
    exact = map_tensors(halves, lambda t, field: t if field == "num_batches_tracked" else t.double())
    with sk.use_backend("reference"), torch.no_grad():
        right = sk.choice_block(x.double(), [exact], 0, stride=2)
    assert float((y.double() - right).norm() / right.norm()) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("stride", [1, 2])
def test_choice_in_device_memory(stride: int, device: str) -> None:
    """The bits of the branch given by value; gradients of the others are left alone."""
    channels, out = 6, 5
    choices = (0, 3)
    branches = [
        on(device, make_branch(CHOICES[i], channels, mid, out, stride)) for i, mid in zip(choices, (4, 9), strict=True)
    ]
    case = Case("3", stride, 2, channels, 5, 4, 4, out)
    x = torch.randn(case.x_shape, device=device).to(memory_format=torch.channels_last)
    dy = torch.randn(case.y_shape, device=device).to(memory_format=torch.channels_last)
    choice = torch.zeros(1, dtype=torch.int32, device=device)
    by_value = [map_tensors(branch, lambda t, _: t.clone()) for branch in branches]
    part = Part(x, branches, stride, False, choice, "triton")
    module = module_of("triton")
    workspace = torch.empty(max(part.workspaces), dtype=torch.uint8, device=device)
    counters = torch.zeros(module.CHOICE_BLOCK_COUNTERS, dtype=torch.int32, device=device)
    for number in (1, 0):
        choice.fill_(number)
        others = [t.clone() for layer in part.gradients[1 - number] for t in layer if t is not None]
        dx = empty_nhwc(x.shape, like=x).fill_(float("nan"))
        memory = (part.kept, part.statistics)
        part.table.forward(x, part.rows, choice, part.y, *memory, workspace, counters, 0.1, 1e-5, False, stream_of(x))
        part.table.backward(dy, x, part.rows, choice, *memory, dx, workspace, counters, 1e-5, False, stream_of(x))
        leaves = map_tensors(by_value[number], lambda t, f: t.requires_grad_(f in ("weight", "gamma", "beta")))
        trained = [t for chain in leaves for layer in chain for t in layer[:3] if t is not None]
        with sk.use_backend("triton"):
            y = sk.choice_block(x.requires_grad_(), [leaves], 0, stride=stride)
            right_dx, *right = torch.autograd.grad(y, [x, *trained], dy)
        x.requires_grad_(False)
        found = [t for layer in part.gradients[number] for t in layer if t is not None]
        for mine, other in zip([part.y, dx, *found], [y, right_dx, *right], strict=True):
            assert torch.equal(mine, other)
        after = [t for layer in part.gradients[1 - number] for t in layer if t is not None]
        assert all(torch.equal(a, b) for a, b in zip(others, after, strict=True))
        assert not counters.any()


@pytest.mark.parametrize("nesterov", [False, True])
def test_descent_touches_what_is_chosen(nesterov: bool, device: str) -> None:
    """Rows that a width excludes, and parameters of other choices, keep their bits."""
    shapes = [(5000,), (12, 30), (40,)]
    weights = [torch.randn(shape, device=device) for shape in shapes]
    gradients, buffers = ([torch.randn_like(w) for w in weights] for _ in range(2))
    choice, rows = (torch.tensor([n], dtype=torch.int32, device=device) for n in (2, 5))
    common = {"momentum": 0.9, "weight_decay": 0.01, "nesterov": nesterov, "rate": 0}
    updates = [
        Update(weights[0], gradients[0], buffers[0], 0, 1, 5000, 0, **common),
        Update(weights[1], gradients[1], buffers[1], 0, 12, 30, 30, **common, row_count=rows, row_unit=1),
        Update(weights[2], gradients[2], buffers[2], 0, 1, 40, 0, **common, choice=choice, chosen=1),
    ]
    before = [w.clone() for w in weights]
    exact = [w.double() for w in weights]
    norm = float(torch.cat([gradients[0], gradients[1][:5].flatten()]).double().norm())
    for max_norm in (0.0, norm / 3):
        step = PreparedStep(updates, [0.1], torch.device(device), "triton", max_norm)
        step.run()
        scale = min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
        for number, limit in ((0, None), (1, 5)):
            part = slice(None) if limit is None else slice(0, limit)
            gradient = gradients[number][part].double() * scale + 0.01 * exact[number][part]
            old = buffers[number][part].double()  # already moved: taken from the weights below
            moved = gradient + 0.9 * old if nesterov else old
            exact[number][part] -= 0.1 * moved
            torch.testing.assert_close(weights[number][part].double(), exact[number][part], rtol=1e-5, atol=1e-6)
    assert torch.equal(weights[2], before[2]) and torch.equal(weights[1][5:], before[1][5:])


def layer(outputs: int, inputs: int, kernel: int) -> sk.ConvBN:
    weight = torch.empty(outputs, 1 if kernel > 1 else inputs, kernel, kernel)
    nn.init.kaiming_normal_(weight)
    return sk.ConvBN(weight, None, None, torch.zeros(outputs), torch.ones(outputs), torch.tensor(0))


def test_a_training_step_of_a_network_is_that_of_the_emulated_kernels(device: str) -> None:
    """Stem, a block of each stride with the choice in memory, head, loss and descent: two steps of two paths."""
    if not (is_interpreted() and availability("cuda-emulated")[0]):
        pytest.skip("compares with the emulated CUDA kernels")
    torch.manual_seed(0)
    stem = layer(8, 3, 1)._replace(weight=(torch.randn(8, 3, 3, 3) / 4).to(memory_format=torch.channels_last))
    second = [make_branch(c, 8, 6, 8, 2) for c in ("3", "5")]
    third = [make_branch(c, 16, 5, 8, 1) for c in ("3", "x")]
    last, classifier = layer(20, 16, 1), torch.randn(4, 20) / 4
    losses: dict[str, list[float]] = {}
    finals: dict[str, Tensor] = {}
    images, labels = torch.randn(2, 2, 3, 8, 8), torch.tensor([[0, 3], [1, 2]])
    for backend in ("triton", "cuda-emulated"):

        def own(branch: sk.Branch) -> sk.Branch:
            return map_tensors(branch, lambda t, _: t.detach().clone(memory_format=torch.preserve_format))

        chains = own(sk.Branch((stem, last)))
        network = Network(
            chains.main[0],
            1,
            ((tuple(map(own, second)), 2), (tuple(map(own, third)), 1)),
            chains.main[1],
            classifier.clone(),
        )
        step = TrainingStep(
            network, (2, 3, 8, 8), backend, label_smoothing=0.1, dropout=0.2, descent=Descent(0.9, 1e-3)
        )
        assert step.update is not None
        step.update.set_rates([0.05])
        losses[backend] = []
        replay = None
        for number, arch in enumerate(((0, 1), (1, 0))):
            step.images.copy_(images[number])
            step.labels.copy_(labels[number])
            step.arch.copy_(torch.tensor(arch, dtype=torch.int32))
            if replay is None:
                replay = capture(step.run, backend, step.images.device)
            else:
                replay()
            losses[backend].append(float(step.loss))
        finals[backend] = network.classifier
    assert losses["triton"] == pytest.approx(losses["cuda-emulated"], rel=1e-4)
    torch.testing.assert_close(finals["triton"], finals["cuda-emulated"], rtol=1e-3, atol=1e-4)
    assert F.cosine_similarity(finals["triton"] - classifier, finals["cuda-emulated"] - classifier).min() > 0.999
