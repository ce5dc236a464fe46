"""`make mutants`: breaks each kernel source in every place that mutations.py finds, and sees whether a test fails.

All mutants are compiled into one emulated module in a copy of the tree (build/mutants), each behind a number. The tests
of tests/spos_kernels/cuda run once with none chosen, to learn which of them reach which place; then, for each mutant,
those that reach it, the quickest first, until one fails. Results are kept in csrc/cuda/mutants.json: a run that was
interrupted goes on, and a mutant is tried again when its file or its tests have changed. What came out is written to
csrc/cuda/mutants.md; why a mutant may survive stands in csrc/cuda/mutants.toml, and each survivor has to be there.

FILES="gemm.cuh ..." tries those only; JOBS=2 as many at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutations
import toolchain
from mutations import Mutation

ROOT = toolchain.ROOT
FOLDER = ROOT / "build" / "mutants"
TREE = FOLDER / "tree"
TESTS = "tests/spos_kernels/cuda"
PAGE, REASONS = toolchain.KERNELS / "mutants.md", toolchain.KERNELS / "mutants.toml"
RESULTS = toolchain.KERNELS / "mutants.json"  # kept with the sources: it takes hours
LEAST_TIME = 60  # seconds for a test of a mutant, and ten times what the slowest took without one if that is more

CHOICE = """
extern "C" __attribute__((visibility("default"))) int mutants_chosen(int number);
#define MUTANT(number) (mutants_chosen(number) != 0)
"""
CHOOSER = """
#include <bitset>
#include <cstdlib>
namespace {
const char* const text = std::getenv("MUTANT");
const int chosen = text ? std::atoi(text) : 0;
std::bitset<65536> reached;
}
extern "C" __attribute__((visibility("default"))) int mutants_chosen(int number) {
    reached.set(static_cast<size_t>(number));
    return number == chosen;
}
extern "C" __attribute__((visibility("default"))) int mutants_take_reached(int* numbers, int most) {
    int count = 0;
    for (size_t i = 0; i < reached.size() && count < most; ++i)
        if (reached[i]) numbers[count++] = static_cast<int>(i);
    reached.reset();
    return count;
}
"""


@dataclass(frozen=True)
class Mutant:
    number: int  # from 1
    file: str
    mutation: Mutation

    @property
    def key(self) -> str:
        return f"{self.file}|{self.mutation.kind}|{self.mutation.occurrence}|{self.mutation.text}"


def sources() -> list[Path]:
    return sorted([*toolchain.KERNELS.glob("*.cu"), *toolchain.KERNELS.glob("*.cuh")])


def write(path: Path, content: bytes) -> None:
    """Only what differs, so that ninja compiles only that."""
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


MUTATED = ("csrc", "spos_kernels", "tests", "CMakeLists.txt", "pyproject.toml")


def make_tree() -> list[Mutant]:
    """Copy what the emulated module and its tests need, with the mutants in the kernels."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *MUTATED],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    wanted = {TREE / name for name in listed if (ROOT / name).is_file()}
    for old in [each for each in TREE.rglob("*") if each.is_file() and each.suffix not in (".so", ".pyc")]:
        if old not in wanted and old.name != "mutants.cpp":
            old.unlink()
    mutants: list[Mutant] = []
    for target in sorted(wanted):
        original = ROOT / target.relative_to(TREE)
        content = original.read_bytes()
        if original in sources():
            found = mutations.find(content.decode())
            content = mutations.applied(content.decode(), found, len(mutants) + 1).encode()
            mutants += [Mutant(len(mutants) + i, original.name, each) for i, each in enumerate(found, 1)]
        elif original.name == "device.h":
            content += CHOICE.encode()
        write(target, content)
    write(TREE / "csrc" / "cuda_emulation" / "mutants.cpp", CHOOSER.encode())
    for module in (ROOT / "spos_kernels").glob("_C.*.so"):
        write(TREE / "spos_kernels" / module.name, module.read_bytes())
    return mutants


def configured() -> dict[str, str]:
    """How setup.py configured the emulated module: the copy is compiled with the same Python and options."""
    caches = sorted((ROOT / "build").glob("cuda_emulated-*/CMakeCache.txt"))
    if not caches:
        sys.exit("error: no emulated module is built here: make emulated")
    return dict(re.findall(r"^(\w+):\w+=(.*)$", caches[-1].read_text(), re.MULTILINE))


