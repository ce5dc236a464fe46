"""From options to the settings of a stage, checked against those that the run was started with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spos import config_file
from spos.config import Config
from spos.config_file import ConfigError
from spos.run_folder import SEARCH, SUPERNET, RunFolder

# What must stay the same when a stage is gone on with; threads and workers may change.
_FIXED = {
    SUPERNET: ("seed", "space", "data", "train"),
    SEARCH: ("seed", "space", "data", "search"),
    "retrain": ("seed", "space", "data", "retrain"),
}
_FREE = ("data.workers", "data.source")  # where the same images lie is no difference; their hash decides


@dataclass(frozen=True)
class Options:
    """Settings as given on a command line; `named` are those with an option of their own, None where not given."""

    config: Path | None = None
    sets: Sequence[str] = ()
    named: Mapping[str, str | int | float | None] = field(default_factory=dict)

    def apply(self, config: Config) -> Config:
        """`config` with the named options and then the `--set` ones in it."""
        for section in ("train", "retrain"):
            if self.named.get(f"{section}.epochs") is not None:  # asked for now, so steps set earlier give way
                changed = dataclasses.replace(getattr(config, section), steps=None)
                config = dataclasses.replace(config, **{section: changed})
        named = [f"{key}={_quoted(value)}" for key, value in self.named.items() if value is not None]
        return config_file.override(config, [*named, *self.sets])


def resolve(folder: RunFolder, stage: str, options: Options, default: Config | None = None) -> Config:
    """The settings of a stage: options over its own earlier ones, or over `--config`, the supernet's or the defaults.

    ConfigError names each setting that differs from what the stage, or the supernet it builds on, was started with.
    """
    earlier = folder.settings(stage) if folder.started(stage) else None
    supernet = folder.settings(SUPERNET) if folder.started(SUPERNET) else None
    base = config_file.load(options.config) if options.config else earlier or supernet or default or Config()
    config = _with_absolute_source(options.apply(base))
    if earlier is not None:
        _refuse_changes(folder, stage, earlier, config, _FIXED[stage.partition("-")[0]])
    elif supernet is not None and stage != SUPERNET:
        _refuse_changes(folder, SUPERNET, supernet, config, ("space", "data"))
    return config


def _refuse_changes(folder: RunFolder, stage: str, before: Config, after: Config, fixed: Sequence[str]) -> None:
    changed = [c for c in config_file.differences(before, after, fixed) if c.partition(" ")[0] not in _FREE]
    if changed:
        raise ConfigError(
            f"{folder.directory(stage)} was started with {'; '.join(changed)}: "
            f"leave these out to go on with it, or take another {'--label or ' * stage.startswith(SEARCH)}directory"
        )


def _with_absolute_source(config: Config) -> Config:
    """A path of images as it is from anywhere: the next stage may be started in another directory."""
    source = Path(config.data.source).expanduser()
    if source.exists() and not source.is_absolute():
        return config_file.override(config, [f"data.source={_quoted(str(source.resolve()))}"])
    return config


def _quoted(value: str | float) -> str:
    return config_file.to_toml(value)
