"""kill -9 at any moment, then resume: the result is that of an uninterrupted run, to the bit."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import spos
from spos.identity import hash_weights

from .conftest import SEARCH, TRAIN, make_data, make_module

ROOT = Path(__file__).parents[3]

# Each script runs in a process of its own and kills it at the moment named by its second argument.
PREAMBLE = """
import dataclasses, os, signal, sys
import torch, spos
from tests.spos.core.conftest import SEARCH, TRAIN, make_data, make_module
torch.set_num_threads(1)
directory, moment = sys.argv[1], int(sys.argv[2])
data = make_data()
net = spos.Supernet(make_module(), input_shape=(1, 8, 8))
def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_IN_A_STEP = """
import torch.nn.functional as F
plain, step = F.cross_entropy, -1
def cross_entropy(*arguments, **options):  # the forward pass is done, the backward pass is not
    global step
    step += 1
    if step == moment * TRAIN.accumulation:
        die()
    return plain(*arguments, **options)
F.cross_entropy = cross_entropy
spos.train_supernet(net, data, config=TRAIN, run=directory)
"""
KILLED_WITH_A_SAMPLER = KILLED_IN_A_STEP.replace(
    "config=TRAIN", "config=dataclasses.replace(TRAIN, sampler=sys.argv[3])"
)
KILLED_WRITING_A_CHECKPOINT = """
from spos import atomic_files
written = 0
plain = os.fsync
def fsync(descriptor):
    global written
    if "safetensors" in os.readlink(f"/proc/self/fd/{descriptor}"):
        written += 1
        if written == moment:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            die()
    plain(descriptor)
os.fsync = fsync
spos.train_supernet(net, data, config=TRAIN, run=directory)
"""
KILLED_IN_A_SEARCH = """
spos.{search}(net, data, config=SEARCH, run=directory, progress=lambda stage, done, *_: done == moment and die())
"""


def killed(script: str, directory: Path, moment: int, *more: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PREAMBLE + script, str(directory), str(moment), *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr


def trained(directory: Path, sampler: str = "uniform") -> tuple[str, list[dict], dict[str, torch.Tensor]]:
    """Train in this process, going on where there is something; return weights, records and the last checkpoint."""
    net = spos.Supernet(make_module(), input_shape=(1, 8, 8))
    spos.train_supernet(net, make_data(), config=dataclasses.replace(TRAIN, sampler=sampler), run=directory)
    with spos.RunDirectory.open(directory, read_only=True) as run:
        records = [{k: v for k, v in r.items() if k != "seconds"} for r in run.records("train")]
        checkpoint = run.load_checkpoint("supernet")
    assert checkpoint is not None
    return hash_weights(net), records, checkpoint.tensors


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.set_num_threads(1)
    return trained(tmp_path_factory.mktemp("uninterrupted") / "run")


@pytest.mark.parametrize(
    ("script", "moment"),
    [
        (KILLED_IN_A_STEP, 2),  # before the first checkpoint
        (KILLED_IN_A_STEP, 7),  # between two checkpoints and within a window of records
        (KILLED_WRITING_A_CHECKPOINT, 1),
        (KILLED_WRITING_A_CHECKPOINT, 3),
    ],
)
def test_training_killed_and_resumed(script, moment, tmp_path, uninterrupted):
    killed(script, tmp_path / "run", moment)
    weights, records, tensors = trained(tmp_path / "run")
    assert weights == uninterrupted[0]
    assert records == uninterrupted[1]
    assert tensors.keys() == uninterrupted[2].keys() and any(k.startswith("momentum/") for k in tensors)
    assert all(torch.equal(v, uninterrupted[2][k]) for k, v in tensors.items())


@pytest.mark.parametrize("sampler", ["budget", "fair", "diverse", "tests.spos.core.test_path_samplers:two_of_them"])
def test_training_with_other_samplers_killed_and_resumed(sampler, tmp_path):
    torch.set_num_threads(1)
    killed(KILLED_WITH_A_SAMPLER, tmp_path / "run", 7, sampler)
    whole, resumed = trained(tmp_path / "whole", sampler), trained(tmp_path / "run", sampler)
    assert resumed[:2] == whole[:2] and resumed[2].keys() == whole[2].keys()
    assert all(torch.equal(v, whole[2][k]) for k, v in resumed[2].items())
    assert len(resumed[1]) == 5


def test_a_finished_run_is_not_trained_again(tmp_path, uninterrupted):
    trained(tmp_path / "run")
    assert trained(tmp_path / "run")[:2] == uninterrupted[:2]


def test_training_goes_on_from_the_last_good_checkpoint(tmp_path, uninterrupted):
    trained(tmp_path / "run")
    newest = max((tmp_path / "run").glob("supernet.*.safetensors"), key=lambda p: int(p.name.split(".")[1]))
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=rf"{newest.name}.*going on from the one before"):
        weights, records, _ = trained(tmp_path / "run")
    assert weights == uninterrupted[0] and records == uninterrupted[1]


