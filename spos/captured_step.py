"""A supernet's training step, and its evaluation, on a GPU as captured graphs that are replayed for every path.

The path is written into a buffer that the kernels read (`spos_kernels.cuda.network_pass`), so that one graph runs all
of them. It takes `shufflenet-oneshot` and its likes; other networks train and are scored launch by launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from spos.choices import ChoiceBlock
from spos.config import SGDConfig, TrainConfig
from spos.draws import torch_seed
from spos.modules import is_observed, norm_options
from spos.spaces.shufflenet import ConvNormReLU, ShuffleBlock, ShuffleNetOneShot
from spos.steps import Batches, Window
from spos.supernet import Supernet
from spos_kernels.backends import gpu_backend
from spos_kernels.choice_block_reference import Branch
from spos_kernels.cuda.graphs import capture
from spos_kernels.cuda.network_pass import Network, NetworkPass
from spos_kernels.cuda.training_step import Descent, TrainingStep
from spos_kernels.layout import is_dense


class CapturedStep:
    """A step of `spos.training.fit`: the launches of the first one are captured, and replayed for all others.

    Raises TypeError where `reason_against` has one.
    """

    def __init__(self, net: Supernet, path: Callable[[int], Sequence[int]], config: SGDConfig, seed: int) -> None:
        if (reason := reason_against(net, config)) is not None:
            raise TypeError(f"the step of {net.name} cannot be captured: {reason}")
        self._net, self._path, self._config, self._seed = net, path, config, seed
        network = _network(net)
        momentum, eps = _momentum_and_eps(network)
        shape = (config.batch_size, *(net.input_shape or ()))
        self._backend = _backend(net)
        self._step = TrainingStep(
            network_of(network),
            shape,
            self._backend,
            momentum=momentum,
            eps=eps,
            label_smoothing=config.label_smoothing,
            dropout=network.dropout.p,
            seed=torch_seed(seed, "layers", 0),
            descent=Descent(config.momentum, config.weight_decay, config.nesterov, config.clip_norm),
        )
        self._replay: Callable[[], None] | None = None
        self._places = _places(net)

    def take(self, batches: Batches, number: int, lr: float, window: Window) -> None:
        step = self._step
        x, y = next(batches)
        _check_labels(y, step.logits.shape[1])
        if self._places != _places(self._net):
            raise RuntimeError(
                f"a parameter or statistic of {self._net.name} is not where it was when the step was captured: "
                "expected changes in place (`weight.copy_(...)` instead of `weight.data = ...`)"
            )
        step.images.copy_(x, non_blocking=True)
        step.labels.copy_(y, non_blocking=True)
        step.arch.copy_(torch.tensor(self._path(number), dtype=torch.int32), non_blocking=True)
        step.step.fill_(number)
        assert step.update is not None
        step.update.set_rates([lr])
        if self._replay is None:
            self._replay = capture(step.run, self._backend, step.images.device)
        else:
            self._replay()
        window.add(step.loss[0], step.logits, step.labels)

    def momentum(self, parameter: Tensor) -> Tensor | None:
        buffer = self._step.momentum_buffers[parameter.data_ptr()]
        return buffer.as_strided(parameter.shape, parameter.stride())

    def set_momentum(self, parameter: Tensor, value: Tensor) -> None:
        buffer = self.momentum(parameter)
        assert buffer is not None
        buffer.copy_(value)

    def finish(self) -> None:
        """Nothing is left over."""


class CapturedEvaluation:
    """Forward passes of a supernet, for statistics and for outputs: graphs for each shape of batches.

    Raises TypeError where `reason_against` has one.
    """

    def __init__(self, net: Supernet) -> None:
        if (reason := reason_against(net)) is not None:
            raise TypeError(f"{net.name} cannot be captured: {reason}")
        self._network = _network(net)
        self._backend = _backend(net)
        self._passes: dict[tuple[int, ...], NetworkPass] = {}
        self._replays: dict[tuple[str, tuple[int, ...]], Callable[[], None]] = {}

    def calibrate(self, arch: Sequence[int], images: Tensor) -> None:
        """Move the path's running statistics, which are the mean over all batches since they were reset."""
        self._run("forward", arch, images)

    def logits(self, arch: Sequence[int], images: Tensor) -> Tensor:
        """Return the outputs [N, classes] of a path with its running statistics; the next call overwrites them."""
        return self._run("evaluate", arch, images).logits

    def _run(self, name: str, arch: Sequence[int], images: Tensor) -> NetworkPass:
        shape = tuple(images.shape)
        if images.dtype is not torch.float32:
            raise TypeError(f"images are {images.dtype}: expected torch.float32, as the network's weights")
        if shape not in self._passes:
            _, eps = _momentum_and_eps(self._network)
            network = network_of(self._network)
            self._passes[shape] = NetworkPass(network, shape, self._backend, momentum=None, eps=eps)
        whole = self._passes[shape]
        whole.images.copy_(images, non_blocking=True)
        whole.arch.copy_(torch.tensor(list(arch), dtype=torch.int32), non_blocking=True)
        if (name, shape) in self._replays:
            self._replays[name, shape]()
        else:
            self._replays[name, shape] = capture(getattr(whole, name), self._backend, whole.images.device)
        return whole


