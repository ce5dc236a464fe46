"""Stochastic gradient descent, for a supernet (by default one uniformly drawn path a step) and for a child alike.

Method and defaults: arXiv 1904.00420, section 3.1 and appendix. A step's path, batch and dropout masks are functions of
(seed, step), so that a run killed at any moment and resumed ends with the bits of an uninterrupted one. Weights off
the path have no gradient (`None`, not zero), so neither momentum nor weight decay moves them; of sliced weights that
holds for what lies outside of the slice (`spos_kernels.GradientSink`).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spos.config import SGDConfig, TrainConfig
from spos.data import BatchStream, Data
from spos.draws import torch_seed
from spos.identity import Run, hash_network, identity_of, opened
from spos.path_samplers import PathFunction, function_name, note, paths_of_steps
from spos.progress import Progress
from spos.run_directory import RunDirectory
from spos.sliced import SlicedModule
from spos.supernet import Supernet
from spos_kernels import SGD, GradientSink


@dataclass(frozen=True)
class TrainResult:
    """How training ended: `steps` done, mean `loss` and `accuracy` of the last logged window, `seconds` of training."""

    steps: int
    loss: float
    accuracy: float
    seconds: float


class DivergenceError(ArithmeticError):
    """The training loss became NaN or infinite."""


def train_supernet(
    net: Supernet,
    data: Data,
    *,
    config: TrainConfig | None = None,
    seed: int = 0,
    sampler: PathFunction | None = None,
    run: Run = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train `net` in place, one uniformly sampled path a step, or as `config.sampler` says; see `spos.path_samplers`.

    `sampler(space, step, rng)`, a function of one's own, returns the architecture that a step trains, or a list of
    those whose gradients it adds up; a run knows it by its name. `rng` is the same whenever a step is asked for.
    `run`, a directory, makes it resumable: it gets the checkpoints "supernet", the stream "train" and result.json.
    Raises ValueError where data and net do not fit, DivergenceError where the loss is no longer finite.
    """
    config = config or TrainConfig()
    if not isinstance(net, Supernet):
        raise TypeError(f"net is a {type(net).__name__}: expected a spos.Supernet")
    check_fit(net, data)
    stream = data.training_batches(config.batch_size, seed)
    paths = paths_of_steps(net, config, total_steps(config, stream), seed, sampler)
    own = {} if sampler is None else {"sampler": function_name(sampler)}
    identity = identity_of(config, seed, data, space=net.space.fingerprint(), network=hash_network(net), **own)
    with opened(run, kind="supernet", config=dataclasses.asdict(config), identity=identity) as directory:
        result = fit(
            net,
            lambda step: [partial(net, arch=arch) for arch in paths(step)],
            stream,
            config=config,
            seed=seed,
            name="supernet",
            run=directory,
            progress=progress,
            note=lambda step: note(paths(step)),
        )
        if directory:
            directory.write_json("result", dataclasses.asdict(result))
    return result


