"""The least time of a launch, worked out by hand; the page says that nothing ran."""

from __future__ import annotations

import bound_cases
import bounds
import limits
import peaks
import pytest
from bound_cases import Case
from limits import Launch

A100 = peaks.DEVICES[0]
NOTHING = dict.fromkeys([*limits.ISSUED, "global_sectors", "sectors_read", "sectors_written", "shared_wavefronts"], 0)


def launch(blocks: int = 108, multiply_adds: int = 0, **counters: int) -> Launch:
    return Launch("kernel<fp16>", (blocks, 1, 1), 128, 0, {**NOTHING, **counters}, multiply_adds)


@pytest.mark.parametrize(
    ("given", "limiter", "seconds"),
    [
        (launch(sectors_read=1000, sectors_written=500), "memory", 48000 / 2.039e12),
        (launch(global_sectors=10**6), "L2", 32e6 / 5120 / A100.clock),
        (launch(mma_f16=10**6), "tensor", 2 * 2048e6 / 312e12),
        (launch(mma_s8=10**6), "tensor", 2 * 4096e6 / 624e12),
        (launch(multiply_adds=10**9), "fp32", 2e9 / 19.5e12),
        (launch(shared_wavefronts=108 * 1000), "shared", 1000 / A100.clock),
        (launch(shuffle=108 * 4000), "issue", 1000 / A100.clock),
        (launch(blocks=109, shuffle=109 * 4000), "issue", 2000 / A100.clock),  # one multiprocessor has two blocks
        (launch(blocks=1, shuffle=4000), "issue", 1000 / A100.clock),
        (launch(blocks=1, sectors_read=1000), "memory", 32000 / 2.039e12),
    ],
)
def test_limits(given: Launch, limiter: str, seconds: float) -> None:
    found = limits.bound(given, A100)
    assert (found.limiter, found.seconds) == (limiter, pytest.approx(seconds))


def test_peaks_are_consistent() -> None:
    for device in peaks.DEVICES:
        assert 1.3e9 < device.clock < 2.2e9
        assert set(device.tensor) <= set(peaks.MULTIPLY_ADDS)
        assert device.tensor["mma_s8"] == pytest.approx(2 * device.tensor["mma_f16"], rel=0.01)
    assert A100.clock == pytest.approx(1.41e9, rel=0.01)


def test_multiply_adds_are_handed_out_in_order() -> None:
    case = Case("a", "", lambda: lambda: None, {"conv": [1, 2], "wgrad": [3]})
    assert case.multiply_adds_by_launch(["conv<3>", "copy", "wgrad<3>", "conv<5>"]) == [1, 0, 3, 2]
    with pytest.raises(ValueError, match="fewer launches of wgrad"):
        case.multiply_adds_by_launch(["conv<3>", "conv<3>"])
    with pytest.raises(ValueError, match="more launches of conv"):
        case.multiply_adds_by_launch(["conv<3>"] * 3)


def test_page_says_that_nothing_ran() -> None:
    text = "\n".join(bounds.introduction())
    assert "Not run: no time on this page was measured on a GPU." in text
    assert all(device.name in text for device in peaks.DEVICES)
    lines = bounds.section(Case("a case", "shapes", lambda: lambda: None), [launch(sectors_read=64)] * 2)
    assert lines[0] == "## a case"
    assert "| `kernel<fp16>` | 108 x 128 | 2.05 kB |" in lines[6]
    assert lines[8].startswith("| together | | 4.1 kB |")


@pytest.mark.skipif(not bounds.PAGE.exists(), reason="make bounds has not run")
def test_committed_page_has_every_case() -> None:
    page = bounds.PAGE.read_text()
    stated = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert stated == [case.name for case in bound_cases.CASES]
    assert all(case.shapes in page for case in bound_cases.CASES)
