"""Whole steps of a `shufflenet-oneshot` supernet, another path at each call: ours as one sequence of launches for all
paths, torch's layers eager with torch's fused SGD, and torch.compile of a single path.

Replayed, every one of them repeats the path that was captured: ours would take any other from the same graph, torch's
needs a graph for each. `called` is what a trainer gets that captures nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from cases import OURS, TUNED, Case
from plain_shufflenet import plain, plain_child
from timing import Call
from torch import nn

import spos
from spos.captured_step import network_of
from spos.spaces.shufflenet import ShuffleNetOneShot, Spec, channels_last
from spos_kernels.backends import current_backend
from spos_kernels.cuda.network_pass import NetworkPass
from spos_kernels.cuda.training_step import Descent, TrainingStep

PATHS = 64
SMALL = Spec(4, ((8, 1), (16, 1)), 16)  # for a machine without a GPU, where the emulator runs ours


def backend_on(device: str) -> str:
    """The kernels that are measured."""
    if device != "cuda":
        return "cuda-emulated"
    return "triton" if current_backend() == "triton" else "cuda"


def supernet(case: Case, device: str) -> spos.Supernet:
    if device == "cuda":
        return spos.spaces.get("shufflenet-oneshot", num_classes=10, image_size=case.size).to(device)
    network = ShuffleNetOneShot(SMALL, 10, case.size, 3)
    return channels_last(spos.Supernet(network, input_shape=(3, case.size, case.size), name="small"))


class Inputs:
    """Images, labels, and paths in turn."""

    def __init__(self, case: Case, net: spos.Supernet, device: str) -> None:
        self.images = torch.randn(case.batch, 3, case.size, case.size, device=device)
        self.labels = torch.arange(case.batch, device=device) % 10
        self.paths = [net.space.sample(spos.generator(0, "benchmark", index)) for index in range(PATHS)]
        self.numbers = torch.tensor(self.paths, dtype=torch.int32, device=device)
        self._next = 0

    def turn(self) -> int:
        self._next = (self._next + 1) % PATHS
        return self._next


def training(case: Case, device: str, compiled: bool) -> dict[str, Call]:
    """Forward, loss, backward and update."""

    def ours(net: spos.Supernet, inputs: Inputs) -> Call:
        shape, backend = inputs.images.shape, backend_on(device)
        step = TrainingStep(network_of(net.module), shape, backend, descent=Descent(0.9, 4e-5))  # type: ignore[arg-type]
        step.images.copy_(inputs.images)
        step.labels.copy_(inputs.labels)
        assert step.update is not None
        step.update.set_rates([0.01])

        def call() -> object:
            step.arch.copy_(inputs.numbers[inputs.turn()])
            step.run()
            return step.loss

        return call

    def theirs(model: nn.Module, inputs: Inputs, images: torch.Tensor, one_path: bool) -> Call:
        fused = {"fused": True} if device == "cuda" else {}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=4e-5, **fused)
        model.train()

        def call() -> object:
            optimizer.zero_grad(set_to_none=True)
            arguments = () if one_path else (inputs.paths[inputs.turn()],)
            loss = F.cross_entropy(model(images, *arguments), inputs.labels)
            loss.backward()
            optimizer.step()
            return loss

        return call

    return calls(case, device, compiled, ours, theirs)


def evaluation(case: Case, device: str, compiled: bool) -> dict[str, Call]:
    """Forward by running statistics."""

    def ours(net: spos.Supernet, inputs: Inputs) -> Call:
        backend = backend_on(device)
        whole = NetworkPass(network_of(net.module), inputs.images.shape, backend)  # type: ignore[arg-type]
        whole.images.copy_(inputs.images)

        def call() -> object:
            whole.arch.copy_(inputs.numbers[inputs.turn()])
            whole.evaluate()
            return whole.logits

        return call

    def theirs(model: nn.Module, inputs: Inputs, images: torch.Tensor, one_path: bool) -> Call:
        model.eval()

        def call() -> object:
            with torch.no_grad():
                return model(images, *(() if one_path else (inputs.paths[inputs.turn()],)))

        return call

    return calls(case, device, compiled, ours, theirs)


def calls(
    case: Case,
    device: str,
    compiled: bool,
    ours: Callable[[spos.Supernet, Inputs], Call],
    theirs: Callable[[nn.Module, Inputs, torch.Tensor, bool], Call],
) -> dict[str, Call]:
    net = supernet(case, device)

    def other(model: nn.Module, nhwc: bool, one_path: bool = False) -> Call:
        inputs = Inputs(case, net, device)
        layout = torch.channels_last if nhwc else torch.contiguous_format
        return theirs(model, inputs, inputs.images.to(memory_format=layout), one_path)

    found = {
        "NCHW": other(plain(net, nhwc=False), False),
        "NHWC": other(plain(net, nhwc=True), True),
        TUNED: other(plain(net, nhwc=True), True),
    }
    if compiled:
        child = plain_child(net, net.space.sample(spos.generator(0, "benchmark", 1))).to(device)
        found["NHWC compiled"] = other(torch.compile(child, dynamic=False), True, one_path=True)
    return {OURS: ours(net, Inputs(case, net, device)), **found}


NETWORKS = [
    Case(name, batch, 3, size, torch.float32, make)
    for name, make in (("training step", training), ("evaluation", evaluation))
    for batch, size in ((64, 32), (128, 224))
]
