"""conv_norm_relu against its reference in double precision, with torch's own float32 error as the yardstick."""

import sys

import pytest
import torch
from isa_support import ISAS
from torch import Tensor

import spos_kernels as sk
from spos_kernels import _C, ConvBN

MODULE = sys.modules["spos_kernels.choice_block_kernels"]

# batch, inputs, outputs, height, width, kernel, stride, padding
SHAPES = [
    (2, 7, 5, 3, 4, 1, 1, 0),
    (3, 33, 130, 7, 7, 1, 1, 0),
    (4, 160, 96, 2, 2, 1, 1, 0),
    (2, 3, 16, 15, 14, 3, 2, 1),
    (2, 3, 16, 9, 8, 3, 1, 1),
    (2, 1, 3, 6, 5, 5, 1, 0),
    (2, 5, 17, 1, 1, 3, 1, 1),
    (9, 4, 6, 7, 3, 7, 2, 3),
]


def make_layer(inputs: int, outputs: int, kernel: int, affine: bool) -> ConvBN:
    weight = torch.randn(outputs, inputs, kernel, kernel) / (inputs * kernel**2) ** 0.5
    gamma, beta = (torch.rand(outputs) + 0.5, torch.randn(outputs)) if affine else (None, None)
    return ConvBN(weight, gamma, beta, torch.randn(outputs) * 0.2, torch.rand(outputs) + 0.5, torch.tensor(2))


def run(function: object, x: Tensor, layer: ConvBN, dtype: torch.dtype, options: dict[str, object]) -> list[Tensor]:
    """Return y, the gradients of x (of 1×1 alone), weight, gamma and beta, and the running statistics."""
    pointwise = layer.weight.shape[-1] == 1
    x = x.detach().clone().to(dtype).requires_grad_(pointwise)
    trained = [None if t is None else t.detach().clone().to(dtype).requires_grad_() for t in layer[:3]]
    running = [t.clone().to(dtype) for t in layer[3:5] if t is not None]
    count = torch.tensor(2)
    y = function(x, ConvBN(*trained, *running, count), **options)  # type: ignore[operator,arg-type]
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape).to(dtype))
    gradients = [t.grad for t in ([x] if pointwise else []) + trained if t is not None]
    return [y.detach(), *gradients, *running, count.double()]


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_equals_the_reference(
    shape: tuple[int, ...], affine: bool, training: bool, isa: _C.Isa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "ISA", isa)
    torch.manual_seed(0)
    batch, inputs, outputs, height, width, kernel, stride, padding = shape
    x, layer = torch.randn(batch, inputs, height, width), make_layer(inputs, outputs, kernel, affine)
    options = {"stride": stride, "padding": padding, "training": training}
    ours = run(sk.conv_norm_relu, x, layer, torch.float32, options)
    torchs = run(sk.conv_norm_relu_reference, x, layer, torch.float32, options)
    exact = run(sk.conv_norm_relu_reference, x, layer, torch.float64, options)
    for mine, theirs, right in zip(ours, torchs, exact, strict=True):
        # Five units beyond: both round, and torch's error may happen to be small.
        allowed = 2 * (theirs - right).norm() + 5 * torch.finfo(torch.float32).eps * right.norm()
        assert (mine - right).norm() <= allowed


def test_gradcheck() -> None:
    torch.manual_seed(0)
    layer = make_layer(3, 4, 1, affine=True)
    tensors = [t.double().requires_grad_() for t in layer[:3] if t is not None]
    x = torch.randn(3, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *t: sk.conv_norm_relu(x, ConvBN(*t)), [x, *tensors])


def test_an_image_that_wants_a_gradient_gets_it() -> None:
    layer = make_layer(3, 4, 3, affine=False)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    sk.conv_norm_relu(x, layer, padding=1).square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 2}, "1×1 convolution accepts"),
        ({"padding": 1}, "1×1 convolution accepts"),
        ({"stride": 1.0}, "stride = 1.0"),
        ({"eps": 0}, "eps = 0"),
    ],
)
def test_bad_options_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        sk.conv_norm_relu(torch.randn(2, 3, 4, 4), make_layer(3, 4, 1, False), **change)  # type: ignore[arg-type]


def test_bad_tensors_are_named() -> None:
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"layer\.weight has shape"):
        sk.conv_norm_relu(x, make_layer(5, 4, 1, False))
    with pytest.raises(TypeError, match="layer is a Tensor"):
        sk.conv_norm_relu(x, torch.randn(4, 3, 1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fits in once padded"):
        sk.conv_norm_relu(x, make_layer(3, 4, 7, False))
    with pytest.raises(ValueError, match="at least 2 values"):
        sk.conv_norm_relu(x[:1, :, :1, :1], make_layer(3, 4, 1, False))
