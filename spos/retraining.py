"""Training a found architecture, and the one reading of the test set (arXiv 1904.00420, section 4)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from spos.config import RetrainConfig
from spos.data import Data
from spos.evaluation import classify, recalibrate
from spos.fuse import fuse
from spos.identity import Run, identity_of, opened
from spos.progress import Progress
from spos.supernet import channels_last
from spos.training import fit, load_weights, save_weights

EVAL_BATCH = 250


@dataclass(frozen=True)
class RetrainResult:
    """Accuracy, top-5 accuracy and loss on the test set of `test_images` images, and `seconds` of training."""

    test_accuracy: float
    test_top5: float
    test_loss: float
    test_images: int
    steps: int
    seconds: float


def retrain(
    child: nn.Module,
    data: Data,
    *,
    config: RetrainConfig | None = None,
    seed: int = 0,
    arch: Sequence[int] | None = None,
    run: Run = None,
    progress: Progress | None = None,
) -> RetrainResult:
    """Train `child` in place from the weights it has, then score it once on the test set.

    `run`, a directory, makes it resumable: it gets the checkpoints "child", the stream "train" and result.json, with
    `arch` in it where given. A finished run returns the recorded result and does not read the test set again.
    """
    config = config or RetrainConfig()
    shapes = " ".join(f"{name}:{tuple(value.shape)}" for name, value in child.state_dict().items())
    identity = identity_of(config, seed, data, architecture=hashlib.sha256(shapes.encode()).hexdigest())
    if next(child.parameters()).device.type == "cpu":
        child = channels_last(fuse(child))
    with opened(run, kind="retrain", config=dataclasses.asdict(config), identity=identity) as directory:
        recorded = directory.read_json("result") if directory else None
        if directory and recorded:
            load_weights(child, directory, "final")
            return RetrainResult(**{f.name: recorded[f.name] for f in dataclasses.fields(RetrainResult)})
        trained = fit(
            child,
            lambda x, step: child(x),
            data.training_batches(config.batch_size, seed, include_validation=config.use_validation),
            config=config,
            seed=seed,
            name="child",
            run=directory,
            progress=progress,
        )
        if config.calibration_images:
            images = min(config.calibration_images, len(data.train))
            recalibrate(child, data.calibration_batches(images, min(config.batch_size, images), seed))
        score = classify(child, data.test_batches(EVAL_BATCH))
        result = RetrainResult(score.accuracy, score.top5, score.loss, score.images, trained.steps, trained.seconds)
        if directory:
            save_weights(child, directory, "final", trained.steps)
            costs = {"arch": None if arch is None else list(arch), "params": sum(p.numel() for p in child.parameters())}
            directory.write_json("result", dataclasses.asdict(result) | costs)
    return result