@pytest.mark.parametrize("method", ["evolution", "random", "nsga2", "aging"])
def test_search_killed_and_resumed(method, tmp_path, monkeypatch):
    search = "random_search" if method == "random" else "evolve"
    config = SEARCH if method == "random" else dataclasses.replace(SEARCH, method=method)

    def run_search(directory):
        net = spos.Supernet(make_module(), input_shape=(1, 8, 8))
        result = getattr(spos, search)(net, make_data(), config=config, run=directory)
        return [(c.index, c.generation, c.arch, c.accuracy, c.loss, c.origin) for c in result.history]

    whole = run_search(tmp_path / "whole")
    script = KILLED_IN_A_SEARCH.format(search=search)
    if method != "random":
        script = script.replace("config=SEARCH", f"config=dataclasses.replace(SEARCH, method={method!r})")
    killed(script, tmp_path / "run", 6)
    stream = tmp_path / "run" / ("evolution.jsonl" if search == "evolve" else "random.jsonl")
    assert len(stream.read_text().splitlines()) == 6
    with stream.open("a") as file:
        file.write('{"index":6,"generation":1,"ar')  # a record that was being written
    scored = []
    plain = spos.evaluate_population

    def evaluate(net, archs, *arguments, **keywords):
        scored.extend(archs)
        return plain(net, archs, *arguments, **keywords)

    monkeypatch.setattr("spos.evolution.evaluate_population", evaluate)
    assert run_search(tmp_path / "run") == whole
    assert scored == [arch for _, _, arch, *_ in whole[6:]]  # nothing is scored twice


def test_checkpoints_of_another_space_or_data_are_refused(tmp_path):
    trained(tmp_path / "run")
    other = make_module()
    other.activation = spos.ChoiceBlock({"relu": torch.nn.ReLU(), "silu": torch.nn.SiLU()}, kind="activation")
    with pytest.raises(spos.run_directory.RunDirectoryError, match=r"another .*space"):
        spos.train_supernet(spos.Supernet(other), make_data(), config=TRAIN, run=tmp_path / "run")
    net = spos.Supernet(make_module())
    with pytest.raises(spos.run_directory.RunDirectoryError, match="another data"):
        spos.train_supernet(net, make_data(images=300), config=TRAIN, run=tmp_path / "run")
    with pytest.raises(spos.run_directory.RunDirectoryError, match="another config"):
        spos.train_supernet(net, make_data(), config=TRAIN, seed=1, run=tmp_path / "run")
    trained(tmp_path / "other")
    smaller = spos.Supernet(make_module(width=4))
    with (
        spos.RunDirectory.open(tmp_path / "other", read_only=True) as run,
        pytest.raises(ValueError, match=r"checkpoint 'supernet' in .*other is not of this network: .*stem\.0\.weight"),
    ):
        spos.load_weights(smaller, run, "supernet")
