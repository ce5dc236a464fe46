"""The README's own example runs as printed, on less data and for fewer steps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import spos

README = (Path(__file__).parents[1] / "README.md").read_text()


def shortened(code: str, source: Path) -> str:
    for old, new, count in (
        ('source="cifar10.zip"', f"source={str(source)!r}", 1),
        (r"epochs=\d+, batch_size=64", "steps=2, batch_size=8", 2),
        (
            "constraints=",
            "config=spos.SearchConfig(population=3, generations=1, calibration_images=8), constraints=",
            1,
        ),
    ):
        code, replaced = re.subn(old, new.replace("\\", r"\\"), code)
        assert replaced == count, f"{old!r} occurs {replaced} times in the README's example, not {count}"
    return code


def test_example_of_a_space_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for label in range(10):
        folder = tmp_path / "images" / f"class{label}"
        folder.mkdir(parents=True)
        for index in range(25):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{index}.png")
    [code] = [c for c in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "ChoiceBlock" in c]
    names: dict[str, object] = {}
    exec(compile(shortened(code, tmp_path / "images"), "README.md", "exec"), names)
    accuracy = float(capsys.readouterr().out)
    assert 0 <= accuracy <= 1 and (tmp_path / "runs/mine/search/result.json").exists()
    net, found = names["net"], names["found"]
    assert isinstance(net, spos.Supernet) and found.best.flops <= 1e6


@pytest.mark.parametrize("command", re.findall(r"^    make (\w[\w-]*)", README, re.MULTILINE))
def test_make_targets_exist(command):
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    assert re.search(rf"^{command}:", makefile, re.MULTILINE)


def test_examples_of_channel_numbers():
    codes = [
        c for c in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "oneshot-channels" in c or "Width" in c
    ]
    assert len(codes) == 2
    names: dict[str, object] = {"spos": spos, "nn": nn}
    for code in codes:
        exec(compile(code, "README.md", "exec"), names)
    net, arch = names["net"], names["arch"]
    assert isinstance(net, spos.Supernet) and arch == (0, 4, 1, 4, 2, 4, 3, 4) * 5
    own = spos.Supernet(names["block"])
    assert own(torch.zeros(2, 32, 4, 4), (1,)).shape == (2, 32, 4, 4) and own.space.size() == 3
