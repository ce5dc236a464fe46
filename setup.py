"""Builds spos_kernels._C with CMake and ninja; everything else about the package is in pyproject.toml.

The build folder is kept (build/cmake-*), and what the compiler sees in it never moves: pip's isolated build environment
has a new path each time, so pybind11's headers are copied out of it. Hence a second build compiles changed files only.
SPOS_SANITIZE=1 builds with sanitizers, in a folder of its own (see `make sanitize`); SPOS_AVX512_TWINS=1 compiles the
AVX-512 files for AVX2, for tests (see `make test-avx512`). Two more modules hold the CUDA kernels: _cuda, built with
nvcc where that is found and a GPU is there (SPOS_CUDA=0: never, 1: wherever nvcc is, for SPOS_CUDA_ARCHS), and
_cuda_emulated, which runs them on the CPU for tests (SPOS_CUDA_EMULATED=1).
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import preflight  # noqa: E402


def pybind11_headers(build: Path) -> Path:
    import pybind11

    headers = build / f"pybind11-{pybind11.__version__}"
    if not headers.exists():
        partial = headers.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(pybind11.get_include(), partial)
        partial.rename(headers)
    return headers


def program(name: str) -> str:
    """The cmake or ninja of this environment's wheel, whose scripts folder need not be on the path."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        sys.exit(f"error: {name} is missing: pip install {name}")
    return found


def gpu_architecture() -> str | None:
    """The compute capability of the first GPU, as CMake writes it ("90"); None where there is no GPU."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return found[0].replace(".", "") if found else None


def modules() -> list[str]:
    """The extension modules to build, by the environment and by what this machine has."""
    wanted = os.environ.get("SPOS_CUDA") or "auto"
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"error: SPOS_CUDA={wanted}: accepted are auto, 0 and 1")
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if wanted == "1" and nvcc is None:
        sys.exit("error: SPOS_CUDA=1: no nvcc found; install the CUDA toolkit, or set CUDACXX")
    names = ["_C"]
    if nvcc is not None and (wanted == "1" or (wanted == "auto" and gpu_architecture())):
        names.append("_cuda")
    if os.environ.get("SPOS_CUDA_EMULATED") == "1":
        names.append("_cuda_emulated")
    return names


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        for complaint in (preflight.compiler(), preflight.python_headers()):
            if complaint:
                sys.exit("error: " + complaint)
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        module = ext.name.rpartition(".")[2]
        sanitize = os.environ.get("SPOS_SANITIZE") == "1" and module == "_C"
        twins = os.environ.get("SPOS_AVX512_TWINS") == "1" and module == "_C"
        if sanitize and twins:
            sys.exit("error: SPOS_SANITIZE=1 and SPOS_AVX512_TWINS=1: accepted is one of the two")
        special = "sanitize" if sanitize else "avx512-twins" if twins else None
        kind = special or ("cmake" if module == "_C" else module.strip("_"))
        build = ROOT / "build" / f"{kind}-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        build.mkdir(parents=True, exist_ok=True)
        cmake = program("cmake")
        configure = [
            f"-DSPOS_MODULE={module}",
            f"-DCMAKE_MAKE_PROGRAM={program('ninja')}",
            f"-DPYTHON_INCLUDE_DIR={sysconfig.get_paths()['include']}",
            f"-DPYBIND11_INCLUDE_DIR={pybind11_headers(build)}",
            f"-DEXTENSION_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
            f"-DSPOS_SANITIZE={'ON' if sanitize else 'OFF'}",
            f"-DSPOS_AVX512_TWINS={'ON' if twins else 'OFF'}",
        ]
        if module == "_cuda":
            wanted = os.environ.get("SPOS_CUDA_ARCHS") or gpu_architecture() or ""
            configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={wanted.replace(',', ';').replace(' ', ';')}")
        subprocess.run([cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *configure], check=True)
        subprocess.run([cmake, "--build", build], check=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        # A running process may have the old file mapped: replace it, never write into it.
        partial = output.with_suffix(".partial")
        shutil.copy2(build / output.name, partial)
        partial.replace(output)


setup(
    ext_modules=[Extension(f"spos_kernels.{name}", sources=[]) for name in modules()],
    cmdclass={"build_ext": CMakeBuild},
)
