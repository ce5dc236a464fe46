from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import spos


def test_names_for_type_checkers_are_the_names_there_are():
    tree = ast.parse(Path(spos.__file__).read_text())
    [block] = [n for n in tree.body if isinstance(n, ast.If)]
    declared = {a.name: n.module for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert declared == {"data": "spos", "spaces": "spos"} | spos._HOMES
    for name in spos.__all__:
        assert getattr(spos, name) is not None, name
    assert set(dir(spos)) == set(spos.__all__)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'spos' has no attribute 'nothing'"):
        _ = spos.nothing
    assert not hasattr(spos, "__wrapped__") and spos.draws.generator is spos.generator


def test_help_needs_no_torch():
    code = "import sys, spos.cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
