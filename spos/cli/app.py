"""The commands and their options, each a few lines around `spos.cli.stages`. Torch is imported where it is needed."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from spos.cli.display import Display
from spos.cli.settings import Options, resolve
from spos.run_folder import SEARCH, SUPERNET, UNIFORM, RunFolder, retrain_stage, search_stage

app = typer.Typer(
    help="Single Path One-Shot architecture search: train a supernet, search it, retrain what was found, report.",
    epilog="A run is a folder. Every command goes on with what it finds there: after an interruption, repeat it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.", show_default=False)]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file of settings; `spos info --defaults` prints one of all."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as train.lr=0.1. May be given repeatedly."),
]
DataSource = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="SOURCE", help="Images: mnist-5k, or a CIFAR-10 folder, or a folder or zip of class folders."
    ),
]
Space = Annotated[str | None, typer.Option("--space", metavar="NAME", help="Search space; `spos info` lists them.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of every random draw.")]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", help="CPU threads; 0 for torch's own choice.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
def demo(
    run: Annotated[Path, typer.Argument(metavar="[RUN]", help="Folder of the run.")] = Path("runs/demo"),
    seed: Seed = None,
    threads: Threads = None,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """All of it on 5,000 digits, in minutes: supernet, evolution, random search, retraining, report."""
    with _friendly(debug) as display:
        from spos.cli import stages
        from spos.cli.demo import DEMO

        folder, options = RunFolder(run), Options(sets=set_ or (), named={"seed": seed, "threads": threads})
        stages.train(folder, resolve(folder, SUPERNET, options, default=DEMO), display)
        stages.search(folder, resolve(folder, SEARCH, options), display)
        stages.search(folder, resolve(folder, SEARCH, options), display, random=True)
        stages.retrain(folder, resolve(folder, retrain_stage("best"), options), display)
        _report(folder, None, display)


@app.command()
def train(
    run: Run,
    config: ConfigFile = None,
    data: DataSource = None,
    space: Space = None,
    epochs: Annotated[float | None, typer.Option(metavar="N", help="Passes over the training images.")] = None,
    seed: Seed = None,
    threads: Threads = None,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Train a supernet, one random path a step. Goes on with RUN where it holds an unfinished one."""
    with _friendly(debug) as display:
        from spos.cli import stages

        folder = RunFolder(run)
        named = {"data.source": data, "space.name": space, "train.epochs": epochs, "seed": seed, "threads": threads}
        stages.train(folder, resolve(folder, SUPERNET, Options(config, set_ or (), named)), display)


@app.command()
def latency(
    run: Run,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images at a time.")] = 8,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Runs of which the shortest counts.")] = 10,
    check: Annotated[
        int, typer.Option(metavar="N", min=0, help="Random networks to compare with what is predicted of them.")
    ] = 20,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Measure what each block of RUN's networks takes, as they are deployed, at every option: for `--max-latency`."""
    with _friendly(debug) as display:
        from spos.cli.latency import measure

        folder = RunFolder(run)
        settings = resolve(folder, SUPERNET, Options(named={"threads": threads}))
        measure(folder, settings, display, batch=batch, rounds=rounds, check=check)


@app.command()
def search(
    run: Run,
    random: Annotated[
        bool, typer.Option("--random", help="Random search of the same budget, beside the evolution.")
    ] = False,
    label: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="One of several searches, of another budget: RUN/search-NAME."),
    ] = None,
    max_flops: Annotated[
        float | None, typer.Option(metavar="N", help="Budget: multiply-accumulates for one image, such as 330e6.")
    ] = None,
    min_flops: Annotated[float | None, typer.Option(metavar="N", help="At least so many.")] = None,
    max_params: Annotated[float | None, typer.Option(metavar="N", help="Budget: parameters, such as 3.5e6.")] = None,
    min_params: Annotated[float | None, typer.Option(metavar="N", help="At least so many.")] = None,
    max_bitops: Annotated[
        float | None, typer.Option(metavar="N", help="Budget: bit operations in units of 2^30, such as 6.5.")
    ] = None,
    min_bitops: Annotated[float | None, typer.Option(metavar="N", help="At least so many.")] = None,
    max_latency: Annotated[
        float | None, typer.Option(metavar="MS", help="Budget: milliseconds, as `spos latency RUN` has measured.")
    ] = None,
    min_latency: Annotated[float | None, typer.Option(metavar="MS", help="At least so many.")] = None,
    max_memory: Annotated[
        float | None, typer.Option(metavar="BYTES", help="Budget: peak of the activations of one image, such as 2.5e6.")
    ] = None,
    min_memory: Annotated[float | None, typer.Option(metavar="BYTES", help="At least so many.")] = None,
    population: Annotated[int | None, typer.Option(metavar="N", help="Random candidates to start from.")] = None,
    generations: Annotated[int | None, typer.Option(metavar="N", help="Rounds of evolution after them.")] = None,
    config: ConfigFile = None,
    seed: Seed = None,
    threads: Threads = None,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Search RUN's trained supernet by evolution. The same settings as in training hold unless given here."""
    with _friendly(debug) as display:
        from spos.cli import stages

        folder = RunFolder(run)
        named: dict[str, str | int | float | None] = {
            "search.max_flops": max_flops,
            "search.min_flops": min_flops,
            "search.max_params": max_params,
            "search.min_params": min_params,
            "search.max_bitops": max_bitops,
            "search.min_bitops": min_bitops,
            "search.max_latency": max_latency,
            "search.min_latency": min_latency,
            "search.max_peak_memory": max_memory,
            "search.min_peak_memory": min_memory,
            "search.population": population,
            "search.generations": generations,
            "seed": seed,
            "threads": threads,
        }
        settings = resolve(folder, search_stage(label), Options(config, set_ or (), named))
        stages.search(folder, settings, display, label=label, random=random)


