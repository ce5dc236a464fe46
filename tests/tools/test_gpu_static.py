"""What `make gpu-static` and `make ptx` read in the compiler's and the disassembler's output, and what they refuse."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import census
import compilation
import export_ptx
import names
import occupancy
import ptx_text
import pytest
import resources
import static
import toolchain
from resources import Kernel, Usage

ROOT = Path(__file__).parents[2]
GEMM = ROOT / "tests" / "cuda_emulation" / "kernels" / "gemm.cu"
needs_nvcc = pytest.mark.skipif(toolchain.nvcc() is None, reason=toolchain.NO_NVCC)
needs_disassembler = pytest.mark.skipif(toolchain.disassembler() is None, reason="no nvdisasm")

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1av' for 'sm_80'
ptxas info    : Function properties for _Z1av
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 17408 bytes smem, 424 bytes cmem[0]
ptxas warning : Registers are spilled to local memory in function '_Z1bv', 40 bytes spill stores, 44 bytes spill loads
ptxas info    : Compiling entry function '_Z1bv' for 'sm_80'
ptxas info    : Function properties for _Z1bv
    16 bytes stack frame, 40 bytes spill stores, 44 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 424 bytes cmem[0]
"""


def kernel(registers: int, **other: int) -> Kernel:
    values = {"shared_bytes": 0, "stack_bytes": 0, "spill_bytes": 0, **other}
    return Kernel("a.cu", "a<fp32>", 128, 0, {80: Usage(registers, **values), 90: Usage(registers, **values)})


def page(*kernels: Kernel) -> str:
    return resources.table({(each.file, each.name): each for each in kernels}, "13.0")


def complaints(now: Kernel, table: str, release: str = "13.0") -> list[str]:
    return resources.table_complaints({(now.file, now.name): now}, table, release)


def test_log_of_ptxas() -> None:
    assert resources.usages(LOG) == {"_Z1av": Usage(24, 17408, 0, 0), "_Z1bv": Usage(255, 0, 16, 84)}


def test_spills_stack_and_missing_bounds_are_refused() -> None:
    assert resources.memory_complaints([kernel(40)]) == []
    assert "84 bytes of spills" in resources.memory_complaints([kernel(40, spill_bytes=84)])[0]
    assert "16 of stack" in resources.memory_complaints([kernel(40, stack_bytes=16)])[0]
    assert "__launch_bounds__" in resources.memory_complaints([Kernel("a.cu", "a", None, 0, kernel(40).usage)])[0]
    assert "expectations.toml" in resources.memory_complaints([Kernel("a.cu", "a", 128, None, kernel(40).usage)])[0]
    assert "not one block" in resources.memory_complaints([kernel(40, shared_bytes=200_000)])[0]


def test_table_reads_back() -> None:
    table = page(kernel(40, shared_bytes=17408))
    assert "| `a<fp32>` | 128 | 17408 | 40 / 56% | 40 / 75% | - | - |" in table
    assert resources.registers_in(table) == {("a.cu", "a<fp32>"): {80: 40, 90: 40}}
    assert resources.release_in(table) == "13.0"


def test_differences_from_the_table() -> None:
    table = page(kernel(40))
    assert complaints(kernel(40 + resources.MARGIN), table) == []
    more = complaints(kernel(41 + resources.MARGIN), table)
    assert [line.split(": ", 2)[2] for line in more] == ["45 registers, 40 in the table"] * 2
    assert complaints(kernel(200), table, release="13.1") == []  # another compiler's registers are its own
    renamed = Kernel("a.cu", "b", 128, 0, kernel(40).usage)
    assert complaints(renamed, table) == [
        "a.cu: b is not in the table",
        "a.cu: a<fp32> is in the table and not compiled",
    ]


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks"),
    [
        (80, 256, 32, 0, 8),
        (80, 128, 255, 0, 2),
        (80, 128, 168, 0, 3),
        (80, 32, 16, 0, 32),
        (80, 128, 32, 48 * 1024, 3),
        (90, 128, 32, 48 * 1024, 4),
        (120, 256, 32, 0, 6),
        (120, 1024, 64, 0, 1),
        (120, 128, 32, 100 * 1024, 0),
    ],
)
def test_resident_blocks(architecture: int, threads: int, registers: int, shared: int, blocks: int) -> None:
    assert occupancy.resident_blocks(architecture, threads, registers, shared) == blocks


