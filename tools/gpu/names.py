"""Kernels' names as a person would write them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping

_SHORTER = (
    ("(anonymous namespace)::", ""),
    ("spos::cuda::", ""),
    ("__nv_bfloat16", "bf16"),
    ("__half", "fp16"),
    ("float", "fp32"),
    ("unsigned char", "uint8"),
    ("signed char", "int8"),
)


def demangled(names: Iterable[str]) -> dict[str, str]:
    """Each mangled name with what c++filt makes of it (itself where there is no c++filt)."""
    listed = list(dict.fromkeys(names))
    if not listed or shutil.which("c++filt") is None:
        return {name: name for name in listed}
    text = subprocess.run(["c++filt"], input="\n".join(listed), capture_output=True, text=True, check=True).stdout
    return dict(zip(listed, text.splitlines(), strict=True))


def short(name: str) -> str:
    """Drop return type, namespaces and parameters of a demangled name: "forward_kernel<fp16, true>"."""
    for long, brief in _SHORTER:
        name = name.replace(long, brief)
    depth, start, end = 0, 0, len(name)
    for i, character in enumerate(name):
        if character in "<([":
            if character == "(" and depth == 0:
                end = i
                break
            depth += 1
        elif character in ">)]" and depth > 0:
            depth -= 1
        elif character == " " and depth == 0:
            start = i + 1
    # Enumerators come as "(Math)2".
    return re.sub(r"\s*,\s*", ", ", name[start:end])


def matches(pattern: str, file: str, kernel: str) -> bool:
    """Whether "file: kernel" is what a pattern with * in it says; a file is named without .cu."""
    expression = ".*".join(map(re.escape, pattern.split("*")))
    return re.fullmatch(expression, f"{file.removesuffix('.cu')}: {kernel}") is not None


def declared(values: Mapping[str, int], file: str, kernel: str) -> int | None:
    """The value of the first pattern that matches, None if none does."""
    return next((value for pattern, value in values.items() if matches(pattern, file, kernel)), None)
