from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from spos.data import decode as decode_module
from spos.data.decode import decode_files, decode_image, fit_arrays
from spos.data.tree import open_tree


def decode_tree(source, size=8):
    with open_tree(source) as tree:
        return decode_files(tree, sorted(tree.files), size)


@pytest.mark.parametrize(
    ("mode", "color", "format", "expected"),
    [
        ("1", 1, "PNG", [255]),
        ("L", 7, "PNG", [7]),
        ("LA", (7, 0), "PNG", [7]),
        ("RGB", (1, 2, 3), "PNG", [1, 2, 3]),
        ("RGBA", (1, 2, 3, 9), "PNG", [1, 2, 3]),
        ("CMYK", (0, 255, 255, 0), "TIFF", [255, 0, 0]),
        ("RGB", (1, 2, 3), "BMP", [1, 2, 3]),
        ("RGB", (1, 2, 3), "PPM", [1, 2, 3]),
        ("L", 9, "GIF", [9, 9, 9]),
    ],
)
def test_modes_become_grey_or_rgb(encode, mode, color, format, expected):
    pixels = decode_image(encode(mode, color, format=format), 8, "x")
    assert pixels.dtype == np.uint8 and pixels.shape == (8, 8, len(expected))
    assert (pixels == expected).all()


@pytest.mark.parametrize("transparent", [None, 0, bytes([0, 128])])
def test_palettes_become_rgb_without_a_warning(transparent):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **({} if transparent is None else {"transparency": transparent}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (decode_image(buffer.getvalue(), 8, "x") == [10, 20, 30]).all()


def test_jpeg_and_cmyk_jpeg(encode):
    assert (
        abs(decode_image(encode("RGB", (200, 100, 50), format="JPEG"), 8, "x").astype(int) - [200, 100, 50]).max() < 4
    )
    assert (
        abs(decode_image(encode("CMYK", (0, 255, 255, 0), format="JPEG"), 8, "x").astype(int) - [255, 0, 0]).max() < 9
    )


def test_orientation_is_applied(encode):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, 4:] = 255  # black on the left; orientation 6 asks to turn it clockwise: black above
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = decode_image(encode(color=pixels, exif=exif), 8, "x")[..., 0]
    assert (upright[:4] == 0).all() and (upright[4:] == 255).all()


def test_the_central_square_is_kept_and_resized(encode):
    pixels = np.zeros((16, 48), np.uint8)
    pixels[:, 16:32] = 200
    wide, tall = decode_image(encode(color=pixels), 8, "x"), decode_image(encode(color=pixels.T.copy()), 8, "x")
    assert (wide[:, 1:-1] == 200).all() and wide.min() > 150  # at its border the filter reaches beyond the square
    assert np.array_equal(tall, wide.transpose(1, 0, 2))


def test_shrinking_averages_and_the_same_size_is_exact(encode):
    checks = np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255
    assert abs(decode_image(encode(color=checks), 8, "x").astype(int) - 127).max() <= 3
    assert np.array_equal(decode_image(encode(color=checks), 64, "x")[..., 0], checks)


def test_a_set_is_grey_only_if_every_image_is(folder, encode):
    files = {f"a/{i:03}.png": encode("L", i) for i in range(100)}
    grey = decode_tree(folder(files))
    assert grey.shape == (100, 8, 8, 1) and grey[:, 0, 0, 0].tolist() == list(range(100))
    mixed = decode_tree(folder({"a/070.png": encode("RGB", (1, 2, 3))}))
    assert mixed.shape == (100, 8, 8, 3)
    assert mixed[70, 0, 0].tolist() == [1, 2, 3]
    for i in (0, 69, 71, 99):
        assert (mixed[i] == i).all()


def test_colour_first_then_grey(folder, encode):
    pixels = decode_tree(folder({"a/0.png": encode("RGB", (1, 2, 3)), "a/1.png": encode("L", 5)}))
    assert pixels[0, 0, 0].tolist() == [1, 2, 3] and (pixels[1] == 5).all()


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_threads_change_nothing(kind, request, encode, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    source = request.getfixturevalue(kind)({f"a/{i:03}.png": encode(color=image) for i, image in enumerate(noise)})
    one = decode_tree(source)
    monkeypatch.setattr(decode_module, "_THREADED_FILE_BYTES", 0)
    assert np.array_equal(decode_tree(source), one)
    assert np.array_equal(decode_tree(source, 16), noise)


def test_damaged_images_are_named(folder, encode):
    whole = encode(color=np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), format="JPEG")
    for name, content in (("cut", whole[: len(whole) // 2]), ("text", b"hello"), ("empty", b"")):
        root = folder({"a/1.jpg": whole, f"b/{name}.jpg": content})
        with pytest.raises(ValueError, match=rf"images: 'b/{name}\.jpg' is not a readable image"):
            decode_tree(root)
        (root / "b" / f"{name}.jpg").unlink()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_no_cut_of_any_format_gets_through_or_escapes_as_another_error(encode, format):
    whole = encode(color=np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8), format=format)
    for length in range(0, len(whole) // 2, 7):
        with pytest.raises(ValueError, match="x is not a readable image"):
            decode_image(whole[:length], 8, "x")


def test_a_small_file_of_enormous_size_is_refused_undecoded(encode, monkeypatch):
    content = encode(size=(11, 10))
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 100)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="11 x 10 pixels, at most 100 in all"):
        decode_image(content, 8, "x")


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_eight_bits_are_refused(encode, dtype):
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        decode_image(encode(color=np.full((8, 8), 999, dtype), format="TIFF"), 8, "x")


def test_formats_beyond_the_list_are_refused(encode):
    with pytest.raises(ValueError, match="not a readable image"):
        decode_image(encode(format="ICO", size=(16, 16)), 8, "x")


def test_memory_is_checked_before_the_array_exists(folder, encode, monkeypatch):
    root = folder({f"a/{i}.png": encode("L", i) for i in range(10)})
    monkeypatch.setattr("spos.data.memory.available_memory", lambda: 10 * 2 * 8 * 8)
    assert decode_tree(root).shape == (10, 8, 8, 1)
    monkeypatch.setattr("spos.data.memory.available_memory", lambda: 10 * 2 * 8 * 8 - 1)
    with pytest.raises(
        ValueError, match=r"10 images decoded to 8 x 8 x 1.* needs 0\.00 GB of memory, but only 0\.00 GB"
    ):
        decode_tree(root)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_fitted_as_files_are(encode, channels):
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 30, channels), dtype=np.uint8)
    fitted = fit_arrays(images, 8)
    for image, result in zip(images, fitted, strict=True):
        assert np.array_equal(result, decode_image(encode(color=image[..., 0] if channels == 1 else image), 8, "x"))
    same = images[:, :, :20]
    assert fit_arrays(same, 20) is same
