"""Encoded image files into one uint8 array, once, at the size they are stored in."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from .memory import require_memory
from .tree import FileTree

Pixels = npt.NDArray[np.uint8]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 64 * 2**20  # of one image, decoded: a small file can declare an enormous one
_ORIENTATION = 0x0112
_GREY_MODES = ("1", "L", "LA")
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_THREADED_FILE_BYTES = 8192  # below, a file takes longer to hand to a thread than to decode
_CHUNK = 32


def decode_files(tree: FileTree, names: Sequence[str], size: int) -> Pixels:
    """uint8 [N, size, size, C], C = 1 if every image is grey, else 3 (RGB).

    The central square of each image, resized (bilinear, antialiased); EXIF orientation applied, transparency dropped.
    Raises ValueError naming the first file that is not a readable image, and if the array would not fit in memory.
    """

    def decode_chunk(chunk: Sequence[str]) -> list[Pixels]:
        return [decode_image(tree.read(name), size, f"{tree.source}: {name!r}") for name in chunk]

    mean_bytes = sum(tree.files[name] for name in names) / len(names)
    workers = torch.get_num_threads() if mean_bytes >= _THREADED_FILE_BYTES else 1
    chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
    ahead = 4 * workers  # decoded images wait for their place in the array, and must not pile up
    pixels = _room(tree, len(names), size, decode_chunk(names[:1])[0].shape[2])
    position = 0
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(chunks), ahead):
            for image in chain.from_iterable(pool.map(decode_chunk, chunks[start : start + ahead])):
                if image.shape[2] > pixels.shape[3]:  # the first coloured image: the grey ones before it become RGB
                    coloured = _room(tree, len(names), size, 3)
                    coloured[:position] = pixels[:position]
                    pixels = coloured
                pixels[position] = image
                position += 1
    return pixels


def decode_image(content: bytes, size: int, name: str) -> Pixels:
    """One image, uint8 [size, size, 1 or 3]; `name` is what an error calls it."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} in all are accepted")
            if image.mode in _DEEP_MODES:
                raise ValueError(f"more than 8 bits a channel (mode {image.mode}), 8 are accepted")
            upright = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
            return fit(_plain(upright), size)
    except (
        Exception
    ) as error:  # Pillow's decoders raise almost anything on damaged data: struct.error, SyntaxError, ...
        raise ValueError(f"{name} is not a readable image: {error}") from error


def fit(image: Image.Image, size: int) -> Pixels:
    """The central square of a grey or RGB image, resized: uint8 [size, size, C]."""
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, -1)


def fit_arrays(images: Pixels, size: int) -> Pixels:
    """The same for arrays: uint8 [N, H, W, C] to [N, size, size, C]; itself if it has that size."""
    if images.shape[1:3] == (size, size):
        return images
    require_memory(len(images) * size * size * images.shape[3], f"images resized to {size} x {size}: their array")
    squeezed: Iterable[Pixels] = images[..., 0] if images.shape[3] == 1 else images
    return np.stack([fit(Image.fromarray(image), size) for image in squeezed])


def _plain(image: Image.Image) -> Image.Image:
    if image.mode in _GREY_MODES:
        return image.convert("L")
    if image.mode == "P" and "transparency" in image.info:  # straight to RGB would warn
        image = image.convert("RGBA")
    return image.convert("RGB")


def _room(tree: FileTree, count: int, size: int, channels: int) -> Pixels:
    needed = count * size * size * channels
    # Twice: splitting copies the images that stay and those that are held out.
    require_memory(
        2 * needed, f"{tree.source}: {count} images decoded to {size} x {size} x {channels}, while they are split,"
    )
    return np.empty((count, size, size, channels), dtype=np.uint8)
