"""One optimizer step of training, as `spos.training.fit` takes one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spos.config import SGDConfig
from spos.draws import torch_seed
from spos.sliced import SlicedModule
from spos_kernels import SGD, GradientSink

Batches = Iterator[tuple[Tensor, Tensor]]  # images, labels


@dataclass
class Window:
    """Sums over the batches since the last record of a run; they are tensors until they are read."""

    loss_sum: float | Tensor = 0.0
    correct: float | Tensor = 0.0
    images: int = 0
    batches: int = 0

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        """Add a batch: its mean loss, outputs [N, classes] and labels [N]."""
        self.loss_sum = self.loss_sum + loss.detach().double()
        self.correct = self.correct + (logits.argmax(1) == y).sum()
        self.images += len(y)
        self.batches += 1

    def means(self) -> tuple[float, float]:
        """Return the loss of a batch and the accuracy."""
        return float(self.loss_sum) / self.batches, float(self.correct) / self.images

    def to_json(self) -> dict[str, float]:
        return dataclasses.asdict(self) | {"loss_sum": float(self.loss_sum), "correct": float(self.correct)}


class Step(Protocol):
    """How a step is taken; what it keeps from one to the next is the momentum of parameters."""

    def take(self, batches: Batches, number: int, lr: float, window: Window) -> None:
        """Take step `number`, from 0, on as many batches as it needs, and add these to `window`."""

    def momentum(self, parameter: Tensor) -> Tensor | None:
        """Return a parameter's momentum in its shape, None if it has none yet."""

    def set_momentum(self, parameter: Tensor, value: Tensor) -> None:
        """Go on with this one."""

    def finish(self) -> None:
        """Called after the last step."""


class AutogradStep:
    """A step through autograd and `spos_kernels.SGD`.

    `forwards(number)` are functions from images to logits, whose gradients on the same images are added up: one for a
    plain network.
    """

    def __init__(
        self,
        model: nn.Module,
        forwards: Callable[[int], Sequence[Callable[[Tensor], Tensor]]],
        config: SGDConfig,
        seed: int,
    ) -> None:
        self._model, self._forwards, self._config, self._seed = model, forwards, config, seed
        self._sink = make_sink(model)
        self._optimizer = make_optimizer(model, config, self._sink)

    def take(self, batches: Batches, number: int, lr: float, window: Window) -> None:
        config, sink = self._config, self._sink
        device = next(self._model.parameters()).device
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad(set_to_none=True)
        with sink or nullcontext(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(torch_seed(self._seed, "layers", number))
            for _ in range(config.accumulation):
                x, y = (part.to(device, non_blocking=True) for part in next(batches))
                for forward in self._forwards(number):
                    with torch.autocast(x.device.type, torch.bfloat16, enabled=config.bf16):
                        logits = forward(x)
                    logits = logits.float() if config.bf16 else logits
                    loss = F.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
                    (loss / config.accumulation).backward()
                    window.add(loss, logits, y)
        if config.clip_norm > 0 and sink:
            sink.clip_grad_norm_(config.clip_norm)
        elif config.clip_norm > 0:
            nn.utils.clip_grad_norm_(self._model.parameters(), config.clip_norm)
        self._optimizer.step()

    def momentum(self, parameter: Tensor) -> Tensor | None:
        state = self._optimizer.state
        return state[parameter].get("momentum_buffer") if parameter in state else None

    def set_momentum(self, parameter: Tensor, value: Tensor) -> None:
        buffer = torch.empty_like(parameter, memory_format=torch.preserve_format)
        self._optimizer.state[parameter]["momentum_buffer"] = buffer.copy_(value)

    def finish(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)


def make_sink(model: nn.Module) -> GradientSink | None:
    """Return where the gradients of a model with sliced layers go, so that only what was sampled has one; else None."""
    if not any(isinstance(layer, SlicedModule) for layer in model.modules()):
        return None
    return GradientSink(p for p in model.parameters() if p.requires_grad)


def make_optimizer(model: nn.Module, config: SGDConfig, sink: GradientSink | None = None) -> torch.optim.Optimizer:
    """Return stochastic gradient descent with weight decay on parameters of more than one dimension, and on those
    that a layer names in `decayed`: the values at which activations are clipped.

    It is the library's own, which computes what torch's does where there is a gradient, here or in `sink`.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    named = {id(layer._parameters[name]) for layer in model.modules() for name in getattr(layer, "decayed", ())}
    groups = [
        {"params": [p for p in trained if p.dim() > 1 or id(p) in named], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1 and id(p) not in named], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, sink=sink)
