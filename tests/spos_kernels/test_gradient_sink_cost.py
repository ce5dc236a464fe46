"""What a step on a slice costs: the weight is 64 MB, its slice 64 KB, and what is as large as the weight shows."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import spos_kernels as sk
from spos_kernels.gradient_sink import Extent


def big_step(kernel: int, sink: sk.GradientSink, optimizer: sk.SGD, weight: Tensor) -> Callable[[], None]:
    x = torch.randn(2, 128 // kernel, 8, 8).to(memory_format=torch.channels_last).requires_grad_()

    def step() -> None:
        with sink:
            y = sk.sliced_conv2d(x, weight, out_channels=128 // kernel, out_offset=64, in_offset=32)
        y.sum().backward()
        x.grad = None
        sink.clip_grad_norm_(1.0)
        optimizer.step()

    return step


def peak_memory(work: Callable[[], None]) -> int:
    """Bytes of memory in use at the peak of `work`, beyond those before: pages touched, whoever allocated them."""
    status, references = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def kilobytes(name: str) -> int:
        return int(status.read_text().split(f"{name}:")[1].split()[0])

    try:
        references.write_text("5")  # the peak so far is forgotten
    except OSError:
        pytest.skip("the system does not tell a process its peak memory")
    before = kilobytes("VmRSS")
    work()
    return 1024 * max(0, kilobytes("VmHWM") - before)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_step_costs_what_the_slice_costs(kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(torch.randn(4096 // kernel, 4096 // kernel, kernel, kernel))
    sink = sk.GradientSink([weight])
    optimizer = sk.SGD([weight], lr=0.1, momentum=0.9, weight_decay=1e-4, sink=sink)
    step = big_step(kernel, sink, optimizer, weight)
    step()  # buffers are allocated at the first

    assert peak_memory(lambda: weight.detach().clone()) > 0.9 * weight.nbytes  # the method sees such things
    assert peak_memory(lambda: [step() for _ in range(3)] and None) < weight.nbytes // 32

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert 0 < allocated < weight.nbytes // 32

    written = torch.zeros_like(weight, dtype=torch.bool)
    Extent(64, 64 + 128 // kernel, 32, 32 + 128 // kernel).of(written).fill_(True)
    sink.buffer(weight).fill_(float("nan"))
    before = weight.detach().clone()
    optimizer.state[weight]["momentum_buffer"][~written] = float("nan")
    step()
    assert sink.buffer(weight)[~written].isnan().all() and sink.buffer(weight)[written].isfinite().all()
    assert torch.equal(weight[~written], before[~written]) and (weight[written] != before[written]).float().mean() > 0.9
    assert optimizer.state[weight]["momentum_buffer"][~written].isnan().all()
