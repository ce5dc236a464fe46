from __future__ import annotations

import os
import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from spos.data import tree as tree_module
from spos.data.tree import open_tree


def write_members(
    path: Path, members: list[tuple[zipfile.ZipInfo | str, bytes]], compression=zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, content in members:
            target.writestr(name, content)
    return path


def linked(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o644) << 16
    return info


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_lists_and_reads_plain_files_and_leaves_hidden_ones_out(kind, request):
    build = request.getfixturevalue(kind)
    files = {
        "b/ü 1.png": b"1",
        "a/x/2.png": b"22",
        ".DS_Store": b"?",
        "a/.hidden.png": b"?",
        ".git/a.png": b"?",
        "__MACOSX/a/._2.png": b"?",
    }
    with open_tree(build(files)) as tree:
        assert tree.files == {"b/ü 1.png": 1, "a/x/2.png": 2}
        assert tree.folders == {"a", "a/x", "b"}
        assert tree.read("b/ü 1.png") == b"1" and tree.read("a/x/2.png") == b"22"


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_empty_folders_are_listed(kind, request):
    with open_tree(request.getfixturevalue(kind)({"a/1": b"1", "b/": b""})) as tree:
        assert tree.folders == {"a", "b"} and list(tree.files) == ["a/1"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil.png", "'../evil.png' leads out of the archive"),
        ("a/../../evil.png", "leads out of the archive"),
        ("a/..", "leads out of the archive"),
        ("/etc/evil.png", "'/etc/evil.png' has an empty or absolute path"),
        ("C:/evil.png", "absolute path"),
        ("a\\..\\evil.png", "backslash"),
    ],
)
def test_paths_out_of_the_archive_are_refused(tmp_path, name, message):
    path = write_members(tmp_path / "x.zip", [("a/1.png", b"1"), (name, b"1")])
    with pytest.raises(ValueError, match=message):
        open_tree(path)


@pytest.mark.parametrize(
    ("kind", "message"), [(stat.S_IFLNK, "'a/2.png' is a symbolic link"), (stat.S_IFIFO, "neither a file nor a folder")]
)
def test_members_that_are_no_files_are_refused(tmp_path, kind, message):
    path = write_members(tmp_path / "x.zip", [("a/1.png", b"1"), (linked("a/2.png", kind), b"/etc/passwd")])
    with pytest.raises(ValueError, match=message):
        open_tree(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["a/1.png", "a//1.png", "a/./1.png"])
def test_duplicate_members_are_refused(tmp_path, again):
    path = write_members(tmp_path / "x.zip", [("a/1.png", b"1"), (again, b"2")])
    with pytest.raises(ValueError, match=r"member 'a/1\.png' occurs twice"):
        open_tree(path)


def test_encrypted_members_are_refused(tmp_path):
    path = write_members(tmp_path / "x.zip", [("a/1.png", b"1")])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is encrypted"):
        open_tree(path)


def test_other_compressions_are_refused(tmp_path):
    path = write_members(tmp_path / "x.zip", [("a/1.png", b"1" * 100)], zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match="compressed by method 12"):
        open_tree(path)


def test_a_bomb_by_its_declared_sizes_is_refused_before_reading(tmp_path):
    path = write_members(tmp_path / "x.zip", [("a/1.png", bytes(10**6)), ("a/2.png", bytes(10**6))])
    with pytest.raises(ValueError, match="bytes would unpack to 2000000: expected at most 200 times"):
        open_tree(path)


def test_one_enormous_member_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tree_module, "MAX_FILE_BYTES", 1000)
    path = write_members(tmp_path / "x.zip", [("a/1.png", os.urandom(1001))])
    with pytest.raises(ValueError, match=r"'a/1\.png' has 1001 bytes unpacked: expected at most 1000"):
        open_tree(path)


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tree_module, "MAX_MEMBERS", 1)
    with pytest.raises(ValueError, match="2 members: expected at most 1"):
        open_tree(write_members(tmp_path / "x.zip", [("a", b"1"), ("b", b"1")]))


def test_a_bomb_by_its_real_size_ends_at_the_declared_one(tmp_path):
    """50 MB of zeros that claim to be 1,000 bytes: an error, and never 50 MB in memory."""
    path = write_members(tmp_path / "x.zip", [("a/1.png", bytes(50 * 10**6))])
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(signature) + offset, 1000)
    path.write_bytes(content)
    with open_tree(path) as tree:
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"x\.zip: 'a/1\.png' is damaged"):
            tree.read("a/1.png")
        assert tracemalloc.get_traced_memory()[1] < 5 * 10**6
        tracemalloc.stop()


def test_a_damaged_member_is_named(tmp_path):
    path = write_members(tmp_path / "x.zip", [("a/1.png", b"abcdefgh")], zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"abcdefgh", b"abcdefgX"))
    with open_tree(path) as tree, pytest.raises(ValueError, match=r"'a/1\.png' is damaged"):
        tree.read("a/1.png")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04" + bytes(40)])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.zip: not a readable zip archive"):
        open_tree(tmp_path / "x.zip")


def test_a_cut_archive_is_refused(tmp_path):
    path = write_members(tmp_path / "x.zip", [("a/1.png", os.urandom(5000))])
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(ValueError, match="not a readable zip archive"):
        open_tree(path)


@pytest.mark.parametrize("name", ["x.tar.gz", "missing", "missing.zip"])
def test_other_sources_are_refused(tmp_path, name):
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"?")
    with pytest.raises(ValueError, match=r"expected a folder or a \.zip file"):
        open_tree(tmp_path / name)


def test_links_in_a_folder_are_followed_but_not_in_circles(folder, tmp_path):
    root = folder({"a/1.png": b"1"})
    (root / "b").symlink_to(root / "a")
    assert open_tree(root).files == {"a/1.png": 1, "b/1.png": 1}
    (root / "a" / "up").symlink_to(root)
    with pytest.raises(ValueError, match="'a/up' links to a folder that contains it"):
        open_tree(root)


def test_a_folder_with_a_dead_link_or_a_pipe_is_refused(folder):
    root = folder({"a/1.png": b"1"})
    (root / "a" / "2.png").symlink_to(root / "nowhere")
    with pytest.raises(ValueError, match=r"'a/2\.png' cannot be read: No such file"):
        open_tree(root)
    (root / "a" / "2.png").unlink()
    os.mkfifo(root / "a" / "pipe")
    with pytest.raises(ValueError, match="'a/pipe' is neither a file nor a folder"):
        open_tree(root)


def test_a_file_that_goes_away_is_named(folder):
    root = folder({"a/1.png": b"1"})
    tree = open_tree(root)
    (root / "a" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"'a/1\.png' cannot be read"):
        tree.read("a/1.png")
