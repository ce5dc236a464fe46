"""Single Path One-Shot NAS: supernets trained one path at a time, evolutionary search, retraining."""

# ruff: noqa: F401 - the names for type checkers are re-exported through __all__, which is computed

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spos import data, spaces
    from spos.bits import Bits
    from spos.choices import BitsChoice, ChoiceBlock, WidthChoice
    from spos.comparison import Comparison, LayerComparison, compare_deployed, compare_layers
    from spos.config import Config, DataConfig, RetrainConfig, SearchConfig, SpaceConfig, TrainConfig
    from spos.costs import (
        Constraint,
        Cost,
        Profile,
        Share,
        UnsatisfiableError,
        bitops,
        count_bitops,
        count_flops,
        count_peak_memory,
        flops,
        latency,
        params,
        peak_memory,
        profile,
    )
    from spos.data import Data
    from spos.deployment import deploy
    from spos.draws import generator
    from spos.evaluation import Score, classify, evaluate_population, recalibrate
    from spos.evolution import Candidate, SearchResult, evolve, random_search
    from spos.latency_file import load_latency, save_latency
    from spos.latency_measurement import measure_latency
    from spos.latency_table import LatencyTable
    from spos.modules import fuse, unfuse
    from spos.nsga2 import NSGA2
    from spos.quantized import QuantizedConv2d, SlicedQuantizedConv2d
    from spos.racing import Race
    from spos.retraining import RetrainResult, retrain
    from spos.run_directory import RunDirectory
    from spos.sliced import SlicedBatchNorm2d, SlicedConv2d, SlicedLinear, SlicedModule
    from spos.space import Arch, Decision, SearchSpace
    from spos.strategies import AgingEvolution, Evolution, RandomSearch
    from spos.supernet import Supernet
    from spos.training import DivergenceError, TrainResult, load_weights, train_supernet

__version__ = "0.1.0"

# Each public name is imported at first use, so that `spos --help` needs neither torch nor the seconds it takes.
_NAMES = {
    "spos.bits": ("Bits",),
    "spos.choices": ("BitsChoice", "ChoiceBlock", "WidthChoice"),
    "spos.comparison": ("Comparison", "LayerComparison", "compare_deployed", "compare_layers"),
    "spos.config": ("Config", "DataConfig", "RetrainConfig", "SearchConfig", "SpaceConfig", "TrainConfig"),
    "spos.costs": (
        "Constraint",
        "Cost",
        "Profile",
        "Share",
        "UnsatisfiableError",
        "bitops",
        "count_bitops",
        "count_flops",
        "count_peak_memory",
        "flops",
        "latency",
        "params",
        "peak_memory",
        "profile",
    ),
    "spos.data": ("Data",),
    "spos.deployment": ("deploy",),
    "spos.draws": ("generator",),
    "spos.evaluation": ("Score", "classify", "evaluate_population", "recalibrate"),
    "spos.evolution": ("Candidate", "SearchResult", "evolve", "random_search"),
    "spos.latency_file": ("load_latency", "save_latency"),
    "spos.latency_measurement": ("measure_latency",),
    "spos.latency_table": ("LatencyTable",),
    "spos.modules": ("fuse", "unfuse"),
    "spos.nsga2": ("NSGA2",),
    "spos.quantized": ("QuantizedConv2d", "SlicedQuantizedConv2d"),
    "spos.racing": ("Race",),
    "spos.retraining": ("RetrainResult", "retrain"),
    "spos.run_directory": ("RunDirectory",),
    "spos.sliced": ("SlicedBatchNorm2d", "SlicedConv2d", "SlicedLinear", "SlicedModule"),
    "spos.space": ("Arch", "Decision", "SearchSpace"),
    "spos.strategies": ("AgingEvolution", "Evolution", "RandomSearch"),
    "spos.supernet": ("Supernet",),
    "spos.training": ("DivergenceError", "TrainResult", "load_weights", "train_supernet"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = ["data", "spaces", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value
    if name.startswith("_") or find_spec(f"spos.{name}") is None:
        raise AttributeError(f"module 'spos' has no attribute {name!r}")
    return import_module(f"spos.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
