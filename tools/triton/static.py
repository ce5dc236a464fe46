"""`make triton-static`: the Triton kernels compiled ahead of time for every architecture, and what came out, checked.

Each launch of cases.py is compiled as Triton would specialise it, in every configuration that may run it, for each of
ARCHITECTURES; no GPU is needed. A kernel that keeps something in local memory spills, and is an error; so is a product
of matrices without tensor-core instructions, but for float32 without TF32. The table of registers, shared memory and
instructions is docs/triton-resources.md: UPDATE=1 writes it anew.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "triton-resources.md"
ARCHITECTURES = (80, 90, 100, 120)
# What a block may have of shared memory, in bytes (CUDA C++ programming guide, table of compute capabilities).
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
TENSOR_CORES = re.compile(r"\b(?:HMMA|IMMA|DMMA|HGMMA|IGMMA|UTCHMMA|UTCIMMA|UTCQMMA|UTCOMMA|OMMA|QMMA)\b")
TYPES = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16", "torch.float64": "fp64",
         "torch.int8": "i8", "torch.uint8": "u8", "torch.int32": "i32", "torch.int64": "i64"}  # fmt: skip


class Job(NamedTuple):
    """A compilation: indices and not kernels, which do not go from process to process."""

    launch: int
    configuration: int
    architecture: int


class Result(NamedTuple):
    job: Job
    kernel: str
    title: str
    registers: int
    shared: int
    local: int
    instructions: Mapping[str, int]
    needs_tensor_cores: bool
    error: str = ""


def _launches() -> list[Any]:
    """The different launches of all cases."""
    import cases

    found: dict[tuple[object, ...], Any] = {}
    for launch in cases.launches():
        found.setdefault(_signature_key(launch), launch)
    return list(found.values())


def _argument(value: Any) -> tuple[str, bool]:
    """An argument's type as Triton specialises it, and whether it is a multiple of 16."""
    if hasattr(value, "data_ptr"):
        return "*" + TYPES[str(value.dtype)], True
    if isinstance(value, bool):
        return "i1", False
    if isinstance(value, int):
        return "constexpr" if value == 1 else "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0
    return "fp32", False


def _signature_key(launch: Any) -> tuple[object, ...]:
    constants = tuple(sorted((name, str(value)) for name, value in launch.constants.items()))
    named = zip(launch.kernel.jit.arg_names, launch.arguments, strict=False)
    arguments = tuple(_argument(value) for name, value in named if name not in launch.kernel.general)
    return (launch.kernel.name, arguments, constants)


def _title(launch: Any, configuration: Any) -> str:
    kind = next(_argument(value)[0][1:] for value in _maps_of(launch))
    flags = [f"{name.lower()}={value}" for name, value in launch.constants.items() if name not in ("UPCAST",)]
    sizes = [f"{name.lower()}={value}" for name, value in configuration.kwargs.items()]
    return f"{kind}, {' '.join(flags)} | {' '.join(sizes)}, {configuration.num_warps} warps"


def _maps_of(launch: Any) -> Iterator[Any]:
    """The launch's tensors, those that decide over its type first."""
    tensors = [value for value in launch.arguments if hasattr(value, "data_ptr")]
    yield from (t for t in tensors if t.is_floating_point())
    yield from tensors


def compile_one(job: Job) -> Result:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch = _prepared()[job.launch]
    kernel, configuration = launch.kernel, launch.kernel.configurations[job.configuration]
    names = kernel.jit.arg_names
    signature, constants, attributes = {}, {}, {}
    for position, (name, value) in enumerate(zip(names, launch.arguments, strict=False)):
        kind, divisible = ("i32", False) if name in kernel.general else _argument(value)
        signature[name] = kind
        if kind == "constexpr":
            constants[name] = value
        elif divisible:
            attributes[(position,)] = [["tt.divisibility", 16]]
    for name, value in {**launch.constants, **configuration.kwargs}.items():
        signature[name], constants[name] = "constexpr", value
    options = {
        "num_warps": configuration.num_warps,
        "num_stages": configuration.num_stages,
        "maxnreg": configuration.maxnreg,
        "enable_fp_fusion": kernel.fused,
    }
    needed = launch.constants.get("PRECISION", "") == "tf32" or _has_product(launch)
    empty = Result(job, kernel.name, _title(launch, configuration), 0, 0, 0, {}, needed)
    source = ASTSource(kernel.jit, signature, constants, attributes)
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", job.architecture, 32), options=options)
    except Exception as error:  # of many kinds, which all mean that it does not compile
        return empty._replace(error=f"{type(error).__name__}: {error}"[:300])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, text = (_cuobjdump(option, file.name) for option in ("-res-usage", "-sass"))
    numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    counted = Counter(re.findall(r"\b(HMMA|IMMA|HGMMA|IGMMA|UTC\w*MMA|FFMA|IDP|LDL|STL)\b", text))
    local = int(numbers.get("LOCAL", 0)) + counted["LDL"] + counted["STL"]
    return empty._replace(
        registers=int(numbers.get("REG", 0)), shared=compiled.metadata.shared, local=local, instructions=dict(counted)
    )


