from __future__ import annotations

from collections import Counter

import pytest
from torch import nn

import spos
from spos import Decision, SearchSpace, generator
from spos.bits import EVERY, SEARCHED
from spos.sampling import path_sampler
from spos.variation import draw_random, mutate, propose

from .conftest import SEARCH

BITS = SearchSpace(
    [Decision(n, "bits", ("w1a2", "w2a2", "w3a3", "w4a4"), offered=2) for n in "ab"]
    + [Decision("c", "width", ("0.5", "1.0"), default="1.0")]
)


def test_what_is_not_offered_may_be_in_an_arch_but_is_never_drawn():
    assert BITS.arch((3, 2, 1)) == (3, 2, 1)
    assert BITS.size() == 8 and list(BITS.enumerate()) == [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    rng = generator(0, "test")
    draws = Counter(BITS.sample(rng) for _ in range(800))
    assert set(draws) == set(BITS.enumerate()) and min(draws.values()) > 60
    paths = path_sampler(BITS, spos.TrainConfig(width_warmup=0.5, width_widening=0.1), 400, 0)
    assert {paths(step)[:2] for step in range(400)} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert {mutate((0, 0, 0), BITS, rng, 1.0)[0] for _ in range(100)} == {0, 1}
    children = propose(BITS, [BITS.arch((0, 1, 1))], set(), lambda arch: True, spos.SearchConfig(), rng)
    assert {arch for arch, _ in children} <= set(BITS.enumerate())
    assert len(draw_random(BITS, 99, set(), lambda arch: True, rng)) == 8


def test_uniform_takes_bits_by_number_and_widths_by_default():
    assert BITS.uniform(w_bits=3, a_bits=3) == BITS.uniform(bits="w3a3") == (2, 2, 1)
    assert BITS.uniform(w_bits=4, a_bits=4, width=0.5) == (3, 3, 0)
    assert BITS.labels((2, 0, 1)) == {"bits": ["w3a3", "w1a2"], "width": ["1.0"]}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"w_bits": 9, "a_bits": 2}, ValueError, "w_bits = 9: expected an integer from 1 to 8"),
        ({"w_bits": 2, "a_bits": 0}, ValueError, "a_bits = 0: expected an integer from 1 to 8"),
        ({"w_bits": 2.0, "a_bits": 2}, TypeError, "w_bits = 2.0: expected an integer"),
        ({"w_bits": 2}, TypeError, "a_bits = None: expected an integer"),
        ({"w_bits": 2, "a_bits": 2, "bits": "w2a2"}, ValueError, "bits = 'w2a2' is given beside w_bits"),
        ({"w_bits": 8, "a_bits": 8}, ValueError, "bits = 'w8a8' in 'a': expected one of w1a2, w2a2 and 2 that are not"),
        (
            {"width": 1.0},
            ValueError,
            r"kinds given are \['width'\]: expected exactly \['bits', 'width'\], of which width",
        ),
    ],
)
def test_bad_uniform_bits_are_named(options, error, words):
    with pytest.raises(error, match=words):
        BITS.uniform(**options)


def test_fingerprints_of_spaces_without_bits_are_what_they_were():
    """Checkpoints of these spaces exist."""
    known = {
        "shufflenet-oneshot-small": "5b2cdb962778b8c9bf75afdc5785f18b4cfe9a19662a93eeae947e83703b3d18",
        "shufflenet-oneshot-channels-small": "fab8b51d5932fae5413acde94df45649853ab4fe2c162dbfe221619c408405e8",
    }
    for name, fingerprint in known.items():
        assert spos.spaces.get(name, num_classes=3, image_size=8).space.fingerprint() == fingerprint
    offered = [SearchSpace([Decision("a", "bits", ("w1a2", "w2a2"), offered=n)]).fingerprint() for n in (None, 1, 2)]
    assert offered[0] == offered[2] != offered[1]


def test_bad_decisions_are_refused():
    for offered in (0, 3):
        with pytest.raises(ValueError, match=f"offered = {offered} in 'a': expected 1 to 2"):
            Decision("a", "bits", ("w1a2", "w2a2"), offered=offered)
    with pytest.raises(ValueError, match="default = 'w3a3' in 'a': expected one of w1a2, w2a2"):
        Decision("a", "bits", ("w1a2", "w2a2"), default="w3a3")


def test_a_choice_of_bits_has_every_pair_and_offers_those_of_the_paper():
    choice = spos.BitsChoice()
    assert choice.labels[: choice.offered] == ("w1a2", "w2a2", "w1a4", "w2a4", "w3a4", "w4a4")
    assert set(choice.pairs) == set(EVERY) and len(choice.labels) == 64
    assert spos.BitsChoice("any").offered == 64
    own = spos.BitsChoice(["w8a8", (1, 1)])
    assert own.labels[:2] == ("w8a8", "w1a1") and own.offered == 2 and len(own.pairs) == 64


@pytest.mark.parametrize(
    ("offered", "error", "words"),
    [
        ([(2, 9)], ValueError, "a_bits = 9: expected an integer from 1 to 8"),
        (["w2"], ValueError, "bits = 'w2': expected a label such as 'w2a4'"),
        (["w0a2"], ValueError, "bits = 'w0a2': expected a label"),
        ("w2a2", ValueError, "bits = 'w2a2': expected a list"),
        ([(2, 2), "w2a2"], ValueError, "different pairs"),
        ([], ValueError, "at least one"),
        ([(1, 2, 3)], TypeError, r"bits = \(1, 2, 3\): expected a pair"),
    ],
)
def test_bad_pairs_are_named(offered, error, words):
    with pytest.raises(error, match=words):
        spos.BitsChoice(offered)


def test_bits_are_read_off_the_module_tree():
    shared = [spos.BitsChoice(decision="all"), spos.BitsChoice(decision="all")]
    net = spos.Supernet(nn.Sequential(*shared, spos.BitsChoice("any")))
    assert [(d.name, d.kind, d.drawn) for d in net.space.decisions] == [("all", "bits", 6), ("2", "bits", 64)]
    with net.path((3, 7)):
        assert shared[0]() == shared[1]() == SEARCHED[3] == (2, 4)
    assert net.extract((5, 0))[1]() == (4, 4)
    with pytest.raises(RuntimeError, match="a BitsChoice was called outside of a path"):
        shared[0]()
    with pytest.raises(ValueError, match="share the decision 'all' differ"):
        spos.Supernet(nn.Sequential(spos.BitsChoice(decision="all"), spos.BitsChoice("any", decision="all")))


def test_evolution_draws_what_is_offered_and_records_bit_operations(data):
    net = spos.spaces.get("resnet-mixed-small", num_classes=3, image_size=8, in_channels=1)
    low, high = spos.bitops.range(net)
    budget = low + (high - low) / 3
    result = spos.evolve(net, data, constraints=[spos.bitops <= budget], config=SEARCH)
    for candidate in result.history:
        assert all(i < d.drawn for i, d in zip(candidate.arch, net.space.decisions, strict=True))
        assert candidate.bitops == spos.bitops(net, candidate.arch) <= budget
    assert len(result.history) == SEARCH.evaluations
