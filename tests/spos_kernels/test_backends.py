"""Backends and instruction sets: choosing one, errors for what is not there, fork safety."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import spos_kernels as sk
from spos_kernels import _C
from spos_kernels.backends import resolve_backend

ROOT = Path(__file__).parents[2]


def python(program: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count calls of the extension from here on."""
    calls: list[int] = []
    kernel = _C.depthwise_conv2d_forward
    monkeypatch.setattr(_C, "depthwise_conv2d_forward", lambda *args: (calls.append(1), kernel(*args)))
    return calls


def test_use_backend_nests_and_restores_after_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = kernel_calls(monkeypatch)
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(2, 1, 3, 3)
    with sk.use_backend("reference"):
        sk.depthwise_conv2d(x, weight)
        assert len(calls) == 0
        with sk.use_backend("cpu"):
            sk.depthwise_conv2d(x, weight)
            assert len(calls) == 1
        sk.depthwise_conv2d(x, weight)
        assert len(calls) == 1
    with pytest.raises(KeyError), sk.use_backend("reference"):
        raise KeyError
    sk.depthwise_conv2d(x, weight)
    assert len(calls) == 2


def test_a_backend_belongs_to_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = kernel_calls(monkeypatch)
    with sk.use_backend("reference"):
        other = threading.Thread(target=sk.depthwise_conv2d, args=(torch.zeros(1, 2, 4, 4), torch.zeros(2, 1, 3, 3)))
        other.start()
        other.join()
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["gpu", "", None])
def test_unknown_backends_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match="accepted are 'auto', 'cpu', 'cuda', 'cuda-emulated', 'triton', 'reference'"):
        sk.use_backend(name)  # type: ignore[arg-type]


def test_an_explicit_backend_does_not_fall_back() -> None:
    x, weight = torch.zeros(1, 2, 4, 4, device="meta"), torch.zeros(2, 1, 3, 3, device="meta")
    assert sk.depthwise_conv2d(x, weight).shape == x.shape
    with sk.use_backend("cpu"), pytest.raises(ValueError, match="x is on meta: backend 'cpu' accepts CPU tensors"):
        sk.depthwise_conv2d(x, weight)


def test_backends_tell_what_they_are() -> None:
    status = sk.backends()
    assert set(status) == {"cpu", "cuda", "cuda-emulated", "triton", "reference"}
    assert status["cpu"].available and sk.isa() in status["cpu"].reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_backend_that_is_not_available_says_why() -> None:
    assert not sk.backends()["cuda"].available
    with pytest.raises(RuntimeError, match=r"backend 'cuda' is not available: .*compiled"):
        sk.use_backend("cuda")


@pytest.mark.parametrize("isa", [name for name, isa in _C.Isa.__members__.items() if _C.isa_supported(isa)])
def test_spos_isa_selects_an_instruction_set(isa: str) -> None:
    program = """
import spos_kernels as sk, torch
x, weight = torch.randn(1, 20, 9, 9), torch.randn(20, 1, 3, 3)
torch.testing.assert_close(sk.depthwise_conv2d(x, weight), sk.depthwise_conv2d_reference(x, weight))
print(sk.isa())
"""
    result = python(program, SPOS_ISA=isa)
    assert (result.stdout.strip(), result.stderr) == (isa, "")


def test_threads_follow_torch_at_call_time_and_small_work_stays_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(_C, "depthwise_conv2d_forward", lambda *args: seen.append(args[-1]))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        sk.depthwise_conv2d(torch.zeros(8, 64, 14, 14), torch.zeros(64, 1, 5, 5))
        sk.depthwise_conv2d(torch.zeros(1, 8, 7, 7), torch.zeros(8, 1, 3, 3))
    assert seen == [1, 1, 2, 1]


def test_a_bad_spos_isa_is_refused_at_import() -> None:
    result = python("import spos_kernels", SPOS_ISA="sse9")
    assert result.returncode != 0
    assert "ValueError: SPOS_ISA = 'sse9': accepted are " in result.stderr and "'portable'" in result.stderr


def test_an_instruction_set_that_the_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _isa_from = sys.modules["spos_kernels.backends"]._isa_from  # sk.backends is the function of that name
    monkeypatch.setattr(_C, "isa_supported", lambda isa: isa == _C.Isa.portable)
    with pytest.raises(ValueError, match=r"SPOS_ISA = 'avx2': this processor does not have .* it accepts 'portable'"):
        _isa_from({"SPOS_ISA": "avx2"})
    assert _isa_from({"SPOS_ISA": "portable"}) == _C.Isa.portable
    assert _isa_from({}) == _C.best_isa()


def test_a_forked_child_computes_the_same_after_its_parent_did() -> None:
    program = """
import os, torch, spos_kernels as sk
torch.set_num_threads(2)
x = torch.randn(8, 32, 14, 14).to(memory_format=torch.channels_last)
weight = torch.randn(32, 1, 5, 5)
def run():
    # the operators, since torch's own autograd engine does not work in a forked child
    ops = torch.ops.spos_kernels
    y = sk.depthwise_conv2d(x, weight)
    dx = ops.depthwise_conv2d_dgrad(x, weight, 14, 14, 1, 2, "cpu")
    return [t.numpy().tobytes() for t in (y, dx, ops.depthwise_conv2d_wgrad(x, x, 5, 1, 2, "cpu"))]
expected = run()
child = os.fork()
if child == 0:
    os._exit(0 if run() == expected else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert python(program, timeout=60).stdout.strip() == "0"


def test_only_files_named_for_an_instruction_set_are_compiled_for_it() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    assert "CMAKE_CXX_FLAGS" not in cmake
    for database in ROOT.glob("build/cmake-*/compile_commands.json"):
        for line in database.read_text().splitlines():
            if '"command"' in line:
                source = line.rsplit(" ", 1)[-1]
                assert ("-mavx512f" in line) == ("_avx512" in source)
                assert ("-mavx2" in line) == ("_avx" in source)
                assert "-march" not in line


def test_one_use_backend_object_may_be_entered_twice() -> None:
    reference = sk.use_backend("reference")
    with reference, reference:
        pass
    assert resolve_backend(torch.zeros(1)) == "cpu"
