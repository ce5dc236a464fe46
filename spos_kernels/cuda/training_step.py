"""One training step of a supernet of choice blocks as a fixed sequence of launches on fixed memory.

    images → … → classifier (`network_pass`) → loss, back, update

As the path is read from the device's memory, one captured sequence (`graphs.capture`) trains all paths. What differs
from step to step is written into `images`, `labels` and `arch` before it runs. Weights, running statistics and
gradients are tensors that stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spos_kernels.cuda.modules import stream_of
from spos_kernels.cuda.network_pass import Network, NetworkPass
from spos_kernels.cuda.sgd import PreparedStep, Update
from spos_kernels.layout import is_dense


class Descent(NamedTuple):
    """How weights are updated: stochastic gradient descent as `spos_kernels.SGD` does it, of what is on the path.

    weight_decay: of convolutions and the classifier; the normalisations' parameters have none. max_norm: the largest
    norm of the path's gradients, to which they are scaled down; 0 for none.
    """

    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False
    max_norm: float = 0.0


class TrainingStep(NetworkPass):
    """The memory of a step, and its launches.

    labels: int64 [N], written by the caller before `run`, as images and arch are. loss: float32 [1], that of the last
    step.

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
        options = {"momentum": momentum, "eps": eps, "dropout": dropout, "seed": seed}
        super().__init__(network, image_shape, backend, **options, gradients=True)  # type: ignore[arg-type]
        batch = image_shape[0]
        self._smoothing = label_smoothing
        self.labels = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        self.loss = torch.zeros(1, dtype=torch.float32, device=weight.device)
        self._losses = torch.zeros(batch, dtype=torch.float32, device=weight.device)
        self.classifier_gradient = torch.empty_like(network.classifier)
        self._dfeatures, self._dlogits = torch.empty_like(self._features), torch.empty_like(self.logits)
        largest = max(part.y.numel() for part in self._parts)
        self._maps = [weight.new_empty(largest) for _ in range(2)]
        pair = (self._features, self._dlogits, self.classifier_gradient)
        wgrad = self._module.sliced_conv2d_wgrad_workspace(*pair, 0, 0, 1, 0, 1)
        self._wgrad_workspace = torch.empty(wgrad, dtype=torch.float32, device=weight.device)

        self.momentum_buffers: dict[int, Tensor] = {}
        self.update: PreparedStep | None = None
        if descent is not None:
            updates = list(self._updates(descent))
            self.update = PreparedStep(updates, [0.0], weight.device, backend, descent.max_norm)

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
        self.forward()
        stream = stream_of(self.images)
        entropy = (self.logits, self.labels, self._losses, self.loss, self._dlogits, self._smoothing)
        self._module.cross_entropy(*entropy, stream)
        self._backward(stream)
        if self.update is not None:
            self.update.run()

    def _backward(self, stream: int) -> None:
        module, tf32 = self._module, self._tf32
        slice_ = (0, 0, 1, 0, 1)
        pair = (self._features, self._dlogits, self.classifier_gradient)
        module.sliced_conv2d_wgrad(*pair, *slice_, False, tf32, self._wgrad_workspace, None, None, stream)
        module.sliced_conv2d_dgrad(self._dlogits, self._classifier, self._dfeatures, *slice_, tf32, None, None, stream)
        dy = self._map(0, self._parts[-1].y)
        module.pool(dy, self._dfeatures, self._dropout, self._seed, self.step, True, stream)
        for index, part in enumerate(reversed(self._parts)):
            dx = self._map(index + 1, part.x) if part is not self._parts[0] else None
            memory = (part.kept, part.statistics, dx, self._workspace, self._counters)
            part.table.backward(dy, part.x, part.rows, part.choice, *memory, self._eps, tf32, stream)
            if dx is not None:
                dy = dx

    def _map(self, index: int, like: Tensor) -> Tensor:
        """One of two buffers in turn, in the shape of a map."""
        return self._maps[index % 2][: like.numel()].as_strided(like.shape, like.stride())


def _flat(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor in the order of its memory."""
    if not is_dense(tensor):
        raise ValueError(f"a weight of shape {list(tensor.shape)} is not dense: expected weights to use in place")
    return tensor.detach().as_strided((tensor.numel(),), (1,))
