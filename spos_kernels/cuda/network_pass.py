"""A supernet of choice blocks as a fixed sequence of launches on fixed memory, forwards.

    images → windows → stem → blocks, each by its choice → last convolution → mean → classifier

The path is an int32 tensor on the device that the kernels read, so the sequence is the same for every path: captured
once (`graphs.capture`), it runs all of them. What differs from run to run is written into `images` and `arch` before.
Weights and running statistics are tensors of the caller's that stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spos_kernels.choice_block_kernels import rows
from spos_kernels.choice_block_reference import Branch, ConvBN
from spos_kernels.cuda.modules import module_of, stream_of, takes_tf32
from spos_kernels.layout import empty_nhwc


class Network(NamedTuple):
    """The layers of a supernet as they are run.

    stem: a k×k convolution with padding k // 2 and `stem_stride`; its weight channels_last in memory. blocks: of each
    block its options, and its stride. last: a 1×1 convolution. classifier: [classes, C], without bias.
    """

    stem: ConvBN
    stem_stride: int
    blocks: tuple[tuple[tuple[Branch, ...], int], ...]
    last: ConvBN
    classifier: Tensor


class Part:
    """A block with its table of branches, the memory of its passes, and the gradients of its weights, if wanted."""

    def __init__(
        self,
        x: Tensor,
        branches: Sequence[Branch],
        stride: int,
        whole: bool,
        choice: Tensor,
        backend: str,
        gradients: bool = True,
    ) -> None:
        module = module_of(backend)
        self.x, self.choice = x, choice
        self.branches = branches
        make = _gradients if gradients else lambda _: (None, None, None)
        self.gradients = tuple(tuple(make(layer) for layer in (*b.main, *b.proj)) for b in branches)
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


class NetworkPass:
    """The memory of a forward pass, and its launches.

    images: [N, C, H, W] channels_last, and arch: int32, a choice a block; written by the caller. logits: [N, classes].
    step: int64 [1], what dropout draws by; nothing here advances it.

    momentum: of the running statistics, None for their mean. gradients: make room for those of the weights. Raises
    ValueError for weights that would have to be copied.
    """

    def __init__(
        self,
        network: Network,
        image_shape: Sequence[int],
        backend: str,
        *,
        momentum: float | None = 0.1,
        eps: float = 1e-5,
        dropout: float = 0.0,
        seed: int = 0,
        gradients: bool = False,
    ) -> None:
        weight = network.stem.weight
        batch = image_shape[0]
        kernel = weight.shape[-1]
        if not weight.is_contiguous(memory_format=torch.channels_last):
            raise ValueError("stem.weight is not channels_last in memory: expected it so, to be used in place")
        self._backend, self._module = backend, module_of(backend)
        self._momentum, self._eps = -1.0 if momentum is None else momentum, eps
        self._stem = (kernel, network.stem_stride, kernel // 2)
        self._dropout, self._seed = dropout, seed
        self.images = empty_nhwc(image_shape, like=weight)
        self.arch = torch.zeros(len(network.blocks), dtype=torch.int32, device=weight.device)
        self.step = torch.zeros(1, dtype=torch.int64, device=weight.device)

        height, width = ((n - 1) // network.stem_stride + 1 for n in image_shape[2:])
        self._windows = empty_nhwc((batch, weight[0].numel(), height, width), like=weight)
        stem = network.stem._replace(weight=weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1, 1, 1))
        only = torch.zeros(1, dtype=torch.int32, device=weight.device)
        self._parts = [Part(self._windows, (Branch((stem,)),), 1, True, only, backend, gradients)]
        for index, (branches, stride) in enumerate(network.blocks):
            choice = self.arch[index : index + 1]
            self._parts.append(Part(self._parts[-1].y, branches, stride, False, choice, backend, gradients))
        self._parts.append(Part(self._parts[-1].y, (Branch((network.last,)),), 1, True, only, backend, gradients))

        end = self._parts[-1].y
        self._classifier = network.classifier
        self._features = end.new_empty(batch, end.shape[1])
        self.logits = end.new_empty(batch, len(network.classifier))
        size = max(max(part.workspaces if gradients else part.workspaces[:1]) for part in self._parts)
        self._workspace = torch.empty(size, dtype=torch.uint8, device=weight.device)
        self._counters = torch.zeros(self._module.CHOICE_BLOCK_COUNTERS, dtype=torch.int32, device=weight.device)

    def forward(self) -> None:
        """Launch the pass in training: statistics of the batch, which move the running ones."""
        stream = stream_of(self.images)
        self._module.im2row(self.images, self._windows, *self._stem, stream)
        for part in self._parts:
            memory = (part.kept, part.statistics, self._workspace, self._counters)
            place = (part.x, part.rows, part.choice, part.y)
            part.table.forward(*place, *memory, self._momentum, self._eps, self._tf32, stream)
        self._classify(self._dropout, stream)

    def evaluate(self) -> None:
        """Launch the pass in evaluation: running statistics, no dropout."""
        stream = stream_of(self.images)
        self._module.im2row(self.images, self._windows, *self._stem, stream)
        for part in self._parts:
            place = (part.x, part.rows, part.choice, part.y)
            part.table.evaluate(*place, part.kept, self._workspace, self._counters, self._eps, self._tf32, stream)
        self._classify(0.0, stream)

    def _classify(self, dropout: float, stream: int) -> None:
        self._module.pool(self._parts[-1].y, self._features, dropout, self._seed, self.step, False, stream)
        product: tuple[Any, ...] = (0, 0, 1, 0, 1, self._tf32, None, None, stream)
        self._module.sliced_conv2d_forward(self._features, self._classifier, None, self.logits, *product)

    @property
    def _tf32(self) -> bool:
        return takes_tf32(self.images)


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
