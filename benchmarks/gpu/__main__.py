"""`make gpu-bench`: our operations against torch's on a GPU, one table to paste into an issue or a report.

    python benchmarks/gpu [--backend triton] [--device cpu] [--rounds 50] [--no-compile] [--only depthwise]

Each cell: microseconds, called from Python / replayed from a CUDA graph (medians), of a whole training step or an
evaluation of a network, of forward and backward of an operation. "faster" is the quickest of torch's, replayed, divided
by ours. --device cpu runs everything once at a small size, to see that it runs; its times mean nothing.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from cases import CASES, OURS, TUNED, Case
from networks import NETWORKS
from timing import Call, Times, measure

import spos_kernels as sk

COLUMNS = (OURS, "NCHW", "NHWC", TUNED, "NHWC compiled")


def timed(name: str, call: Call, device: str, rounds: int) -> Times | str:
    """Times, or in a few words why there are none."""
    torch.backends.cudnn.benchmark = name == TUNED
    try:
        return measure(call, device, rounds)
    except torch.OutOfMemoryError:
        return "out of memory"
    except Exception as error:  # one case that fails does not end the others
        return f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        torch.backends.cudnn.benchmark = False
        if device == "cuda":
            torch.cuda.empty_cache()


def cell(times: Times | str | None) -> str:
    if times is None:
        return "-"
    if isinstance(times, str):
        return "failed"
    return f"{times.called:.0f} / " + (f"{times.replayed:.0f}" if times.replayed is not None else "-")


def faster(found: dict[str, Times | str]) -> str:
    replayed = {name: each.replayed for name, each in found.items() if isinstance(each, Times) and each.replayed}
    ours, others = replayed.pop(OURS, None), list(replayed.values())
    return f"{min(others) / ours:.2f}" if ours and others else "-"


def row(case: Case, found: dict[str, Times | str]) -> str:
    return f"| {case} | {' | '.join(cell(found.get(name)) for name in COLUMNS)} | {faster(found)} |"


def notes(case: Case, found: dict[str, Times | str]) -> list[str]:
    """What stands behind a dash or "failed"."""
    lines = [f"- {case}, {name}: {each}" for name, each in found.items() if isinstance(each, str)]
    for name, each in found.items():
        if isinstance(each, Times) and each.replayed is None and each.why_not != "no GPU":
            lines.append(f"- {case}, {name}: not captured: {each.why_not}")
    return lines


def machine(device: str) -> str:
    if device != "cuda":
        return f"torch {torch.__version__}, on the CPU at a small size: these times mean nothing"
    major, minor = torch.cuda.get_device_capability()
    return (
        f"{torch.cuda.get_device_name()} (sm_{major}{minor}), torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"cuDNN {torch.backends.cudnn.version()}; tf32 off"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--backend", choices=("cuda", "triton"), default="cuda", help="whose kernels are ours")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes a minute a case")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no GPU: `make gpu-bench` says why", file=sys.stderr)
        return 1
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    on_gpu = options.device == "cuda"
    if options.backend == "triton" and not on_gpu:
        print("error: --backend triton needs a GPU: in the interpreter its times would say nothing", file=sys.stderr)
        return 1
    with sk.use_backend("triton") if options.backend == "triton" else nullcontext():
        return measure_all(options, on_gpu)


def measure_all(options: argparse.Namespace, on_gpu: bool) -> int:
    """Print the table; return the exit code."""
    print(f"{machine(options.device)}\n", flush=True)
    print(f"| µs, called / replayed | {' | '.join(COLUMNS)} | faster |")
    print("|---|" + "--:|" * (len(COLUMNS) + 1), flush=True)
    remarks: list[str] = []
    failed = False
    for case in (*NETWORKS, *CASES):
        if options.only not in str(case):
            continue
        case = case if on_gpu else case.small()
        try:
            calls = case.calls(options.device, on_gpu and not options.no_compile)
        except Exception as error:  # the next one may have room, or support
            remarks.append(f"- {case}: {type(error).__name__}: {str(error).splitlines()[0]}")
            failed = True
            continue
        found = {
            name: timed(name, call, options.device, options.rounds if on_gpu else 1) for name, call in calls.items()
        }
        print(row(case, found), flush=True)
        remarks += notes(case, found)
        failed |= isinstance(found[OURS], str)
    print("\n".join(["", *remarks]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
