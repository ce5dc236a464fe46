"""Every setting of a run, with its default: the sections of a configuration file, as frozen dataclasses.

Defaults are those of Single Path One-Shot NAS (arXiv 1904.00420) and of its released code, for ImageNet at 224 pixels,
wherever the paper or the code gives one. Errors name the field, its value and what is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Schedule = Literal["linear", "cosine"]
OBJECTIVES = ("accuracy", "flops", "params", "bitops", "latency", "peak_memory")
METHODS = ("evolution", "nsga2", "aging")
SAMPLERS = ("uniform", "budget", "fair", "diverse")


def _require(condition: bool, owner: object, name: str, accepted: str) -> None:
    if not condition:
        value = getattr(owner, name)
        raise ValueError(f"{type(owner).__name__}.{name} = {value!r}: expected {accepted}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclass(frozen=True, kw_only=True)
class SpaceConfig:
    """Which search space: a name that `spos.spaces.get` knows.

    `operators` and `widths` narrow down what a space with channel numbers offers; empty for all of them. `bits` are the
    pairs of bit widths that a mixed-precision space offers, as "w2a4": empty for those of the paper, "any" for all.
    `share_clip` lets all bit widths of an activation share one value to clip at, `initial_clip` is where these start,
    0 for the space's own.
    """

    name: str = "shufflenet-oneshot"
    operators: tuple[str, ...] = ()
    widths: tuple[float, ...] = ()
    bits: tuple[str, ...] = ()
    share_clip: bool = False
    initial_clip: float = 0.0

    def __post_init__(self) -> None:
        _require(self.initial_clip >= 0, self, "initial_clip", "a positive number, or 0 for the space's own")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from, how they are split and augmented. Sizes are pixels, fractions are of the training set."""

    source: str = "mnist-5k"
    image_size: int = 32
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    crop_padding: int = 4
    flip: bool = True
    random_resized_crop: bool = False
    color_jitter: float = 0.0
    normalize: Literal["mean-std", "official"] = "mean-std"
    workers: int = 0

    def __post_init__(self) -> None:
        _require(bool(self.source), self, "source", "'mnist-5k' or the path of images")
        _require(self.image_size >= 8, self, "image_size", "an integer of at least 8")
        _require(0 < self.validation_fraction < 1, self, "validation_fraction", "a fraction between 0 and 1, exclusive")
        _require(0 < self.test_fraction < 1, self, "test_fraction", "a fraction between 0 and 1, exclusive")
        _require(self.crop_padding >= 0, self, "crop_padding", "a non-negative integer")
        _require(0 <= self.color_jitter < 1, self, "color_jitter", "a number in [0, 1)")
        _require(self.normalize in ("mean-std", "official"), self, "normalize", "'mean-std' or 'official'")
        _require(self.workers >= 0, self, "workers", "a non-negative integer")


