"""The instructions of each kernel's machine code, counted where they stand (not as often as they run).

What is counted: the multiply-adds of the floating-point units and of the tensor cores, the accesses of each memory with
their widths in bits, barriers. What a kernel must have and must not have is declared in csrc/cuda/expectations.toml.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import names
from compilation import Compiled

# Opcodes that are counted under their own name; the others make up "other". FFMA2 is two FFMA in one, on sm_100 on.
ARITHMETIC = ("FFMA", "FFMA2", "HFMA2", "HMMA", "IMMA", "BMMA", "IDP", "MUFU")
ACCESSES = ("LDG", "STG", "LDS", "STS", "LDGSTS", "LDL", "STL")  # with the width: LDG.128
PLAIN = ("LDSM", "STSM", "BAR", "WARPSYNC", "SHFL", "MEMBAR", "ATOM", "ATOMG", "ATOMS", "RED", "REDG", "CALL")
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}
_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)")


def kind_of(opcode: str, modifiers: Sequence[str]) -> str:
    if opcode == "IMMA" and modifiers:  # with the shape, which tells nibbles from bytes: IMMA.16864
        return f"IMMA.{modifiers[0]}"
    if opcode in ACCESSES:
        return f"{opcode}.{next((_WIDTHS[each] for each in modifiers if each in _WIDTHS), 32)}"
    return opcode if opcode in ARITHMETIC or opcode in PLAIN else "other"


def count(listing: str) -> dict[str, Counter[str]]:
    """Instructions by mangled name and kind, of what nvdisasm prints."""
    found: dict[str, Counter[str]] = {}
    current: Counter[str] | None = None
    for line in listing.splitlines():
        if section := re.match(r"\s*\.section\s+\.(\S+?),", line):
            name = section[1].removeprefix("text.")
            current = found.setdefault(name, Counter()) if section[1] != name else None
        elif current is not None and (match := _LINE.match(line)) and match[1] != "NOP":
            current[kind_of(match[1], match[2].split(".")[1:])] += 1
    return found


def of_cubin(cubin: Path, program: str) -> dict[str, Counter[str]]:
    """The same of a file, kept beside it."""
    kept = cubin.with_suffix(".census.json")
    if not kept.exists():
        result = subprocess.run([program, "-c", str(cubin)], capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"{program} does not read {cubin}: {result.stderr.strip()}")
        kept.write_text(json.dumps(count(result.stdout)))
    return {name: Counter(counts) for name, counts in json.loads(kept.read_text()).items()}


Census = dict[tuple[str, str], dict[int, Counter[str]]]  # by (file, kernel) and architecture


def of_all(compiled: Iterable[Compiled], program: str) -> Census:
    found: Census = {}
    for each in compiled:
        counted = of_cubin(each.cubin, program)
        readable = names.demangled(counted)
        for mangled, counts in counted.items():
            found.setdefault((each.source.name, names.short(readable[mangled])), {})[each.architecture] = counts
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Expectation:
    kernels: str  # pattern of "file: kernel"
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    architectures: tuple[int, ...] = ()  # all, if empty

    @staticmethod
    def read(table: Mapping[str, object]) -> Expectation:
        unknown = set(table) - {"kernels", "has", "lacks", "architectures"}
        if unknown or "kernels" not in table:
            raise ValueError(f"expectation {dict(table)}: accepted are kernels, has, lacks and architectures")
        lists = {key: tuple(value) for key, value in table.items() if key != "kernels"}  # type: ignore[arg-type]
        return Expectation(str(table["kernels"]), **lists)


def number(counts: Mapping[str, int], wanted: str) -> int:
    """Instructions of a kind; "LDG" are those of all widths, "FFMA" the packed ones too."""
    whole = sum(each for kind, each in counts.items() if kind == wanted or kind.startswith(f"{wanted}."))
    return whole + (counts.get("FFMA2", 0) if wanted == "FFMA" else 0)


def complaints(census: Census, expectations: Iterable[Expectation]) -> list[str]:
    found = []
    for expected in expectations:
        met = [key for key in census if names.matches(expected.kernels, *key)]
        if not met:
            found.append(f"expectations.toml: no kernel is called {expected.kernels}")
        for file, kernel in met:
            for architecture, counts in sorted(census[file, kernel].items()):
                if expected.architectures and architecture not in expected.architectures:
                    continue
                place = f"{file}: {kernel} on sm_{architecture}"
                found += [f"{place} has no {each}" for each in expected.has if number(counts, each) == 0]
                found += [
                    f"{place} has {number(counts, each)} {each}" for each in expected.lacks if number(counts, each) > 0
                ]
    return found


def page(census: Census) -> str:
    """All counts, for reading: a section for each kernel, a column for each architecture."""
    lines = ["# Instructions of the CUDA kernels, counted where they stand", ""]
    for (file, kernel), by_architecture in census.items():
        architectures = sorted(by_architecture)
        lines += [f"## {file}: {kernel}", "", "| |" + "|".join(f" sm_{each} " for each in architectures) + "|"]
        lines.append("|---|" + "--:|" * len(architectures))
        kinds = sorted(
            {kind for counts in by_architecture.values() for kind in counts}, key=lambda k: (k == "other", k)
        )
        for kind in kinds:
            numbers = " | ".join(str(by_architecture[each].get(kind, 0)) for each in architectures)
            lines.append(f"| {kind} | {numbers} |")
        lines.append("")
    return "\n".join(lines)
