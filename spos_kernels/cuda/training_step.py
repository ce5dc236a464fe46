"""One training step of a supernet of choice blocks as a fixed sequence of launches on fixed memory.

    images → windows → stem → blocks, each by its choice → last convolution → mean → classifier → loss, back, update

The path is an int32 tensor on the device that the kernels read, so the sequence is the same for every path: captured
once (`graphs.capture`), it trains all of them. What differs from step to step is written into `images`, `labels` and
`arch` before it runs. Weights, running statistics and gradients are tensors of the caller's that stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spos_kernels.choice_block_kernels import rows
from spos_kernels.choice_block_reference import Branch, ConvBN
from spos_kernels.cuda.modules import module_of, stream_of
from spos_kernels.cuda.sgd import PreparedStep, Update
from spos_kernels.layout import empty_nhwc


class Network(NamedTuple):
    """The layers of a supernet as the step runs them.

    stem: a k×k convolution with padding k // 2 and `stem_stride`; its weight channels_last in memory. blocks: of each
    block its options, and its stride. last: a 1×1 convolution. classifier: [classes, C], without bias.
    """

    stem: ConvBN
    stem_stride: int
    blocks: tuple[tuple[tuple[Branch, ...], int], ...]
    last: ConvBN
    classifier: Tensor


class Descent(NamedTuple):
    """How weights are updated: stochastic gradient descent as `spos_kernels.SGD` does it, of what is on the path.

    weight_decay: of convolutions and the classifier; the normalisations' parameters have none.
    """

    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False


class _Part:
    """A block with its table of branches, the memory of its passes, and the gradients of its weights."""

    def __init__(self, x: Tensor, branches: Sequence[Branch], stride: int, whole: bool, choice: Tensor, backend: str):
        module = module_of(backend)
        self.x, self.choice = x, choice
        self.branches = branches
        self.gradients = tuple(tuple(_gradients(layer) for layer in (*b.main, *b.proj)) for b in branches)
        options = tuple(
            (tuple(tuple(_read(layer)) for layer in (*b.main, *b.proj)), len(b.main), gradients)
            for b, gradients in zip(branches, self.gradients, strict=True)
        )
        self.table = module.ChoiceTable(x, options, stride, whole)
        self.rows = torch.frombuffer(bytearray(self.table.rows()), dtype=torch.uint8).to(x.device)
        kept, statistics, *self.workspaces = self.table.sizes()
        beside = 0 if whole else x.shape[1] // 2 if stride == 1 else x.shape[1]
        channels = beside + branches[0].main[-1].weight.shape[0]
        height, width = ((n - 1) // stride + 1 for n in x.shape[2:])
        self.y = empty_nhwc((x.shape[0], channels, height, width), like=x)
        self.kept, self.statistics = x.new_empty(kept), x.new_empty(statistics, dtype=torch.float32)


class TrainingStep:
    """The memory of a step, and its launches.

    images: [N, C, H, W] channels_last, labels: int64 [N], arch: int32, a choice a block; written by the caller before
    `run`. loss: float32 [1], that of the last step. step: int64 [1], what dropout draws by; `run` does not advance it.

    momentum: of the running statistics, None for their mean. descent: None for gradients alone; they are overwritten
    where an option is on the path, and left as they are elsewhere. update: the step that follows them, with one
    learning rate. momentum_buffers: of each parameter, by its data_ptr(). Raises ValueError for weights that would have
    to be copied, and for a descent of weights that are not float32.
    """

    def __init__(
        self,
        network: Network,
        image_shape: Sequence[int],
        backend: str,
        *,
        momentum: float | None = 0.1,
        eps: float = 1e-5,
        label_smoothing: float = 0.0,
        dropout: float = 0.0,
        seed: int = 0,
        descent: Descent | None = None,
    ) -> None:
        weight = network.stem.weight
        if descent is not None and weight.dtype is not torch.float32:
            raise ValueError(f"stem.weight has dtype {weight.dtype}: a descent accepts torch.float32")
        batch = image_shape[0]
        kernel = weight.shape[-1]
        if not weight.is_contiguous(memory_format=torch.channels_last):
            raise ValueError("stem.weight is not channels_last in memory: expected it so, to be used in place")
        self._backend, self._module = backend, module_of(backend)
        self._options = (-1.0 if momentum is None else momentum, eps)
        self._stem = (kernel, network.stem_stride, kernel // 2)
        self._smoothing, self._dropout, self._seed = label_smoothing, dropout, seed
        self.images = empty_nhwc(image_shape, like=weight)
        self.labels = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        self.arch = torch.zeros(len(network.blocks), dtype=torch.int32, device=weight.device)
        self.step = torch.zeros(1, dtype=torch.int64, device=weight.device)
        self.loss = torch.zeros(1, dtype=torch.float32, device=weight.device)
        self._losses = torch.zeros(batch, dtype=torch.float32, device=weight.device)

        height, width = ((n - 1) // network.stem_stride + 1 for n in image_shape[2:])
        self._windows = empty_nhwc((batch, weight[0].numel(), height, width), like=weight)
        stem = network.stem._replace(weight=weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1, 1, 1))
        only = torch.zeros(1, dtype=torch.int32, device=weight.device)
        self._parts = [_Part(self._windows, (Branch((stem,)),), 1, True, only, backend)]
        for index, (branches, stride) in enumerate(network.blocks):
            choice = self.arch[index : index + 1]
            self._parts.append(_Part(self._parts[-1].y, branches, stride, False, choice, backend))
        self._parts.append(_Part(self._parts[-1].y, (Branch((network.last,)),), 1, True, only, backend))

        end = self._parts[-1].y
        self._classifier = network.classifier
        self.classifier_gradient = torch.empty_like(network.classifier)
        self._features, self._dfeatures = (end.new_empty(batch, end.shape[1]) for _ in range(2))
        self._logits, self._dlogits = (end.new_empty(batch, len(network.classifier)) for _ in range(2))
        largest = max(part.y.numel() for part in self._parts)
        self._maps = [weight.new_empty(largest) for _ in range(2)]
        size = max(max(part.workspaces) for part in self._parts)
        self._workspace = torch.empty(size, dtype=torch.uint8, device=weight.device)
        self._counters = torch.zeros(self._module.CHOICE_BLOCK_COUNTERS, dtype=torch.int32, device=weight.device)
        pair = (self._features, self._dlogits, self.classifier_gradient)
        wgrad = self._module.sliced_conv2d_wgrad_workspace(*pair, 0, 0, 1, 0, 1)
        self._wgrad_workspace = torch.empty(wgrad, dtype=torch.float32, device=weight.device)

        self.momentum_buffers: dict[int, Tensor] = {}
        self.update: PreparedStep | None = None
        if descent is not None:
            self.update = PreparedStep(list(self._updates(descent)), [0.0], weight.device, backend)

    def _updates(self, descent: Descent) -> Iterator[Update]:
        """Yield of each parameter what its update needs: all of it, if the choice that it hangs on is taken."""

        def of(parameter: Tensor, gradient: Tensor, choice: Tensor | None, chosen: int) -> Update:
            buffer = self.momentum_buffers.setdefault(parameter.data_ptr(), torch.zeros_like(gradient))
            decay = descent.weight_decay if parameter.ndim > 1 else 0.0
            return Update(
                _flat(parameter),
                _flat(gradient),
                _flat(buffer),
                offset=0,
                rows=1,
                length=parameter.numel(),
                stride=0,
                momentum=descent.momentum,
                weight_decay=decay,
                nesterov=descent.nesterov,
                rate=0,
                choice=choice,
                chosen=chosen,
            )

        for part in self._parts:
            choice = part.choice if len(part.branches) > 1 else None
            for chosen, (branch, gradients) in enumerate(zip(part.branches, part.gradients, strict=True)):
                for layer, of_layer in zip((*branch.main, *branch.proj), gradients, strict=True):
                    for parameter, gradient in zip(layer[:3], of_layer, strict=True):
                        if parameter is not None and gradient is not None:
                            yield of(parameter, gradient, choice, chosen)
        yield of(self._classifier, self.classifier_gradient, None, 0)

    def gradients(self, block: int, choice: int) -> tuple[tuple[Tensor | None, Tensor | None, Tensor | None], ...]:
        """Return of an option's layers, main's before proj's, the gradients of weight, gamma and beta."""
        return self._parts[1 + block].gradients[choice]

    @property
    def stem_gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of the stem's weight, as [O, k·k·C, 1, 1], gamma and beta."""
        return self._parts[0].gradients[0][0]

    @property
    def last_gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self._parts[-1].gradients[0][0]

    def run(self) -> None:
        """Launch the forward pass, the backward pass, and the update if there is a descent."""
        tf32 = self.images.dtype is torch.float32 and torch.backends.cuda.matmul.allow_tf32
        stream = stream_of(self.images)
        self._forward(tf32, stream)
        self._backward(tf32, stream)
        if self.update is not None:
            self.update.run()

    def _forward(self, tf32: bool, stream: int) -> None:
        module = self._module
        module.im2row(self.images, self._windows, *self._stem, stream)
        for part in self._parts:
            memory = (part.kept, part.statistics, self._workspace, self._counters)
            device = (part.rows, part.choice)
            part.table.forward(part.x, *device, part.y, *memory, *self._options, tf32, stream)
        draw = (self._dropout, self._seed, self.step)
        module.pool(self._parts[-1].y, self._features, *draw, False, stream)
        product: tuple[Any, ...] = (0, 0, 1, 0, 1, tf32, None, None, stream)
        module.sliced_conv2d_forward(self._features, self._classifier, None, self._logits, *product)
        module.cross_entropy(self._logits, self.labels, self._losses, self.loss, self._dlogits, self._smoothing, stream)

    def _backward(self, tf32: bool, stream: int) -> None:
        module = self._module
        slice_ = (0, 0, 1, 0, 1)
        module.sliced_conv2d_wgrad(
            self._features,
            self._dlogits,
            self.classifier_gradient,
            *slice_,
            False,
            tf32,
            self._wgrad_workspace,
            None,
            None,
            stream,
        )
        module.sliced_conv2d_dgrad(self._dlogits, self._classifier, self._dfeatures, *slice_, tf32, None, None, stream)
        dy = self._map(0, self._parts[-1].y)
        module.pool(dy, self._dfeatures, self._dropout, self._seed, self.step, True, stream)
        for index, part in enumerate(reversed(self._parts)):
            dx = self._map(index + 1, part.x) if part is not self._parts[0] else None
            memory = (part.kept, part.statistics, dx, self._workspace, self._counters)
            part.table.backward(dy, part.x, part.rows, part.choice, *memory, self._options[1], tf32, stream)
            if dx is not None:
                dy = dx

    def _map(self, index: int, like: Tensor) -> Tensor:
        """One of two buffers in turn, in the shape of a map."""
        return self._maps[index % 2][: like.numel()].as_strided(like.shape, like.stride())


def _flat(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor in the order of its memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def _read(layer: ConvBN) -> ConvBN:
    weight = rows(layer.weight.detach())
    if weight.data_ptr() != layer.weight.data_ptr():
        raise ValueError(f"a weight of shape {list(layer.weight.shape)} is not dense: expected weights to use in place")
    rest = (None if tensor is None else tensor.detach() for tensor in layer[1:])
    return ConvBN(weight, *rest)


def _gradients(layer: ConvBN) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    weight = torch.zeros(layer.weight.shape, dtype=layer.weight.dtype, device=layer.weight.device)
    gamma, beta = (None if t is None else torch.zeros_like(t) for t in (layer.gamma, layer.beta))
    return weight, gamma, beta
