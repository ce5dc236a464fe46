"""What this machine needs before anything can be built or installed, said as one line a missing thing.

Used by setup.py (compiler, Python.h) and by the Makefile (everything). It must parse under any Python 3, because
telling that the interpreter is too old is one of its tasks.
"""

import importlib.util
import os
import shutil
import sys
import sysconfig

MINIMUM_PYTHON = (3, 11)


def python_version(version=None):
    """Return a complaint when the interpreter is older than MINIMUM_PYTHON, else None."""
    version = version or sys.version_info[:2]
    if tuple(version) >= MINIMUM_PYTHON:
        return None
    return (
        "Python {}.{} or newer is needed, and {} is {}.{}. On Debian or Ubuntu: apt-get install python3.11 "
        "python3.11-venv python3.11-dev, then: make PYTHON=python3.11 ..."
    ).format(*MINIMUM_PYTHON, sys.executable, *version)


def venv_module():
    """Return a complaint when `python -m venv` cannot work, else None."""
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return None
    return (
        f"Python's venv module is missing for {sys.executable}. On Debian or Ubuntu: apt-get install python3-venv "
        f"(or python{sys.version_info[0]}.{sys.version_info[1]}-venv)"
    )


def compiler():
    """Return a complaint when no C++ compiler is found in $CXX or on the path, else None."""
    named = os.environ.get("CXX", "").split()
    candidates = named[:1] if named else ["c++", "g++", "clang++"]
    if any(shutil.which(candidate) for candidate in candidates):
        return None
    return (
        "no C++ compiler found (looked for {}). On Debian or Ubuntu: apt-get install g++ "
        "(or name one in the environment variable CXX)"
    ).format(", ".join(candidates))


def python_headers(include=None):
    """Return a complaint when Python.h is missing, else None."""
    header = os.path.join(include or sysconfig.get_paths()["include"], "Python.h")
    if os.path.exists(header):
        return None
    return (
        "{} is missing, the extension cannot be compiled without it. On Debian or Ubuntu: apt-get install "
        "python{}.{}-dev (or python3-dev)"
    ).format(header, *sys.version_info[:2])


def disk_space(folder, needed):
    """Return a complaint when `folder` has less than `needed` bytes free, else None."""
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return None
    return (
        f"not enough disk space in {os.path.abspath(folder)}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed "
        "(PyTorch is most of it). Free some, or put the environment elsewhere: make VENV=/path/to/venv ..."
    )


def main(folder, gigabytes):
    space = disk_space(folder, float(gigabytes) * 1e9)
    complaints = [c for c in (python_version(), venv_module(), compiler(), python_headers(), space) if c]
    for complaint in complaints:
        print("error: " + complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: preflight.py FOLDER GIGABYTES   (the environment's folder, and what it needs there)")
    sys.exit(main(sys.argv[1], sys.argv[2]))
