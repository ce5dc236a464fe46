"""What a choice block is to its kernels: the rows of the table of branches, tiles, and where a pass keeps what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from spos_kernels.triton.launch import blocks

LAYERS, SLOTS = 8, 7
# The kernels' tiles: of a product, rows and columns; of depthwise convolutions and of sums, pixels and channels.
POINTWISE_TILE, PIXELS, CHANNELS, END_PIXELS = 64, 32, 32, 64
MOST_PARTS = 256  # programs that share a column of tiles; the last of them adds up
MOST_SPLITS = 64  # of a weight's gradient
MOST_CHANNELS = 16384  # 512 columns of CHANNELS, each with a counter
KEPT_ALIGNMENT = 8  # elements: each convolution's kept output begins at a whole vector

Layers = Sequence[Sequence[Tensor | None]]
Gradients = Sequence[Sequence[Tensor | None]]


class Layer(NamedTuple):
    """What a row of the table has of a layer, in this order: addresses, places, sizes."""

    weight: int
    gamma: int
    beta: int
    mean: int
    var: int
    batches: int
    dweight: int
    dgamma: int
    dbeta: int
    kept: int
    statistics: int
    kernel: int
    stride: int
    inputs: int
    outputs: int
    weight_stride: int
    in_height: int
    in_width: int
    height: int
    width: int


ROW_SIZE = 2 + LAYERS * len(Layer._fields)


class Branch(NamedTuple):
    main: int
    layers: tuple[Layer, ...]

    def row(self) -> list[int]:
        flat = [self.main, len(self.layers) - self.main]
        for layer in self.layers:
            flat += layer
        return flat + [0] * (ROW_SIZE - len(flat))

    def in_slot(self, slot: int, proj: bool) -> tuple[int, Layer] | None:
        """The place in the chain of the layer in a slot, and the layer."""
        chain = self.layers[self.main :] if proj else self.layers[: self.main]
        if not chain:
            return None
        index = slot - (chain[0].kernel == 1)
        return (index, chain[index]) if 0 <= index < len(chain) else None


class Block(NamedTuple):
    """A block's sizes, and the branches that a call may run."""

    batch: int
    x_pixel: int
    out_channels: int
    out_height: int
    out_width: int
    beside: int
    passes: bool
    kept: int  # elements
    statistics: int
    branches: tuple[Branch, ...]

    @property
    def pixels(self) -> int:
        """Of y."""
        return self.batch * self.out_height * self.out_width

    def pixels_of(self, layer: Layer) -> int:
        return self.batch * layer.height * layer.width

    def slots(self, backwards: bool) -> Iterator[tuple[int, bool, list[tuple[int, Layer]]]]:
        """Yield (slot, whether of proj, what it may be) of the slots in use, in the order of the pass."""
        for proj in (False, True) if backwards else (True, False):
            for slot in reversed(range(SLOTS)) if backwards else range(SLOTS):
                used = [found for branch in self.branches if (found := branch.in_slot(slot, proj)) is not None]
                if used:
                    yield slot, proj, used


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def branch_of(
    x: Tensor, layers: Layers, main: int, stride: int, whole: bool, gradients: Gradients | None
) -> tuple[Branch, int, int]:
    """Return the branch, and the elements of what it keeps and of its statistics."""
    batch, channels, height, width = x.shape
    arriving = channels // 2 if stride == 1 and not whole else channels
    kept = statistics = 0
    found: list[Layer] = []
    size, left, inputs = (height, width), stride, arriving
    for i, tensors in enumerate(layers):
        if i == main:
            size, left, inputs = (height, width), stride, arriving
        weight, gamma, beta, mean, var, count = tensors
        assert weight is not None
        kernel, outputs = weight.shape[3], weight.shape[0]
        own_stride = left if kernel > 1 else 1
        left = 1 if kernel > 1 else left
        out = tuple((n - 1) // own_stride + 1 for n in size)
        kept += -kept % KEPT_ALIGNMENT
        dweight, dgamma, dbeta = (None, None, None) if gradients is None else gradients[i]
        addresses = (_address(t) for t in (weight, gamma, beta, mean, var, count, dweight, dgamma, dbeta))
        row_stride = weight.stride(0) if outputs > 1 else inputs
        sizes = (kept, statistics, kernel, own_stride, inputs, outputs, row_stride, *size, *out)
        found.append(Layer._make((*addresses, *sizes)))
        kept += batch * out[0] * out[1] * outputs
        statistics += 2 * outputs
        size, inputs = (out[0], out[1]), outputs
    return Branch(main, tuple(found)), kept, statistics


def block_of(x: Tensor, branches: Sequence[tuple[Layers, int, Gradients | None]], stride: int, whole: bool) -> Block:
    described = [branch_of(x, layers, main, stride, whole, gradients) for layers, main, gradients in branches]
    batch, channels = x.shape[:2]
    passes = stride == 1 and not whole
    beside = 0 if whole else channels // 2 if passes else channels
    first = described[0][0]
    end = first.layers[first.main - 1]
    if any(branch.layers[branch.main - 1].outputs != end.outputs for branch, *_ in described):
        raise ValueError("branches: expected the same number of outputs of each")
    widest = max(max(layer.inputs, layer.outputs) for branch, *_ in described for layer in branch.layers)
    if widest > MOST_CHANNELS:
        raise ValueError(f"branches: a layer has {widest:,} channels, expected at most {MOST_CHANNELS:,}")
    return Block(
        batch, pixel_of(x), beside + end.outputs, end.height, end.width, beside,
        passes, max(kept for _, kept, _ in described), max(size for *_, size in described),
        tuple(branch for branch, *_ in described),
    )  # fmt: skip


def pixel_of(tensor: Tensor) -> int:
    """The distance from one pixel to the next, of maps one pixel wide, whose own strides may say anything."""
    _, channels, height, width = tensor.shape
    if width > 1:
        return tensor.stride(3)
    if height > 1:
        return tensor.stride(2)
    return tensor.stride(0) if tensor.shape[0] > 1 else channels


def forward_floats(block: Block) -> int:
    most = 0
    for slot, _, used in block.slots(False):
        tile = POINTWISE_TILE if slot % 2 else PIXELS
        for _, layer in used:
            most = max(most, min(blocks(block.pixels_of(layer), tile), MOST_PARTS) * 3 * layer.outputs)
    return most


class Plan(NamedTuple):
    """Where a backward pass keeps what, in its workspace: elements of a map, floats of the rest."""

    map: int
    sums: int
    parts: int
    weight_parts: int


def backward_plan(block: Block) -> Plan:
    largest = parts = weight_parts = 0
    for slot, _, used in block.slots(True):
        for _, layer in used:
            pixels, before = block.pixels_of(layer), block.batch * layer.in_height * layer.in_width
            largest = max(largest, pixels * layer.outputs, before * layer.inputs)
            tile = POINTWISE_TILE if slot % 2 else PIXELS
            most = max(min(blocks(before, tile), MOST_PARTS), min(blocks(pixels, END_PIXELS), MOST_PARTS))
            parts = max(parts, most * 2 * max(layer.inputs, layer.outputs))
            if slot % 2:
                splits = splits_of(pixels, tiles_of(layer))
                size = layer.outputs * layer.inputs
            else:
                splits = splits_of(pixels, layer.kernel * blocks(layer.outputs, CHANNELS))
                size = layer.outputs * layer.kernel**2
            weight_parts = max(weight_parts, splits * size if splits > 1 else 0)
    return Plan(*(-(-n // 8) * 8 for n in (largest, block.statistics, parts, weight_parts)))


def tiles_of(layer: Layer) -> int:
    return blocks(layer.outputs, POINTWISE_TILE) * blocks(layer.inputs, POINTWISE_TILE)


def splits_of(pixels: int, tiles: int) -> int:
    """As the kernels count them."""
    return max(1, min(MOST_SPLITS, 512 // tiles, blocks(pixels, 256)))


def backward_bytes(plan: Plan, element: int) -> int:
    return 2 * plan.map * element + 4 * (plan.sums + plan.parts + plan.weight_parts)
