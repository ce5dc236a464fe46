from __future__ import annotations

import io

import onnx
import onnx.reference
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spos
import spos_kernels as sk


@pytest.fixture(scope="module")
def small() -> spos.Supernet:
    return randomized(spos.spaces.get("shufflenet-oneshot", num_classes=10, image_size=32))


def randomized(net: nn.Module) -> nn.Module:
    """Kaiming weights and random statistics: at the released initialisation every output is about 1e-10."""
    torch.manual_seed(1)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
    return net


def official_forward(state: dict[str, torch.Tensor], x: torch.Tensor, arch, stem_stride: int) -> torch.Tensor:
    """The published network written out by layer numbers of its checkpoint, independent of the modules under test."""

    def norm(y, key):
        return F.batch_norm(y, state[f"{key}.running_mean"], state[f"{key}.running_var"])

    def conv(y, key, stride=1, padding=0, groups=1):
        return F.conv2d(y, state[f"{key}.weight"], None, stride, padding, 1, groups)

    def depthwise(y, key, stride):
        weight = state[f"{key}.weight"]
        return conv(y, key, stride, weight.shape[-1] // 2, weight.shape[0])

    x = F.relu(norm(conv(x, "first_conv.0", stem_stride, 1), "first_conv.1"))
    for b, choice in enumerate(arch):
        stride = 2 if b in (0, 4, 8, 16) else 1
        main = f"features.{b}.{choice}.branch_main."
        if stride == 1:
            n, c, h, w = x.shape
            pairs = x.reshape(n * c // 2, 2, h * w).transpose(0, 1).reshape(2, n, c // 2, h, w)
            passed, y = pairs[0], pairs[1]
        else:
            proj = f"features.{b}.{choice}.branch_proj."
            passed = norm(depthwise(x, proj + "0", 2), proj + "1")
            passed, y = F.relu(norm(conv(passed, proj + "2"), proj + "3")), x
        if choice < 3:
            y = F.relu(norm(conv(y, main + "0"), main + "1"))
            y = norm(depthwise(y, main + "3", stride), main + "4")
            y = F.relu(norm(conv(y, main + "5"), main + "6"))
        else:
            for first, step in ((0, stride), (5, 1), (10, 1)):
                y = norm(depthwise(y, f"{main}{first}", step), f"{main}{first + 1}")
                y = F.relu(norm(conv(y, f"{main}{first + 2}"), f"{main}{first + 3}"))
        x = torch.cat([passed, y], 1)
    x = F.relu(norm(conv(x, "conv_last.0"), "conv_last.1")).mean((2, 3))
    return x @ state["classifier.0.weight"].T


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_loads_the_released_checkpoint_and_computes_what_it_does(small, prefix, wrapped):
    state = {prefix + k: v.clone() for k, v in small.state_dict().items()}
    net = spos.spaces.get("shufflenet-oneshot", num_classes=10, image_size=32, seed=9).eval()
    net.load_official({"state_dict": state} if wrapped else state)
    rng = spos.generator(0, "archs")
    archs = [net.space.sample(rng) for _ in range(3)] + [net.space.uniform(operator="choice_x")]
    x = torch.randn(2, 3, 32, 32)
    for arch in archs:
        expected = official_forward(small.state_dict(), x, arch, 1)
        assert relative(net(x, arch), expected) < 1e-5
        with sk.use_backend("reference"):
            assert relative(net(x, arch), expected) < 1e-5


def test_imagenet_size_halves_in_the_stem():
    net = randomized(spos.spaces.get("shufflenet-oneshot", num_classes=4)).eval()
    x = torch.randn(1, 3, 224, 224)
    arch = net.space.sample(spos.generator(0, "archs"))
    assert relative(net(x, arch), official_forward(net.state_dict(), x, arch, 2)) < 1e-5


def test_keys_are_those_of_the_released_supernet(small):
    keys = set(small.state_dict())
    depthwise_first = {f"features.0.3.branch_main.{i}.weight" for i in (0, 2, 5, 7, 10, 12)}
    pointwise_first = {f"features.19.1.branch_main.{i}.weight" for i in (0, 3, 5)}
    projected = {f"features.{b}.2.branch_proj.{i}.weight" for b in (0, 4, 8, 16) for i in (0, 2)}
    assert {"first_conv.0.weight", "conv_last.0.weight", "classifier.0.weight"} < keys
    assert depthwise_first | pointwise_first | projected < keys
    assert "features.1.0.branch_proj.0.weight" not in keys and "classifier.0.bias" not in keys
    assert "features.0.3.branch_main.13.num_batches_tracked" in keys and "first_conv.1.weight" not in keys
    assert sum(p.numel() for p in small.parameters()) == 8_388_176 - 1024 * 990


def test_foreign_checkpoints_are_refused_whole(small, tmp_path):
    net = spos.spaces.get("shufflenet-oneshot", num_classes=10, image_size=32)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    good = small.state_dict()
    missing = {k: v for k, v in good.items() if k != "conv_last.0.weight"}
    with pytest.raises(ValueError, match=r"missing conv_last\.0\.weight"):
        net.load_official(missing)
    with pytest.raises(ValueError, match="unknown extra"):
        net.load_official(good | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"classifier\.0\.weight has shape \(7, 1024\), expected \(10, 1024\)"):
        net.load_official(good | {"classifier.0.weight": torch.zeros(7, 1024)})
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    path = tmp_path / "official.pth.tar"
    torch.save({"state_dict": {"module." + k: v for k, v in good.items()}}, path)
    net.load_official(path)
    assert torch.equal(net.state_dict()["conv_last.0.weight"], good["conv_last.0.weight"])


def test_what_is_no_checkpoint_is_a_value_error(tmp_path):
    net = spos.spaces.get("shufflenet-oneshot-small", num_classes=2, image_size=16)
    for content in ([1], {"state_dict": None}, {"weight": 3}):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(ValueError, match="state dict"):
            net.load_official(tmp_path / "odd.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.pth is no checkpoint that can be read"):
        net.load_official(tmp_path / "text.pth")
    with pytest.raises(FileNotFoundError, match="missing"):
        net.load_official(tmp_path / "missing.pth")


def test_pickled_code_is_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    path = tmp_path / "bad.pth"
    torch.save({"state_dict": Harm()}, path)
    net = spos.spaces.get("shufflenet-oneshot-small", num_classes=2, image_size=16)
    with pytest.raises(ValueError, match=r"weights_only=True"):
        net.load_official(path)


def test_initialisation_is_the_released_one_and_seeded():
    one, same, other = (spos.spaces.get("shufflenet-oneshot", image_size=32, seed=s) for s in (1, 1, 2))
    state = one.state_dict()
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in state.items())
    assert not torch.equal(state["conv_last.0.weight"], other.state_dict()["conv_last.0.weight"])
    for key, std in (
        ("first_conv.0.weight", 0.01),
        ("classifier.0.weight", 0.01),
        ("conv_last.0.weight", 1 / 640),
        ("features.19.0.branch_main.3.weight", 1.0),
    ):
        assert float(state[key].std()) == pytest.approx(std, rel=0.1), key


def test_gradients_agree_with_plain_pytorch():
    net = randomized(spos.spaces.get("shufflenet-oneshot", num_classes=10, image_size=32)).train()
    x = torch.randn(4, 3, 32, 32)
    arch = net.space.sample(spos.generator(1, "archs"))

    def gradient(backend, dtype):
        net.to(dtype).zero_grad(set_to_none=True)
        torch.manual_seed(0)  # the dropout mask
        with sk.use_backend(backend):
            F.cross_entropy(net(x.to(dtype), arch), torch.arange(4)).backward()
        return torch.cat([p.grad.flatten().double() for p in net.path_parameters(arch)])

    exact = gradient("reference", torch.float64)
    assert relative(gradient("cpu", torch.float64), exact) < 1e-11
    torch_error = relative(
        gradient("reference", torch.float32), exact
    )  # a deep chain of small batch statistics: about 1%
    assert relative(gradient("cpu", torch.float32), exact) < 2 * torch_error


def test_extracted_child_is_plain_and_exports(small):
    arch = (3, 0, 2, 1) * 5
    child = small.eval().extract(arch).eval()
    assert not any(isinstance(m, sk.DepthwiseConv2d | spos.ChoiceBlock) for m in child.modules())
    assert all(m.affine for m in child.modules() if isinstance(m, nn.BatchNorm2d))
    assert {type(m).__module__.split(".")[0] for m in child.modules()} == {"torch", "spos"}
    x = torch.randn(2, 3, 32, 32)
    expected = small(x, arch)
    assert relative(child(x), expected) < 1e-5
    exported = torch.export.export(child, (x,)).module()
    assert relative(exported(x), expected) < 1e-5


@pytest.mark.parametrize("choice", ["choice_3", "choice_x"])
def test_child_exports_to_onnx_with_the_same_outputs(choice):
    net = randomized(spos.spaces.get("shufflenet-oneshot-small", num_classes=3, image_size=16, in_channels=1)).eval()
    child = net.extract(net.space.uniform(operator=choice)).eval()
    x = torch.randn(2, 1, 16, 16)
    program = torch.onnx.export(child, (x,), dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)
    file.seek(0)
    evaluator = onnx.reference.ReferenceEvaluator(onnx.load(file))
    outputs = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})
    assert relative(torch.from_numpy(outputs[0]), child(x)) < 1e-4


def test_outputs_and_gradients_stay_channels_last():
    net = spos.spaces.get("shufflenet-oneshot-small", num_classes=3, image_size=16)
    layouts = []

    def note(tensor):
        layouts.append(tensor.is_contiguous(memory_format=torch.channels_last))

    def watch(layer, inputs, output):
        note(output)
        output.register_hook(note)

    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(watch)
    net(torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last), (0, 1, 2, 3) * 2).sum().backward()
    assert len(layouts) > 60 and all(layouts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "shufflenet-onesho"}, "did you mean 'shufflenet-oneshot'"),
        ({"num_classes": 1}, "num_classes = 1"),
        ({"image_size": 4}, "image_size = 4"),
        ({"in_channels": 0}, "in_channels = 0"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        spos.spaces.get(**({"name": "shufflenet-oneshot"} | arguments))