def build() -> None:
    cache = configured()
    folder = FOLDER / "cmake"
    names = ("PYTHON_INCLUDE_DIR", "PYBIND11_INCLUDE_DIR", "EXTENSION_SUFFIX", "SPOS_SANITIZE", "CMAKE_MAKE_PROGRAM")
    options = [f"-D{name}={cache[name]}" for name in names if name in cache]
    command = [
        cache["CMAKE_COMMAND"],
        "-S",
        str(TREE),
        "-B",
        str(folder),
        "-G",
        "Ninja",
        "-DSPOS_MODULE=_cuda_emulated",
    ]
    for step in ([*command, *options], [cache["CMAKE_COMMAND"], "--build", str(folder)]):
        result = subprocess.run(step, capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(f"error: the module with mutants does not compile\n{result.stdout[-4000:]}{result.stderr[-2000:]}")
    for module in folder.glob("_cuda_emulated*.so"):
        write(TREE / "spos_kernels" / module.name, module.read_bytes())


def run_tests(report: Path, arguments: Sequence[str], timeout: float, **environment: str) -> tuple[int, str]:
    """The exit code of pytest, negative for a signal, and the end of what it printed.

    timeout: seconds for a test, after which the process ends with 1 and no report: kernels do not listen to signals. 0
    for none.
    """
    report.unlink(missing_ok=True)
    paths = os.pathsep.join([str(TREE), str(Path(__file__).parent)])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "mutant_tests",
        "-p",
        "no:cacheprovider",
        f"--timeout={timeout:.0f}",
        "--timeout-method=thread",
        *arguments,
    ]
    variables = {**os.environ, "PYTHONPATH": paths, "MUTANT_REPORT": str(report), **environment}
    result = subprocess.run(command, cwd=TREE, env=variables, capture_output=True, text=True)
    return result.returncode, result.stdout[-3000:] + result.stderr[-1000:]


def baseline(digest: str) -> dict[str, dict[str, Any]]:
    """Which tests reach which places, and how long they take."""
    kept = FOLDER / "baseline.json"
    if kept.exists() and (content := json.loads(kept.read_text()))["digest"] == digest:
        tests: dict[str, dict[str, Any]] = content["tests"]
        return tests
    print("mutants: running the tests with no mutant", flush=True)
    code, output = run_tests(FOLDER / "report-0.json", [TESTS], 0)
    if code != 0:
        sys.exit(f"error: the tests must pass without a mutant\n{output}")
    tests = json.loads((FOLDER / "report-0.json").read_text())
    kept.write_text(json.dumps({"digest": digest, "tests": tests}))
    return tests


