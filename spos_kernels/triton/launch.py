"""How the Triton kernels are launched: tuned on a GPU, by one fixed configuration in Triton's interpreter.

A kernel's configurations are tried on the GPU at the first call of a kind, those left out that would not fit or spill;
what is found is kept in Triton's cache on disk, by device and source. In the interpreter (TRITON_INTERPRET=1, for
tests: CPU tensors, one program after another) the first configuration runs.

Left to itself, ptxas puts a few words into local memory where a thread then has so few registers, 64 or 128 say, that
another block fits on a multiprocessor. A configuration that says how many a thread may have ends that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret
# Floats that a thread can hold for sums, of its 255 registers: the rest are addresses, operands and copies on the way.
MOST_SUMS = 128

Grid = Callable[[Mapping[str, Any]], tuple[int, ...]]
Recorder = Callable[["Kernel", tuple[Any, ...], dict[str, Any]], None]


class Tuner(triton.runtime.Autotuner):
    """Triton's, but what it keeps on disk is kept by the GPU's name too: its own key has the architecture only."""

    def check_disk_cache(
        self, tuning_key: tuple[Any, ...], configs: list[triton.Config], bench_fn: Callable[[], None]
    ) -> bool:
        of_device = (*tuning_key, torch.cuda.get_device_name())
        found = bool(super().check_disk_cache(of_device, configs, bench_fn))
        if found:
            self.cache[tuning_key] = self.cache.pop(of_device)
        return found


class Kernel:
    """A Triton function and its configurations, the first of which is safe everywhere.

    key: arguments by whose values the choice is kept. restore: arguments that a launch changes depending on what they
    were before. fits(configuration, arguments, shared): whether one is worth trying, given the bytes of shared memory
    of a block. fused: whether products and sums may be contracted to multiply-adds where the source does not say so.
    general: integers whose values Triton is not to compile for.
    """

    recorder: Recorder | None = None  # instead of launching: for compilation ahead of time

    def __init__(
        self,
        function: Callable[..., None],
        configurations: Sequence[triton.Config],
        key: Sequence[str] = (),
        restore: Sequence[str] = (),
        fits: Callable[[triton.Config, Mapping[str, Any], int], bool] | None = None,
        fused: bool = True,
        general: Sequence[str] = (),
    ) -> None:
        self.jit = triton.jit(function, do_not_specialize=list(general))
        self.general = tuple(general)
        self.name = function.__name__.strip("_")
        self.configurations = list(configurations)
        self.fused = fused
        self._fits = fits
        self._tuner: Any = None
        if len(self.configurations) > 1 and not INTERPRETED:
            self._tuner = Tuner(
                self.jit,
                self.jit.arg_names,
                self.configurations,
                key=list(key),
                reset_to_zero=[],
                restore_value=list(restore),
                prune_configs_by={"early_config_prune": self._prune},
                cache_results=True,
            )

    def launch(self, grid: Grid | tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Launch on the device of the first tensor, on its current stream.

        grid: of programs, or what it is for the constants of a configuration.
        """
        if Kernel.recorder is not None:
            Kernel.recorder(self, arguments, constants)
            return
        device = next(argument for argument in arguments if isinstance(argument, Tensor)).device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            if self._tuner is not None:
                self._tuner[grid](*arguments, **constants, enable_fp_fusion=self.fused)
                return
            safe = self.configurations[0].all_kwargs()
            self.jit[grid](*arguments, **constants, **safe, enable_fp_fusion=self.fused)

    def _prune(
        self, configurations: list[triton.Config], named: Mapping[str, Any], **constants: Any
    ) -> list[triton.Config]:
        driver = triton.runtime.driver.active
        shared = driver.utils.get_device_properties(driver.get_current_device())["max_shared_mem"]
        arguments = {**named, **constants}
        return self.worth_trying(arguments, shared) or configurations[:1]

    def worth_trying(self, arguments: Mapping[str, Any], shared: int) -> list[triton.Config]:
        """Return the configurations that the cost model leaves for a call."""
        fits = self._fits
        return [each for each in self.configurations if fits is None or fits(each, arguments, shared)]


def kernel(configurations: Sequence[triton.Config], **options: Any) -> Callable[[Callable[..., None]], Kernel]:
    """Make a `Kernel` of a function; options: those of `Kernel`."""
    return lambda function: Kernel(function, configurations, **options)


def fixed(num_warps: int = 4, registers: int | None = None, **constants: int) -> list[triton.Config]:
    """The only configuration of a kernel that has nothing to tune."""
    return [triton.Config(constants, num_warps=num_warps, num_stages=1, maxnreg=registers)]


def product_tile(m: int, n: int, k: int, warps: int, stages: int, registers: int | None = None) -> triton.Config:
    """m × n sums, k of the sum at a time."""
    sizes = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}
    return triton.Config(sizes, num_warps=warps, num_stages=stages, maxnreg=registers)


def product_configurations(most_registers: int | None = None) -> list[triton.Config]:
    """Tiles of matrix products: of one stage for multiply-adds of float32, which spill with more, the others for tensor
    cores. most_registers: of a thread with the largest tile.
    """
    return [
        product_tile(64, 64, 16, 8, 1, 128),
        product_tile(32, 32, 32, 4, 1),
        product_tile(64, 64, 32, 4, 3),
        product_tile(128, 64, 32, 8, 3, most_registers),
    ]


def product_fits(rows: str, columns: str, tensor: str) -> Callable[[triton.Config, Mapping[str, Any], int], bool]:
    """The cost model of products of `rows` by `columns`, arguments' names, in elements of the argument `tensor`.

    Operands of all stages lie in shared memory, sums in registers; a tile of which more than half would be empty is
    not tried.
    """

    def fits(configuration: triton.Config, arguments: Mapping[str, Any], shared: int) -> bool:
        m, n, k = (configuration.kwargs[f"BLOCK_{letter}"] for letter in "MNK")
        size = arguments[tensor].element_size()
        by_fma = size == 4 and arguments["PRECISION"] == "ieee"
        if by_fma != (configuration.num_stages == 1):
            return False
        if configuration.num_stages * k * (m + n) * size > shared:
            return False
        if m * n > MOST_SUMS * 32 * configuration.num_warps:
            return False
        return m <= max(32, 2 * arguments[rows]) and n <= max(32, 2 * arguments[columns])

    return fits


def blocks(size: int, block: int) -> int:
    return -(-size // block)


def width(active: Tensor | None, like: Tensor) -> Tensor:
    """What a kernel is given for a width in device memory; any tensor where there is none."""
    return like if active is None else active
