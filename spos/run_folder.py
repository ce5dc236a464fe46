"""The folder of a whole run: supernet, search and retrained architectures, each a run directory of its own.

supernet.toml  supernet/        settings of the stage, and its run directory
space.json                      the search space: its decisions, and the shapes around its blocks
search.toml    search/          evolution and random search; search-<label> where there are several
latency.json                    what every block of a deployed network takes, measured
retrain-<label>.toml  .json     settings, and which architecture it is
retrain-<label>/
report.html
.<stage>.lock                   held by the process that is at work on the stage
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spos import atomic_files, config_file
from spos.config import Config
from spos.run_directory import RunDirectory, RunDirectoryError, lock_file, read_json_object

if TYPE_CHECKING:
    from spos.data import Data
    from spos.supernet import Supernet

SUPERNET, SEARCH = "supernet", "search"
UNIFORM = "uniform:"  # begins the text of an architecture that takes the same option everywhere
_RETRAIN, _SEARCH = "retrain-", "search-"
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class RunFolder:
    """Paths and small files of a run. Reading changes nothing; writing makes the folder where there is none."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"{self.path} is a file: expected the folder of a run")

    def directory(self, stage: str) -> Path:
        """The run directory of a stage: "supernet", "search", "search-<label>" or "retrain-<label>"."""
        return self.path / stage

    def started(self, stage: str) -> bool:
        """True once the run directory of a stage has been created."""
        return (self.directory(stage) / "run.json").is_file()

    def open(self, stage: str) -> RunDirectory:
        """The run directory of a stage, to read only. RunDirectoryError if the stage has not been started."""
        return RunDirectory.open(self.directory(stage), read_only=True)

    @contextmanager
    def held(self, stage: str) -> Iterator[None]:
        """Keep other processes off a stage, whose settings are written before its run directory is there.

        RunDirectoryError where one is at it.
        """
        self._make()
        lock = lock_file(self.path / f".{stage}.lock", self.directory(stage))
        try:
            yield
        finally:
            os.close(lock)

    def settings(self, stage: str) -> Config | None:
        """The settings that a stage was started with, None if it was not."""
        path = self.path / f"{stage}.toml"
        return config_file.load(path) if path.exists() else None

    def write_settings(self, stage: str, config: Config) -> None:
        self._make()
        atomic_files.write_bytes(self.path / f"{stage}.toml", config_file.dumps(config).encode())

    def space(self) -> dict[str, Any] | None:
        """What `write_space` wrote: `describe_space` and "data", sizes and class names. None if nothing was written."""
        path = self.path / "space.json"
        return read_json_object(path) if path.exists() else None

    def write_space(self, net: Supernet, data: Data) -> None:
        """Describes the search space, and the images that it is trained on, for the report."""
        images = {"training": len(data.train), "validation": len(data.validation), "classes": list(data.classes)}
        self._make()
        atomic_files.write_json(self.path / "space.json", describe_space(net) | {"data": images})

    @property
    def latency(self) -> Path:
        """The table of latencies, where `spos latency` has written one."""
        return self.path / "latency.json"

    def retrain_stages(self) -> list[str]:
        """Stages of retrained architectures that were started, in the order of their names, numbers by value."""
        return self._started(_RETRAIN)

    def search_stages(self) -> list[str]:
        """Stages of searches that were started: "search" first, then those with a label, as `retrain_stages`."""
        return [SEARCH] * self.started(SEARCH) + self._started(_SEARCH)

    def plan(self, stage: str) -> dict[str, Any]:
        """Which architecture a retraining stage is about: label, origin, arch, flops, params.

        Empty for a run directory that something else than the command line made.
        """
        path = self.path / f"{stage}.json"
        return read_json_object(path) if path.exists() else {}

    def write_plan(self, stage: str, plan: Mapping[str, Any]) -> None:
        self._make()
        atomic_files.write_json(self.path / f"{stage}.json", plan)

    def _started(self, prefix: str) -> list[str]:
        stages = [path.parent.name for path in self.path.glob(f"{prefix}*/run.json")]
        return sorted(stages, key=lambda stage: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", stage)])

    def _make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)


def retrain_stage(label: str) -> str:
    """The stage name of a retrained architecture. ValueError for a label that could not be part of a file name."""
    return _RETRAIN + _checked(label)


def search_stage(label: str | None) -> str:
    """The stage name of a search, None for the one without a label. ValueError as `retrain_stage`."""
    return SEARCH if label is None else _SEARCH + _checked(label)


def _checked(label: str) -> str:
    if not _LABEL.fullmatch(label):
        raise ValueError(f"label = {label!r}: expected letters, digits, '-' and '_', a letter or digit first")
    return label


def describe_space(net: Supernet) -> dict[str, Any]:
    """The decisions of a supernet and, where its blocks map one image tensor to another, the shapes around them.

    `blocks` has one entry for each choice block, and for each block with a choice of bits, in the order of the module
    tree: the decision's index, the indices of the width decisions inside of it, and [channels, height, width] of what
    goes in and comes out along the path that takes every first option.
    """
    return {
        "name": net.name,
        "input_shape": list(net.input_shape) if net.input_shape else None,
        "size": str(net.space.size()),
        "fingerprint": net.space.fingerprint(),
        "decisions": [
            {"name": d.name, "kind": d.kind, "options": list(d.options), "offered": d.drawn}
            for d in net.space.decisions
        ],
        "blocks": _measure_blocks(net, [0] * len(net.space)) if net.input_shape else [],
    }


def _measure_blocks(net: Supernet, arch: Sequence[int]) -> list[dict[str, Any]]:
    import torch

    from spos.choices import BitsChoice, ChoiceBlock, WidthChoice
    from spos.sliced import SlicedModule

    def decision(block: torch.nn.Module) -> int | None:
        """The place of what the block decides: between its branches, or on the bits of all of its layers."""
        if isinstance(block, ChoiceBlock):
            return block.position
        bits = [c.position for c in block.children() if isinstance(c, BitsChoice)]
        return bits[0] if bits and not isinstance(block, SlicedModule) else None

    blocks: list[dict[str, Any]] = []

    def note(block: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        pair = (*inputs[:1], output)
        if len(pair) == 2 and all(isinstance(t, torch.Tensor) and t.dim() == 4 for t in pair):
            before, after = (list(t.shape[1:]) for t in pair)
            widths = sorted({m.position or 0 for m in block.modules() if isinstance(m, WidthChoice)})
            blocks.append({"decision": decision(block), "widths": widths, "input": before, "output": after})

    handles = [m.register_forward_hook(note) for m in net.modules() if decision(m) is not None]
    modes = [(module, module.training) for module in net.modules()]
    try:
        net.eval()
        with torch.no_grad():
            net(torch.zeros(1, *(net.input_shape or ())), arch)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return blocks
