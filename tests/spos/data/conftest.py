"""Small images, folders and archives for the tests of the data package."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]
WriteTree = Callable[[Mapping[str, bytes]], Path]


@pytest.fixture
def encode() -> Encode:
    """Bytes of one image of a mode and colour, or of given pixels."""

    def build(
        mode: str = "RGB", color: object = 128, size: tuple[int, int] = (8, 8), format: str = "PNG", **save: object
    ) -> bytes:
        if isinstance(color, np.ndarray):
            image = Image.fromarray(color)
        else:
            bands = len(Image.new(mode, (1, 1)).getbands())
            image = Image.new(mode, size, color if not isinstance(color, int) or bands == 1 else (color,) * bands)
        buffer = io.BytesIO()
        image.save(buffer, format, **save)
        return buffer.getvalue()

    return build


@pytest.fixture
def folder(tmp_path: Path) -> WriteTree:
    """Writes files below a folder of their own; a name that ends in "/" is an empty folder."""

    def build(files: Mapping[str, bytes]) -> Path:
        root = tmp_path / "images"
        root.mkdir(exist_ok=True)
        for name, content in files.items():
            path = root / name
            if name.endswith("/"):
                path.mkdir(parents=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return root

    return build


@pytest.fixture
def archive(tmp_path: Path) -> WriteTree:
    """Writes a deflated zip archive of these members."""

    def build(files: Mapping[str, bytes]) -> Path:
        path = tmp_path / "images.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
            for name, content in files.items():
                target.writestr(name, content)
        return path

    return build


@pytest.fixture
def class_folders(encode: Encode) -> Callable[..., dict[str, bytes]]:
    """Files `<prefix><class>/<i>.png`, every image of a colour of its own."""

    def build(classes: tuple[str, ...] = ("cat", "dog"), count: int = 10, prefix: str = "") -> dict[str, bytes]:
        return {
            f"{prefix}{name}/{i}.png": encode(color=(10 * i, 100 * label, 255 if prefix else 0))
            for label, name in enumerate(classes)
            for i in range(count)
        }

    return build
