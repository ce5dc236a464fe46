"""Launches captured once and replayed: a CUDA graph on a GPU, the emulator's recording of the launches without one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from spos_kernels.cuda.modules import is_interpreted, module_of


def capture(run: Callable[[], None], backend: str, device: torch.device) -> Callable[[], None]:
    """Return what replays the launches of `run`, which this calls: twice for GPUs, once for "cuda-emulated" and in
    Triton's interpreter, which has no graphs: there a replay is another call.

    device: where the launches go. All memory that `run` touches has to stay where it is, and has to be kept, as long as
    the result is in use.
    """
    if backend == "cuda-emulated":
        recording = module_of(backend).Graph()
        recording.start()
        try:
            run()
        finally:
            recording.stop()
        replay: Callable[[], None] = recording.replay
        return replay
    if backend == "triton" and is_interpreted():
        run()
        return run
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # modules are loaded at their first launch, which a capture may not contain
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()

    def replayed() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replayed
