"""What a machine lacks is said in one line that names the remedy."""

import importlib.util
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "tools" / "preflight.py"
spec = importlib.util.spec_from_file_location("preflight", SOURCE)
assert spec and spec.loader
preflight = importlib.util.module_from_spec(spec)
spec.loader.exec_module(preflight)


def test_this_machine_passes() -> None:
    assert preflight.python_version() is None
    assert preflight.venv_module() is None
    assert preflight.compiler() is None
    assert preflight.python_headers() is None
    assert preflight.disk_space(".", needed=1) is None


def test_an_old_python() -> None:
    assert "Python 3.11 or newer is needed" in preflight.python_version((3, 9))
    assert "apt-get install python3.11" in preflight.python_version((3, 9))


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "apt-get install g++" in preflight.compiler()
    monkeypatch.setenv("CXX", "/nowhere/clang++ -v")
    assert "looked for /nowhere/clang++" in preflight.compiler()


def test_no_python_headers(tmp_path: Path) -> None:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}-dev"
    assert f"apt-get install {version}" in preflight.python_headers(str(tmp_path))


def test_no_venv_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "apt-get install python3-venv" in preflight.venv_module()


def test_no_disk_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not enough disk space" in preflight.disk_space(str(tmp_path), needed=10**18)
    assert preflight.main(str(tmp_path), "1e9") == 1
    assert "error: not enough disk space" in capsys.readouterr().err
