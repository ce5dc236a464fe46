"""Which image belongs to which class and split, read off the folder names.

Either class folders, `<class>/**/<image>`, or splits of class folders, `train/<class>/**`, `test/<class>/**` and
`val/<class>/**` (the last two optional), with or without folders wrapped around all of it. Classes are numbered in the
order of their sorted names (by code point: "10" comes before "2"). Files without an image's suffix are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from .tree import FileTree

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Layout:
    """`splits`: for each split that is there, (file name, label) in sorted order; `classes`: names by label."""

    classes: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]


def read_layout(tree: FileTree) -> Layout:
    """Raises ValueError: no images, one class, a class without any, images outside class folders, unequal splits."""
    images = sorted(name for name in tree.files if name.lower().endswith(IMAGE_SUFFIXES))
    if not images:
        raise ValueError(f"{tree.source}: holds no images: expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    wrapper = _wrapper(images)
    inside = [name[len(wrapper) :] for name in images]
    if _has_splits(inside):
        _check_splits(tree, inside)
        present = [split for split in SPLITS if any(name.startswith(split + "/") for name in inside)]
        found = {split: _by_class(tree, f"{wrapper}{split}/", images) for split in present}
    else:
        found = {"train": _by_class(tree, wrapper, images)}
    classes = tuple(sorted(found["train"]))
    for split, by_class in found.items():
        if unequal := set(by_class) ^ set(classes):
            raise ValueError(f"{tree.source}: class {min(unequal)!r} has images in only one of train/ and {split}/")
    if len(classes) < 2:
        raise ValueError(f"{tree.source}: one class, {classes[0]!r}: expected the folders of at least two classes")
    return Layout(
        classes,
        {
            split: [(name, label) for label, cls in enumerate(classes) for name in by_class[cls]]
            for split, by_class in found.items()
        },
    )


def _wrapper(images: list[str]) -> str:
    """The folders, with a final "/", around all images, as long as a class folder remains below them."""
    wrapper = ""
    while True:
        top, *below = images[0][len(wrapper) :].split("/")
        prefix = f"{wrapper}{top}/"
        if len(below) < 2 or top in SPLITS or not all(n.startswith(prefix) and "/" in n[len(prefix) :] for n in images):
            return wrapper
        wrapper = prefix


def _has_splits(images: list[str]) -> bool:
    """Whether the top folders are splits. A class may be called "train" too (and hold its images directly)."""
    tops = {name.split("/")[0] for name in images}
    return tops <= set(SPLITS) or any(name.split("/")[0] in SPLITS and name.count("/") >= 2 for name in images)


def _check_splits(tree: FileTree, images: list[str]) -> None:
    tops = {name.split("/")[0] for name in images}
    if strange := tops - set(SPLITS):
        raise ValueError(f"{tree.source}: {min(strange)!r} beside train/, val/ or test/: expected these three only")
    if "train" not in tops:
        raise ValueError(
            f"{tree.source}: images in {', '.join(sorted(tops))}/ only: expected train/ with class folders"
        )


def _by_class(tree: FileTree, root: str, images: list[str]) -> dict[str, list[str]]:
    by_class: dict[str, list[str]] = {}
    for name in images:
        if name.startswith(root):
            cls, *below = name[len(root) :].split("/")
            if not below:
                raise ValueError(f"{tree.source}: image {name!r} is in no class folder: expected <class>/<image>")
            by_class.setdefault(cls, []).append(name)
    for folder in sorted(tree.folders):
        cls = folder[len(root) :]
        if folder.startswith(root) and cls and "/" not in cls and cls not in by_class:
            raise ValueError(f"{tree.source}: class folder {folder!r} holds no images")
    return by_class
