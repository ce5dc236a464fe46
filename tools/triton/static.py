"""`make triton-static`: the Triton kernels compiled ahead of time for every architecture, and what came out, checked.

Each kind of launch in cases.py is compiled as Triton would specialise it, in every configuration that may run it, for
each of ARCHITECTURES; no GPU is needed. A kernel that keeps something in local memory spills, and is an error; so is a
product of matrices without tensor-core instructions, but for float32 without TF32, and a difference from the table of
registers, shared memory and instructions, docs/triton-resources.md (usage.py): UPDATE=1 writes it anew.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import usage
from usage import ARCHITECTURES, Usage

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "triton-resources.md"
# What a block may have of shared memory, in bytes (CUDA C++ programming guide, table of compute capabilities).
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
TYPES = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16", "torch.float64": "fp64",
         "torch.int8": "i8", "torch.uint8": "u8", "torch.int32": "i32", "torch.int64": "i64"}  # fmt: skip


class Job(NamedTuple):
    """A compilation: indices and not kernels, which do not go from process to process."""

    launch: int
    configuration: int
    architecture: int


def _launches() -> list[Any]:
    """A launch of each kind, those that differ in a kernel's types or constants; of several, the one that leaves most
    sizes to run time.
    """
    import cases

    found: dict[tuple[object, ...], Any] = {}
    for launch in sorted(cases.launches(), key=_constant_sizes):
        constants = tuple(sorted((name, str(value)) for name, value in launch.constants.items()))
        types = tuple(_argument(value)[0] for value in launch.arguments if hasattr(value, "data_ptr"))
        found.setdefault((_name(launch), types, constants), launch)
    return list(found.values())


def _constant_sizes(launch: Any) -> int:
    return sum(_argument(value)[0] == "constexpr" for value in launch.arguments)


def _argument(value: Any) -> tuple[str, bool]:
    """An argument's type as Triton specialises it, and whether it is a multiple of 16."""
    if hasattr(value, "data_ptr"):
        return "*" + TYPES[str(value.dtype)], True
    if isinstance(value, bool):
        return "i1", False
    if isinstance(value, int):
        return "constexpr" if value == 1 else "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0
    return "fp32", False


def _type(launch: Any) -> Any:
    """The narrowest of the launch's floating-point types, in which its maps and weights are."""
    types = [value.dtype for value in launch.arguments if hasattr(value, "data_ptr") and value.is_floating_point()]
    return min(types, key=lambda kind: kind.itemsize)


def _title(launch: Any, configuration: Any) -> str:
    flags = [f"{name.lower()}={value}" for name, value in launch.constants.items() if name != "UPCAST"]
    sizes = [f"{name.lower()}={value}" for name, value in configuration.kwargs.items()]
    parts = [" ".join(each) for each in ([TYPES[str(_type(launch))]], flags, sizes) if each]
    limit = f", at most {configuration.maxnreg} registers" if configuration.maxnreg else ""
    return f"{', '.join(parts)}, {configuration.num_warps} warps{limit}"


def _name(launch: Any) -> str:
    """With the file's, as two files may have a kernel of one name."""
    return f"{launch.kernel.jit.fn.__module__.rsplit('.', 1)[1]}.{launch.kernel.name}"


def _needs_tensor_cores(launch: Any) -> bool:
    """Whether it multiplies matrices in a type that tensor cores take."""
    if launch.kernel.name == "lowbit_kernel":
        return True
    return "PRECISION" in launch.constants and (launch.constants["PRECISION"] == "tf32" or _type(launch).itemsize == 2)


def compile_one(job: Job) -> Usage:
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
    empty = Usage(_name(launch), _title(launch, configuration), job.architecture)
    source = ASTSource(kernel.jit, signature, constants, attributes)
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", job.architecture, 32), options=options)
    except Exception as error:  # of many kinds, which all mean that it does not compile
        return empty._replace(error=f"{type(error).__name__}: {error}"[:300])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        numbers = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", _cuobjdump("-res-usage", file.name))}
        needed, stack = _needs_tensor_cores(launch), numbers["STACK"] + numbers["LOCAL"]
        # Local memory is a stack: without one there are no spills. The disassembler takes half as long as the compiler.
        text = _cuobjdump("-sass", file.name) if needed or stack else ""
    return empty._replace(
        registers=numbers["REG"],
        shared=compiled.metadata.shared,
        stack=stack,
        spilled=len(usage.LOCAL_MEMORY.findall(text)),
        tensor_cores=len(usage.TENSOR_CORES.findall(text)) if needed else None,
    )


def _cuobjdump(option: str, path: str) -> str:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([program, option, path], capture_output=True, text=True, check=True).stdout


_KEPT: list[Any] = []


def _prepared() -> list[Any]:
    if not _KEPT:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the table anew")
    parser.add_argument("--only", default="", help="a part of kernels' names")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET"):
        sys.exit("error: TRITON_INTERPRET is set: nothing is compiled in the interpreter")
    if options.update and options.only:
        sys.exit("error: --update needs all kernels")
    try:
        import triton
    except ModuleNotFoundError:
        print("triton-static: triton is not installed: nothing was compiled")
        return 0
    start = time.monotonic()
    jobs = [job for job in jobs_of(_prepared()) if options.only in _name(_prepared()[job.launch])]
    results: list[Usage] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for done, job in enumerate(as_completed([pool.submit(compile_one, job) for job in jobs]), 1):
            results.append(job.result())
            if sys.stdout.isatty():
                print(f"\r{done} of {len(jobs)}", end="", flush=True)
    print(f"\rtriton-static: {len(results)} compiled in {time.monotonic() - start:.0f} s")
    found = list(usage.complaints(results))
    if not options.update:
        table = TABLE.read_text() if TABLE.exists() else ""
        found += usage.table_complaints(results, table, triton.__version__, whole=not options.only)
    for each in sorted(found):
        print(f"error: {each}", file=sys.stderr)
    if found:
        return 1
    if options.update:
        TABLE.write_text(usage.page(results, triton.__version__))
        print(f"triton-static: wrote {TABLE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
