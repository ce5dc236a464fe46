"""Settings of `spos demo`: everything on 5,000 digits within minutes on two cores."""

from __future__ import annotations

from spos.config import Config, DataConfig, RetrainConfig, SearchConfig, SpaceConfig, TrainConfig

DEMO = Config(
    data=DataConfig(source="mnist-5k", image_size=28, validation_fraction=0.2, crop_padding=2, flip=False),
    space=SpaceConfig(name="shufflenet-oneshot-small"),
    train=TrainConfig(epochs=12, batch_size=64, lr=0.1, clip_norm=1.0, checkpoint_every=100),
    search=SearchConfig(
        population=50,
        generations=6,
        mutations=13,
        crossovers=12,
        max_flops=4.8e6,  # about half of the space's architectures
        calibration_images=256,
        eval_batch_size=256,
    ),
    retrain=RetrainConfig(
        epochs=10, batch_size=64, lr=0.1, clip_norm=1.0, calibration_images=1024, checkpoint_every=100
    ),
)