@dataclass(frozen=True, kw_only=True)
class SGDConfig:
    """Stochastic gradient descent, for the supernet and for a retrained child alike.

    `steps`, where given, is used instead of `epochs`. Weight decay applies to weights with more than one dimension and
    to the values at which activations are clipped, to nothing else. `clip_norm` is the largest allowed gradient norm,
    0 for none. `accumulation` micro-batches of `batch_size` images make one step, all on one path. `checkpoint_every`
    and `log_every` count steps.
    """

    epochs: float = 120.0
    steps: int | None = None
    batch_size: int = 1024
    lr: float = 0.5
    schedule: Schedule = "linear"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1
    clip_norm: float = 0.0
    accumulation: int = 1
    bf16: bool = False
    checkpoint_every: int = 200
    log_every: int = 10

    def __post_init__(self) -> None:
        _require(self.epochs > 0, self, "epochs", "a positive number")
        _require(self.steps is None or self.steps >= 1, self, "steps", "a positive integer, or nothing to use epochs")
        _require(self.batch_size >= 2, self, "batch_size", "an integer of at least 2 (batch normalisation needs two)")
        _require(self.lr > 0, self, "lr", "a positive number")
        _require(self.schedule in ("linear", "cosine"), self, "schedule", "'linear' or 'cosine'")
        _require(0 <= self.momentum < 1, self, "momentum", "a number in [0, 1)")
        _require(not self.nesterov or self.momentum > 0, self, "nesterov", "false while momentum is 0")
        _require(self.weight_decay >= 0, self, "weight_decay", "a non-negative number")
        _require(0 <= self.label_smoothing < 1, self, "label_smoothing", "a number in [0, 1)")
        _require(self.clip_norm >= 0, self, "clip_norm", "a non-negative number, 0 for no clipping")
        for name in ("accumulation", "checkpoint_every", "log_every"):
            _require(getattr(self, name) >= 1, self, name, "a positive integer")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(SGDConfig):
    """Training of the supernet, one random path a step.

    `sampler` is how paths are drawn: "uniform", "budget" (uniformly within the bounds here, which are in the units of
    SearchConfig's, 0 for none; `cost_bins` above 1 draws one of so many equal parts of the costs' range first),
    "fair" or "diverse", or "module:function", a function of one's own; see `spos.path_samplers`.

    In a space with channel numbers, the first `width_warmup` of the steps, a fraction, train the widest only, and the
    next `width_widening` of them open narrower ones one after the other; see `spos.sampling`. Neither given is 0.5 and
    0.075, which ranked architectures better than drawing all widths from the start; one given leaves the other 0.
    """

    sampler: str = "uniform"
    max_flops: float = 0.0
    min_flops: float = 0.0
    max_params: float = 0.0
    min_params: float = 0.0
    max_bitops: float = 0.0
    min_bitops: float = 0.0
    cost_bins: int = 1
    width_warmup: float | None = None
    width_widening: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        named = isinstance(self.sampler, str) and (self.sampler in SAMPLERS or ":" in self.sampler.strip(":"))
        _require(named, self, "sampler", f"one of {', '.join(SAMPLERS)}, or 'module:function'")
        budget = self.sampler == "budget"
        for name in (f"{side}_{cost}" for side in ("max", "min") for cost in ("flops", "params", "bitops")):
            _require(getattr(self, name) >= 0, self, name, "a non-negative number, 0 for no bound")
            _require(budget or getattr(self, name) == 0, self, name, "0 unless sampler is 'budget'")
        _require(self.cost_bins >= 1, self, "cost_bins", "a positive integer")
        _require(budget or self.cost_bins == 1, self, "cost_bins", "1 unless sampler is 'budget'")
        for name in ("width_warmup", "width_widening"):
            _require(0 <= (getattr(self, name) or 0) <= 1, self, name, "a fraction of the steps, from 0 to 1")
        warmup, widening = self.width_shares
        _require(warmup + widening <= 1, self, "width_widening", f"at most {1 - warmup:.15g}, what width_warmup leaves")

    @property
    def width_shares(self) -> tuple[float, float]:
        """The shares of the steps for the widest alone and for the widening, in a space with channel numbers."""
        if self.width_warmup is None and self.width_widening is None:
            return 0.5, 0.075
        return self.width_warmup or 0.0, self.width_widening or 0.0


