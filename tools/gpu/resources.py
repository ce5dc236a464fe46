"""What each kernel takes of a multiprocessor, as ptxas says it, and the table that is kept of it.

The table has a section for each file and a row for each kernel. A cell is "registers / occupancy": the registers of a
thread, and the resident warps, at the launch bounds, as a part of those that a multiprocessor could hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import names
import occupancy
import ptx_text
from compilation import Compiled
from toolchain import ARCHITECTURES

# Another release of ptxas, or a change elsewhere in a file, moves a few registers.
MARGIN = 4
COMMAND = "make gpu-static UPDATE=1"


@dataclass(frozen=True)
class Usage:
    """One kernel on one architecture."""

    registers: int
    shared_bytes: int  # of arrays of fixed size
    stack_bytes: int
    spill_bytes: int  # stores and loads


@dataclass
class Kernel:
    file: str
    name: str  # short
    threads: int | None
    dynamic_shared: int | None  # bytes at a launch, of a kernel that uses such; None: it does and nobody declared them
    usage: dict[int, Usage] = field(default_factory=dict)

    @property
    def shared_bytes(self) -> int:
        return max(each.shared_bytes for each in self.usage.values()) + (self.dynamic_shared or 0)

    def occupancy(self, architecture: int) -> float:
        used = self.usage[architecture]
        shared = used.shared_bytes + (self.dynamic_shared or 0)
        return occupancy.occupancy(architecture, self.threads or 1024, used.registers, shared)

    def cell(self, architecture: int) -> str:
        if architecture not in self.usage:
            return "-"
        return f"{self.usage[architecture].registers} / {self.occupancy(architecture):.0%}"


def usages(log: str) -> dict[str, Usage]:
    """By mangled name, from the output of ptxas -v."""
    found = {}
    pieces = re.split(r"Compiling entry function '([^']+)' for '\w+'", log)
    for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
        own = re.search(rf"Function properties for {re.escape(name)}\s+(.*)", text)
        stack, stores, loads = map(int, re.findall(r"(\d+) bytes (?:stack|spill)", own[1])) if own else (0, 0, 0)
        registers = re.search(r"Used (\d+) registers", text)
        if registers is None:
            raise ValueError(f"ptxas says nothing of the registers of {name}:\n{text}")
        shared = re.search(r"(\d+) bytes smem", text)
        found[name] = Usage(int(registers[1]), int(shared[1]) if shared else 0, stack, stores + loads)
    return found


def kernels_of(compiled: Iterable[Compiled], dynamic_shared: Mapping[str, int]) -> dict[tuple[str, str], Kernel]:
    """Every kernel of these files by (file, short name). dynamic_shared: bytes by "file: name" patterns."""
    found: dict[tuple[str, str], Kernel] = {}
    for each in compiled:
        readable = {entry.name: entry for entry in ptx_text.entries(each.ptx.read_text())}
        shorter = names.demangled(readable)
        for mangled, used in usages(each.log.read_text()).items():
            entry, name = readable[mangled], names.short(shorter[mangled])
            key = (each.source.name, name)
            if key not in found:
                threads = None if entry.threads is None else entry.threads[0] * entry.threads[1] * entry.threads[2]
                shared = names.declared(dynamic_shared, *key) if entry.uses_dynamic_shared else 0
                found[key] = Kernel(each.source.name, name, threads, shared)
            if each.architecture in found[key].usage:
                raise ValueError(f"{each.source.name} has two kernels that are written {name}")
            found[key].usage[each.architecture] = used
    return dict(sorted(found.items()))


def table(kernels: Mapping[tuple[str, str], Kernel], release: str) -> str:
    """The page that is committed."""
    lines = [
        "# Registers and occupancy of the CUDA kernels",
        "",
        f"Written by `{COMMAND}` with nvcc {release}; nothing was run. `make gpu-static` compiles "
        "every kernel again and",
        "fails on any stack, spill or local memory (hence no column for these), on a kernel that "
        "has no row or a row that",
        f"has no kernel, and on more than {MARGIN} registers more than here.",
        "",
        "Threads: of a block, by `__launch_bounds__`. Shared: bytes of a block, the dynamic part "
        "included. Cells: registers",
        "of a thread / resident warps of the most that a multiprocessor holds (64; 48 on sm_120).",
    ]
    file = None
    for kernel in kernels.values():
        if kernel.file != file:
            file = kernel.file
            titles = " | ".join(f"sm_{each}" for each in ARCHITECTURES)
            lines += ["", f"## {file}", "", f"| kernel | threads | shared | {titles} |"]
            lines.append("|---|--:|--:|" + "--:|" * len(ARCHITECTURES))
        cells = " | ".join(kernel.cell(each) for each in ARCHITECTURES)
        lines.append(f"| `{kernel.name}` | {kernel.threads or '-'} | {kernel.shared_bytes} | {cells} |")
    return "\n".join(lines) + "\n"


def registers_in(page: str) -> dict[tuple[str, str], dict[int, int]]:
    """The registers that a table states, by (file, kernel) and architecture."""
    found: dict[tuple[str, str], dict[int, int]] = {}
    file, architectures = "", list(ARCHITECTURES)
    for line in page.splitlines():
        if line.startswith("## "):
            file = line[3:]
        elif line.startswith("| kernel "):
            architectures = [int(each) for each in re.findall(r"sm_(\d+)", line)]
        elif match := re.match(r"\| `(.+?)` \|[^|]*\|[^|]*\|(.*)\|$", line):
            cells = [re.match(r"\s*(\d+) /", cell) for cell in match[2].split("|")]
            found[file, match[1]] = {
                architecture: int(cell[1]) for architecture, cell in zip(architectures, cells, strict=True) if cell
            }
    return found


def release_in(page: str) -> str | None:
    found = re.search(r"with nvcc ([\d.]+)", page)
    return found[1] if found else None


def memory_complaints(kernels: Iterable[Kernel]) -> list[str]:
    """What no table can excuse."""
    complaints = []
    for kernel in kernels:
        place = f"{kernel.file}: {kernel.name}"
        if kernel.threads is None:
            complaints.append(f"{place} has no __launch_bounds__: its registers are not bounded by its threads")
        if kernel.dynamic_shared is None:
            complaints.append(f"{place} uses dynamic shared memory, and expectations.toml does not say how much")
        for architecture, used in sorted(kernel.usage.items()):
            if used.spill_bytes or used.stack_bytes:
                complaints.append(
                    f"{place} on sm_{architecture}: {used.spill_bytes} bytes of spills, {used.stack_bytes} of stack"
                )
            if kernel.occupancy(architecture) == 0:
                complaints.append(f"{place} on sm_{architecture}: not one block of it fits on a multiprocessor")
    return complaints


def table_complaints(kernels: Mapping[tuple[str, str], Kernel], page: str, release: str) -> list[str]:
    """How the kernels differ from the committed table. Registers count only under the release that it was made with."""
    stated = registers_in(page)
    complaints = [f"{file}: {name} is not in the table" for file, name in kernels if (file, name) not in stated]
    complaints += [
        f"{file}: {name} is in the table and not compiled" for file, name in stated if (file, name) not in kernels
    ]
    if release_in(page) != release:
        return complaints
    for key, kernel in kernels.items():
        for architecture, used in sorted(kernel.usage.items()):
            before = stated.get(key, {}).get(architecture, used.registers)
            if used.registers > before + MARGIN:
                complaints.append(
                    f"{kernel.file}: {kernel.name} on sm_{architecture}: {used.registers} registers, {before} "
                    "in the table"
                )
    return complaints


def slowest(compiled: Sequence[Compiled]) -> str:
    each = max(compiled, key=lambda one: one.seconds)
    return f"{each.source.name} for sm_{each.architecture}, {each.seconds:.0f} s"
