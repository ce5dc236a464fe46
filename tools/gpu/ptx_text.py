"""What PTX says of its entry points."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>[busf]\d+)\s+(?:\.ptr[^,\n]*?\s)?(?P<name>[\w$%]+)"
    r"(?:\[(?P<count>\d+)\])?"
)


@dataclass(frozen=True)
class Parameter:
    offset: int  # in the buffer of parameters, as cuLaunchKernel's "extra" takes it
    bytes: int
    alignment: int


@dataclass(frozen=True)
class Entry:
    name: str  # mangled
    parameters: tuple[Parameter, ...]
    threads: tuple[int, int, int] | None  # most threads of a block, .maxntid; None: the kernel states none
    blocks_per_multiprocessor: int | None  # .minnctapersm
    uses_dynamic_shared: bool


def parameters_of(text: str) -> tuple[Parameter, ...]:
    found, offset = [], 0
    for match in _PARAMETER.finditer(text):
        element = _SIZES[match["type"][1:]]
        size = element * int(match["count"] or 1)
        alignment = int(match["align"] or element)
        offset += -offset % alignment
        found.append(Parameter(offset, size, alignment))
        offset += size
    return tuple(found)


def entries(ptx: str) -> list[Entry]:
    """The entry points, in the order of the file."""
    dynamic = re.findall(r"^\.extern \.shared [^;]*?([\w$]+)\[\];", ptx, re.MULTILINE)
    found = []
    for match in re.finditer(r"\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?([^{]*)\{", ptx):
        name, parameters, directives = match[1], match[2] or "", match[3]
        end = ptx.find("\n}", match.end())
        body = ptx[match.end() : end]
        threads = re.search(r"\.(?:max|req)ntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", directives)
        blocks = re.search(r"\.minnctapersm\s+(\d+)", directives)
        found.append(
            Entry(
                name=name,
                parameters=parameters_of(parameters),
                threads=tuple(int(each or 1) for each in threads.groups()) if threads else None,  # type: ignore[arg-type]
                blocks_per_multiprocessor=int(blocks[1]) if blocks else None,
                uses_dynamic_shared=any(re.search(rf"\b{re.escape(each)}\b", body) for each in dynamic),
            )
        )
    return found