@dataclass(frozen=True, kw_only=True)
class RetrainConfig(SGDConfig):
    """Training of the architecture found, from fresh weights, with the supernet's settings but for what is listed here.

    `use_validation` adds the held-out images to the training set, as ImageNet results do. After training the running
    statistics are recomputed over `calibration_images` images (the released code: 1,250 steps at learning rate 0); 0
    keeps those of training.
    """

    epochs: float = 240.0
    use_validation: bool = True
    calibration_images: int = 25_600

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.calibration_images == 0 or self.calibration_images >= 2, self, "calibration_images", "0 or at least 2"
        )


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The evolutionary search, and random search of the same budget.

    `method` is the paper's "evolution", "nsga2" for the trade-offs among `objectives`, or "aging" evolution with
    tournaments of `sample_size`; see `spos.Evolution`, `spos.NSGA2` and `spos.AgingEvolution`. `objectives` are
    "accuracy" and names of costs; the Pareto front of a result is over them, whatever the method. `repair` brings
    children that a budget refuses within it instead of drawing random ones in their place. `racing`, a confidence such
    as 0.99, stops scoring a candidate once it is that clear that it is not among the `places` best of the generations
    before (see `spos.racing`); 0, the default, scores all on all images.

    `population` candidates start it; each of `generations` then adds `mutations` + `crossovers` children of the
    `parents` best so far (paper: 50, 20, 25, 25, 10; mutation probability 0.1 for each decision). Image counts are for
    each candidate: `calibration_images` training images recompute its batch-normalisation statistics,
    `validation_images` held-out images score it (0: all of them). Budgets are upper bounds in multiply-accumulates,
    parameters, bit operations (in 2³⁰, see `spos.bitops`), milliseconds (see `spos.measure_latency`) and bytes of
    activations for one image (see `spos.peak_memory`), 0 for none.
    """

    method: Literal["evolution", "nsga2", "aging"] = "evolution"
    objectives: tuple[str, ...] = ("accuracy", "flops")
    population: int = 50
    generations: int = 20
    mutations: int = 25
    crossovers: int = 25
    parents: int = 10
    mutation_probability: float = 0.1
    sample_size: int = 25
    repair: bool = True
    racing: float = field(default=0.0, metadata={"later": True})  # see identity.py
    max_flops: float = 0.0
    min_flops: float = 0.0
    max_params: float = 0.0
    min_params: float = 0.0
    max_bitops: float = 0.0
    min_bitops: float = 0.0
    max_latency: float = 0.0
    min_latency: float = 0.0
    max_peak_memory: float = 0.0
    min_peak_memory: float = 0.0
    calibration_images: int = 2560
    validation_images: int = 0
    eval_batch_size: int = 128

    def __post_init__(self) -> None:
        _require(self.method in METHODS, self, "method", f"one of {', '.join(METHODS)}")
        given = self.objectives if isinstance(self.objectives, tuple) else ()
        known = all(isinstance(each, str) and each in OBJECTIVES for each in given)
        named = known and len(set(given)) == len(given) >= 2
        _require(named, self, "objectives", f"a tuple of two or more of {', '.join(OBJECTIVES)}, each once")
        for name in ("population", "parents", "sample_size", "eval_batch_size"):
            _require(_is_integer(getattr(self, name), 1), self, name, "a positive integer")
        for name in ("generations", "mutations", "crossovers", "validation_images"):
            _require(_is_integer(getattr(self, name), 0), self, name, "a non-negative integer")
        probability = _is_number(self.mutation_probability) and 0 < self.mutation_probability <= 1
        _require(probability, self, "mutation_probability", "a probability in (0, 1]")
        _require(_is_integer(self.calibration_images, 2), self, "calibration_images", "an integer of at least 2")
        _require(isinstance(self.repair, bool), self, "repair", "true or false")
        confidence = _is_number(self.racing) and (self.racing == 0 or 0.5 <= self.racing < 1)
        _require(confidence, self, "racing", "a confidence from 0.5, below 1, such as 0.99, or 0 for no race")
        races = self.method == "evolution"  # the others do not ask for the most accurate alone
        _require(races or self.racing == 0, self, "racing", f"0, because method = {self.method!r} has no best few")
        for cost in ("flops", "params", "bitops", "latency", "peak_memory"):
            for name in (f"max_{cost}", f"min_{cost}"):
                bound = getattr(self, name)
                _require(_is_number(bound) and bound >= 0, self, name, "a non-negative number, 0 for no bound")

    @property
    def places(self) -> int:
        """How many of the best a race is about: the parents, at least ten."""
        return max(10, self.parents)

    @property
    def evaluations(self) -> int:
        """Number of candidates the search scores: the first population and every generation's children."""
        return self.population + self.generations * (self.mutations + self.crossovers)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run: data, space, supernet training, search, retraining. `threads` 0 keeps what torch chose.

    `device` is where networks are trained and scored: "auto" is the GPU that torch sees first, else the CPU. Latencies
    and deployed networks are of the CPU.
    """

    seed: int = 0
    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, self, "seed", "an integer in [0, 2**63)")
        _require(0 <= self.threads <= 1024, self, "threads", "an integer from 0 to 1024")
        _require(self.device in ("auto", "cpu", "cuda"), self, "device", "'auto', 'cpu' or 'cuda'")