def _has_product(launch: Any) -> bool:
    """Whether it multiplies matrices in a type that tensor cores take."""
    if launch.kernel.name == "lowbit_kernel":
        return True
    return "PRECISION" in launch.constants and next(_maps_of(launch)).dtype.itemsize == 2


def _cuobjdump(option: str, path: str) -> str:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([program, option, path], capture_output=True, text=True, check=True).stdout


_KEPT: list[Any] = []


def _prepared() -> list[Any]:
    if not _KEPT:
        sys.path.insert(0, str(Path(__file__).parent))
        _KEPT.extend(_launches())
    return _KEPT


def jobs_of(launches: Sequence[Any]) -> Iterator[Job]:
    """Every configuration that the cost model leaves for a launch, on each architecture."""
    for number, launch in enumerate(launches):
        kernel = launch.kernel
        named = {**dict(zip(kernel.jit.arg_names, launch.arguments, strict=False)), **launch.constants}
        for architecture in ARCHITECTURES:
            wanted = kernel.worth_trying(named, SHARED[architecture]) or kernel.configurations[:1]
            for configuration, each in enumerate(kernel.configurations):
                if each in wanted:
                    yield Job(number, configuration, architecture)


def complaints(results: Sequence[Result]) -> Iterator[str]:
    for each in results:
        where = f"{each.kernel} ({each.title}) for sm_{each.job.architecture}"
        if each.error:
            yield f"{where} does not compile: {each.error}"
        elif each.local:
            yield f"{where} spills: {each.local} bytes and accesses of local memory"
        elif each.needs_tensor_cores and not any(TENSOR_CORES.fullmatch(name) for name in each.instructions):
            yield f"{where} has no tensor-core instruction"


def page(results: Sequence[Result]) -> str:
    """A row for each kernel and what it was compiled for, with registers, shared bytes and tensor-core instructions."""
    lines = [
        "# Triton kernels, compiled ahead of time",
        "",
        "Written by `make triton-static UPDATE=1`: every launch of `tools/triton/cases.py` in every configuration that",
        "may run it. Registers of a thread / shared memory of a block in bytes / tensor-core instructions. No kernel",
        "uses local memory: nothing spills. Not run on a GPU.",
        "",
    ]
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for each in results:
        cores = sum(count for name, count in each.instructions.items() if TENSOR_CORES.fullmatch(name))
        text = f"{each.registers} / {each.shared}" + f" / {cores}" * bool(cores)
        rows.setdefault((each.kernel, each.title), {})[each.job.architecture] = text
    kernel = ""
    for (name, title), of in sorted(rows.items()):
        if name != kernel:
            kernel = name
            heads = " | ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
            lines += [f"## {name}", "", f"| compiled for | {heads} |", "|---" * 5 + "|"]
            lines.append("")
            lines.pop()
        what = title.replace(" | ", "; ")
        lines.append(f"| {what} | " + " | ".join(of.get(a, "—") for a in ARCHITECTURES) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the table anew")
    parser.add_argument("--only", default="", help="a kernel's name")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET"):
        sys.exit("error: TRITON_INTERPRET is set: nothing is compiled in the interpreter")
    try:
        import triton  # noqa: F401
    except ModuleNotFoundError:
        print("triton-static: triton is not installed: nothing was compiled")
        return 0
    start = time.monotonic()
    jobs = [job for job in jobs_of(_prepared()) if options.only in _prepared()[job.launch].kernel.name]
    results: list[Result] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for done, job in enumerate(as_completed([pool.submit(compile_one, job) for job in jobs]), 1):
            results.append(job.result())
            if sys.stdout.isatty():
                print(f"\r{done} of {len(jobs)}", end="", flush=True)
    results.sort(key=lambda each: each.job)
    print(f"\rtriton-static: {len(results)} compiled in {time.monotonic() - start:.0f} s")
    found = list(complaints(results))
    for each in found:
        print(f"error: {each}", file=sys.stderr)
    if found:
        return 1
    if options.update:
        TABLE.write_text(page(results))
        print(f"triton-static: wrote {TABLE.relative_to(ROOT)}")
    elif not options.only and TABLE.exists():
        changed = set(page(results).splitlines()) - set(TABLE.read_text().splitlines())
        for line in sorted(changed):
            print(f"error: {TABLE.name} does not have: {line}", file=sys.stderr)
        return 1 if changed else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
