"""Training a found architecture, and the one reading of the test set (arXiv 1904.00420, section 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from spos.config import RetrainConfig
from spos.costs import count_bitops, count_flops
from spos.data import Data
from spos.evaluation import classify, recalibrate
from spos.identity import Run, hash_network, identity_of, opened
from spos.modules import channels_last, fuse, unfuse
from spos.progress import Progress
from spos.quantized import has_bits
from spos.steps import AutogradStep
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

    On a CPU it runs on the library's kernels meanwhile (`fuse`); afterwards its layers are plain again.

    `run`, a directory, makes it resumable: it gets the checkpoints "child", the stream "train" and result.json, with
    `arch` in it where given. A finished run returns the recorded result and does not read the test set again.
    """
    config = config or RetrainConfig()
    architecture = hash_network(child, None if arch is None else list(arch))
    identity = identity_of(config, seed, data, architecture=architecture)
    stream = data.training_batches(config.batch_size, seed, include_validation=config.use_validation)
    with (
        opened(run, kind="retrain", config=dataclasses.asdict(config), identity=identity) as directory,
        _on_kernels(child) as model,
    ):
        recorded = directory.read_json("result") if directory else None
        if directory and recorded is not None:
            load_weights(model, directory, "final")
            return RetrainResult(**{f.name: recorded[f.name] for f in dataclasses.fields(RetrainResult)})
        trained = fit(
            model,
            AutogradStep(model, lambda step: [model], config, seed),
            stream,
            config=config,
            name="child",
            run=directory,
            progress=progress,
        )
        if config.calibration_images:
            start = trained.steps * config.accumulation
            count = max(1, config.calibration_images // config.batch_size)
            recalibrate(model, (x for x, _ in stream.iterate(start, start + count)))
        score = classify(model, data.test_batches(EVAL_BATCH))
        result = RetrainResult(score.accuracy, score.top5, score.loss, score.images, trained.steps, trained.seconds)
        if directory:
            save_weights(model, directory, "final", trained.steps)
            shape = (data.in_channels, data.image_size, data.image_size)
            about: dict[str, object] = {
                "arch": None if arch is None else list(arch),
                "flops": count_flops(model, shape),
                "params": sum(p.numel() for p in model.parameters()),
            }
            if has_bits(model):
                about["bitops"] = count_bitops(model, shape)
            directory.write_json("result", dataclasses.asdict(result) | about)
    return result


@contextmanager
def _on_kernels(child: nn.Module) -> Iterator[nn.Module]:
    """Hold a child on the library's kernels where they run."""
    if next(child.parameters()).device.type != "cpu":
        yield child
        return
    try:
        yield channels_last(fuse(child))
    finally:
        unfuse(child)
