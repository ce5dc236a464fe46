"""Configuration files: everything round trips, everything wrong is named."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spos import config_file
from spos.config import Config, DataConfig, SearchConfig, TrainConfig
from spos.config_file import ConfigError

SECTIONS = ("data", "space", "train", "search", "retrain")


def load_text(tmp_path: Path, text: str) -> Config:
    (tmp_path / "run.toml").write_text(text)
    return config_file.load(tmp_path / "run.toml")


def test_defaults_are_all_visible_explained_and_read_back(tmp_path: Path) -> None:
    text = config_file.dumps(Config())
    assert load_text(tmp_path, text) == Config()
    content = tomllib.loads(text)
    for section in SECTIONS:
        for field in dataclasses.fields(getattr(Config(), section)):
            assert field.name in content[section] or f"# {field.name} = (not set)" in text
    assert max(map(len, text.splitlines())) <= 120


def test_every_setting_has_help_and_no_other() -> None:
    names = {field.name for field in dataclasses.fields(Config()) if field.name not in SECTIONS}
    names |= {
        f"{section}.{field.name}" for section in SECTIONS for field in dataclasses.fields(getattr(Config(), section))
    }
    assert set(config_file.HELP) == names


@given(
    source=st.text(min_size=1),
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False),
    steps=st.none() | st.integers(1, 2**62),
    flip=st.booleans(),
)
def test_any_config_round_trips(
    tmp_path_factory: pytest.TempPathFactory, source: str, lr: float, steps: int | None, flip: bool
) -> None:
    try:
        source.encode()
    except UnicodeEncodeError:  # lone surrogates are no text
        return
    config = Config(
        data=DataConfig(source=source, flip=flip),
        train=TrainConfig(lr=lr, steps=steps),
        search=SearchConfig(max_flops=lr),
    )
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    path.write_bytes(config_file.dumps(config).encode())
    assert config_file.load(path) == config


def test_what_a_file_leaves_out_has_its_default(tmp_path: Path) -> None:
    config = load_text(tmp_path, "seed = 3\n[retrain]\nlr = 1\n")
    assert config == Config(seed=3, retrain=dataclasses.replace(Config().retrain, lr=1.0))
    assert type(config.retrain.lr) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nlrr = 1", r"run\.toml: train\.lrr is no setting; did you mean train\.lr\?"),
        ("[training]\nlr = 1", r"run\.toml: training is no setting; did you mean train\?"),
        ("zzz = 1", r"run\.toml: zzz is no setting; known are seed"),
        ("[train]\nlr = 'fast'", r"run\.toml: train\.lr = 'fast': expected a number"),
        ("[train]\nlr = -1", r"run\.toml: train\.lr = -1\.0: expected a positive number"),
        ("[train]\nlr = inf", r"run\.toml: train\.lr = inf: expected a finite number"),
        ("[train]\nlr = nan", r"run\.toml: train\.lr = nan: expected a finite number"),
        ("[train]\nbatch_size = 2.5", r"run\.toml: train\.batch_size = 2\.5: expected an integer"),
        ("[train]\nbatch_size = true", r"train\.batch_size = True: expected an integer"),
        ("[train]\nsteps = 'x'", r"train\.steps = 'x': expected an integer or none"),
        ("[train]\nbf16 = 1", r"train\.bf16 = 1: expected true or false"),
        ("[train]\nschedule = 'step'", r"train\.schedule = 'step': expected 'linear' or 'cosine'"),
        ("[data]\nsource = 3", r"data\.source = 3: expected text"),
        ("[data]\nsource = ['a']", r"data\.source = \['a'\]: expected text"),
        ("train = 3", r"run\.toml: train = 3: expected a section"),
        ("seed = -1", r"run\.toml: seed = -1: expected an integer in"),
        ("seed = \nx = 1", r"run\.toml: not TOML: .*line 1"),
        ("[train]\nlr = 1\nlr = 2\n", r"run\.toml: not TOML: .*line 3"),
    ],
)
def test_errors_name_the_place_the_value_and_what_is_accepted(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_text(tmp_path, text)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"run\.toml: not TOML"):
        config_file.load(tmp_path / "run.toml")


def test_overrides() -> None:
    config = config_file.override(
        Config(train=TrainConfig(steps=5)),
        [
            "train.lr=0.1",
            "train.lr = 0.2",
            "data.source=/data/a=b.zip",
            "train.steps=none",
            "seed=7",
            "data.flip=false",
        ],
    )
    assert (config.train.lr, config.train.steps, config.seed) == (0.2, None, 7)
    assert (config.data.source, config.data.flip) == ("/data/a=b.zip", False)
    assert config.train.batch_size == Config().train.batch_size


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.lr", "expected section.key=value"),
        ("a.b.c=1", "expected section.key=value"),
        (".lr=1", "expected section.key=value"),
        ("train.lr=x", r"command line: train\.lr = 'x': expected a number"),
        ("train.lr=", r"command line: train\.lr = '': expected a number"),
        ("train=1", r"command line: train = 1: expected a section"),
        ("train.epoch=1", r"did you mean train\.epochs\?"),
    ],
)
def test_bad_overrides_are_named(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_file.override(Config(), [setting])


def test_differences_cover_the_named_settings_only() -> None:
    before = Config()
    after = config_file.override(before, ["train.lr=0.1", "search.parents=3", "seed=1", "train.steps=9"])
    assert config_file.differences(before, after, ["train"]) == ["train.steps = none, now 9", "train.lr = 0.5, now 0.1"]
    assert config_file.differences(before, after, ["seed", "data"]) == ["seed = 0, now 1"]
    assert config_file.differences(before, before, ["train", "seed"]) == []
