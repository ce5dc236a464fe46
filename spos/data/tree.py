"""Files of a folder or of a zip archive, by relative name. Archives are read, never extracted.

An archive is untrusted: before anything of it is read, every member's name, kind and declared size is checked against
the limits below, and reading stops at the declared size. Hidden files, hidden folders and `__MACOSX` are left out.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

MAX_MEMBERS = 20_000_000
MAX_FILE_BYTES = 256 * 2**20  # of one file, unpacked: far more than any photograph
MAX_EXPANSION = 200  # all files unpacked, against the archive; images hardly shrink, a zip bomb reaches 1000 and more


class FileTree(ABC):
    """`files`: size in bytes by relative name, "/" between folders; `folders`: relative names, without the root."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.files: dict[str, int] = {}
        self.folders: set[str] = set()

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Content of one of `files`; safe from several threads. Raises ValueError naming a file that cannot be read."""

    @abstractmethod
    def close(self) -> None:
        """Frees what the tree holds open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add(self, name: str, size: int) -> None:
        if size > MAX_FILE_BYTES:
            raise ValueError(f"{self.source}: {name!r} has {size} bytes unpacked: expected at most {MAX_FILE_BYTES}")
        self.files[name] = size
        self.folders.update(str(parent) for parent in PurePosixPath(name).parents if str(parent) != ".")


class FolderTree(FileTree):
    """A folder on disk. Links are followed, since the folder is the user's own; a circle of them is an error."""

    def __init__(self, source: Path) -> None:
        super().__init__(source)
        self._walk(source, (os.path.realpath(source),))

    def read(self, name: str) -> bytes:
        try:
            return (self.source / name).read_bytes()
        except OSError as error:
            raise ValueError(f"{self.source}: {name!r} cannot be read: {error.strerror}") from error

    def close(self) -> None:
        pass  # nothing stays open

    def _walk(self, folder: Path, above: tuple[str, ...]) -> None:
        for path in self._entries(folder):
            name = path.relative_to(self.source).as_posix()
            try:
                status = path.stat()
            except OSError as error:
                raise ValueError(f"{self.source}: {name!r} cannot be read: {error.strerror}") from error
            if stat.S_ISDIR(status.st_mode):
                real = os.path.realpath(path)
                if real in above:
                    raise ValueError(f"{self.source}: {name!r} links to a folder that contains it")
                self.folders.add(name)
                self._walk(path, (*above, real))
            elif stat.S_ISREG(status.st_mode):
                self._add(name, status.st_size)
            else:
                raise ValueError(f"{self.source}: {name!r} is neither a file nor a folder")

    def _entries(self, folder: Path) -> Iterator[Path]:
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise ValueError(f"{folder}: cannot be read: {error.strerror}") from error
        return (folder / name for name in names if not _hidden((name,)))


class ZipTree(FileTree):
    """A zip archive, stored or deflated. Raises ValueError, naming archive and member, for one not safe to read."""

    def __init__(self, source: Path) -> None:
        super().__init__(source)
        try:
            self._zip = zipfile.ZipFile(source)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ValueError(f"{source}: not a readable zip archive: {error}") from error
        try:
            self._members = self._checked_members()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._zip.close()

    def read(self, name: str) -> bytes:
        # Asked for one byte more than is declared, zipfile unpacks no further and compares the checksum of what it has:
        # a member that would unpack to more ends here as damaged. Asked for all, it would unpack everything first.
        try:
            with self._zip.open(self._members[name]) as member:
                content = member.read(self.files[name] + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
            raise ValueError(f"{self.source}: {name!r} is damaged: {error}") from error
        if len(content) != self.files[name]:
            raise ValueError(f"{self.source}: {name!r} is damaged: {len(content)} bytes, declared {self.files[name]}")
        return content

    def _checked_members(self) -> dict[str, zipfile.ZipInfo]:
        infos = self._zip.infolist()
        if len(infos) > MAX_MEMBERS:
            raise ValueError(f"{self.source}: {len(infos)} members: expected at most {MAX_MEMBERS}")
        unpacked, packed = sum(info.file_size for info in infos), self.source.stat().st_size
        if unpacked > MAX_EXPANSION * packed:
            raise ValueError(
                f"{self.source}: {packed} bytes would unpack to {unpacked}: expected at most {MAX_EXPANSION} times more"
            )
        members: dict[str, zipfile.ZipInfo] = {}
        seen: set[str] = set()
        for info in infos:
            name = self._checked_name(info)
            if name in seen:
                raise ValueError(f"{self.source}: member {name!r} occurs twice")
            seen.add(name)
            if _hidden(PurePosixPath(name).parts):
                continue
            if info.is_dir():
                self.folders.add(name)
            else:
                self._add(name, info.file_size)
                members[name] = info
        return members

    def _checked_name(self, info: zipfile.ZipInfo) -> str:
        raw = info.orig_filename
        path = PurePosixPath(raw)
        kind = stat.S_IFMT(info.external_attr >> 16)
        problem = None
        if not path.parts or path.is_absolute() or (len(raw) > 1 and raw[1] == ":"):
            problem = "has an empty or absolute path"
        elif ".." in path.parts:
            problem = "leads out of the archive"
        elif "\\" in raw or "\0" in raw:
            problem = "has a backslash or a zero byte in its path"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "is a symbolic link" if kind == stat.S_IFLNK else "is neither a file nor a folder"
        elif info.flag_bits & 0x1:
            problem = "is encrypted"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = f"is compressed by method {info.compress_type}"
        if problem is not None:
            raise ValueError(
                f"{self.source}: member {raw!r} {problem}: expected plain files, by relative path, stored or deflated"
            )
        return str(path)


def open_tree(source: Path) -> FileTree:
    """The tree of a folder or of a `.zip` file. Raises ValueError for anything else."""
    if source.is_dir():
        return FolderTree(source)
    if source.is_file() and source.suffix.lower() == ".zip":
        return ZipTree(source)
    raise ValueError(f"{source}: expected a folder or a .zip file" + (", there is none" if not source.exists() else ""))


def _hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)
