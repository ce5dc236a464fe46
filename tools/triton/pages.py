"""Writes docs/triton-kernels.md: for each Triton kernel what it does, moves and computes, and the least time of that.

The floor is the larger of bytes by the rate of memory and operations by the rate of the units that do them, from the
published peaks of tools/gpu/peaks.py. Nothing there was measured.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools" / "gpu"), str(ROOT / "tools" / "triton")]

import peaks  # noqa: E402
from work import Work, works  # noqa: E402

SOURCES = ROOT / "spos_kernels" / "triton"
PAGE = ROOT / "docs" / "triton-kernels.md"
DEVICES = [device for device in peaks.DEVICES if device.name in ("A100", "H100")]


def kernels_of(tree: ast.Module) -> list[ast.FunctionDef]:
    """Return the kernels of a file: functions that `kernel` decorates."""

    def is_kernel(node: ast.expr) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "kernel"

    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [function for function in functions if any(map(is_kernel, function.decorator_list))]


def floor(work: Work, device: peaks.Device) -> str:
    rate = device.fp32 if work.unit == "fp32" else device.tensor[work.unit]
    by_memory, by_units = 1e6 * work.bytes / device.memory, 1e6 * work.operations / rate
    which = "memory" if by_memory >= by_units else "fp32" if work.unit == "fp32" else "tensor cores"
    return f"{max(by_memory, by_units):.3g} {which}"


def table(of: list[Work]) -> list[str]:
    lines = [
        "| shapes | MB | M operations | intensity | " + " | ".join(device.name for device in DEVICES) + " |",
        "|---|--:|--:|--:|" + "--:|" * len(DEVICES),
    ]
    for work in of:
        floors = " | ".join(floor(work, device) for device in DEVICES)
        lines.append(
            f"| {work.shapes} | {work.bytes / 1e6:.3g} | {work.operations / 1e6:.4g} | "
            f"{work.operations / work.bytes:.3g} | {floors} |"
        )
    return lines


def page() -> str:
    lines = [
        "# The Triton kernels, one by one",
        "",
        "**Not run: no time on this page was measured.** Written by `tools/triton/pages.py`. Bytes: operands from the",
        "device's memory and results to it, each once. Intensity: operations a byte. Floors in µs and what sets them,",
        "from the peaks that [cuda-bounds.md](cuda-bounds.md) cites; a launch takes some µs more. Registers, shared",
        "memory and instructions: [triton-resources.md](triton-resources.md).",
    ]
    all_works = list(works())
    for source in sorted(SOURCES.glob("*.py")):
        tree = ast.parse(source.read_text())
        kernels = kernels_of(tree)
        if not kernels:
            continue
        lines += ["", f"## {source.name}", "", "```text", ast.get_docstring(tree) or "", "```"]
        for function in kernels:
            of = [work for work in all_works if work.kernel == f"{source.stem}.{function.name}"]
            if not of:
                sys.exit(f"error: tools/triton/work.py has nothing of {source.stem}.{function.name}")
            lines += ["", f"### {function.name}", ""]
            if said := ast.get_docstring(function):
                lines += [" ".join(said.split()), ""]
            lines += table(of)
    known = {f"{source.stem}.{function.name}" for source in SOURCES.glob("*.py")
             for function in kernels_of(ast.parse(source.read_text()))}  # fmt: skip
    if gone := sorted({work.kernel for work in all_works} - known):
        sys.exit(f"error: tools/triton/work.py has kernels that are not there: {', '.join(gone)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
