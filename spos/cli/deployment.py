"""What `spos deploy` does: a retrained child packed into a file, and what there is to say about the two."""

from __future__ import annotations

from spos.cli.display import Display
from spos.cli.stages import prepare, require
from spos.config import Config
from spos.run_directory import RunDirectory, RunDirectoryError
from spos.run_folder import RunFolder

PACKED = "packed.safetensors"  # in the run directory of the retraining
RESULT = "deployed"  # beside it, what was measured
_BATCH = 64


def deploy(
    folder: RunFolder, stage: str, config: Config, display: Display, *, images: int, batch: int, runs: int
) -> None:
    """Packs the child that a retraining stage trained, and compares the file with it on validation images.

    Latencies are of `batch` images, the median of `runs` runs: of the packed network, of the child as float32 layers
    that quantize nothing, and of the child as it was trained.
    """
    import torch

    import spos
    from spos.comparison import float_counterpart, median_times
    from spos.modules import channels_last, fuse
    from spos_kernels import load_packed

    require(folder, stage, "spos retrain")
    data, net = prepare(config, display)
    with RunDirectory.open(folder.directory(stage), kind="retrain") as run:
        arch = folder.plan(stage).get("arch") or (run.read_json("result") or {}).get("arch")
        if arch is None:
            raise RunDirectoryError(f"{run.path} does not say which architecture it holds: expected one in result.json")
        child = net.extract(net.space.arch(arch)).eval()
        spos.load_weights(child, run, "final")
        size = spos.deploy(child).save(run.path / PACKED)
        packed = load_packed(run.path / PACKED)
        layers = packed.packed_layers().values()
        bits = ", ".join(sorted({f"w{layer.w_bits}a{layer.a_bits}" for layer in layers}))
        display.say(
            f"{run.path / PACKED}: {size:,} bytes, of which {packed.packed_bytes:,} are the packed weights of "
            f"{len(layers)} layers, {bits}"
        )
        batches = data.validation_batches(min(images, len(data.validation)), _BATCH, config.seed)
        found = spos.compare_deployed(child, packed, [x for x, _ in batches])
        display.say(
            f"against the child in float64 on {found.images} validation images: {found.differing:,} of "
            f"{found.codes:,} codes differ ({found.rate:.1e}), {found.rounded:,} where each layer is given the "
            f"child's; top-1 agreement {found.agreement:.2%}"
        )
        x = torch.cat([x for x, _ in batches])[:batch].contiguous(memory_format=torch.channels_last)
        networks = {"packed": packed, "float32": float_counterpart(child), "trained": channels_last(fuse(child))}
        times = median_times(networks, x, runs=runs)
        display.say(
            f"latency of {len(x)} images, {torch.get_num_threads()} threads, median of {runs} runs: "
            f"{_milliseconds(times['packed'])} packed, {_milliseconds(times['float32'])} as float32 layers "
            f"({times['float32'] / times['packed']:.2f} times), {_milliseconds(times['trained'])} as trained"
        )
        result = {
            "file_bytes": size,
            "packed_bytes": packed.packed_bytes,
            "images": found.images,
            "codes": found.codes,
            "differing": found.differing,
            "rounded": found.rounded,
            "agreement": found.agreement,
            "batch": len(x),
            "threads": torch.get_num_threads(),
            "seconds": times["packed"],
            "float_seconds": times["float32"],
            "trained_seconds": times["trained"],
        }
        run.write_json(RESULT, result)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
