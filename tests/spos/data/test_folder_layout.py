from __future__ import annotations

import pytest

from spos.data.layout import read_layout
from spos.data.tree import open_tree


def layout_of(build, *names: str):
    with open_tree(build(dict.fromkeys(names, b"x"))) as tree:
        return read_layout(tree)


def test_classes_are_numbered_by_sorted_name_whatever_the_order_in_the_archive(archive):
    layout = layout_of(archive, "zebra/1.png", "10/1.png", "Ärger/1.JPG", "2/b.png", "2/a.png", "犬/1.png", "Zoo/1.png")
    assert layout.classes == ("10", "2", "Zoo", "zebra", "Ärger", "犬")
    assert layout.splits == {
        "train": [
            ("10/1.png", 0),
            ("2/a.png", 1),
            ("2/b.png", 1),
            ("Zoo/1.png", 2),
            ("zebra/1.png", 3),
            ("Ärger/1.JPG", 4),
            ("犬/1.png", 5),
        ]
    }


@pytest.mark.parametrize("wrapper", ["", "set/", "outer/inner/"])
def test_splits_and_wrapping_folders(folder, wrapper):
    names = [f"{wrapper}{split}/{cls}/{split}.png" for split in ("train", "val", "test") for cls in ("b", "a")]
    layout = layout_of(folder, *names, f"{wrapper}README.txt", f"{wrapper}train/list.csv", "notes.md")
    assert layout.classes == ("a", "b")
    assert list(layout.splits) == ["train", "val", "test"]
    for split, entries in layout.splits.items():
        assert entries == [(f"{wrapper}{split}/{cls}/{split}.png", label) for label, cls in enumerate(("a", "b"))]


def test_classes_are_sorted_by_their_names_not_by_paths(folder):
    assert layout_of(folder, "a-b/1.png", "a/1.png").classes == ("a", "a-b")  # "a-b/" comes before "a/"


def test_a_training_split_alone_is_enough(folder):
    assert list(layout_of(folder, "train/a/1.png", "train/b/1.png").splits) == ["train"]


def test_folders_below_a_class_belong_to_it(folder):
    layout = layout_of(folder, "a/1.png", "a/more/deep/2.png", "b/1.png")
    assert layout.splits["train"] == [("a/1.png", 0), ("a/more/deep/2.png", 0), ("b/1.png", 1)]


def test_a_class_may_be_called_train(folder):
    assert layout_of(folder, "car/1.png", "train/1.png").classes == ("car", "train")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no images"),
        (["a/readme.txt"], r"holds no images: expected files ending in \.bmp"),
        (["a/1.png", "a/2.png"], "one class, 'a'"),
        (["train/a/1.png", "test/a/1.png"], "one class, 'a'"),
        (["a/1.png", "b/1.png", "3.png"], r"image '3\.png' is in no class folder"),
        (["a/1.png", "b/notes.txt"], "class folder 'b' holds no images"),
        (["a/1.png", "b/1.png", "c/"], "class folder 'c' holds no images"),
        (["train/a/1.png", "train/b/1.png", "train/c/"], "class folder 'train/c' holds no images"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png"], "class 'b' has images in only one of train/ and test/"),
        (["train/a/1.png", "train/b/1.png", "val/c/1.png"], "only one of train/ and val/"),
        (["train/a/1.png", "train/b/1.png", "extra/a/1.png"], "'extra' beside train/"),
        (["test/a/1.png", "test/b/1.png"], "images in test/ only: expected train/"),
        (["train/1.png", "test/1.png"], r"image 'train/1\.png' is in no class folder"),
    ],
)
def test_refuses(folder, names, message):
    with pytest.raises(ValueError, match=message):
        layout_of(folder, *names)
