"""Configuration files: TOML to `spos.Config` and back, and single settings from a command line.

A file may leave out any section and any key; what it leaves out has its default. Errors name the file, the section and
key, the value and what is accepted, and for an unknown key the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import textwrap
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from spos.config import Config

_TRAINING_HELP = {
    "epochs": "passes over the training images",
    "steps": "optimizer steps; used instead of epochs where given",
    "batch_size": "images in a batch",
    "lr": "learning rate of the first step; it falls to 0",
    "schedule": 'how the learning rate falls: "linear" or "cosine", a little every step',
    "momentum": "of stochastic gradient descent",
    "nesterov": "Nesterov's form of momentum",
    "weight_decay": "on weights with more than one dimension and on activations' clips; not on batch normalisation",
    "label_smoothing": "share of the target spread over all classes",
    "clip_norm": "largest norm of the gradient; 0 for no clipping",
    "accumulation": "batches in one optimizer step, all on one path",
    "bf16": "compute in bfloat16 where torch's autocast does",
    "checkpoint_every": "steps between checkpoints",
    "log_every": "steps between records of loss and accuracy",
}

HELP: dict[str, str] = {
    "seed": "of every random draw: paths, batches, initial weights, candidates",
    "threads": "CPU threads to compute with; 0 for torch's own choice",
    "device": 'where networks are trained and scored: "cpu", "cuda", or "auto" for the GPU that torch sees, if any',
    "data.source": '"mnist-5k", or the path of a CIFAR-10 folder or of a folder or zip of class folders of images',
    "data.image_size": "pixels; images are resized and cut to squares",
    "data.validation_fraction": "of the training images, held out for the search, the same share of every class",
    "data.test_fraction": "of all images, held out where the data set has no test images of its own",
    "data.crop_padding": "pixels added on every side before a random crop; 0 for no crop",
    "data.flip": "random left-right flips; false for digits and other images with a direction",
    "data.random_resized_crop": "random crops of other sizes and shapes, as for ImageNet",
    "data.color_jitter": "strength of random brightness, contrast and saturation; 0 for none",
    "data.normalize": '"mean-std" measured on the training images, or "official": BGR, 0 to 255',
    "data.workers": "threads that prepare batches ahead; 0 for none. Batches are the same whatever the number",
    "space.name": "of the search space; `spos info` lists them",
    "space.operators": 'of a space with channel numbers, those to choose from, such as ["choice_3"]; [] for all',
    "space.widths": "of a space with channel numbers, the ratios to choose from, such as [0.6, 0.8, 1.0]; [] for all",
    "space.bits": "of a mixed-precision space, the bits of weights and activations to choose from, such as "
    '["w2a2", "w4a4"]; ["any"] for all pairs of 1 to 8, [] for those of the paper',
    "space.share_clip": "of a mixed-precision space, learn one value to clip at for all numbers of bits",
    "space.initial_clip": "of a mixed-precision space, the value to clip at before training; 0 for the space's own",
    **{f"train.{key}": text for key, text in _TRAINING_HELP.items()},
    "train.sampler": 'how paths are drawn: "uniform", "budget" (within the bounds below), "fair" (one update from a '
    'pass for each option), "diverse" (steps in a row differ most), or "module:function"',
    "train.max_flops": 'of sampler = "budget": at most so many multiply-accumulates for one image; 0 for no bound',
    "train.min_flops": "at least so many; 0 for no bound",
    "train.max_params": 'of sampler = "budget": at most so many parameters; 0 for no bound',
    "train.min_params": "at least so many; 0 for no bound",
    "train.max_bitops": 'of sampler = "budget": at most so many bit operations, in 2^30; 0 for no bound',
    "train.min_bitops": "at least so many; 0 for no bound",
    "train.cost_bins": 'of sampler = "budget": equal parts of the range of costs, one of them drawn first; 1 for none',
    "train.width_warmup": "share of the steps, the first ones, that train the widest channel numbers only; 0 for none. "
    "Without it and the next: 0.5 and 0.075",
    "train.width_widening": "share of the steps, the next ones, over which narrower channel numbers are opened one by "
    "one; 0 to open all at once",
    "search.method": '"evolution" (the paper\'s), "nsga2" (trade-offs among the objectives) or "aging"',
    "search.objectives": 'of "nsga2", and of the Pareto front that is shown: "accuracy" and names of costs',
    "search.population": "random candidates that evolution starts from",
    "search.generations": "rounds of evolution after them",
    "search.mutations": "children by mutation in a generation",
    "search.crossovers": "children by crossover in a generation",
    "search.parents": "best candidates so far that children come from",
    "search.mutation_probability": "that a mutation redraws a decision",
    "search.sample_size": 'of "aging": candidates in a tournament for a parent',
    "search.racing": "confidence, such as 0.99, at which a candidate is dropped as not among the best; 0: never",
    "search.repair": "bring children beyond a budget within it; false draws random ones in their place",
    "search.max_flops": "budget: at most so many multiply-accumulates for one image; 0 for no bound",
    "search.min_flops": "at least so many; 0 for no bound",
    "search.max_params": "budget: at most so many parameters; 0 for no bound",
    "search.min_params": "at least so many; 0 for no bound",
    "search.max_bitops": "budget: at most so many bit operations, MACs times both bits, in 2^30; 0 for no bound",
    "search.min_bitops": "at least so many; 0 for no bound",
    "search.max_latency": "budget: milliseconds a batch, as `spos latency` has measured; 0 for none",
    "search.min_latency": "lower bound in the same unit; 0 for none",
    "search.max_peak_memory": "budget: most bytes of activations at one time, for one image; 0 for no bound",
    "search.min_peak_memory": "at least so many; 0 for no bound",
    "search.calibration_images": "training images that recompute batch-normalisation statistics, for each candidate",
    "search.validation_images": "held-out images that score a candidate; 0 for all of them",
    "search.eval_batch_size": "images in a batch of evaluation",
    **{f"retrain.{key}": text for key, text in _TRAINING_HELP.items()},
    "retrain.use_validation": "train on the held-out images too, once the search is over",
    "retrain.calibration_images": "training images that recompute the statistics at the end; 0 keeps those of training",
}
"""What each setting means, by "section.key"."""

_SECTION_HELP = {
    "data": "Images: where they come from, how they are split and augmented.",
    "space": "The search space.",
    "train": "Training of the supernet, one random path a step.",
    "search": "The evolutionary search, and random search of the same budget.",
    "retrain": "Training of the architecture found, from fresh weights.",
}


class ConfigError(ValueError):
    """A setting that cannot be used. The message says where it stands and what is accepted."""


def load(path: str | os.PathLike[str]) -> Config:
    """Reads a TOML file. ConfigError for anything in it that is no setting; OSError if it cannot be read."""
    try:
        text = Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    return loads(text, str(path))


def loads(text: str, source: str = "settings") -> Config:
    """Reads TOML text; `source` is what errors call it."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}") from None
    return _updated(Config(), content, source)


