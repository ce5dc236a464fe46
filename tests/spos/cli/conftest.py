"""A command line to call in this process, and images for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from spos.cli import main


class Outcome(NamedTuple):
    """What a command left: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes of 30 images."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label in ("bright", "dark"):
        (folder / label).mkdir()
        for index in range(30):
            pixels = rng.integers(0, 128, (8, 8, 3), dtype=np.uint8) + (127 if label == "bright" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{index}.png")
    return folder


@pytest.fixture
def spos(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Calls the command line in an empty directory: `spos("train", "run", ...)`."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["spos", *map(str, arguments)])
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as exit_:
                main()
        finally:
            torch.set_num_threads(threads)
        out, err = capfd.readouterr()
        return Outcome(int(exit_.value.code or 0), out, err)

    return call