@app.command()
def retrain(
    run: Run,
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="0,1,2,...",
            help="Architecture, or the same option everywhere: uniform:w2a2, uniform:operator=choice_3,width=1.0. "
            "Without it, the best that evolution found.",
        ),
    ] = None,
    search: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which search's: the best of RUN/search-NAME.")
    ] = None,
    arch_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help='JSON file of one: a list, or an object with "arch".')
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Names RUN/retrain-NAME; default best, the search's name, given with --arch, uniform-w2a2.",
        ),
    ] = None,
    random_archs: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Also retrain N random architectures of the same FLOPs, within 1%; of the same bit operations where "
            "bits are searched.",
        ),
    ] = 0,
    epochs: Annotated[float | None, typer.Option(metavar="N", help="Passes over the training images.")] = None,
    config: ConfigFile = None,
    seed: Seed = None,
    threads: Threads = None,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Train the architecture found from fresh weights, then score it once on the test images."""
    with _friendly(debug) as display:
        from spos.cli import stages

        folder, chosen = RunFolder(run), _read_arch(arch, arch_file)
        if chosen is not None and search is not None:
            raise ValueError("--search is given beside an architecture: expected one of them")
        if isinstance(chosen, str):
            default = _uniform_label(chosen)
        else:
            default = search or "best" if chosen is None else "given"
        label = label or default
        stage = retrain_stage(label)
        named = {"retrain.epochs": epochs, "seed": seed, "threads": threads}
        settings = resolve(folder, stage, Options(config, set_ or (), named))
        stages.retrain(folder, settings, display, arch=chosen, label=label, found_by=search, random_archs=random_archs)


@app.command()
def deploy(
    run: Run,
    label: Annotated[
        str, typer.Option(metavar="NAME", help="Which retrained architecture: RUN/retrain-NAME.")
    ] = "best",
    images: Annotated[
        int, typer.Option(metavar="N", min=1, help="Validation images to compare with the child in float64.")
    ] = 256,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images at a time, to measure the latency.")] = 8,
    runs: Annotated[int, typer.Option(metavar="N", min=1, help="Runs to take the median latency of.")] = 20,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Turn a retrained architecture of few bits into one file of packed integers, and compare the two."""
    with _friendly(debug) as display:
        from spos.cli.deployment import deploy as deploy_stage

        folder, stage = RunFolder(run), retrain_stage(label)
        settings = resolve(folder, stage, Options(named={"threads": threads}))
        deploy_stage(folder, stage, settings, display, images=images, batch=batch, runs=runs)


@app.command()
def report(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write the page; default RUN/report.html.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML page about RUN, finished or not."""
    with _friendly(debug) as display:
        _report(RunFolder(run), out, display)


@app.command()
def info(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Also say how far this run is.")] = None,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Print every setting with its default, as TOML.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Show versions, kernels, search spaces, and the state of a run."""
    with _friendly(debug) as display:
        if defaults:
            from spos import config_file
            from spos.config import Config

            sys.stdout.write(config_file.dumps(Config()))
            return
        from spos.cli import state

        lines = state.run_lines(RunFolder(run)) if run else state.installation_lines()
        for line in lines:
            display.say(line)


def _report(folder: RunFolder, out: Path | None, display: Display) -> None:
    from spos.report import write_report

    display.say(f"report: {write_report(folder, out).resolve()}")


def _read_arch(text: str | None, file: Path | None) -> list[int] | str | None:
    """An architecture's indices; a uniform one stays text until the space is known."""
    if text is not None and file is not None:
        raise ValueError("--arch and --arch-file are both given: expected one of them")
    if file is not None:
        content: Any = json.loads(file.read_text())
        value = content.get("arch") if isinstance(content, dict) else content
        if not isinstance(value, list):
            raise ValueError(f'{file}: expected a JSON list of integers, or an object with one as "arch"')
        return value
    if text is None or text.startswith(UNIFORM):
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--arch {text!r}: expected integers with commas between them, such as 0,1,2,3, or uniform:w2a2"
        ) from None


def _uniform_label(text: str) -> str:
    return "-".join(re.findall(r"[A-Za-z0-9_]+", text))


@contextmanager
def _friendly(debug: bool) -> Iterator[Display]:
    """A display; what a user can put right is one line and exit status 2, an interruption says how to go on."""
    with Display() as display:
        try:
            yield display
        except KeyboardInterrupt:
            message = f"\ninterrupted. To go on from the last checkpoint: {shlex.join(['spos', *sys.argv[1:]])}"
            status = 130
        except (ValueError, TypeError, OSError, ImportError, ArithmeticError) as error:
            if debug:
                raise
            message, status = f"error: {str(error) or type(error).__name__}", 2
        else:
            return
    typer.echo(message, err=True)
    raise typer.Exit(status)
