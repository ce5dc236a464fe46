"""Where kernels' sources can be broken, found by syntax alone.

    barrier   __syncthreads(), __syncwarp(...), cp_async_wait<n>(), cp_async_commit(), __threadfence(): left out
    guard     if (... < ...) statement, or any other order comparison: the condition is always true
    exit      if (... >= ...) return, continue or break: never taken
    mask      bool name = ... < ...; and ... < ... ? a : b: always true

Only bodies of functions that are declared __device__ or __global__ count, and of these not those that are __host__ too,
which divide the work, or constexpr, which the compiler runs. Sources are formatted by clang-format, so an order
comparison has spaces around it and a template argument has none.

All mutants are compiled at once, each behind a number: `MUTANT(7)` is true in a process where 7 was chosen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

STATEMENT = re.compile(
    r"\b(?:__syncthreads\(\)|__syncwarp\([^();]*\)|__threadfence\(\)|(?:ptx::)?cp_async_wait<[^<>;]*>\(\)|"
    r"(?:ptx::)?cp_async_commit\(\));"
)
COMPARES = re.compile(r" (?:<|<=|>|>=) ")
LEAVES = re.compile(r"\s*\{?\s*(?:return|continue|break)\b")


@dataclass(frozen=True)
class Mutation:
    kind: str  # barrier, guard, exit or mask
    begin: int
    end: int
    text: str  # what is broken, on one line
    occurrence: int  # of this text in its file, from 1
    line: int


def _blank(source: str) -> str:
    """The source with comments, literals and preprocessor lines replaced by spaces: all offsets stay."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|^[ \t]*#(?:[^\n\\]|\\\n|\\.)*'
    return re.sub(pattern, lambda match: re.sub(r"[^\n]", " ", match[0]), source, flags=re.MULTILINE | re.DOTALL)


def closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] in "([{":
            depth += 1
        elif text[i] in ")]}":
            depth -= 1
            if depth == 0:
                return i
    raise ValueError(f"no bracket closes that of {text[start : start + 40]!r}")


def bodies(code: str) -> Iterator[tuple[int, int]]:
    """Begin and end of what stands between the braces of device functions."""
    last = 0
    for match in re.finditer(r"\b__(?:device|global)__\b", code):
        if match.start() < last:
            continue
        begin, i = max(code.rfind(each, 0, match.start()) for each in ";}{"), match.end()
        while i < len(code) and code[i] not in "{;":
            i = closing(code, i) + 1 if code[i] == "(" else i + 1
        if i == len(code) or code[i] == ";":
            continue
        last = closing(code, i)
        if not re.search(r"\bconstexpr\b|\b__host__\b", code[begin + 1 : i]):
            yield i + 1, last


def _start_of_condition(code: str, question: int, limit: int) -> int | None:
    """Where the condition of `... ? a : b` begins, None where that is not plain to see."""
    i = question - 1
    while i > limit:
        character = code[i]
        if character in ")]":
            depth = 0
            while True:
                depth += (code[i] in ")]") - (code[i] in "([")
                if depth == 0:
                    break
                i -= 1
        elif character in "([{;,?:":
            if character == ":" and code[i - 1] == ":":
                i -= 1
            else:
                break
        elif character == "=" and code[i - 1] not in "=<>!" and code[i + 1] != "=":
            break
        i -= 1
    start = i + 1
    returned = re.match(r"\s*return\b", code[start:question])
    start += returned.end() if returned else 0
    return start + len(code[start:question]) - len(code[start:question].lstrip())


def _sites(code: str) -> Iterator[tuple[str, int, int]]:
    for begin, end in bodies(code):
        for match in STATEMENT.finditer(code, begin, end):
            yield "barrier", match.start(), match.end()
        for match in re.finditer(r"\bif \(", code[begin:end]):
            opening = begin + match.end() - 1
            close = closing(code, opening)
            if COMPARES.search(code, opening, close):
                yield "exit" if LEAVES.match(code, close + 1) else "guard", opening + 1, close
        for match in re.finditer(r"\bbool \w+ = ", code[begin:end]):
            start, stop = begin + match.end(), code.index(";", begin + match.end())
            if COMPARES.search(code, start, stop) and "," not in code[start:stop]:
                yield "mask", start, stop
        for match in re.finditer(r" \? ", code[begin:end]):
            question = begin + match.start()
            start = _start_of_condition(code, question, begin)
            if start is not None and COMPARES.search(code, start, question):
                yield "mask", start, question


def find(source: str) -> list[Mutation]:
    """All mutations of a file, in its order; of two that overlap the outer one."""
    code = _blank(source)
    found: list[Mutation] = []
    met: Counter[str] = Counter()
    for kind, begin, end in sorted(_sites(code), key=lambda site: (site[1], -site[2])):
        if found and begin < found[-1].end:
            continue
        text = " ".join(source[begin:end].split())
        met[text] += 1
        found.append(Mutation(kind, begin, end, text, met[text], source.count("\n", 0, begin) + 1))
    return found


def applied(source: str, mutations: list[Mutation], first: int) -> str:
    """The source with every mutation behind a number, counted from `first`."""
    for number, each in reversed(list(enumerate(mutations, first))):
        text = source[each.begin : each.end]
        if each.kind == "barrier":
            new = f"{{ if (!MUTANT({number})) {text} }}"
        elif each.kind == "exit":
            new = f"!MUTANT({number}) && ({text})"
        else:
            new = f"(MUTANT({number}) || ({text}))"
        source = source[: each.begin] + new + source[each.end :]
    return source