def fit(
    model: nn.Module,
    forwards: Callable[[int], Sequence[Callable[[Tensor], Tensor]]],
    stream: BatchStream,
    *,
    config: SGDConfig,
    seed: int,
    name: str,
    run: RunDirectory | None,
    progress: Progress | None,
    note: Callable[[int], dict[str, Any]] = lambda step: {},
) -> TrainResult:
    """Train `model` to the configured number of steps, going on from the checkpoint `name` of `run` where there is one.

    `forwards(step)` are functions from images to logits, whose gradients on the same images are added up, one for a
    plain network; `note(step)` is added to the records of the stream "train".
    """
    total = total_steps(config, stream)
    sink = make_sink(model)
    optimizer = make_optimizer(model, config, sink)
    state = _restore(model, optimizer, run, name)
    started = time.perf_counter() - state.seconds
    device = next(model.parameters()).device
    model.train()
    with closing(stream.iterate(state.step * config.accumulation, total * config.accumulation)) as batches:
        while state.step < total:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, state.step, total)
            optimizer.zero_grad(set_to_none=True)
            with sink or nullcontext(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(torch_seed(seed, "layers", state.step))
                for _ in range(config.accumulation):
                    x, y = (part.to(device, non_blocking=True) for part in next(batches))
                    try:
                        for forward in forwards(state.step):
                            _backward(forward, x, y, config, state)
                    except ValueError:  # a layer may refuse the NaN that the step before left it
                        _require_finite(model, config, state)
                        raise
            if config.clip_norm > 0 and sink:
                sink.clip_grad_norm_(config.clip_norm)
            elif config.clip_norm > 0:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            state.step += 1
            state.seconds = time.perf_counter() - started
            if state.step % config.log_every == 0 or state.step == total:
                record = _close_window(state, optimizer, config, stream)
                if run:
                    run.append("train", record | note(state.step - 1))
                if progress:
                    progress(name, state.step, total, {k: record[k] for k in ("loss", "accuracy", "lr")})
            if run and (state.step % config.checkpoint_every == 0 or state.step == total):
                _require_finite(model, config, state)
                run.save_checkpoint(name, _tensors(model, optimizer), state.to_json())
    optimizer.zero_grad(set_to_none=True)
    return TrainResult(state.step, state.loss, state.accuracy, state.seconds)


def total_steps(config: SGDConfig, stream: BatchStream) -> int:
    """Return the number of optimizer steps that `config` asks for, at least one."""
    if config.steps is not None:
        return config.steps
    return max(1, round(config.epochs * stream.steps_per_epoch / config.accumulation))


def learning_rate(config: SGDConfig, step: int, total: int) -> float:
    """Return the learning rate of a step: from `lr` down to 0 after `total` steps, linearly or along a cosine."""
    done = step / total
    return config.lr * (1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


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


def load_weights(model: nn.Module, run: RunDirectory, name: str) -> int:
    """Load a run's newest checkpoint `name` into `model`, strictly; return its step. ValueError if there is none."""
    found = run.load_checkpoint(name)
    if found is None:
        raise ValueError(f"{run.path} holds no checkpoint {name!r}: train first")
    _load(model, found.tensors, run, name)
    return int(found.meta["step"])


def save_weights(model: nn.Module, run: RunDirectory, name: str, step: int) -> None:
    """Write a checkpoint of the model alone, which `load_weights` reads."""
    run.save_checkpoint(name, {_MODEL + key: value for key, value in model.state_dict().items()}, {"step": step})


def check_fit(net: Supernet, data: Data) -> None:
    """Raise ValueError if `data` has not the image shape that `net` was built for; a net that named none takes it."""
    if not isinstance(data, Data):
        raise TypeError(f"data is a {type(data).__name__}: expected a spos.Data, of spos.data.load or from_arrays")
    given = (data.in_channels, data.image_size, data.image_size)
    if net.input_shape is None:
        net.input_shape = given
    if net.input_shape != given:
        raise ValueError(f"data has images of shape {given}: {net.name} was built for {net.input_shape}")


_MODEL, _MOMENTUM = "model/", "momentum/"


@dataclass
class _State:
    """Where training stands. The sums are over the batches since the last record; they are tensors until read."""

    step: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    accuracy: float = 0.0
    loss_sum: float | Tensor = 0.0
    correct: float | Tensor = 0.0
    images: int = 0
    batches: int = 0

    def to_json(self) -> dict[str, float]:
        return dataclasses.asdict(self) | {"loss_sum": float(self.loss_sum), "correct": float(self.correct)}


def _backward(forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, config: SGDConfig, state: _State) -> None:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=config.bf16):
        logits = forward(x)
    logits = logits.float() if config.bf16 else logits
    loss = F.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
    (loss / config.accumulation).backward()
    with torch.no_grad():
        state.loss_sum = state.loss_sum + loss.detach().double()
        state.correct = state.correct + (logits.argmax(1) == y).sum()
    state.images += len(y)
    state.batches += 1


def _close_window(
    state: _State, optimizer: torch.optim.Optimizer, config: SGDConfig, stream: BatchStream
) -> dict[str, Any]:
    state.loss = float(state.loss_sum) / state.batches
    state.accuracy = float(state.correct) / state.images
    if not math.isfinite(state.loss):
        raise DivergenceError(_diverged("loss is not finite", config, state))
    state.loss_sum, state.correct, state.images, state.batches = 0.0, 0.0, 0, 0
    return {
        "step": state.step,
        "epoch": state.step * config.accumulation / stream.steps_per_epoch,
        "loss": state.loss,
        "accuracy": state.accuracy,
        "lr": optimizer.param_groups[0]["lr"],
        "seconds": state.seconds,
    }


def _require_finite(model: nn.Module, config: SGDConfig, state: _State) -> None:
    """A checkpoint of NaNs would be gone on from for ever."""
    if not math.isfinite(float(state.loss_sum)):
        raise DivergenceError(_diverged("loss is not finite", config, state))
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise DivergenceError(_diverged(f"weight {name} is not finite", config, state))


def _diverged(what: str, config: SGDConfig, state: _State) -> str:
    return f"the training diverged, {what} at step {state.step}: lower lr = {config.lr} or set clip_norm"


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {_MODEL + name: value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None
        if momentum is not None:
            tensors[_MOMENTUM + name] = momentum
    return tensors


def _load(model: nn.Module, tensors: Mapping[str, Tensor], run: RunDirectory, name: str) -> None:
    try:
        model.load_state_dict({k.removeprefix(_MODEL): v for k, v in tensors.items() if k.startswith(_MODEL)})
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"checkpoint {name!r} in {run.path} is not of this network: {reason[:400]}") from None


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, run: RunDirectory | None, name: str) -> _State:
    """Bring model and optimizer to the newest checkpoint, and drop the records that were written after it."""
    found = run.load_checkpoint(name, fallback="previous") if run else None
    if run is None or found is None:
        if run:
            run.keep("train", lambda record: False)
        return _State()
    state = _State(**found.meta)
    _load(model, found.tensors, run, name)
    for parameter_name, parameter in model.named_parameters():
        momentum = found.tensors.get(_MOMENTUM + parameter_name)
        if momentum is not None:
            buffer = torch.empty_like(parameter, memory_format=torch.preserve_format)
            optimizer.state[parameter]["momentum_buffer"] = buffer.copy_(momentum)
    run.keep("train", lambda record: record["step"] <= state.step)
    return state
