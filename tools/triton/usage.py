"""What the Triton kernels take of a multiprocessor, the table that is kept of it, and what is wrong with it.

The table, docs/triton-resources.md, has a section for each kernel and a row for each of its compilations: the types and
constants of a launch, and a configuration. Registers and shared memory may differ with the compiler: rows count where
the table was made with the Triton that is installed. A kernel that spills, one that has lost its tensor cores, or one
that the table does not have is an error with any.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

ARCHITECTURES = (80, 90, 100, 120)
COMMAND = "make triton-static UPDATE=1"
TENSOR_CORES = re.compile(r"\b(?:HMMA|IMMA|HGMMA|IGMMA|UTC\w*MMA)\b")
LOCAL_MEMORY = re.compile(r"\b(?:LDL|STL)\b")


class Usage(NamedTuple):
    """One compilation. stack: bytes of local memory of a thread; spilled: instructions that read or write it;
    tensor_cores: instructions, None of a kernel that has no use for them. error: why there is nothing of this.
    """

    kernel: str
    title: str
    architecture: int
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spilled: int = 0
    tensor_cores: int | None = None
    error: str = ""

    @property
    def cell(self) -> str:
        numbers = [self.registers, self.shared, self.stack, self.spilled]
        return " / ".join(map(str, numbers if self.tensor_cores is None else [*numbers, self.tensor_cores]))


Rows = dict[tuple[str, str], dict[int, str]]  # by kernel and title, then by architecture


def rows_of(usages: Sequence[Usage]) -> Rows:
    rows: Rows = {}
    for each in usages:
        rows.setdefault((each.kernel, each.title), {})[each.architecture] = each.cell
    return rows


def page(usages: Sequence[Usage], release: str) -> str:
    lines = [
        "# Triton kernels, compiled ahead of time",
        "",
        f"Written by `{COMMAND}` with Triton {release}: every kind of launch that `tools/triton/cases.py` has, in",
        "every configuration that may run it. In a cell: registers of a thread / shared memory of a block in bytes /",
        "stack of a thread in bytes / instructions that read or write it, which are spills / of kernels that multiply",
        "matrices in a type for tensor cores, instructions of these. — stands where shared memory does not suffice.",
        "Nothing here ran on a GPU.",
    ]
    before = ""
    heads = " | ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
    for (kernel, title), cells in sorted(rows_of(usages).items()):
        if kernel != before:
            lines += ["", f"## {kernel}", "", f"| compiled for | {heads} |", "|---" * (1 + len(ARCHITECTURES)) + "|"]
            before = kernel
        lines.append(f"| {title} | " + " | ".join(cells.get(a, "—") for a in ARCHITECTURES) + " |")
    return "\n".join(lines) + "\n"


def read(text: str) -> tuple[str, Rows]:
    """Return the release of Triton that a page was made with, and its rows."""
    release = re.search(r"with Triton (\S+):", text)
    rows: Rows = {}
    kernel = ""
    for line in text.splitlines():
        if line.startswith("## "):
            kernel = line[3:]
        elif line.startswith("| ") and not line.startswith("| compiled for"):
            title, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            named = zip(ARCHITECTURES, cells, strict=True)
            rows[kernel, title] = {architecture: cell for architecture, cell in named if cell != "—"}
    return (release[1] if release else ""), rows


def complaints(usages: Sequence[Usage]) -> Iterator[str]:
    """What is wrong whatever the table says."""
    for each in usages:
        where = f"{each.kernel} ({each.title}) for sm_{each.architecture}"
        if each.error:
            yield f"{where} does not compile: {each.error}"
            continue
        if each.spilled or each.stack:
            yield f"{where} spills: {each.spilled} instructions for {each.stack} bytes of local memory"
        if each.tensor_cores == 0:
            yield f"{where} has no tensor-core instruction"


def table_complaints(usages: Sequence[Usage], text: str, release: str, whole: bool = True) -> Iterator[str]:
    """How compilations differ from the committed table. whole: they are all that there are."""
    stated_release, stated = read(text)
    rows = rows_of(usages)
    for kernel, title in rows.keys() - stated.keys():
        yield f"{kernel} ({title}) is not in the table: {COMMAND}"
    for kernel, title in (stated.keys() - rows.keys()) if whole else ():
        yield f"{kernel} ({title}) is in the table, and nothing compiles it: {COMMAND}"
    if release == stated_release:
        for key in rows.keys() & stated.keys():
            yield from _differences(*key, rows[key], stated[key])


def _differences(kernel: str, title: str, now: Mapping[int, str], before: Mapping[int, str]) -> Iterator[str]:
    for architecture in ARCHITECTURES:
        own, other = now.get(architecture, "—"), before.get(architecture, "—")
        if own != other:
            yield f"{kernel} ({title}) for sm_{architecture}: {own}, in the table {other}: {COMMAND}"
