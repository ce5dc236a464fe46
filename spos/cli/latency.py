"""What `spos latency` does: a table of latencies into the folder of a run, and how well it predicts."""

from __future__ import annotations

from statistics import mean, median
from typing import TYPE_CHECKING

from spos.cli.display import Display
from spos.cli.stages import prepare
from spos.config import Config
from spos.run_directory import RunDirectoryError
from spos.run_folder import SUPERNET, RunFolder

if TYPE_CHECKING:
    import spos


def measure(folder: RunFolder, config: Config, display: Display, *, batch: int, rounds: int, check: int) -> None:
    """Measures every block at every option, and `check` random networks whole, to compare with the sums."""
    import spos
    from spos.quantized import has_bits

    if not folder.started(SUPERNET):
        raise RunDirectoryError(f"{folder.path} has no {SUPERNET} yet: run `spos train {folder.path}` first")
    _, net = prepare(config, display)
    table = spos.measure_latency(net, batch=batch, rounds=rounds, progress=display.progress)
    spos.save_latency(table, folder.latency)
    low, high = spos.latency.range(net) or (0.0, 0.0)
    spread = median(value for block in table.blocks for value in block.spread.values())
    quartiles = f"; quartiles {spread:.1%} apart" if rounds > 1 else ""
    display.say(
        f"{folder.latency}: {len(table.blocks)} blocks, {sum(len(b.nanoseconds) for b in table.blocks)} times for "
        f"{batch} images, {table.machine['threads']} threads{quartiles}. Networks, "
        f"{'packed' if has_bits(net) else 'in float on the kernels'}, take {low:.3g} to {high:.3g} ms, of which "
        f"{table.rest / 1e6:.3g} ms in no block"
    )
    if check:
        _compare(net, display, batch, rounds, check)


def _compare(net: spos.Supernet, display: Display, batch: int, rounds: int, count: int) -> None:
    from scipy.stats import spearmanr

    import spos
    from spos.latency_measurement import spread_networks, time_networks

    archs = spread_networks(net, count)
    predicted = [float(spos.latency(net, arch)) for arch in archs]
    measured = time_networks(net, archs, batch=batch, rounds=rounds)
    errors = [abs(p - m) / m for p, m in zip(predicted, measured, strict=True)]
    constant = [abs(median(measured) - m) / m for m in measured]
    rank = f", rank correlation {spearmanr(predicted, measured).statistic:.3f}" if count > 2 else ""
    display.say(
        f"{count} random networks, measured whole: {min(measured):.3g} to {max(measured):.3g} ms, predicted with a "
        f"mean error of {mean(errors):.1%} (their median for all: {mean(constant):.1%}){rank}"
    )
