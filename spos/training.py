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
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from spos.captured_step import CapturedStep, reason_against
from spos.config import SGDConfig, TrainConfig
from spos.data import BatchStream, Data
from spos.identity import Run, hash_network, identity_of, opened
from spos.path_samplers import PathFunction, function_name, note, paths_of_steps
from spos.progress import Progress
from spos.run_directory import RunDirectory
from spos.steps import AutogradStep, Step, Window
from spos.supernet import Supernet
from spos_kernels.backends import runs_gpu


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
    capture: bool = True,
) -> TrainResult:
    """Train `net` in place, one uniformly sampled path a step, or as `config.sampler` says; see `spos.path_samplers`.

    `sampler(space, step, rng)`, a function of one's own, returns the architecture that a step trains, or a list of
    those whose gradients it adds up; a run knows it by its name. `rng` is the same whenever a step is asked for.
    `run`, a directory, makes it resumable: it gets the checkpoints "supernet", the stream "train" and result.json.
    capture: on a GPU, take the step that is captured once for all paths, where net and config allow it
    (`spos.captured_step.reason_against`); a warning says where they do not. Its rounding and its dropout are its own,
    and so a run begun without it goes on without it only. Raises ValueError where data and net do not fit,
    DivergenceError where the loss is no longer finite.
    """
    config = config or TrainConfig()
    if not isinstance(net, Supernet):
        raise TypeError(f"net is a {type(net).__name__}: expected a spos.Supernet")
    check_fit(net, data)
    stream = data.training_batches(config.batch_size, seed)
    paths = paths_of_steps(net, config, total_steps(config, stream), seed, sampler)
    own_sampler = "a sampler of one's own may train several paths in a step"
    reason = reason_against(net, config) if sampler is None else own_sampler
    captured = capture and reason is None
    if capture and reason is not None and any(map(runs_gpu, net.parameters())):
        warnings.warn(f"{net.name}: its steps are not captured, but launched one by one, for {reason}", stacklevel=2)
    own = {} if sampler is None else {"sampler": function_name(sampler)}
    identity = identity_of(config, seed, data, space=net.space.fingerprint(), network=hash_network(net), **own)
    identity["config"] += " captured" if captured else ""
    with opened(run, kind="supernet", config=dataclasses.asdict(config), identity=identity) as directory:
        result = fit(
            net,
            CapturedStep(net, lambda step: paths(step)[0], config, seed)
            if captured
            else AutogradStep(net, lambda step: [partial(net, arch=arch) for arch in paths(step)], config, seed),
            stream,
            config=config,
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
    step: Step,
    stream: BatchStream,
    *,
    config: SGDConfig,
    name: str,
    run: RunDirectory | None,
    progress: Progress | None,
    note: Callable[[int], dict[str, Any]] = lambda step: {},
) -> TrainResult:
    """Train `model` to the configured number of steps, going on from the checkpoint `name` of `run` where there is one.

    `step` takes them; `note(step)` is added to the records of the stream "train".
    """
    total = total_steps(config, stream)
    state = _restore(model, step, run, name)
    started = time.perf_counter() - state.seconds
    model.train()
    with closing(stream.iterate(state.step * config.accumulation, total * config.accumulation)) as batches:
        while state.step < total:
            lr = learning_rate(config, state.step, total)
            try:
                step.take(batches, state.step, lr, state.window)
            except ValueError:  # a layer may refuse the NaN that the step before left it
                _require_finite(model, config, state)
                raise
            state.step += 1
            state.seconds = time.perf_counter() - started
            if state.step % config.log_every == 0 or state.step == total:
                record = _close_window(state, lr, config, stream)
                if run:
                    run.append("train", record | note(state.step - 1))
                if progress:
                    progress(name, state.step, total, {k: record[k] for k in ("loss", "accuracy", "lr")})
            if run and (state.step % config.checkpoint_every == 0 or state.step == total):
                _require_finite(model, config, state)
                run.save_checkpoint(name, _tensors(model, step), state.to_json())
    step.finish()
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
    """Where training stands. `window` sums up the batches since the last record."""

    step: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    accuracy: float = 0.0
    window: Window = field(default_factory=Window)

    def to_json(self) -> dict[str, float]:
        own = {"step": self.step, "seconds": self.seconds, "loss": self.loss, "accuracy": self.accuracy}
        return own | self.window.to_json()

    @classmethod
    def from_json(cls, meta: Mapping[str, Any]) -> _State:
        own = {name: meta[name] for name in ("step", "seconds", "loss", "accuracy")}
        return cls(**own, window=Window(**{name: value for name, value in meta.items() if name not in own}))


def _close_window(state: _State, lr: float, config: SGDConfig, stream: BatchStream) -> dict[str, Any]:
    state.loss, state.accuracy = state.window.means()
    if not math.isfinite(state.loss):
        raise DivergenceError(_diverged("loss is not finite", config, state))
    state.window = Window()
    return {
        "step": state.step,
        "epoch": state.step * config.accumulation / stream.steps_per_epoch,
        "loss": state.loss,
        "accuracy": state.accuracy,
        "lr": lr,
        "seconds": state.seconds,
    }


def _require_finite(model: nn.Module, config: SGDConfig, state: _State) -> None:
    """A checkpoint of NaNs would be gone on from for ever."""
    if not math.isfinite(float(state.window.loss_sum)):
        raise DivergenceError(_diverged("loss is not finite", config, state))
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise DivergenceError(_diverged(f"weight {name} is not finite", config, state))


def _diverged(what: str, config: SGDConfig, state: _State) -> str:
    return f"the training diverged, {what} at step {state.step}: lower lr = {config.lr} or set clip_norm"


def _tensors(model: nn.Module, step: Step) -> dict[str, Tensor]:
    tensors = {_MODEL + name: value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        momentum = step.momentum(parameter)
        if momentum is not None:
            tensors[_MOMENTUM + name] = momentum
    return tensors


def _load(model: nn.Module, tensors: Mapping[str, Tensor], run: RunDirectory, name: str) -> None:
    try:
        model.load_state_dict({k.removeprefix(_MODEL): v for k, v in tensors.items() if k.startswith(_MODEL)})
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"checkpoint {name!r} in {run.path} is not of this network: {reason[:400]}") from None


def _restore(model: nn.Module, step: Step, run: RunDirectory | None, name: str) -> _State:
    """Bring model and momenta to the newest checkpoint, and drop the records that were written after it."""
    found = run.load_checkpoint(name, fallback="previous") if run else None
    if run is None or found is None:
        if run:
            run.keep("train", lambda record: False)
        return _State()
    state = _State.from_json(found.meta)
    _load(model, found.tensors, run, name)
    for parameter_name, parameter in model.named_parameters():
        momentum = found.tensors.get(_MOMENTUM + parameter_name)
        if momentum is not None:
            step.set_momentum(parameter, momentum)
    run.keep("train", lambda record: record["step"] <= state.step)
    return state
