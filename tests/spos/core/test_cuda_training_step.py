"""The training step as one sequence of launches for every path: recorded once, replayed, against float64."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spos
from spos.captured_step import network_of
from spos.spaces.shufflenet import ShuffleNetOneShot, Spec, channels_last
from spos_kernels.cuda.graphs import capture
from spos_kernels.cuda.modules import availability, module_of
from spos_kernels.cuda.training_step import Descent, TrainingStep

pytestmark = pytest.mark.skipif(not availability("cuda-emulated")[0], reason=availability("cuda-emulated")[1])

BATCH, BLOCKS = 4, 20
EIGHTH = Spec(2, ((8, 4), (20, 4), (40, 8), (80, 4)), 128)  # channels of shufflenet-oneshot over eight


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def supernet(spec: Spec) -> tuple[spos.Supernet, ShuffleNetOneShot]:
    network = ShuffleNetOneShot(spec, 10, 32, 3)
    network.dropout.p = 0.0
    net = spos.Supernet(network, input_shape=(3, 32, 32), name="eighth")
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    channels_last(net)
    return net, network


class ReluInputs:
    """The inputs of a network's ReLUs in its last forward pass, by the convolution in front."""

    def __init__(self, net: nn.Module) -> None:
        self.seen: dict[nn.Module, Tensor] = {}
        for chain in net.modules():
            if isinstance(chain, nn.Sequential):
                for convolution, _, relu in zip(chain, list(chain)[1:], list(chain)[2:], strict=False):
                    if isinstance(relu, nn.ReLU):
                        relu.register_forward_pre_hook(self._keeper(convolution))

    def _keeper(self, convolution: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: self.seen.__setitem__(convolution, inputs[0].detach().clone())


def flipped(step: TrainingStep, network: ShuffleNetOneShot, arch: tuple[int, ...], exact: ReluInputs) -> int:
    """How many ReLUs the step decided otherwise than float64, all of them within rounding of zero.

    Rounding decides there, in torch's own float32 too, and every gradient before it differs then.
    """
    count = 0
    chains: list[list[nn.Module]] = [[network.first_conv]]
    for index, block in enumerate(network.features):
        option = block.branch(arch[index])
        chains.append([option.branch_main] + ([option.branch_proj] if option.stride == 2 else []))
    chains.append([network.conv_last])
    for part, of_part in zip(step._parts, chains, strict=True):
        kept = statistic = 0
        for chain in of_part:
            height, width = part.x.shape[2:]
            for layer in (layer for layer in chain if hasattr(layer, "weight") and layer.weight is not None):
                channels, kernel = layer.weight.shape[0], layer.weight.shape[-1]
                if kernel > 1:
                    height, width = part.y.shape[2:]
                kept += -kept % 8
                size = BATCH * height * width * channels
                z = part.kept[kept : kept + size].view(BATCH, height, width, channels).double()
                mean, var = part.statistics[statistic : statistic + 2 * channels].double().chunk(2)
                kept, statistic = kept + size, statistic + 2 * channels
                if layer in exact.seen:
                    right = exact.seen[layer].permute(0, 2, 3, 1)
                    other = ((z - mean) / (var + 1e-5).sqrt() > 0) != (right > 0)
                    assert float(right[other].abs().max() if other.any() else 0) < 2e-3
                    count += int(other.sum())
    return count


def flat(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor in the order of its memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def copy_state(to: nn.Module, source: nn.Module) -> None:
    with torch.no_grad():
        for own, other in zip(to.state_dict().values(), source.state_dict().values(), strict=True):
            own.copy_(other)


def gradients(step: TrainingStep, net: nn.Module, network: ShuffleNetOneShot) -> dict[str, Tensor]:
    """What the step keeps as gradients, by the parameters' names, in their shapes."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    stem = network.first_conv[0].weight
    found = {
        names[id(stem)]: step.stem_gradients[0].reshape(stem.shape[0], 3, 3, 3).permute(0, 3, 1, 2),
        names[id(network.conv_last[0].weight)]: step.last_gradients[0],
        names[id(network.classifier[0].weight)]: step.classifier_gradient,
    }
    for index, block in enumerate(network.features):
        for choice in range(4):
            option = block.branch(choice)
            chains = [option.branch_main] + ([option.branch_proj] if option.stride == 2 else [])
            weights = [p for chain in chains for p in chain.parameters() if p.ndim == 4]
            for weight, of in zip(weights, step.gradients(index, choice), strict=True):
                found[names[id(weight)]] = of[0]
    return found


def test_one_recording_trains_every_path_as_float64_does() -> None:
    """Four steps turn every choice through every block, four are drawn; each on a batch that flips no ReLU."""
    emulator = module_of("cuda-emulated")
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net, network = supernet(EIGHTH)
    exact = copy.deepcopy(net).double()
    exact_network = next(module for module in exact.modules() if isinstance(module, ShuffleNetOneShot))
    relus = ReluInputs(exact)
    step = TrainingStep(network_of(network), (BATCH, 3, 32, 32), "cuda-emulated", descent=Descent(0.9, 1e-3))
    own, weights, buffers = gradients(step, net, network), dict(net.named_parameters()), dict(net.named_buffers())
    assert set(own) == set(weights) and step.update is not None
    momenta = {name: flat(step.momentum_buffers[weight.data_ptr()]) for name, weight in weights.items()}
    step.update.set_rates([0.05])
    optimizer = torch.optim.SGD(exact.parameters(), 0.05, 0.9, weight_decay=1e-3)
    archs = [tuple((turn + block) % 4 for block in range(BLOCKS)) for turn in range(4)]
    archs += [tuple(torch.randint(4, (BLOCKS,), generator=generator).tolist()) for _ in range(4)]
    all_errors: list[float] = []
    replay = None
    for number, arch in enumerate(archs):
        for _ in range(4):
            copy_state(net, exact)
            for name, parameter in exact.named_parameters():
                momenta[name].copy_(
                    flat(optimizer.state[parameter].get("momentum_buffer", torch.zeros_like(parameter)))
                )
            state = copy.deepcopy(exact.state_dict())
            before, before_own, before_momenta = (
                {n: t.detach().clone() for n, t in tensors.items()} for tensors in (weights | buffers, own, momenta)
            )
            step.images.copy_(torch.randn(BATCH, 3, 32, 32, generator=generator))
            step.labels.copy_(torch.randint(10, (BATCH,), generator=generator))
            step.arch.copy_(torch.tensor(arch, dtype=torch.int32))
            emulator.configure(seed=number)
            if replay is None:
                replay = capture(step.run, "cuda-emulated", step.images.device)
            else:
                replay()
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(exact(step.images.double(), arch), step.labels)
            assert abs(float(step.loss) - float(loss.detach())) < 1e-3
            if not flipped(step, exact_network, arch, relus):
                break
            exact.load_state_dict(state)
        else:
            raise AssertionError("each of four batches flips a ReLU")
        loss.backward()
        optimizer.step()
        errors = []
        for name, parameter in exact.named_parameters():
            if parameter.grad is None:
                assert torch.equal(own[name], before_own[name]), f"{name} is off the path"
                assert torch.equal(weights[name], before[name]), f"{name} is off the path"
                assert torch.equal(momenta[name], before_momenta[name]), f"{name} is off the path"
                continue
            errors.append(float((own[name].double() - parameter.grad).norm() / parameter.grad.norm()))
            momentum = flat(optimizer.state[parameter]["momentum_buffer"])
            assert float((momenta[name] - momentum).norm() / momentum.norm()) < 1e-2, name
            moved = parameter.detach() - before[name]
            error = weights[name].detach().double() - parameter.detach()
            assert float(error.norm()) <= 1e-2 * float(moved.norm()) + 1e-7 * float(parameter.detach().norm()), name
        for name, buffer in exact.named_buffers():
            if torch.equal(buffer.to(before[name].dtype), before[name]):
                assert torch.equal(buffers[name], before[name]), f"{name} is off the path"
            else:
                torch.testing.assert_close(buffers[name].double(), buffer.double(), rtol=1e-4, atol=1e-4)
        all_errors += errors
    emulator.configure()
    assert max(all_errors) <= 1e-2 and statistics.median(all_errors) <= 2e-4


def test_launches_of_a_step() -> None:
    """7 + 7 a block of stride 1, 9 + 9 of stride 2, whatever its choice, 2 + 2 for stem and last one, 7 more."""
    _, network = supernet(Spec(2, ((8, 2),), 16))
    step = TrainingStep(network_of(network), (2, 3, 32, 32), "cuda-emulated")
    emulator = module_of("cuda-emulated")
    emulator.take_counters()
    step.run()
    assert emulator.take_counters()["launches"] == 2 * (7 + 9) + 2 * (2 + 2) + 7


def test_a_stem_that_would_be_copied_is_refused() -> None:
    _, network = supernet(Spec(2, ((8, 1),), 16))
    network.first_conv[0].weight.data = network.first_conv[0].weight.data.contiguous()
    with pytest.raises(ValueError, match=r"stem\.weight is not channels_last in memory"):
        TrainingStep(network_of(network), (2, 3, 32, 32), "cuda-emulated")