def digest_of(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def is_used(path: Path) -> bool:
    """Whether it is a test of the kernels, or what these share."""
    return path.is_relative_to(TREE / TESTS) or not path.name.startswith("test_")


def reaching(mutant: Mutant, tests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The tests that get to the mutant's place, the quickest first."""
    found = [name for name, test in tests.items() if mutant.number in test["reached"] and test["outcome"] == "passed"]
    return sorted(found, key=lambda name: tests[name]["seconds"])


def with_imports(files: Iterable[Path]) -> set[Path]:
    """These test files, what of their folders they import, directly or not, and the conftest.py of these."""
    modules = {path.stem: path for path in TREE.glob("tests/spos_kernels/**/*.py") if path.name != "conftest.py"}
    found: set[Path] = set()
    waiting = [*files, *TREE.glob("tests/spos_kernels/**/conftest.py")]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            names = re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
            waiting += [modules[name] for name in names if name in modules]
    return found


def digest_of_mutant(mutant: Mutant, tests: Mapping[str, Mapping[str, Any]]) -> str:
    """Of what its result depends on: its file, and the files of the tests that reach it."""
    files = {TREE / name.split("::")[0] for name in reaching(mutant, tests)}
    return digest_of([toolchain.KERNELS / mutant.file, *with_imports(files)])


def try_mutant(mutant: Mutant, tests: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    names = reaching(mutant, tests)
    if not names:
        return {"outcome": "survived", "how": "no test reaches it"}
    listed, report = FOLDER / f"tests-{mutant.number}.txt", FOLDER / f"report-{mutant.number}.json"
    listed.write_text("\n".join(names))
    files = sorted({name.split("::")[0] for name in names})
    most = max(LEAST_TIME, 10 * max(tests[name]["seconds"] for name in names))
    code, output = run_tests(report, ["-x", *files], most, MUTANT=str(mutant.number), MUTANT_TESTS=str(listed))
    failed = json.loads(report.read_text()) if report.exists() else {}
    for file in (listed, report):
        file.unlink(missing_ok=True)
    if code == 0:
        return {"outcome": "survived", "how": f"{len(names)} tests reach it"}
    if code == 1 and failed:
        return {"outcome": "killed", "how": failed["how"], "test": failed["test"]}
    if code == 1 and "Timeout" in output:
        return {"outcome": "killed", "how": "does not end"}
    if code < 0:
        return {"outcome": "killed", "how": f"crash, signal {-code}"}
    raise RuntimeError(f"pytest ended with {code} at mutant {mutant.number}, {mutant.key}\n{output}")


def read_reasons() -> list[dict[str, Any]]:
    reasons: list[dict[str, Any]] = tomllib.loads(REASONS.read_text()).get("survivor", []) if REASONS.exists() else []
    for each in reasons:
        if not {"file", "mutant", "reason"} <= set(each) <= {"file", "mutant", "occurrence", "reason"}:
            raise ValueError(f"{REASONS.name}: {each}: an entry has file, mutant, reason and perhaps occurrence")
    return reasons


def reason_for(file: str, text: str, occurrence: int, reasons: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    for each in reasons:
        if each["file"] == file and each["mutant"] == text and each.get("occurrence", occurrence) == occurrence:
            return each
    return None


def page(
    mutants: Sequence[Mutant], results: Mapping[str, Mapping[str, str]], reasons: Sequence[Mapping[str, Any]]
) -> str:
    tried = [each for each in mutants if each.key in results]
    killed = Counter(each.file for each in tried if results[each.key]["outcome"] == "killed")
    total = Counter(each.file for each in tried)
    not_tried = f"; {len(mutants) - len(tried)} others are not tried yet" if len(tried) < len(mutants) else ""
    lines = [
        "# Mutants of the CUDA kernels",
        "",
        "Written by `make mutants`, which breaks the kernels in one place after the other and runs "
        "the tests that reach it, in",
        "the emulator. Left out: barriers, waits, fences. Always true: conditions with an order "
        "comparison, of `if` and of",
        "masks; never taken: those of early exits (`tools/gpu/mutations.py` has the rules). Why a "
        "mutant survives is written",
        "by hand in `mutants.toml`.",
        "",
        f"**{sum(killed.values())} of {len(tried)} killed{not_tried}.**",
        "",
        "| file | mutants | killed |",
        "|---|--:|--:|",
        *(f"| {file} | {count} | {killed[file]} |" for file, count in sorted(total.items())),
        "",
    ]
    for title, outcome in (("Survivors", "survived"), ("Killed", "killed")):
        lines += [
            f"## {title}",
            "",
            f"| file | broken | {'why' if outcome == 'survived' else 'noticed as'} |",
            "|---|---|---|",
        ]
        for each in tried:
            result, mutation = results[each.key], each.mutation
            if result["outcome"] != outcome:
                continue
            what = result["how"]
            if outcome == "survived":
                found = reason_for(each.file, mutation.text, mutation.occurrence, reasons)
                what = f"{found['reason']} ({what})" if found else f"**no reason given** ({what})"
            text = mutation.text.replace("|", "\\|")
            which = f" ({mutation.occurrence})" if mutation.occurrence > 1 else ""
            lines.append(f"| {each.file} | {mutation.kind}: `{text}`{which} | {what} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def complaints(
    mutants: Sequence[Mutant], results: Mapping[str, Mapping[str, str]], reasons: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Survivors without a reason, and reasons without a survivor."""
    survivors = [each for each in mutants if results.get(each.key, {}).get("outcome") == "survived"]
    used, found = [], []
    for each in survivors:
        reason = reason_for(each.file, each.mutation.text, each.mutation.occurrence, reasons)
        used.append(reason)
        if reason is None:
            found.append(f"{each.file}:{each.mutation.line}: survives without a reason: {each.mutation.text}")
    if all(each.key in results for each in mutants):
        unused = [each for each in reasons if not any(each is one for one in used)]
        found += [f"{REASONS.name}: no such survivor: {each['file']}: {each['mutant']}" for each in unused]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="*", default=[], help="names of kernel sources; all, if none is given")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at once")
    options = parser.parse_args()
    unknown = set(options.files) - {each.name for each in sources()}
    if unknown:
        sys.exit(f"error: no kernel source {', '.join(sorted(unknown))}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    mutants = make_tree()
    print(f"mutants: {len(mutants)} in {len({each.file for each in mutants})} files; compiling", flush=True)
    build()
    tests = [path for path in TREE.glob("tests/spos_kernels/**/*.py") if is_used(path)]
    reach = baseline(digest_of([*TREE.glob("csrc/**/*.*"), *TREE.glob("spos_kernels/**/*.py"), *tests]))
    known: dict[str, dict[str, str]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    digests = {each.key: digest_of_mutant(each, reach) for each in mutants}
    results = {key: value for key, value in known.items() if digests.get(key) == value["digest"]}
    wanted = set(options.files or [each.name for each in sources()])
    waiting = [each for each in mutants if each.key not in results and each.file in wanted]
    start = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = {pool.submit(try_mutant, each, reach): each for each in waiting}
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                mutant = jobs[job]
                results[mutant.key] = {**job.result(), "digest": digests[mutant.key]}
                partial = FOLDER / "results.partial"
                partial.write_text(json.dumps(results, indent=0, sort_keys=True) + "\n")
                partial.replace(RESULTS)
                left = (time.monotonic() - start) / done * (len(waiting) - done) / 60
                print(
                    f"mutants: {done}/{len(waiting)}, {left:.0f} min left; {mutant.file}:{mutant.mutation.line} "
                    f"{results[mutant.key]['outcome']} ({results[mutant.key]['how']}): {mutant.mutation.text[:60]}",
                    flush=True,
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    reasons = read_reasons()
    PAGE.write_text(page(mutants, results, reasons))
    found = complaints(mutants, results, reasons)
    for each in found:
        print(f"error: {each}", file=sys.stderr)
    outcomes = Counter(results[each.key]["outcome"] for each in mutants if each.key in results)
    print(f"mutants: {outcomes['killed']} killed, {outcomes['survived']} survived, in {PAGE.relative_to(ROOT)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
