"""Opening, locking, identity, streams and checkpoints of a run directory."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from spos.checkpoint import CheckpointError
from spos.records import RecordsError
from spos.run_directory import RunDirectory, RunDirectoryError, versions

IDENTITY = {"config": "a" * 64, "data": "b" * 64, "space": "c" * 64}


def create(path: Path, identity: dict[str, str] = IDENTITY, kind: str = "supernet") -> RunDirectory:
    return RunDirectory.create(path, kind=kind, config={"lr": 0.5}, identity=identity)


def save_steps(run: RunDirectory, *steps: int) -> None:
    for step in steps:
        run.save_checkpoint("supernet", {"w": torch.tensor([float(step)])}, {"step": step})


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


class TestOpening:
    def test_what_was_given_comes_back(self, tmp_path: Path) -> None:
        create(tmp_path / "deep" / "run").close()
        with RunDirectory.open(tmp_path / "deep" / "run", identity=IDENTITY, kind="supernet") as run:
            assert (run.kind, run.config, run.identity, run.versions) == (
                "supernet",
                {"lr": 0.5},
                IDENTITY,
                {"torch": "0"},
            )
            assert run.path == tmp_path / "deep" / "run"
            assert run.created.endswith("+00:00")

    def test_a_directory_of_something_else_is_refused_and_not_touched(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("x")
        for opener in (RunDirectory.create, RunDirectory.open_or_create):
            with pytest.raises(RunDirectoryError, match=r"not empty \(it has thesis.tex\)"):
                opener(tmp_path, kind="supernet", config={}, identity=IDENTITY)
        with pytest.raises(RunDirectoryError, match=r"no run\.json"):
            RunDirectory.open(tmp_path)
        assert os.listdir(tmp_path) == ["thesis.tex"]
        with pytest.raises(RunDirectoryError, match="a file is in the way"):
            create(tmp_path / "thesis.tex")
        with pytest.raises(RunDirectoryError, match="no such directory"):
            RunDirectory.open(tmp_path / "none")

    def test_create_refuses_an_existing_run(self, tmp_path: Path) -> None:
        create(tmp_path / "run").close()
        with pytest.raises(RunDirectoryError, match="not empty"):
            create(tmp_path / "run")

    def test_an_interrupted_creation_is_started_again(self, tmp_path: Path) -> None:
        (tmp_path / ".lock").write_text("1")
        (tmp_path / ".run.json.77.tmp").write_text("{")
        create(tmp_path).close()
        assert sorted(os.listdir(tmp_path)) == [".lock", "run.json"]

    @pytest.mark.parametrize("name", ["config", "data", "space"])
    def test_another_identity_is_refused_naming_the_hash(self, tmp_path: Path, name: str) -> None:
        create(tmp_path / "run").close()
        other = IDENTITY | {name: "d" * 64}
        with pytest.raises(
            RunDirectoryError, match=f"another {name} \\({IDENTITY[name][:12]} there, dddddddddddd here\\)"
        ):
            RunDirectory.open(tmp_path / "run", identity=other)
        with pytest.raises(RunDirectoryError, match=f"another {name}"):
            RunDirectory.open_or_create(tmp_path / "run", kind="supernet", config={}, identity=other)
        RunDirectory.open(tmp_path / "run", identity=IDENTITY).close()  # a refused opening gave the lock back

    def test_a_missing_hash_is_a_difference_too(self, tmp_path: Path) -> None:
        create(tmp_path / "run").close()
        with pytest.raises(RunDirectoryError, match="another space"):
            RunDirectory.open(tmp_path / "run", identity={"config": IDENTITY["config"], "data": IDENTITY["data"]})

    def test_another_kind_is_refused(self, tmp_path: Path) -> None:
        create(tmp_path / "run").close()
        with pytest.raises(RunDirectoryError, match="kind 'supernet': expected 'search'"):
            RunDirectory.open_or_create(tmp_path / "run", kind="search", config={}, identity=IDENTITY)

    def test_another_schema_and_damaged_headers_are_refused(self, tmp_path: Path) -> None:
        create(tmp_path / "run").close()
        header = json.loads((tmp_path / "run" / "run.json").read_text())
        for content, message in (
            (json.dumps(header | {"schema": 2}), "schema version 2: this version of the library reads 1"),
            (json.dumps({"schema": 1}), "has no 'config'"),
            ("[]", "expected a JSON object"),
            ("{", "is damaged"),
        ):
            (tmp_path / "run" / "run.json").write_text(content)
            with pytest.raises(RunDirectoryError, match=message):
                RunDirectory.open(tmp_path / "run")

    def test_versions_are_those_that_run(self) -> None:
        import platform

        import spos

        found = versions()
        assert found.keys() == {"spos", "torch", "python", "isa", "threads", "processor"}
        assert (found["spos"], found["torch"]) == (spos.__version__, torch.__version__)
        assert (found["python"], found["threads"]) == (platform.python_version(), torch.get_num_threads())
        assert f"{os.cpu_count()} cores" in found["processor"]
        assert found["isa"] in ("amx", "avx512", "avx2", "portable")
        json.dumps(found)


class TestLock:
    def test_a_second_writer_is_told_who_has_it(self, tmp_path: Path) -> None:
        with create(tmp_path / "run"):
            for again in (lambda: RunDirectory.open(tmp_path / "run"), lambda: create_or_open(tmp_path / "run")):
                with pytest.raises(RunDirectoryError, match=f"in use by process {os.getpid()}"):
                    again()
        RunDirectory.open(tmp_path / "run").close()

    def test_readers_neither_lock_nor_change(self, tmp_path: Path) -> None:
        with create(tmp_path / "run") as writer:
            writer.append("train", {"step": 0})
            (tmp_path / "run" / ".result.json.9.tmp").write_text("half")
            with (tmp_path / "run" / "train.jsonl").open("a") as file:
                file.write('{"step": 1, "lo')
            before = {name: (tmp_path / "run" / name).read_bytes() for name in os.listdir(tmp_path / "run")}
            with RunDirectory.open(tmp_path / "run", read_only=True) as reader:
                assert reader.records("train") == [{"step": 0}]
                assert reader.load_checkpoint("supernet") is None
                for write in (
                    lambda: reader.append("train", {}),
                    lambda: reader.keep("train", bool),
                    lambda: reader.write_json("result", {}),
                    lambda: reader.save_checkpoint("supernet", {}, {}),
                ):
                    with pytest.raises(RunDirectoryError, match="read only"):
                        write()
            assert {name: (tmp_path / "run" / name).read_bytes() for name in os.listdir(tmp_path / "run")} == before

    def test_nothing_is_written_after_closing(self, tmp_path: Path) -> None:
        run = create(tmp_path / "run")
        run.close()
        run.close()
        with pytest.raises(RunDirectoryError, match="closed"):
            run.append("train", {})


def create_or_open(path: Path) -> RunDirectory:
    return RunDirectory.open_or_create(path, kind="supernet", config={}, identity=IDENTITY)


class TestStreams:
    def test_floats_come_back_to_the_bit(self, tmp_path: Path) -> None:
        values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0]
        with create(tmp_path / "run") as run:
            for value in values:
                run.append("train", {"x": value, "arch": [0, 3], "none": None})
            found = [record["x"] for record in run.records("train")]
        assert [math.copysign(1, x) * abs(x) for x in found] == values
        assert run.records("nothing") == []

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_numbers_json_does_not_have_are_refused(self, tmp_path: Path, value: float) -> None:
        with create(tmp_path / "run") as run:
            with pytest.raises(ValueError, match=r"train\.jsonl, loss"):
                run.append("train", {"step": 1, "loss": value})
            with pytest.raises(ValueError, match=r"result\.json"):
                run.write_json("result", {"loss": value})
            assert run.records("train") == []

    @pytest.mark.parametrize("torn", ['{"step": 2', '{"step": 2}', "\0\0\0"])
    def test_what_follows_the_last_newline_goes_on_opening(self, tmp_path: Path, torn: str) -> None:
        with create(tmp_path / "run") as run:
            run.append("train", {"step": 0})
            run.append("train", {"step": 1})
        with (tmp_path / "run" / "train.jsonl").open("a") as file:
            file.write(torn)
        with RunDirectory.open(tmp_path / "run") as run:
            run.append("train", {"step": 2})
            assert [record["step"] for record in run.records("train")] == [0, 1, 2]

    @pytest.mark.parametrize("bad", ['{"step": ', "[1]", ""])
    def test_a_damaged_line_elsewhere_is_an_error_that_names_it(self, tmp_path: Path, bad: str) -> None:
        with create(tmp_path / "run") as run:
            (tmp_path / "run" / "train.jsonl").write_text(f'{{"step": 0}}\n{bad}\n{{"step": 2}}\n')
            with pytest.raises(RecordsError, match=r"train\.jsonl, line 2"):
                run.records("train")

    def test_keep(self, tmp_path: Path) -> None:
        with create(tmp_path / "run") as run:
            run.keep("train", bool)  # no stream yet
            for step in range(5):
                run.append("train", {"step": step})
            run.keep("train", lambda record: record["step"] < 3)
            run.append("train", {"step": 9})
            assert [record["step"] for record in run.records("train")] == [0, 1, 2, 9]

    def test_results(self, tmp_path: Path) -> None:
        with create(tmp_path / "run") as run:
            assert run.read_json("result") is None
            run.write_json("result", {"a": 1})
            run.write_json("result", {"a": 2})
            assert run.read_json("result") == {"a": 2}
            with pytest.raises(ValueError, match="written once"):
                run.write_json("run", {})

    @pytest.mark.parametrize("name", ["", "..", "a/b", ".lock", "a.b"])
    def test_names_that_would_be_other_files_are_refused(self, tmp_path: Path, name: str) -> None:
        with create(tmp_path / "run") as run:
            for use in (
                lambda: run.append(name, {}),
                lambda: run.read_json(name),
                lambda: run.save_checkpoint(name, {}, {}),
                lambda: run.load_checkpoint(name),
            ):
                with pytest.raises(ValueError, match="name = "):
                    use()


class TestCheckpoints:
    def test_the_newest_comes_back_and_two_are_kept(self, tmp_path: Path) -> None:
        with create(tmp_path / "run") as run:
            assert run.load_checkpoint("supernet") is None
            save_steps(run, *range(12))
            run.save_checkpoint("child", {}, {"step": 99})
            found = run.load_checkpoint("supernet")
        assert found is not None
        assert found.meta == {"step": 11}
        assert found.tensors["w"].item() == 11
        files = sorted(path.name for path in (tmp_path / "run").glob("supernet.*"))
        assert files == ["supernet.11.safetensors", "supernet.12.safetensors"]

    @pytest.mark.parametrize("damage", ["edit", "truncate", "empty"])
    def test_a_damaged_newest_is_an_error_that_names_it_and_the_older_one(self, tmp_path: Path, damage: str) -> None:
        with create(tmp_path / "run") as run:
            save_steps(run, 1, 2)
            newest = tmp_path / "run" / "supernet.2.safetensors"
            if damage == "edit":
                flip_last_byte(newest)
            else:
                os.truncate(newest, 0 if damage == "empty" else newest.stat().st_size // 2)
            with pytest.raises(
                CheckpointError, match=r"supernet\.2\.safetensors.*older good.*supernet\.1\.safetensors"
            ):
                run.load_checkpoint("supernet")
            found = run.load_checkpoint("supernet", fallback="previous")
            assert found is not None
            assert found.meta == {"step": 1}
            # set aside: the next saves keep two good ones, and an ordinary load works again
            assert newest.with_suffix(".damaged").exists()
            save_steps(run, 2)
            assert sorted(p.name for p in run.path.glob("*.safetensors")) == [
                "supernet.1.safetensors",
                "supernet.2.safetensors",
            ]
            found = run.load_checkpoint("supernet")
            assert found is not None
            assert found.meta == {"step": 2}

    def test_no_good_one_left_is_an_error_whatever_the_fallback(self, tmp_path: Path) -> None:
        with create(tmp_path / "run") as run:
            save_steps(run, 1, 2)
            for file in run.path.glob("*.safetensors"):
                flip_last_byte(file)
            with pytest.raises(CheckpointError, match=r"supernet\.2\.safetensors.*no older good one"):
                run.load_checkpoint("supernet", fallback="previous")
            with pytest.raises(ValueError, match="fallback = 'newest'"):
                run.load_checkpoint("supernet", fallback="newest")  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["config", "data", "space"])
    def test_one_of_another_run_is_refused_naming_what_differs(self, tmp_path: Path, name: str) -> None:
        with create(tmp_path / "other", IDENTITY | {name: "e" * 64}) as other:
            save_steps(other, 5, 6)
        with create(tmp_path / "run") as run:
            save_steps(run, 1)
            shutil.copy(tmp_path / "other" / "supernet.2.safetensors", tmp_path / "run")
            with pytest.raises(
                CheckpointError, match=rf"supernet\.2\.safetensors belongs to a run with another {name}"
            ):
                run.load_checkpoint("supernet")
            found = run.load_checkpoint("supernet", fallback="previous")
            assert found is not None
            assert found.meta == {"step": 1}

    def test_one_under_another_name_and_an_exported_file_are_refused(self, tmp_path: Path) -> None:
        from spos import checkpoint

        with create(tmp_path / "run") as run:
            save_steps(run, 1)
            shutil.copy(run.path / "supernet.1.safetensors", run.path / "child.1.safetensors")
            with pytest.raises(CheckpointError, match=r"child\.1\.safetensors is no checkpoint 'child'"):
                run.load_checkpoint("child")
            checkpoint.save(run.path / "export.1.safetensors", {})
            with pytest.raises(CheckpointError, match="is no checkpoint 'export'"):
                run.load_checkpoint("export")
