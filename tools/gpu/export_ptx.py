"""`make ptx`: the PTX of every kernel file and a description of its entry points, to load kernels without C++.

build/ptx/<file>.sm_80.ptx (and sm_90, sm_100, sm_120), beside each <file>.sm_80.json:

    {"file", "sha256", "target", "ptx_version", "nvcc", "entries": [{
        "name"             for cuModuleGetFunction
        "demangled"
        "kernel"           the short name of resources.md and expectations.toml
        "parameters"       [{"offset", "bytes", "alignment"}] in the order of the kernel's arguments
        "parameter_bytes"  of them all, gaps included
        "threads"          most threads of a block by x, y and z (__launch_bounds__), null if not stated
        "blocks_per_multiprocessor"  the least asked for, null if not stated
        "static_shared_bytes"        as ptxas reserves them
        "dynamic_shared"   whether the launch has to give dynamic shared memory
        "registers"        of a thread
    }]}
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import compilation
import names
import ptx_text
import resources
import toolchain
from compilation import Compiled

FOLDER = toolchain.ROOT / "build" / "ptx"


def described(compiled: Compiled) -> dict[str, Any]:
    ptx = compiled.ptx.read_text()
    used = resources.usages(compiled.log.read_text())
    entries = ptx_text.entries(ptx)
    readable = names.demangled(entry.name for entry in entries)
    version, target = (re.search(rf"^\.{each} (\S+)", ptx, re.MULTILINE) for each in ("version", "target"))
    return {
        "file": compiled.source.name,
        "sha256": hashlib.sha256(ptx.encode()).hexdigest(),
        "target": target[1] if target else None,
        "ptx_version": version[1] if version else None,
        "nvcc": toolchain.release(),
        "entries": [
            {
                "name": entry.name,
                "demangled": readable[entry.name],
                "kernel": names.short(readable[entry.name]),
                "parameters": [vars(each) for each in entry.parameters],
                "parameter_bytes": max((each.offset + each.bytes for each in entry.parameters), default=0),
                "threads": entry.threads,
                "blocks_per_multiprocessor": entry.blocks_per_multiprocessor,
                "static_shared_bytes": used[entry.name].shared_bytes,
                "dynamic_shared": entry.uses_dynamic_shared,
                "registers": used[entry.name].registers,
            }
            for entry in entries
        ],
    }


def export(compiled: Compiled, folder: Path) -> int:
    """Write both files; returns the number of entry points. Files without any are left out."""
    description = described(compiled)
    if description["entries"]:
        stem = f"{compiled.source.stem}.sm_{compiled.architecture}"
        shutil.copyfile(compiled.ptx, folder / f"{stem}.ptx")
        (folder / f"{stem}.json").write_text(json.dumps(description, indent=2) + "\n")
    return len(description["entries"])


def main() -> int:
    if toolchain.nvcc() is None:
        print(f"ptx: skipped, {toolchain.NO_NVCC}")
        return 0
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        exported = [export(each, FOLDER) for each in compilation.compile_all(toolchain.kernel_files())]
    except compilation.CompilationFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    print(
        f"ptx: {sum(exported)} entry points in {sum(map(bool, exported))} files of {FOLDER.relative_to(toolchain.ROOT)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
