"""Single Path One-Shot NAS: supernets trained one path at a time, evolutionary search, retraining."""

from spos import data, spaces
from spos.config import Config, DataConfig, RetrainConfig, SearchConfig, SpaceConfig, TrainConfig
from spos.costs import Constraint, Cost, Profile, UnsatisfiableError, count_flops, flops, params, profile
from spos.data import Data
from spos.draws import generator
from spos.evaluation import Score, classify, evaluate_population, recalibrate
from spos.evolution import Candidate, SearchResult, evolve, random_search
from spos.modules import fuse, unfuse
from spos.retraining import RetrainResult, retrain
from spos.run_directory import RunDirectory
from spos.space import Arch, Decision, SearchSpace
from spos.supernet import ChoiceBlock, Supernet
from spos.training import DivergenceError, TrainResult, load_weights, train_supernet

__version__ = "0.1.0"

__all__ = [
    "Arch",
    "Candidate",
    "ChoiceBlock",
    "Config",
    "Constraint",
    "Cost",
    "Data",
    "DataConfig",
    "Decision",
    "DivergenceError",
    "Profile",
    "RetrainConfig",
    "RetrainResult",
    "RunDirectory",
    "Score",
    "SearchConfig",
    "SearchResult",
    "SearchSpace",
    "SpaceConfig",
    "Supernet",
    "TrainConfig",
    "TrainResult",
    "UnsatisfiableError",
    "classify",
    "count_flops",
    "data",
    "evaluate_population",
    "evolve",
    "flops",
    "fuse",
    "generator",
    "load_weights",
    "params",
    "profile",
    "random_search",
    "recalibrate",
    "retrain",
    "spaces",
    "train_supernet",
    "unfuse",
]
