"""What only the emulator can show of the slicing kernels: every schedule, sectors and banks, work that is not done."""

from types import ModuleType

import pytest
import torch
from cuda_support import DTYPES, SEEDS, needs_emulator
from depthwise_support import PASSES
from depthwise_support import Case as DepthwiseCase
from sliced_support import Case as SlicedCase
from slicing_support import random_inputs, run_depthwise_aligned, run_depthwise_guarded, run_sliced_guarded

from spos_kernels.cuda import sliced_conv2d as sliced_kernels

pytestmark = needs_emulator
BACKEND = "cuda-emulated"


@pytest.mark.parametrize("seed", SEEDS[1:])
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("case", [DepthwiseCase(5, 40, 7, 7, 7), DepthwiseCase(2, 33, 13, 20, 3, stride=2)], ids=str)
def test_every_schedule_of_depthwise_gives_the_same_bits(
    name: str, case: DepthwiseCase, seed: int, emulator: ModuleType
) -> None:
    inputs = random_inputs(name, case, torch.float32, BACKEND)
    expected = run_depthwise_guarded(name, case, inputs, BACKEND)
    emulator.configure(seed)
    assert torch.equal(run_depthwise_guarded(name, case, inputs, BACKEND), expected)


@pytest.mark.parametrize("seed", SEEDS[1:])
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_every_schedule_of_sliced_gives_the_same_bits(
    name: str, dtype: torch.dtype, seed: int, emulator: ModuleType
) -> None:
    for case in (SlicedCase(3, 17, 24, 14, 14), SlicedCase(2, 20, 9, 9, 9, kernel=3, stride=2, padding=1)):
        inputs = random_inputs(name, case, dtype, BACKEND)
        expected = run_sliced_guarded(name, case, inputs, BACKEND)
        emulator.configure(seed)
        assert torch.equal(run_sliced_guarded(name, case, inputs, BACKEND), expected)
        emulator.configure()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 7])
def test_accesses_fill_sectors_and_meet_banks_once(
    kernel: int, stride: int, dtype: torch.dtype, emulator: ModuleType
) -> None:
    case = DepthwiseCase(1, 64, 16, 16, kernel, stride)
    for name in ("forward", "dgrad"):
        inputs = random_inputs(name, case, dtype, BACKEND)
        emulator.configure(0, count=True)
        emulator.take_counters()
        run_depthwise_aligned(name, case, inputs, BACKEND)
        counters = emulator.take_counters()
        emulator.configure()
        assert counters["launches"] == 1
        assert counters["global_bytes"] >= 0.85 * 32 * counters["global_sectors"]
        # Loads are of 4 bytes, and the only stores of 4 bytes are those of the filters, once a block; the other stores
        # take four passes each.
        stores = counters["shared_store"]
        assert counters["shared_wavefronts"] <= counters["shared_load"] + 4 * stores


def test_stride_2_multiplies_no_zeros(emulator: ModuleType) -> None:
    counts = []
    for stride in (1, 2):
        case = SlicedCase(1, 32, 32, 16, 16, kernel=3, stride=stride, padding=1)
        inputs = random_inputs("dgrad", case, torch.float16, BACKEND)
        emulator.configure(0, count=True)
        emulator.take_counters()
        run_sliced_guarded("dgrad", case, inputs, BACKEND)
        counts.append(emulator.take_counters())
        emulator.configure()
    assert counts[0]["mma_f16"] == 4 * counts[1]["mma_f16"] > 0
    assert counts[0]["launches"] == counts[1]["launches"] == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
def test_aligned_slices_are_read_by_whole_sectors(kernel: int, dtype: torch.dtype, emulator: ModuleType) -> None:
    case = SlicedCase(1, 64, 64, 8, 8, kernel, padding=kernel // 2, more=64, channels_last=True)
    nhwc = torch.channels_last
    first, second, y = (torch.randn(1, 64, 8, 8).to(dtype).to(memory_format=nhwc) for _ in range(3))
    weight = torch.randn(case.weight_shape).to(dtype).to(memory_format=nhwc)
    for run in (
        lambda: sliced_kernels.forward(first, weight, None, y, case.options, BACKEND),
        lambda: sliced_kernels.dgrad(first, weight, y, case.options, BACKEND),
        lambda: sliced_kernels.wgrad(first, second, weight, case.options, False, BACKEND),
    ):
        emulator.configure(0, count=True)
        emulator.take_counters()
        run()
        counters = emulator.take_counters()
        emulator.configure()
        assert counters["global_bytes"] >= 0.9 * 32 * counters["global_sectors"]


@pytest.mark.parametrize("name", PASSES)
def test_blocks_beyond_the_active_width_do_nothing(name: str, emulator: ModuleType) -> None:
    depthwise, sliced = DepthwiseCase(1, 128, 8, 8, 3), SlicedCase(1, 128, 128, 8, 8, kernel=3, padding=1)

    def bytes_with(active: int) -> list[int]:
        width = torch.tensor(active, dtype=torch.int32)
        result = []
        for case in (depthwise, sliced):
            inputs = random_inputs(name, case, torch.float32, BACKEND)
            emulator.configure(0, count=True)
            emulator.take_counters()
            if isinstance(case, DepthwiseCase):
                run_depthwise_guarded(name, case, inputs, BACKEND, width)
            else:
                run_sliced_guarded(name, case, inputs, BACKEND, widths=(width, width))
            result.append(emulator.take_counters()["global_bytes"])
            emulator.configure()
        return result

    all_depthwise, all_sliced = bytes_with(128)
    half_depthwise, half_sliced = bytes_with(64)
    no_depthwise, no_sliced = bytes_with(0)
    assert half_depthwise < 0.52 * all_depthwise and half_sliced < 0.3 * all_sliced
    assert no_depthwise < 0.03 * all_depthwise and no_sliced < 0.03 * all_sliced  # every thread reads the width
