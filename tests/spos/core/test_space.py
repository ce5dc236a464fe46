from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from spos import Arch, Decision, SearchSpace, generator

SPACE = SearchSpace([Decision("a", "operator", ("x", "y", "z")), Decision("b", "width", ("half", "full"))])


def test_arch_is_hashable_json_able_and_equal_to_the_plain_tuple():
    arch = SPACE.arch([2, np.int64(1)])
    assert arch == (2, 1) and {arch: 1}[2, 1] == 1
    assert SPACE.arch(json.loads(json.dumps(arch))) == arch and arch.to_json() == [2, 1]
    assert all(type(i) is int for i in arch)
    assert SPACE.describe(arch) == {"a": "z", "b": "full"}


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        ((0,), ValueError, "arch has 1 entries: expected 2"),
        ((0, 1, 0), ValueError, "arch has 3 entries: expected 2"),
        ((3, 0), ValueError, "arch entry 3 for 'a': expected 0 to 2"),
        ((-1, 0), ValueError, "arch entry -1 for 'a'"),
        ((0.0, 0), TypeError, "arch entry 0.0 for 'a': expected an integer"),
        ((True, 0), TypeError, "arch entry True"),
        (("0", 0), TypeError, "arch entry '0'"),
        ("00", TypeError, "arch = '00'"),
        (5, TypeError, "arch = 5"),
    ],
)
def test_bad_arch_is_named(value, error, words):
    with pytest.raises(error, match="^" + words.replace("(", r"\(")):
        SPACE.arch(value)


def test_sampling_is_uniform_and_repeats_with_its_seed():
    draws = [SPACE.sample(generator(3, "test", i)) for i in range(6000)]
    counts = Counter(draws)
    assert len(counts) == SPACE.size() == 6
    chi_square = sum((n - 1000) ** 2 / 1000 for n in counts.values())
    assert chi_square < 20.5  # the 99.9% quantile for 5 degrees of freedom
    assert draws[:50] == [SPACE.sample(generator(3, "test", i)) for i in range(50)]
    assert draws[:50] != [SPACE.sample(generator(4, "test", i)) for i in range(50)]
    assert draws[:50] != [SPACE.sample(generator(3, "other", i)) for i in range(50)]
    with pytest.raises(TypeError, match="rng is a Random"):
        SPACE.sample(__import__("random").Random(0))


def test_uniform_takes_one_option_for_every_decision_of_a_kind():
    assert SPACE.uniform(operator="y", width="half") == (1, 0)
    with pytest.raises(ValueError, match=r"kinds given are \['operator'\]: expected exactly"):
        SPACE.uniform(operator="y")
    with pytest.raises(ValueError, match="operator = 'q' in 'a': expected one of x, y, z"):
        SPACE.uniform(operator="q", width="half")


def test_enumerate_yields_every_arch_once_in_order():
    archs = list(SPACE.enumerate())
    assert archs == sorted(set(archs)) and len(archs) == 6 and all(type(a) is Arch for a in archs)


def test_fingerprint_tells_spaces_apart():
    same = SearchSpace(SPACE.decisions)
    assert same.fingerprint() == SPACE.fingerprint() and same == SPACE
    reordered = SearchSpace(reversed(SPACE.decisions))
    relabelled = SearchSpace([Decision("a", "operator", ("x", "y", "w")), SPACE.decisions[1]])
    assert len({SPACE.fingerprint(), reordered.fingerprint(), relabelled.fingerprint()}) == 3


def test_impossible_decisions_are_refused():
    with pytest.raises(ValueError, match="'a' has no options"):
        Decision("a", "operator", ())
    with pytest.raises(ValueError, match="expected different labels"):
        Decision("a", "operator", ("x", "x"))
    with pytest.raises(ValueError, match=r"\['a'\] occur more than once"):
        SearchSpace([SPACE.decisions[0], SPACE.decisions[0]])


def test_draws_of_neighbouring_indices_do_not_overlap():
    streams = [generator(0, "s", i).random(4096).tolist() for i in range(3)]
    assert len({x for s in streams for x in s}) > 3 * 4096 - 3
    with pytest.raises(ValueError, match="index = -1"):
        generator(0, "s", -1)