def _places(net: Supernet) -> list[int]:
    return [t.data_ptr() for t in (*net.parameters(), *net.buffers())]


def _check_labels(labels: Tensor, classes: int) -> None:
    """Only of labels that lie in main memory, where it makes nobody wait."""
    if labels.device.type == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        found = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"labels are {found}: expected 0 to {classes - 1}, as many as the network has outputs")


def reason_against(net: Supernet, config: SGDConfig | None = None) -> str | None:
    """Return why a network, trained with these settings, cannot be captured here; None if it can."""
    if not _backend(net):
        return "its weights are not on a GPU that the kernels are compiled for"
    if config is not None and config.accumulation != 1:
        return f"accumulation = {config.accumulation}"
    if config is not None and config.bf16:
        return "bf16 = true"
    if isinstance(config, TrainConfig) and (config.sampler == "fair" or ":" in config.sampler):
        return f"sampler = {config.sampler!r}, which may train several paths in a step"
    network = net.module
    if type(network) is not ShuffleNetOneShot:
        return f"{type(network).__name__} is no network of shufflenet-oneshot"
    if any(p.dtype is not torch.float32 or not p.requires_grad for p in net.parameters()):
        return "not all of its parameters are float32 and trained"
    if nn.modules.module._has_any_global_hook() or any(map(is_observed, net.modules())):
        return "a hook, or a forward of its own, waits for a module's call"
    for block in network.modules():
        if isinstance(block, ShuffleBlock | ConvNormReLU) and not (block.fused and norm_options(block)):
            return "not all of its blocks are such that one kernel runs them"
    end = (*network.classifier, network.dropout, network.globalpool)
    if tuple(map(type, end)) != (nn.Linear, nn.Dropout, nn.AdaptiveAvgPool2d) or network.classifier[0].bias is not None:
        return "its last layers are not those of shufflenet-oneshot"
    if not network.first_conv[0].weight.is_contiguous(memory_format=torch.channels_last):
        return "the stem's weight is not channels_last in memory"
    if any(not is_dense(p) for p in net.parameters()):
        return "not all of its parameters are dense in memory"
    if network.dropout.p >= 1:
        return f"dropout of {network.dropout.p}"
    try:
        _momentum_and_eps(network)
        layers = network_of(network)
    except TypeError as error:
        return str(error)
    positions = [block.position for block in network.features if isinstance(block, ChoiceBlock)]
    if positions != list(range(len(network.features))) or len(net.space.decisions) != len(positions):
        return "its blocks are not one choice each, in their order"
    return _reason_of_ties(layers)


def network_of(network: ShuffleNetOneShot) -> Network:
    """Return the tensors of a ShuffleNet supernet's layers, of all its options, as the step runs them.

    Raises TypeError for blocks that are no choices among operators of the released space.
    """
    blocks: list[tuple[tuple[Branch, ...], int]] = []
    for index, block in enumerate(network.features):
        options = [block.branch(i) for i in range(len(block.labels))] if isinstance(block, ChoiceBlock) else [block]
        links = [option.link() for option in options if type(option) is ShuffleBlock]
        if len(links) != len(options):
            raise TypeError(f"features[{index}] is a {type(block).__name__}: expected a choice among ShuffleBlocks")
        blocks.append((tuple(link.branch for link in links), links[0].stride))
    stem, last = network.first_conv.link(), network.conv_last.link()
    classifier = network.classifier[0]
    assert isinstance(classifier, nn.Linear)
    return Network(stem.branch.main[0], stem.stride, tuple(blocks), last.branch.main[0], classifier.weight)


def _reason_of_ties(network: Network) -> str | None:
    """Several blocks' updates of one weight would race; options of a block never run together."""
    seen: set[int] = set()
    for tensors in (
        *({w.data_ptr() for b in branches for w in _weights(b)} for branches, _ in network.blocks),
        {network.stem.weight.data_ptr()},
        {network.last.weight.data_ptr()},
        {network.classifier.data_ptr()},
    ):
        if seen & tensors:
            return "a weight is in several of its layers"
        seen |= tensors
    return None


def _weights(branch: Branch) -> list[Tensor]:
    return [t for layer in (*branch.main, *branch.proj) for t in layer[:3] if t is not None]


def _backend(net: Supernet) -> str:
    """The backend of kernels for GPUs that runs the network here, or none."""
    parameter = next(net.parameters(), None)
    return "" if parameter is None else gpu_backend(parameter)


def _network(net: Supernet) -> ShuffleNetOneShot:
    assert isinstance(net.module, ShuffleNetOneShot)
    return net.module


def _momentum_and_eps(network: nn.Module) -> tuple[float | None, float]:
    """What all batch normalisations of a network have; TypeError where they differ or keep no statistics."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    found = {(norm.momentum, norm.eps) for norm in norms}
    if len(found) != 1 or not all(norm.track_running_stats for norm in norms):
        raise TypeError("its batch normalisations differ in momentum or eps, or keep no running statistics")
    return found.pop()