@pytest.mark.parametrize(
    ("demangled", "expected"),
    [
        (
            "void spos::cuda::(anonymous namespace)::forward_kernel<__half>(spos::cuda::Shape, __half*)",
            "forward_kernel<fp16>",
        ),
        ("(anonymous namespace)::plain(float const*, unsigned int)", "plain"),
        ("run_gemm", "run_gemm"),
        (
            "void spos::cuda::gemm<(spos::cuda::Math)2, spos::cuda::Rows<float,(bool)1> "
            ">(spos::cuda::Rows<float,(bool)1>)",
            "gemm<(Math)2, Rows<fp32, (bool)1> >",
        ),
    ],
)
def test_short_names(demangled: str, expected: str) -> None:
    assert names.short(demangled) == expected


def test_patterns() -> None:
    assert names.matches("*", "a.cu", "b<fp32>")
    assert names.matches("a: b*fp32*", "a.cu", "b<fp32, 3>")
    assert not names.matches("a: b", "a.cu", "b<fp32>")
    assert names.declared({"c*": 1, "a: *": 2}, "a.cu", "b") == 2
    assert names.declared({"c*": 1}, "a.cu", "b") is None


PTX = """.version 9.0
.target sm_80
.extern .shared .align 128 .b8 _Z20dynamic_shared_bytes[];
.visible .entry _Z1aPfi(
	.param .u64 .ptr .align 1 _Z1aPfi_param_0,
	.param .u8 _Z1aPfi_param_1,
	.param .align 8 .b8 _Z1aPfi_param_2[40]
)
.maxntid 16, 8, 1
.minnctapersm 2
{
	mov.u32 %r1, _Z20dynamic_shared_bytes;
	ret;
}
.entry _Z1bv()
{
	ret;
}
"""


def test_entry_points() -> None:
    first, second = ptx_text.entries(PTX)
    assert first.name == "_Z1aPfi"
    assert [(each.offset, each.bytes, each.alignment) for each in first.parameters] == [
        (0, 8, 8),
        (8, 1, 1),
        (16, 40, 8),
    ]
    assert first.threads == (16, 8, 1)
    assert first.blocks_per_multiprocessor == 2
    assert first.uses_dynamic_shared
    assert second == ptx_text.Entry("_Z1bv", (), None, None, False)


LISTING = """
	.section	.text._Z1av,"ax",@progbits
_Z1av:
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
        /*0010*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/               @P0 LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0030*/              @!P1 STG.E desc[UR4][R2.64], R4 ;
        /*0040*/              @UP0 LDS.64 R4, [R2] ;
        /*0050*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
        /*0058*/                   IMMA.16864.U4.S4 R4, R8.ROW, R10.COL, R4 ;
        /*0060*/                   LDSM.16.MT88.4 R4, [R2] ;
        /*0070*/                   LDGSTS.E.BYPASS.128 [R2], desc[UR4][R4.64] ;
        /*0080*/                   FFMA2 R4, R8.F32x2.HI_LO, R10.F32, R4.F32 ;
        /*0090*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00a0*/                   NOP ;
	.section	.nv.shared._Z1av,"aw",@nobits
        /*00b0*/                   FFMA R1, R1, R1, R1 ;
"""
COUNTS = {
    "LDG.128": 1,
    "LDG.16": 1,
    "STG.32": 1,
    "LDS.64": 1,
    "HMMA": 1,
    "IMMA.16864": 1,
    "LDSM": 1,
    "LDGSTS.128": 1,
    "FFMA2": 1,
    "BAR": 1,
}


def test_instructions_are_counted() -> None:
    assert census.count(LISTING) == {"_Z1av": Counter({**COUNTS, "other": 1})}


