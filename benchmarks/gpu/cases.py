"""What is timed: our operation and the same in torch's own layers, in every layout and with every help that it has.

A case makes its tensors on a device and returns calls by name. "ours" is one of them; "NCHW", "NHWC" and "NHWC
compiled" are torch's. cudnn.benchmark is turned on around "NHWC tuned", which is otherwise "NHWC".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from plain_shufflenet import plain
from timing import Call
from torch import Tensor, nn

import spos_kernels as sk
from spos.spaces.shufflenet import ShuffleBlock

OURS, TUNED = "ours", "NHWC tuned"


@dataclass(frozen=True)
class Case:
    """One operation at one shape; `small` makes it quick, for a machine without a GPU."""

    name: str
    batch: int
    channels: int
    size: int
    dtype: torch.dtype
    make: Callable[[Case, str, bool], dict[str, Call]]
    kernel: int = 3

    def calls(self, device: str, compiled: bool) -> dict[str, Call]:
        """By name; compiled: torch.compile takes a minute a case, and not every machine can."""
        return self.make(self, device, compiled)

    def small(self) -> Case:
        return replace(self, batch=2, channels=16, size=8, dtype=torch.float32)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name} {self.batch}x{self.channels}x{self.size}² {dtype}"

    def map(self, device: str, nhwc: bool = True) -> Tensor:
        x = torch.randn(self.batch, self.channels, self.size, self.size, device=device, dtype=self.dtype)
        return x.to(memory_format=torch.channels_last if nhwc else torch.contiguous_format).requires_grad_()


def step(function: Callable[[], Tensor], leaves: list[Tensor]) -> Call:
    """Forward and backward."""
    with torch.no_grad():
        dy = torch.randn_like(function())

    def call() -> object:
        return torch.autograd.grad(function(), leaves, dy)

    return call


def against(
    case: Case,
    device: str,
    compiled: bool,
    ours: Callable[[Tensor], Tensor],
    theirs: Callable[[Tensor], Tensor],
    parameters: list[Tensor],
) -> dict[str, Call]:
    """Two functions of a map, ours on NHWC, torch's in each way."""
    nchw, nhwc = case.map(device, nhwc=False), case.map(device)
    calls = {
        OURS: step(lambda: ours(nhwc), [nhwc, *parameters]),
        "NCHW": step(lambda: theirs(nchw), [nchw, *parameters]),
        "NHWC": step(lambda: theirs(nhwc), [nhwc, *parameters]),
        TUNED: step(lambda: theirs(nhwc), [nhwc, *parameters]),
    }
    if compiled:
        fast = torch.compile(theirs)
        calls["NHWC compiled"] = step(lambda: fast(nhwc), [nhwc, *parameters])
    return calls


def depthwise(case: Case, device: str, compiled: bool) -> dict[str, Call]:
    c, k = case.channels, case.kernel
    weight = torch.randn(c, 1, k, k, device=device, dtype=case.dtype, requires_grad=True)

    def theirs(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, padding=k // 2, groups=c)

    return against(case, device, compiled, lambda x: sk.depthwise_conv2d(x, weight), theirs, [weight])


def sliced(case: Case, device: str, compiled: bool) -> dict[str, Call]:
    c, k = case.channels, case.kernel
    wide = torch.randn(2 * c, 2 * c, k, k, device=device, dtype=case.dtype, requires_grad=True)

    def ours(x: Tensor) -> Tensor:
        return sk.sliced_conv2d(x, wide, out_channels=c, padding=k // 2)

    def theirs(x: Tensor) -> Tensor:
        return F.conv2d(x, wide[:c, :c], padding=k // 2)

    return against(case, device, compiled, ours, theirs, [wide])


def choice_block(case: Case, device: str, compiled: bool) -> dict[str, Call]:
    """A block in training, its normalisations' parameters in float32 as under mixed precision."""
    block = ShuffleBlock(f"choice_{case.kernel}", case.channels, case.channels, 1)
    calls = {}
    for name, nhwc in ((OURS, True), ("NCHW", False), ("NHWC", True), (TUNED, True), ("NHWC compiled", True)):
        if name == "NHWC compiled" and not compiled:
            continue
        module = (block if name == OURS else plain(block, nhwc)).to(device)
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.to(case.dtype)
        run: Callable[[Tensor], Tensor] = torch.compile(module) if name == "NHWC compiled" else module
        calls[name] = of_module(run, case.map(device, nhwc), [*module.parameters()])
    return calls


def of_module(run: Callable[[Tensor], Tensor], x: Tensor, parameters: list[Tensor]) -> Call:
    return step(lambda: run(x), [x, *parameters])


def quantized(case: Case, device: str, compiled: bool) -> dict[str, Call]:
    """Activations to 4 bits with a learned clip (PACT)."""
    clip = torch.full((1,), 2.0, device=device, requires_grad=True)

    def theirs(x: Tensor) -> Tensor:
        value = torch.minimum(x.clamp(min=0), clip)
        return value + (torch.round(value * (15 / clip)) * (clip / 15) - value).detach()

    return against(case, device, compiled, lambda x: sk.fake_quantize(x, 4, "pact", clip), theirs, [clip])


def low_bit(case: Case, device: str, compiled: bool) -> dict[str, Call]:
    """Codes of 4 bits by packed weights of 4 bits, codes out; torch's float convolution of the same shape."""
    c, k = case.channels, case.kernel
    codes = torch.randint(16, (c, c, k, k), dtype=torch.uint8, device=device)
    weight = sk.pack_weight(codes, 4, scale=torch.rand(c, device=device))
    x = torch.randint(16, (case.batch, c, case.size, case.size), dtype=torch.uint8, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    quantizer = sk.Quantizer(0.1, 4)

    def ours() -> object:
        return sk.lowbit_conv2d(x, weight, x_quantizer=quantizer, padding=k // 2, relu=True, out_quantizer=quantizer)

    def theirs(nhwc: bool) -> Call:
        layout = torch.channels_last if nhwc else torch.contiguous_format
        plain = torch.randn(c, c, k, k, device=device, dtype=case.dtype).to(memory_format=layout)
        of = case.map(device, nhwc).detach()
        return lambda: F.conv2d(of, plain, padding=k // 2).relu_()

    return {OURS: ours, "NCHW": theirs(False), "NHWC": theirs(True), TUNED: theirs(True)}


def fp16(make: Callable[[Case, str, bool], dict[str, Call]], name: str, *shape: int, kernel: int = 3) -> list[Case]:
    """A case in both types."""
    return [Case(name, *shape, dtype, make, kernel) for dtype in (torch.float32, torch.float16)]


CASES = [
    *(each for k in (3, 5, 7) for each in fp16(depthwise, f"depthwise {k}x{k}", 128, 160, 28, kernel=k)),
    *fp16(sliced, "sliced 1x1", 128, 160, 28, kernel=1),
    *fp16(sliced, "sliced 3x3", 128, 64, 28),
    *(each for k in (3, 7) for each in fp16(choice_block, f"choice block {k}x{k}", 128, 160, 28, kernel=k)),
    *fp16(quantized, "fake quantize", 128, 160, 28),
    Case("low-bit w4a4 3x3 forward, against", 128, 128, 28, torch.float16, low_bit),
]