def override(config: Config, settings: Sequence[str]) -> Config:
    """Returns `config` with settings such as "train.lr=0.1" replaced, the last one of a key winning.

    Values are TOML; quotes around text may be left out, and "none" unsets a setting that may be unset.
    """
    content: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys) or len(keys) > 2:
            raise ConfigError(f"setting {setting!r}: expected section.key=value, such as train.lr=0.1")
        table = content.setdefault(keys[0], {}) if len(keys) == 2 else content
        if not isinstance(table, dict):
            raise ConfigError(f"setting {setting!r}: {keys[0]} is no section")
        table[keys[-1]] = _parse_value(text.strip())
    return _updated(config, content, "command line")


def dumps(config: Config) -> str:
    """The TOML text of every setting, each with what it means; `load` reads the same `Config` from it."""
    lines = [
        "# Settings of a run. Any of them may be left out.",
        "",
        *_key_lines("", config),
    ]
    for section, value in _sections(config):
        lines += ["", f"# {_SECTION_HELP[section]}", f"[{section}]", *_key_lines(f"{section}.", value)]
    return "\n".join(lines) + "\n"


def differences(before: Config, after: Config, names: Sequence[str]) -> list[str]:
    """Says what differs, as "train.lr = 0.5, now 0.1", among settings or whole sections of the given names."""
    old, new = dict(_flat(before)), dict(_flat(after))
    return [
        f"{key} = {to_toml(old[key])}, now {to_toml(new[key])}"
        for key in old
        if old[key] != new[key] and (key in names or key.partition(".")[0] in names)
    ]


def _sections(config: Config) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield field.name, value


def _flat(config: Config) -> Iterator[tuple[str, Any]]:
    sections = dict(_sections(config))
    for name, value in vars(config).items():
        if name not in sections:
            yield name, value
    for section, values in sections.items():
        for name, value in vars(values).items():
            yield f"{section}.{name}", value


def _key_lines(prefix: str, owner: Any) -> Iterator[str]:
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        if not dataclasses.is_dataclass(value):
            yield from textwrap.wrap(HELP[prefix + field.name], 116, initial_indent="# ", subsequent_indent="# ")
            yield f"# {field.name} = (not set)" if value is None else f"{field.name} = {to_toml(value)}"


def to_toml(value: object) -> str:
    """One value as TOML writes it; None as "none", which `override` reads."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace(
            "\x7f", "\\u007f"
        )  # JSON's escapes are TOML's, but for DEL
    if isinstance(value, tuple):
        return f"[{', '.join(map(to_toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return None if text.lower() == "none" else text


def _updated(config: Config, content: Mapping[str, Any], source: str) -> Config:
    sections = dict(_sections(config))
    changes: dict[str, Any] = {}
    for name, value in content.items():
        if name in sections:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {name} = {value!r}: expected a section, [{name}]")
            changes[name] = _replaced(sections[name], f"{name}.", value, source)
    own = {name: value for name, value in content.items() if name not in sections}
    return dataclasses.replace(_replaced(config, "", own, source), **changes)


def _replaced(owner: Any, prefix: str, content: Mapping[str, Any], source: str) -> Any:
    """`owner`, a section or the whole, with the values of `content`, each checked against the field's type."""
    hints = typing.get_type_hints(type(owner))
    for name in content:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(hints)}"
            raise ConfigError(f"{source}: {prefix}{name} is no setting; {hint}")
    values = {name: _checked(value, hints[name], f"{source}: {prefix}{name}") for name, value in content.items()}
    try:
        return dataclasses.replace(owner, **values)
    except ValueError as error:
        # the dataclass names itself and the field: "TrainConfig.lr = -1: expected ..."
        raise ConfigError(f"{source}: {prefix}{str(error).removeprefix(f'{type(owner).__name__}.')}") from None


def _checked(value: Any, hint: Any, where: str) -> Any:
    accepted = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) is Literal:
        if value not in accepted:
            raise ConfigError(f"{where} = {value!r}: expected {' or '.join(map(repr, accepted))}")
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} = {value!r}: expected a list")
        return tuple(_checked(entry, accepted[0], where) for entry in value)
    if float in accepted and type(value) is int:
        value = float(value)
    if type(value) not in accepted and not (value is None and type(None) in accepted):
        words = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none"}
        raise ConfigError(f"{where} = {value!r}: expected {' or '.join(words[kind] for kind in accepted)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} = {value!r}: expected a finite number")
    return value
