"""What `make bounds` counts: one entry a case, easily added to.

A case is a function that makes its tensors and returns the call to count. `multiply_adds` are those of the
floating-point units, which the emulator does not see (those of mma instructions it counts): for each start of a
kernel's name, the number for each launch of such a kernel, in their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

import spos_kernels as sk
from spos_kernels.cuda.modules import module_of
from spos_kernels.layout import empty_nhwc

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    name: str
    shapes: str
    prepare: Callable[[], Call]
    multiply_adds: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def multiply_adds_by_launch(self, kernels: Sequence[str]) -> list[int]:
        """Of these launches; ValueError if what is stated is not used up: then kernels have other names now."""
        met: Counter[str] = Counter()
        found = []
        for kernel in kernels:
            start = next((each for each in self.multiply_adds if kernel.startswith(each)), None)
            if start is None:
                found.append(0)
                continue
            if met[start] == len(self.multiply_adds[start]):
                raise ValueError(f"{self.name}: more launches of {start} than multiply_adds states")
            found.append(self.multiply_adds[start][met[start]])
            met[start] += 1
        unused = [start for start, numbers in self.multiply_adds.items() if met[start] != len(numbers)]
        if unused:
            raise ValueError(f"{self.name}: fewer launches of {', '.join(unused)} than multiply_adds states")
        return found


CASES: list[Case] = []


def case(shapes: str, **multiply_adds: Sequence[int]) -> Callable[[Callable[[], Call]], Callable[[], Call]]:
    def add(prepare: Callable[[], Call]) -> Callable[[], Call]:
        CASES.append(Case(prepare.__name__.replace("_", " "), shapes, prepare, multiply_adds))
        return prepare

    return add


def image(batch: int, channels: int, size: int, dtype: torch.dtype, grad: bool = True) -> Tensor:
    """A map in NHWC."""
    x = torch.randn(batch, channels, size, size, dtype=dtype).to(memory_format=torch.channels_last)
    return x.requires_grad_(grad)


def step(function: Callable[[], Tensor], *leaves: Tensor) -> Call:
    """Forward and backward, of a gradient that is there already."""
    with torch.no_grad():
        dy = torch.ones_like(function())

    def call() -> object:
        return torch.autograd.grad(function(), leaves, dy)

    return call


PARAMETERS = 7 * 640 * 640 + 5 * 320 * 320 + 64 * 256
LINEAR = {"rows_kernel": [64 * 512 * 512] * 2, "gradient_kernel": [64 * 512 * 512]}
DEPTHWISE = 4 * 64 * 28 * 28 * 25


@case(
    "x (4, 64, 28, 28) fp16, k = 5, stride 1: forward, dgrad, wgrad",
    convolve_kernel=[DEPTHWISE, DEPTHWISE],
    wgrad_kernel=[DEPTHWISE],
)
def depthwise_conv2d_fp16() -> Call:
    x, weight = image(4, 64, 28, torch.float16), torch.randn(64, 1, 5, 5, dtype=torch.float16, requires_grad=True)
    return step(lambda: sk.depthwise_conv2d(x, weight), x, weight)


@case("x (4, 160, 14, 14) fp16, a slice of 160 x 160 of a weight of 256 x 256, 1 x 1: forward, dgrad, wgrad")
def sliced_conv2d_pointwise_fp16() -> Call:
    x, weight = image(4, 160, 14, torch.float16), torch.randn(256, 256, 1, 1, dtype=torch.float16, requires_grad=True)
    return step(lambda: sk.sliced_conv2d(x, weight, out_channels=160), x, weight)


@case("x (2, 64, 14, 14) bf16, a slice of 64 x 64 of a weight of 128 x 128, 3 x 3: forward, dgrad, wgrad")
def sliced_conv2d_3x3_bf16() -> Call:
    x, weight = image(2, 64, 14, torch.bfloat16), torch.randn(128, 128, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    return step(lambda: sk.sliced_conv2d(x, weight, out_channels=64, padding=1), x, weight)


POINTWISE, DEPTHWISE_80 = 4 * 14 * 14 * 80 * 80, 4 * 14 * 14 * 80 * 25


def choice_block(dtype: torch.dtype) -> tuple[Tensor, sk.Branch]:
    """The 5 x 5 option of a block of 160 channels, of which 80 go through its convolutions."""

    def layer(*shape: int) -> sk.ConvBN:
        weight = torch.randn(shape, dtype=dtype, requires_grad=True)
        return sk.ConvBN(weight, None, None, torch.zeros(shape[0]), torch.ones(shape[0]), torch.tensor(0))

    return image(4, 160, 14, dtype), sk.Branch((layer(80, 80, 1, 1), layer(80, 1, 5, 5), layer(80, 80, 1, 1)))


def choice_block_step(dtype: torch.dtype) -> Call:
    x, branch = choice_block(dtype)
    return step(lambda: sk.choice_block(x, [branch], 0), x, *(layer.weight for layer in branch.main))


@case(
    "x (4, 160, 14, 14) fp32, pointwise, 5 x 5 and pointwise convolution of 80 channels: forward and backward",
    **{
        "forward_kernel<(Math)": [POINTWISE, POINTWISE],
        "forward_kernel<fp": [DEPTHWISE_80],
        "backward_kernel<(Math)": [2 * POINTWISE, 2 * POINTWISE],
        "backward_kernel<fp": [2 * DEPTHWISE_80],
    },
)
def choice_block_fp32() -> Call:
    return choice_block_step(torch.float32)


@case(
    "x (4, 160, 14, 14) fp16, pointwise, 5 x 5 and pointwise convolution of 80 channels: forward and backward",
    **{"forward_kernel<fp": [DEPTHWISE_80], "backward_kernel<fp": [2 * DEPTHWISE_80]},
)
def choice_block_fp16() -> Call:
    return choice_block_step(torch.float16)


@case("x (4, 160, 14, 14) fp16, the same without gradients, by running statistics", inference_kernel=[DEPTHWISE_80])
def choice_block_inference_fp16() -> Call:
    x, branch = choice_block(torch.float16)
    x.requires_grad_(False)

    def call() -> object:
        with torch.no_grad():
            return sk.choice_block(x, [branch], 0, training=False)

    return call


@case("x (4, 64, 28, 28) fp32, 4 bits, one learned step: forward, gradients of x and of the step")
def fake_quantize_lsq_fp32() -> Call:
    x, scale = image(4, 64, 28, torch.float32), torch.tensor(0.1, requires_grad=True)
    return step(lambda: sk.fake_quantize(x, 4, "lsq", scale, signed=True), x, scale)


@case("x (4, 64, 28, 28) fp16, 4 bits, a learned step for each channel: forward, gradients of x and of the steps")
def fake_quantize_per_channel_fp16() -> Call:
    x, scale = image(4, 64, 28, torch.float16), torch.full((64,), 0.1, requires_grad=True)
    return step(lambda: sk.fake_quantize(x, 4, "lsq", scale, signed=True, axis=1), x, scale)


@case("x (64, 512), a slice of 512 x 512 of a weight of 1024 x 1024, fp32: forward, dgrad, wgrad", **LINEAR)
def sliced_linear_fp32() -> Call:
    x, weight = torch.randn(64, 512, requires_grad=True), torch.randn(1024, 1024, requires_grad=True)
    return step(lambda: sk.sliced_linear(x, weight, out_features=512), x, weight)


@case(f"{PARAMETERS:,} parameters with momentum, gradients clipped by norm", sgd_kernel=[3 * PARAMETERS])
def sgd_with_clipping() -> Call:
    """About what a path of shufflenet-oneshot has, in matrices of 640 x 640 and 320 x 320."""
    shapes = [(640, 640)] * 7 + [(320, 320)] * 5 + [(64, 256)]
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    assert sum(parameter.numel() for parameter in parameters) == PARAMETERS
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return sk.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4).prepare(max_norm=1.0).run


@case("images (16, 3, 64, 64) fp32 to windows of 3 x 3 at stride 2")
def im2row_of_the_stem() -> Call:
    module, x = module_of("cuda-emulated"), image(16, 3, 64, torch.float32, grad=False)
    windows = empty_nhwc((16, 27, 32, 32), like=x)
    return lambda: module.im2row(x, windows, 3, 2, 1, 0)


@case("a map (64, 1024, 4, 4) fp32 to features with dropout, their gradient, cross entropy of 64 rows of 1000 classes")
def classifier_fp32() -> Call:
    module, x = module_of("cuda-emulated"), image(64, 1024, 4, torch.float32, grad=False)
    features, count = torch.empty(64, 1024), torch.zeros(1, dtype=torch.int64)
    logits, labels = torch.randn(64, 1000), torch.arange(64)
    losses, loss, dlogits = torch.empty(64), torch.empty(1), torch.empty(64, 1000)

    def call() -> None:
        module.pool(x, features, 0.1, 0, count, False, 0)
        module.cross_entropy(logits, labels, losses, loss, dlogits, 0.1, 0)
        module.pool(x, features, 0.1, 0, count, True, 0)

    return call


@case("x (4, 128, 14, 14) codes of 4 bits, 3 x 3 weight of 128 x 128 of 4 bits, scales and ReLU, float32 results")
def lowbit_conv2d_w4a4() -> Call:
    codes = torch.randint(16, (128, 128, 3, 3)).to(torch.uint8)
    weight = sk.pack_weight(codes, 4, scale=torch.rand(128))
    x = torch.randint(16, (4, 128, 14, 14)).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    return lambda: sk.lowbit_conv2d(x, weight, x_quantizer=sk.Quantizer(0.1, 4), padding=1, relu=True)


@case("x (4, 128, 14, 14) float32 to be quantized to 4 bits, the same weight")
def lowbit_conv2d_floats_w4a4() -> Call:
    weight = sk.pack_weight(torch.randint(16, (128, 128, 3, 3)).to(torch.uint8), 4, scale=torch.rand(128))
    x = image(4, 128, 14, torch.float32)
    return lambda: sk.lowbit_conv2d(x, weight, x_quantizer=sk.Quantizer(0.1, 4), padding=1, relu=True)


@case("x (4, 128, 14, 14) float32 to be quantized to 2 bits, 3 x 3 weight of 128 x 128 of 1 bit")
def lowbit_conv2d_floats_w1a2() -> Call:
    weight = sk.pack_weight(torch.randint(2, (128, 128, 3, 3)).to(torch.uint8), 1, scale=torch.rand(128))
    x = image(4, 128, 14, torch.float32)
    return lambda: sk.lowbit_conv2d(x, weight, x_quantizer=sk.Quantizer(0.1, 2), padding=1, relu=True)


@case("one row of 2048 codes of 8 bits, weight of 2048 x 2048 of 4 bits, scales, float32 results")
def lowbit_matmul_row_w4a8() -> Call:
    weight = sk.pack_weight(torch.randint(16, (2048, 2048)).to(torch.uint8), 4, scale=torch.rand(2048))
    x = torch.randint(256, (1, 2048)).to(torch.uint8)
    return lambda: sk.lowbit_matmul(x, weight, x_quantizer=sk.Quantizer(0.1, 8))


@case("x (4, 256, 14, 14) codes of 4 bits, depthwise 3 x 3 weight of 4 bits, scales and ReLU, codes as results")
def lowbit_conv2d_depthwise_w4a4() -> Call:
    weight = sk.pack_weight(torch.randint(16, (256, 1, 3, 3)).to(torch.uint8), 4, scale=torch.rand(256))
    x = torch.randint(16, (4, 256, 14, 14)).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    quantizer = sk.Quantizer(0.1, 4)
    return lambda: sk.lowbit_conv2d(
        x, weight, x_quantizer=quantizer, padding=1, groups=256, relu=True, out_quantizer=quantizer
    )
