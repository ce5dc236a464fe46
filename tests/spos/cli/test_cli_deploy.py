"""Deployment from the command line: a retrained child in one file, what is said of it, and what is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Command = Callable[..., Any]  # see conftest.py

SETTINGS = ("data.image_size=8", "data.crop_padding=1", "data.validation_fraction=0.3", "train.steps=2", "threads=1")
SETTINGS += ("train.batch_size=8", "retrain.steps=2", "retrain.batch_size=8", "retrain.calibration_images=16")
OPTIONS = tuple(word for setting in SETTINGS for word in ("--set", setting))


def test_a_retrained_child_becomes_a_file(spos: Command, images: Path) -> None:
    import spos_kernels

    assert spos("train", "run", "--data", images, "--space", "resnet-mixed-small", *OPTIONS).status == 0
    outcome = spos("deploy", "run")
    assert outcome.status == 2 and "run has no retrain-best yet: run `spos retrain run` first" in outcome.err
    assert spos("retrain", "run", "--arch", "uniform:w2a3").status == 0
    before = Path("run/retrain-uniform-w2a3/result.json").read_text()
    assert "Deployed" not in report(spos)

    outcome = spos("deploy", "run", "--label", "uniform-w2a3", "--images", 7, "--batch", 3, "--runs", 2, "--threads", 1)
    assert outcome.status == 0, outcome.err
    file = Path("run/retrain-uniform-w2a3/packed.safetensors")
    packed = spos_kernels.load_packed(file)
    said = f"{file.stat().st_size:,} bytes, of which {packed.packed_bytes:,} are the packed weights of 19 layers, w2a3"
    assert f"{file}: {said}\n" in outcome.out
    found = re.search(
        r"on (\d+) validation images: (\d+) of ([\d,]+) codes differ .* top-1 agreement ([\d.]+)%", outcome.out
    )
    assert found and found[1] == "7" and int(found[2]) < 10 and found[4] == "100.00"
    assert re.search(
        r"latency of 3 images, 1 threads, median of 2 runs: [\d.]+ ms packed, [\d.]+ ms as float32", outcome.out
    )
    kept = json.loads(Path("run/retrain-uniform-w2a3/deployed.json").read_text())
    assert kept["file_bytes"] == file.stat().st_size and kept["packed_bytes"] == packed.packed_bytes
    assert f"{kept['codes']:,}" == found[3] and kept["images"] == 7 and kept["batch"] == 3 and kept["agreement"] == 1
    assert kept["seconds"] > 0 and kept["float_seconds"] > 0

    page = report(spos)
    assert "<h2>Deployed</h2>" in page and f"{file.stat().st_size:,}</td>" in page and "3, 1, 7." in page
    assert f"{1000 * kept['seconds']:.3g} ms</td>" in page

    # What was packed is what was retrained, and the retraining is as it was.
    import spos as library

    child, run = retrained_child("run/retrain-uniform-w2a3")
    library.load_weights(child, run, "final")
    x = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), child.eval()(x), rtol=1e-4, atol=1e-4)
    assert Path("run/retrain-uniform-w2a3/result.json").read_text() == before
    outcome = spos("deploy", "run", "--label", "uniform-w2a3", "--threads", 1, "--runs", 1)  # again
    assert outcome.status == 0 and "validation images" in outcome.out, outcome.err


def test_a_child_without_bits_is_refused(spos: Command, images: Path) -> None:
    assert spos("train", "run", "--data", images, "--space", "shufflenet-oneshot-small", *OPTIONS).status == 0
    assert spos("retrain", "run", "--arch", "uniform:operator=choice_3").status == 0
    outcome = spos("deploy", "run", "--label", "uniform-operator-choice_3")
    assert outcome.status == 2 and "child has no spos.QuantizedConv2d: expected at least one" in outcome.err
    assert not list(Path("run").rglob("packed*"))
    outcome = spos("deploy", "run", "--label", "../x")
    assert outcome.status == 2 and "label = '../x': expected letters" in outcome.err


def report(spos: Command) -> str:
    assert spos("report", "run").status == 0
    return Path("run/report.html").read_text()


def retrained_child(path: str) -> Any:
    import spos as library

    run = library.RunDirectory.open(path, read_only=True)
    net = library.spaces.get("resnet-mixed-small", num_classes=2, image_size=8)
    return net.extract(run.read_json("result")["arch"]), run
