"""Where mutations.py finds something to break, what it makes of it, and that no survivor goes unexplained."""

from __future__ import annotations

import re

import mutants
import mutations
import pytest
import toolchain
from mutants import Mutant

SOURCE = """
// if (a < b) in a comment, __syncthreads(); too
#define GUARD if (a < b)
constexpr int host(int a, int b) { return a < b ? a : b; }
__host__ __device__ int both(int a, int b) { return a < b ? a : b; }
template <int n> __device__ __forceinline__ constexpr int known(int a) { return a < n ? a : n; }
__device__ void declared(int);

template <typename T>
__global__ void __launch_bounds__(128) kernel(const T* x, T* y, int n) {
    const int i = threadIdx.x;
    if constexpr (sizeof(T) < 4) return;
    if (i >= n) return;
    const bool inside = i + 1 < n;
    for (int k = 0; k < n; ++k) y[k] = from<T>(i < n && k > 0 ? x[k] : T());
    __syncthreads();
    if (i == 0) ptx::cp_async_wait<1>();
    if (static_cast<unsigned>(i) < static_cast<unsigned>(n) &&
        inside) {
        if (i < 7) __syncwarp(1 << i);
        __threadfence();
        __syncthreads();
    }
}
"""
EXPECTED = [
    ("exit", "i >= n", 13),
    ("mask", "i + 1 < n", 14),
    ("mask", "i < n && k > 0", 15),
    ("barrier", "__syncthreads();", 16),
    ("barrier", "ptx::cp_async_wait<1>();", 17),
    ("guard", "static_cast<unsigned>(i) < static_cast<unsigned>(n) && inside", 18),
    ("guard", "i < 7", 20),
    ("barrier", "__syncwarp(1 << i);", 20),
    ("barrier", "__threadfence();", 21),
    ("barrier", "__syncthreads();", 22),
]


def test_what_is_broken() -> None:
    found = mutations.find(SOURCE)
    assert [(each.kind, each.text, each.line) for each in found] == EXPECTED
    assert [each.occurrence for each in found if each.text == "__syncthreads();"] == [1, 2]


def test_mutants_stand_behind_numbers() -> None:
    text = mutations.applied(SOURCE, mutations.find(SOURCE), 5)
    assert text.count("MUTANT(") == len(EXPECTED)
    assert text.count("\n") == SOURCE.count("\n")  # a report's line is that of the file
    assert "if (!MUTANT(5) && (i >= n)) return;" in text
    assert "const bool inside = (MUTANT(6) || (i + 1 < n));" in text
    assert "from<T>((MUTANT(7) || (i < n && k > 0)) ? x[k] : T())" in text
    assert "    { if (!MUTANT(8)) __syncthreads(); }" in text
    assert "if (i == 0) { if (!MUTANT(9)) ptx::cp_async_wait<1>(); }" in text


def test_every_barrier_of_the_kernels_is_a_site() -> None:
    words = r"\b(__syncthreads|__syncwarp|__threadfence|cp_async_wait|cp_async_commit)\b"
    for path in mutants.sources():
        code = re.sub(r"//.*", "", path.read_text())
        found = [each.text for each in mutations.find(code) if each.kind == "barrier"]
        assert len(found) == len(re.findall(words, code)), path.name


def made(count: int) -> list[Mutant]:
    return [Mutant(i, "a.cu", each) for i, each in enumerate(mutations.find(SOURCE)[:count], 1)]


KILLED = {"outcome": "killed", "how": "shared_race", "test": "t", "digest": ""}
SURVIVED = {"outcome": "survived", "how": "2 tests reach it", "digest": ""}
REASON = {"file": "a.cu", "mutant": "i + 1 < n", "reason": "only spares a load"}


def test_survivors_need_a_reason() -> None:
    first, second = made(2)
    results = {first.key: KILLED, second.key: SURVIVED}
    assert mutants.complaints([first, second], results, [REASON]) == []
    assert mutants.complaints([first, second], results, []) == ["a.cu:14: survives without a reason: i + 1 < n"]
    other = {**REASON, "occurrence": 2}
    found = mutants.complaints([first, second], results, [other])
    assert found[1:] == ["mutants.toml: no such survivor: a.cu: i + 1 < n"]
    assert mutants.complaints([first, second], {first.key: KILLED}, [REASON]) == []  # not all are tried yet


def test_page() -> None:
    first, second = made(2)
    text = mutants.page([first, second], {first.key: KILLED, second.key: SURVIVED}, [REASON])
    assert "**1 of 2 killed.**" in text
    assert "| a.cu | mask: `i + 1 < n` | only spares a load (2 tests reach it) |" in text
    assert "| a.cu | exit: `i >= n` | shared_race |" in text
    assert "**no reason given**" in mutants.page([second], {second.key: SURVIVED}, [])


@pytest.mark.skipif(not mutants.PAGE.exists(), reason="make mutants has not run")
def test_committed_survivors_have_reasons() -> None:
    mutants.read_reasons()
    assert "no reason given" not in mutants.PAGE.read_text()


def test_no_bracket_is_an_error() -> None:
    with pytest.raises(ValueError, match="no bracket closes"):
        mutations.closing("(a[1]", 0)
    assert toolchain.KERNELS in [path.parent for path in mutants.sources()]
