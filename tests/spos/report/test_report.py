"""The report: complete and partial runs, self-contained, everything from files escaped, numbers as recorded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from spos.config import Config, SearchConfig
from spos.report import write_report
from spos.report.charts import standard_error
from spos.run_directory import RunDirectory, RunDirectoryError
from spos.run_folder import RunFolder, retrain_stage

IDENTITY = {"config": "a" * 64, "data": "b" * 64}
EVIL = "<script>alert(1)</script>\"'&$x_1^2$"
SPACE = {
    "name": "tiny",
    "input_shape": [3, 8, 8],
    "size": "8",
    "fingerprint": "f",
    "decisions": [{"name": f"block{i}", "kind": "operator", "options": ["conv_3", "skip"]} for i in range(3)],
    "blocks": [
        {"decision": 0, "input": [4, 8, 8], "output": [8, 4, 4]},
        {"decision": 1, "input": [8, 4, 4], "output": [8, 4, 4]},
    ],
    "data": {"training": 900, "validation": 100, "classes": ["a", "b"]},
}


class Page(HTMLParser):
    """Collects text, attributes and tags, and checks that elements are closed in order."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(content)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def add_supernet(path: Path, *, finished: bool = True, steps: int = 40) -> None:
    RunFolder(path).write_settings("supernet", Config())
    with RunDirectory.create(path / "supernet", kind="supernet", config={"batch_size": 64}, identity=IDENTITY) as run:
        for step in range(10, steps + 1, 10):
            run.append("train", training_record(step))
        if finished:
            run.write_json("result", {"steps": steps, "loss": 0.5, "accuracy": 0.7, "seconds": 4.0})


def training_record(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / 20,
        "loss": 2.0 - step / 100,
        "accuracy": 0.5,
        "lr": 0.1,
        "seconds": step / 10,
    }


