"""Settings of `spos demo`: everything on 5,000 digits within minutes on two cores."""

from __future__ import annotations

from spos.config import Config, DataConfig, RetrainConfig, SearchConfig, SpaceConfig, TrainConfig

DEMO = Config(
    data=DataConfig(source="mnist-5k", image_size=28, crop_padding=2, flip=False),
    space=SpaceConfig(name="shufflenet-oneshot-small"),
    train=TrainConfig(epochs=12, batch_size=64, lr=0.1, clip_norm=5.0, checkpoint_every=100),
    search=SearchConfig(population=50, generations=6, calibration_images=256, eval_batch_size=128),
    retrain=RetrainConfig(epochs=15, batch_size=64, lr=0.1, calibration_images=1024, checkpoint_every=100),
)