def test_expectations() -> None:
    counted: census.Census = {("a.cu", "a<fp16>"): {80: Counter(COUNTS), 90: Counter()}}

    def failing(**table: object) -> list[str]:
        return census.complaints(counted, [census.Expectation.read(table)])

    assert failing(kernels="*", has=["LDG", "LDG.128", "HMMA", "FFMA"], lacks=["STL"], architectures=[80]) == []
    assert failing(kernels="*", has=["IMMA", "IMMA.16864"], lacks=["IMMA.16832"], architectures=[80]) == []
    assert failing(kernels="*", has=["HMMA"]) == ["a.cu: a<fp16> on sm_90 has no HMMA"]
    assert failing(kernels="a: *", lacks=["LDG.16"]) == ["a.cu: a<fp16> on sm_80 has 1 LDG.16"]
    assert failing(kernels="b: *") == ["expectations.toml: no kernel is called b: *"]
    with pytest.raises(ValueError, match="accepted are"):
        failing(kernels="*", hat=["HMMA"])


def test_committed_files_are_read() -> None:
    dynamic_shared, expectations = static.read_expectations(static.EXPECTATIONS)
    assert all(isinstance(value, int) for value in dynamic_shared.values())
    assert any("LDL" in each.lacks for each in expectations)
    assert resources.registers_in(static.TABLE.read_text())


def test_headers_are_found() -> None:
    found = {path.name for path in toolchain.headers_of(toolchain.KERNELS / "gemm.cuh")}
    assert {"elements.cuh", "element.h", "device.h", "ptx.h", "emulated.h"} <= found
    assert "gemm.cuh" not in found


@needs_nvcc
def test_a_kernel_from_source_to_description() -> None:
    folder = ROOT / "build" / "gpu_tests"
    compiled = compilation.compile_one(GEMM, 80, folder)
    assert compilation.compile_one(GEMM, 80, folder).seconds == 0
    kernels = resources.kernels_of([compiled], {})
    assert {name for _, name in kernels} == {"gemm<true>", "gemm<false>"}
    assert all(each.threads == 128 and each.shared_bytes == 16384 for each in kernels.values())
    assert resources.memory_complaints(kernels.values()) == []
    folder = folder / "ptx"
    folder.mkdir(exist_ok=True)
    assert export_ptx.export(compiled, folder) == 2
    description = json.loads((folder / "gemm.sm_80.json").read_text())
    for entry in description["entries"]:
        assert f".entry {entry['name']}(" in (folder / "gemm.sm_80.ptx").read_text()
        assert entry["threads"] == [128, 1, 1]
        assert entry["static_shared_bytes"] == 16384
        assert [each["offset"] for each in entry["parameters"]] == [0, 8, 16, 24, 28]
        assert entry["parameter_bytes"] == 32


@needs_nvcc
@needs_disassembler
def test_instructions_of_a_kernel() -> None:
    compiled = compilation.compile_one(GEMM, 80, ROOT / "build" / "gpu_tests")
    counted = census.of_all([compiled], str(toolchain.disassembler()))
    expected = census.Expectation("gemm: *", ("IMMA", "LDSM", "LDGSTS.128", "BAR"), ("LDL", "STL", "HMMA"))
    assert census.complaints(counted, [expected]) == []


@needs_nvcc
def test_planted_local_memory(tmp_path: Path) -> None:
    source = tmp_path / "planted.cu"
    source.write_text("""
        __global__ void __launch_bounds__(64) indexed(const int* where, int* to) {
            int kept[32];
            for (int i = 0; i < 32; ++i) kept[i] = to[i];
            for (int i = 0; i < 32; ++i) kept[where[i]] += i;
            for (int i = 0; i < 32; ++i) to[i] = kept[i];
        }""")
    kernels = resources.kernels_of([compilation.compile_one(source, 80, tmp_path)], {})
    assert "128 of stack" in resources.memory_complaints(kernels.values())[0]
    source.write_text("__global__ void broken( {}")
    with pytest.raises(compilation.CompilationFailed, match="error"):
        compilation.compile_one(source, 80, tmp_path)