def add_search(
    path: Path,
    accuracies: Sequence[float],
    stream: str,
    *,
    finished: bool = True,
    stage: str = "search",
    constraint: str = "flops <= 9000000",
    **facts: Any,
) -> None:
    opener = RunDirectory.open_or_create
    with opener(path / stage, kind="search", config={}, identity=IDENTITY) as run:
        for index, accuracy in enumerate(accuracies):
            record = {
                "index": index,
                "generation": index // 2,
                "arch": [index % 2, index // 2 % 2, index // 4 % 2],
                "accuracy": accuracy,
                "top5": 1.0,
                "loss": 1 - accuracy,
                "flops": 1_000_000 * (index + 1),
                "params": 5000,
                "origin": "random",
                "seconds": 0.5,
                **facts,
            }
            run.append(stream, record)
        if finished:
            summary = {"best": {}, "constraints": [constraint], "evaluations": len(accuracies)}
            run.write_json("result" if stream == "evolution" else f"result-{stream}", summary)


def add_retrained(path: Path, label: str, origin: str, accuracy: float | None, arch: Sequence[int] = (1, 1, 0)) -> None:
    stage = retrain_stage(label)
    plan = {"label": label, "origin": origin, "arch": list(arch), "flops": 4_000_000, "params": 5000}
    RunFolder(path).write_plan(stage, plan)
    with RunDirectory.create(path / stage, kind="retrain", config={"batch_size": 64}, identity=IDENTITY) as run:
        run.append("train", training_record(10))
        if accuracy is not None:
            run.write_json("result", {"test_accuracy": accuracy, "test_images": 400, "steps": 10, "seconds": 1.0})


def report(path: Path) -> Page:
    return Page(write_report(path).read_text())


def test_candidates_dropped_from_a_race_are_counted_and_not_on_the_front(tmp_path: Path) -> None:
    add_supernet(tmp_path)
    (tmp_path / "space.json").write_text(json.dumps(SPACE))
    add_search(tmp_path, [0.5, 0.6], "evolution", finished=False, images=400)
    plain = " ".join(report(tmp_path).words)
    assert "were dropped" not in plain
    add_search(tmp_path, [0.55, 0.65, 0.7], "random", images=128)
    raced = " ".join(report(tmp_path).words)
    assert "3 were dropped before they had seen all images" in raced
    assert "the 2 candidates, of either way" in raced  # cheap and good ones; the dropped ones seem better


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    add_supernet(tmp_path)
    (tmp_path / "space.json").write_text(json.dumps(SPACE))
    add_search(tmp_path, [0.5, 0.6, 0.7, 0.9, 0.8], "evolution")
    add_search(tmp_path, [0.5, 0.4, 0.65], "random")
    add_retrained(tmp_path, "best", "search", 0.75)
    add_retrained(tmp_path, "random-1", "random", 0.70)
    add_retrained(tmp_path, "random-2", "random", 0.72)
    return tmp_path


def test_a_complete_run_is_told_with_its_numbers(complete: Path) -> None:
    text = report(complete).text
    assert "tiny on mnist-5k" in text
    assert "Not in this run" not in text
    assert (
        "Evolution scored 5 candidates, the best at 90.00%; random search scored 3 candidates, the best at 65.00%"
        in text
    )
    assert "at 100 validation images is 3.00 points" in text
    assert "The architecture found: 1, 1, 0." in text
    assert "reaches 75.00% on 400 test images; 2 random ones" in text
    assert "average 71.00%: a difference of +4.00 points" in text
    assert "75.00% ± 2.17" in text
    assert "Constraints: flops <= 9000000" in text
    assert "all stages 11.0 s" in text  # 4 s supernet, 8 candidates of 0.5 s, 3 retrainings of 1 s
    assert "steps; used instead of epochs" in text  # the settings are there, explained


def test_front_spread_and_effects_are_told(complete: Path) -> None:
    """Five candidates of evolution and three random ones, over three decisions of two options."""
    text = report(complete).text
    assert "Left: the 4 candidates, of either way of searching, that none beats in accuracy or FLOPs" in text
    assert "in the end 55.0% by evolution and 35.0% by random search" in text  # of a box from 40% to 90%, 1 to 5 MFLOPs
    assert "most agreed are block0, block1, block2; its mean is 0% of the range, that of the first 33%" in text
    assert "over the 5 architectures that were drawn at random" in text
    assert "Most between best and worst option: " in text


def test_searches_of_several_budgets_each_have_their_own(complete: Path) -> None:
    """The figures at the top are of one architecture: the one that is retrained, of whichever search."""
    for number, label in enumerate(("Zed", "zed"), start=1):
        config = Config(
            search=SearchConfig(max_flops=2e6 * number, max_latency=3.5 * (number - 1), validation_images=30)
        )
        RunFolder(complete).write_settings(f"search-{label}", config)
        constraint, latency = ("flops <= 2000000", None) if number == 1 else ("latency <= 3.5", 2.25)
        add_search(complete, [0.6, 0.1 * number], "evolution", stage=f"search-{label}", constraint=constraint,
                   latency=latency, flops=1_500_000 * number)  # fmt: skip
    page = report(complete)
    assert "Evolution and random search: Zed" in page.text and "Accuracy and cost of candidates: zed" in page.text
    assert page.text.count("at 30 validation images is 8.94 points") == 2
    assert "they span 2.25 to 2.25 ms. The one found has 2.25 ms and 60.00%. Constraints: latency <= 3.5." in page.text
    assert "they span 1.5 to 1.5 MFLOPs" in page.text and page.text.count("budget") >= 2
    assert "90.00%" in page.text[page.text.index("Retrained from fresh weights") :]  # as the first search scored it
    for path in complete.glob("retrain-*"):
        path.rename(complete / f"old-{path.name}")
    add_retrained(complete, "zed", "search", 0.5, arch=(0, 0, 0))
    text = report(complete).text
    assert "The architecture found: 0, 0, 0." in text and "50.00% ± 2.50" in text
    assert "parameters 0.01 M" in text and "predicted latency" in text


def test_the_page_needs_nothing_else(complete: Path) -> None:
    page = report(complete)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        assert name != "src"
        assert name != "href" or value.startswith("#")
    content = (complete / "report.html").read_text()
    assert "@import" not in content
    assert not re.search(r"url\((?!#)", content)


def test_charts_point_at_their_own_parts_and_take_the_theme(complete: Path) -> None:
    page = report(complete)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    content = (complete / "report.html").read_text()
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', content))
    assert used
    assert {a or b for a, b in used} <= set(ids)
    assert "#0101" not in content
    assert content.count('role="img"') == 8  # drawing, search, scatter, front, spread, effects, retrained, loss
    assert all(value for name, value in page.attributes if name == "aria-label")


def test_text_from_files_is_text(complete: Path) -> None:
    space = SPACE | {"name": EVIL}
    space["decisions"] = [d | {"name": EVIL + str(i), "options": [EVIL, "b"]} for i, d in enumerate(SPACE["decisions"])]  # type: ignore[arg-type,index]
    (complete / "space.json").write_text(json.dumps(space))
    plan = RunFolder(complete).plan("retrain-random-1")
    RunFolder(complete).write_plan("retrain-random-1", plan | {"label": EVIL})
    page = report(complete)
    assert "script" not in page.tags
    assert EVIL + " on mnist-5k" in page.text
    section = page.text[page.text.index("Retrained from fresh weights") : page.text.index("Costs")]
    assert section.count(EVIL) == 2  # in the table and, not read as a formula, in the chart


@pytest.mark.parametrize(
    ("parts", "there", "missing"),
    [
        (["supernet-started"], ["Costs"], ["a finished supernet", "a finished evolution", "retrained and tested"]),
        (["supernet-running"], ["Training", "not finished"], ["a finished supernet", "a finished random search"]),
        (["supernet"], ["Training", "step"], ["a finished evolution"]),
        (["supernet", "evolution-running"], ["Evolution and random search", "not finished"], ["a finished evolution"]),
        (["supernet", "evolution"], ["Accuracy and cost"], ["a finished random search to compare with"]),
        (["supernet", "random"], ["Accuracy and cost"], ["a finished evolution"]),
        (["retrained"], ["Retrained from fresh weights"], ["a finished supernet"]),
        (["retrained-running"], ["not finished"], ["the architecture found, retrained and tested"]),
    ],
)
def test_partial_runs_say_what_is_missing(
    tmp_path: Path, parts: list[str], there: list[str], missing: list[str]
) -> None:
    for part in parts:
        name, _, state = part.partition("-")
        if name == "supernet":
            add_supernet(tmp_path, finished=not state, steps=0 if state == "started" else 40)
        elif name == "retrained":
            add_retrained(tmp_path, "best", "search", None if state else 0.8)
        else:
            add_search(tmp_path, [0.5, 0.6], name, finished=not state)
    text = report(tmp_path).text
    for phrase in there:
        assert phrase in text
    note = text[text.index("Not in this run yet") :].partition(".")[0]
    for phrase in missing:
        assert phrase in note


def test_runs_made_from_python_have_no_settings_files(tmp_path: Path) -> None:
    add_search(tmp_path, [0.5, 0.6], "evolution")
    with RunDirectory.create(tmp_path / "retrain-mine", kind="retrain", config={}, identity=IDENTITY) as run:
        run.append("train", training_record(10))
        result = {"test_accuracy": 0.5, "test_images": 10, "arch": [1, 0, 0], "flops": 10**6, "params": 10**4}
        run.write_json("result", result)
    text = report(tmp_path).text
    assert "mine" in text
    assert "1 0 0" in text
    assert "The architecture found: 1, 0, 0." in text


def test_a_run_is_only_read(complete: Path) -> None:
    def snapshot() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in complete.rglob("*") if p.is_file()}

    with (complete / "search" / "evolution.jsonl").open("a") as file:
        file.write('{"index": 5, "acc')  # somebody is writing
    before = snapshot()
    with RunDirectory.open(complete / "supernet"):  # held by a writer
        before = snapshot()
        write_report(complete, complete.parent / "page.html")
    assert snapshot() == before
    assert "Evolution scored 5 candidates" in Page((complete.parent / "page.html").read_text()).text


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunDirectoryError, match="holds no run"):
            write_report(path)
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="is a file"):
        write_report(tmp_path / "file")


def test_standard_error() -> None:
    assert standard_error(0.5, 100) == pytest.approx(0.05)
    assert standard_error(1.0, 100) == 0
    assert standard_error(0.5, 0) == 0
