"""`make bounds`: runs the cases of bound_cases.py in the emulator, counting, and writes docs/cuda-bounds.md.

Nothing is timed: the page has counts, and the least time that they need at published peak rates (limits.py, peaks.py).
With names of cases as arguments only these are counted, and the page is printed instead of written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import bound_cases
import limits
import names
import peaks
import toolchain
from bound_cases import Case
from limits import Launch

PAGE = toolchain.ROOT / "docs" / "cuda-bounds.md"


def counted(case: Case) -> list[Launch]:
    """The launches of one call of a case."""
    from spos_kernels import use_backend
    from spos_kernels.cuda.modules import module_of

    emulator = module_of("cuda-emulated")
    with use_backend("cuda-emulated"):
        call = case.prepare()
        emulator.configure(count=True)
        emulator.take_launches()
        try:
            call()
            noted = emulator.take_launches()
        finally:
            emulator.configure()
    kernels = [names.short(each["kernel"]) for each in noted]
    stated = case.multiply_adds_by_launch(kernels)
    return [limits.read_launch(*each) for each in zip(noted, kernels, stated, strict=True)]


def quantity(value: float, unit: str) -> str:
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()


def section(case: Case, launches: Sequence[Launch]) -> list[str]:
    devices = " | ".join(f"{each.name}, µs" for each in peaks.DEVICES)
    lines = [f"## {case.name}", "", f"{case.shapes}", ""]
    lines.append(f"| kernel | blocks x threads | memory | L2 | multiply-adds | shared | {devices} |")
    lines.append("|---|--:|--:|--:|--:|--:|" + "--:|" * len(peaks.DEVICES))
    sums = [0.0] * len(peaks.DEVICES)
    for launch in launches:
        cells = []
        for i, device in enumerate(peaks.DEVICES):
            found = limits.bound(launch, device)
            sums[i] += found.seconds
            cells.append(f"{found.seconds * 1e6:.3g} {found.limiter}")
        lines.append(
            f"| `{launch.kernel}` | {launch.blocks} x {launch.threads} | {quantity(launch.memory_bytes, 'B')} | "
            f"{quantity(launch.l2_bytes, 'B')} | {quantity(launch.tensor_multiply_adds + launch.multiply_adds, '')} | "
            f"{quantity(launch.counters['shared_wavefronts'], '')} | {' | '.join(cells)} |"
        )
    if len(launches) > 1:
        memory, l2 = (sum(getattr(each, name) for each in launches) for name in ("memory_bytes", "l2_bytes"))
        lines.append(
            f"| together | | {quantity(memory, 'B')} | {quantity(l2, 'B')} | | | "
            + " | ".join(f"{each * 1e6:.3g}" for each in sums)
            + " |"
        )
    return [*lines, ""]


def introduction() -> list[str]:
    rows = []
    for each in peaks.DEVICES:
        l2 = f"{each.l2_bytes_a_clock} B/clock" if each.l2_bytes_a_clock else "not published"
        rate = {kind: f"{each.tensor[kind] / 1e12:.4g}" for kind in ("mma_f16", "mma_tf32", "mma_s8")}
        rows.append(
            f"| {each.name} | {each.multiprocessors} | {each.clock / 1e9:.2f} | {each.memory / 1e12:.2f} | {l2} | "
            f"{each.fp32 / 1e12:.3g} | {rate['mma_tf32']} | {rate['mma_f16']} | {rate['mma_s8']} |"
        )
    return [
        "# Bounds of the CUDA kernels",
        "",
        "**Not run: no time on this page was measured on a GPU.** Each case was run in the emulator of",
        "`csrc/cuda_emulation`, which counted instructions, sectors and passes over the shared "
        "banks; from these follows the",
        "least time that published peak rates allow. A kernel takes longer; the table says what it "
        "would run into first.",
        "Written by `make bounds` from `tools/gpu/bound_cases.py`.",
        "",
        "Operands come from the device's memory and results go there, each 32-byte sector once for the whole operation",
        '("memory"; what a launch reads of an earlier one\'s results is taken to be in L2). "L2": '
        "sectors that instructions",
        'ask for. "shared": passes over the 32 banks, one a clock. A launch is bound by the '
        "largest of memory, L2 (where its",
        "rate is published), tensor cores, fp32 units, shared memory and issue slots, the last "
        "four times the unevenness of",
        "its blocks over the multiprocessors (`tools/gpu/limits.py`); launches are added up. "
        "Latency and the start of a",
        "launch are in no bound, and they decide where a bound is a few µs.",
        "",
        "| | SMs | clock, GHz | memory, TB/s | L2 | fp32, T/s | tf32 | fp16, bf16 | int8 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        *rows,
        "",
        "Peaks, dense, a multiply-add being two operations: A100 SXM4 80 GB (datasheet and "
        "architecture whitepaper), H100",
        "SXM5 (architecture whitepaper), B200 HGX at 1000 W (Blackwell architecture technical "
        "brief). The tensor rates of",
        "H100 and B200 are those of wgmma and tcgen05; these kernels use mma.sync, which reaches less.",
        "",
    ]


def main(wanted: Sequence[str]) -> int:
    unknown = set(wanted) - {case.name for case in bound_cases.CASES}
    if unknown:
        print(f"no case {', '.join(sorted(unknown))}: there are {', '.join(case.name for case in bound_cases.CASES)}")
        return 2
    lines = introduction()
    for case in bound_cases.CASES:
        if wanted and case.name not in wanted:
            continue
        start = time.monotonic()
        launches = counted(case)
        lines += section(case, launches)
        print(f"bounds: {case.name}, {len(launches)} launches, {time.monotonic() - start:.0f} s", flush=True)
    text = "\n".join(lines).rstrip() + "\n"
    if wanted:
        print(text)
    else:
        PAGE.write_text(text)
        print(f"bounds: wrote {PAGE.relative_to(toolchain.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
