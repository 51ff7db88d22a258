"""Backbones, embeddings and optimiser groups of snnet.models."""

from __future__ import annotations

import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnet.errors import UserError
from snnet.models import ARCHITECTURES, ReIDModel, build_model
from snnet.models.osnet import OmniScaleBlock


def _model(arch: str, embedding: str = "pool") -> ReIDModel:
    torch.manual_seed(0)
    return build_model(arch, embedding=embedding)


def _images(batch: int = 4, height: int = 64, width: int = 32) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# torchvision's published totals less the classifier of 1,000 classes.
@pytest.mark.parametrize(
    ("arch", "parameters", "dim"),
    [
        ("resnet18", 11_176_512, 512),
        ("resnet34", 21_284_672, 512),
        ("resnet50", 23_508_032, 2048),
        ("resnet101", 42_500_160, 2048),
        ("resnet152", 58_143_808, 2048),
    ],
)
def test_resnet_sizes(arch: str, parameters: int, dim: int) -> None:
    with torch.device("meta"):
        model = ReIDModel(arch)
    assert _count(model.backbone) == parameters
    assert _count(model.neck) == 2 * dim
    assert model.feature_dim == dim


# The paper gives 2.2 M for x1.0 and 0.2 M for x0.25, with the Linear layer; AIN swaps normalisations one for
# one. The number of tensors is that of the published files (BatchNorm counters and classifier aside).
@pytest.mark.parametrize("family", ["osnet", "osnet_ain"])
@pytest.mark.parametrize(
    ("width", "parameters", "dim"),
    [
        ("x1_0", 2_169_508, 512),
        ("x0_75", 1_285_754, 384),
        ("x0_5", 630_034, 256),
        ("x0_25", 201_864, 128),
    ],
)
def test_osnet_sizes(family: str, width: str, parameters: int, dim: int) -> None:
    with torch.device("meta"):
        model, pooled = ReIDModel(f"{family}_{width}", "fc"), ReIDModel(f"{family}_{width}")
    assert _count(model) == parameters
    assert model.feature_dim == 512
    assert pooled.feature_dim == dim
    assert _count(pooled.backbone) == parameters - (dim * 512 + 512 + 2 * 512)
    names = [name for name in model.backbone.state_dict() if not name.endswith("num_batches_tracked")]
    assert len(names) == (485 if family == "osnet" else 475)


# Of torchreid's own network, without its classifier: 2,170,532 parameters, 487 tensors beside the counters, and this
# digest of all names and shapes.
def test_osnet_ibn_is_torchreids() -> None:
    with torch.device("meta"):
        state = ReIDModel("osnet_ibn_x1_0", "fc").backbone.state_dict()
        plain = ReIDModel("osnet_x1_0", "fc").backbone.state_dict()
        assert _count(ReIDModel("osnet_ibn_x1_0", "fc")) == 2_170_532
    assert len([name for name in state if not name.endswith("num_batches_tracked")]) == 487
    names = {
        "osnet_ibn_x1_0": "71427fbff8b7bf06613f6ac85077a863d31bc698ab1a161cacb98df87128eeb7",
        "osnet_x1_0": "5f0d0f053f51a9b5253b2aa3d884ffdd99aea3ef87aaa6390924d55fdcbdaeac",
    }
    for arch, found in (("osnet_ibn_x1_0", state), ("osnet_x1_0", plain)):
        listing = "\n".join(f"{name} {tuple(value.shape)}" for name, value in sorted(found.items()))
        assert hashlib.sha256(listing.encode()).hexdigest() == names[arch]
    added = sorted(state.keys() - plain.keys())
    assert added == [f"conv2.{block}.IN.{part}" for block in (0, 1) for part in ("bias", "weight")]


def test_osnet_names_are_torchreids() -> None:
    with torch.device("meta"):
        osnet = ReIDModel("osnet_x0_25", "fc").backbone.state_dict()
        ain = ReIDModel("osnet_ain_x0_25", "fc").backbone.state_dict()
    assert tuple(osnet["conv2.0.conv2d.3.conv2.weight"].shape) == (16, 1, 3, 3)
    assert tuple(osnet["conv3.2.0.conv.weight"].shape) == (96, 96, 1, 1)
    assert tuple(osnet["conv4.0.gate.fc1.weight"].shape) == (2, 32, 1, 1)
    assert tuple(osnet["fc.1.running_var"].shape) == (512,)
    assert tuple(ain["conv2.0.conv2.3.layers.3.conv2.weight"].shape) == (16, 1, 3, 3)
    assert tuple(ain["pool3.0.conv.weight"].shape) == (96, 96, 1, 1)
    assert "conv1.bn.running_mean" in osnet and "conv1.bn.running_mean" not in ain
    normed = [name.removesuffix(".IN.weight") for name in ain if name.endswith(".IN.weight")]
    assert normed == ["conv2.0", "conv2.1", "conv3.1", "conv4.0"]
    assert not any(f"{block}.conv3.bn.weight" in ain for block in normed)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "osnet_x0_25", "osnet_ain_x0_25"])
def test_last_map_is_a_sixteenth(arch: str) -> None:
    with torch.device("meta"):
        model = ReIDModel(arch)
        feature_map = model.backbone.feature_map(torch.empty(2, 3, 256, 128))
    assert tuple(feature_map.shape) == (2, model.feature_dim, 16, 8)


def _reference_block(state: dict[str, Tensor], x: Tensor, ain: bool) -> Tensor:
    """An omni-scale block in evaluation mode, term by term as the paper has it; IBN where it has a norm "IN"."""

    def norm(y: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(y, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])

    def stream(y: Tensor, names: list[str]) -> Tensor:
        for name in names:
            y = F.conv2d(y, state[f"{name}.conv1.weight"])
            y = F.conv2d(y, state[f"{name}.conv2.weight"], padding=1, groups=y.shape[1])
            y = F.relu(norm(y, f"{name}.bn"))
        gate = F.adaptive_avg_pool2d(y, 1)
        gate = F.relu(F.conv2d(gate, state["gate.fc1.weight"], state["gate.fc1.bias"]))
        return y * torch.sigmoid(F.conv2d(gate, state["gate.fc2.weight"], state["gate.fc2.bias"]))

    reduced = F.relu(norm(F.conv2d(x, state["conv1.conv.weight"]), "conv1.bn"))
    fused = torch.zeros_like(reduced)
    for depth, letter in enumerate("abcd", start=1):
        if ain:
            names = [f"conv2.{depth - 1}.layers.{i}" for i in range(depth)]
        else:
            names = ["conv2a"] if depth == 1 else [f"conv2{letter}.{i}" for i in range(depth)]
        fused += stream(reduced, names)
    residual = F.conv2d(fused, state["conv3.conv.weight"])
    if ain:
        residual = F.instance_norm(residual, weight=state["IN.weight"], bias=state["IN.bias"])
    else:
        residual = norm(residual, "conv3.bn")
    if "downsample.conv.weight" in state:
        x = norm(F.conv2d(x, state["downsample.conv.weight"]), "downsample.bn")
    total = residual + x
    if not ain and "IN.weight" in state:
        total = F.instance_norm(total, weight=state["IN.weight"], bias=state["IN.bias"])
    return F.relu(total)


@pytest.mark.parametrize(
    ("ain", "instance_norm"), [(False, False), (True, True), (False, True)], ids=["plain", "ain", "ibn"]
)
def test_block_equals_the_paper_term_by_term(ain: bool, instance_norm: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    block = OmniScaleBlock(8, 64, ain=ain, instance_norm=instance_norm).double().eval()
    for name, tensor in block.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(
                torch.rand(tensor.shape, generator=generator) - (0.0 if "running_var" in name else 0.5)
            )
    x = torch.randn(3, 8, 7, 5, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        got, expected = block(x), _reference_block(block.state_dict(), x, ain)
    assert expected.abs().max() > 1
    assert (got - expected).abs().max() < 1e-12


def _filled(arch: str, embedding: str) -> ReIDModel:
    """A network in evaluation mode, every weight and statistic of which matters, in float64."""
    model, generator = ReIDModel(arch, embedding).double().eval(), torch.Generator().manual_seed(3)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=generator) + (0.5 if "var" in name else -0.3))
    return model


def test_osnet_ibn_is_its_plain_definition() -> None:
    model, images = _filled("osnet_ibn_x1_0", "fc-relu"), _images().double()
    state = model.backbone.state_dict()

    def part(name: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")
        }

    def norm(x: Tensor, name: str) -> Tensor:
        p = part(name)
        return F.batch_norm(x, p["running_mean"], p["running_var"], p["weight"], p["bias"])

    x = F.conv2d(images, state["conv1.conv.weight"], stride=2, padding=3)
    x = F.relu(F.instance_norm(x, weight=state["conv1.bn.weight"], bias=state["conv1.bn.bias"]))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in ("conv2", "conv3", "conv4"):
        for block in (0, 1):
            x = _reference_block(part(f"{stage}.{block}"), x, ain=False)
        if stage != "conv4":
            x = F.relu(norm(F.conv2d(x, state[f"{stage}.2.0.conv.weight"]), f"{stage}.2.0.bn"))
            x = F.avg_pool2d(x, 2)
    x = F.relu(norm(F.conv2d(x, state["conv5.conv.weight"]), "conv5.bn")).mean((2, 3))
    expected = F.relu(norm(F.linear(x, state["fc.0.weight"], state["fc.0.bias"]), "fc.1"))
    with torch.no_grad():
        found = model.retrieve(images, after_neck=True)
    # The feature is made in float32 after the pooling.
    assert expected.abs().max() > 0.1 and (found - F.normalize(expected)).abs().max() < 1e-6


@pytest.mark.parametrize("arch", ["resnet18", "osnet_x0_25", "osnet_ain_x0_25", "osnet_ibn_x1_0"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_pool_embedding(arch: str, channels_last: bool) -> None:
    model, images = _model(arch), _images()
    if channels_last:
        model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
        assert model.backbone.feature_map(images).is_contiguous(memory_format=torch.channels_last)
    nn.init.uniform_(model.neck.weight, 0.5, 1.5)
    nn.init.uniform_(model.neck.bias, -0.5, 0.5)
    pooled = model.backbone.feature_map(images).mean((2, 3))
    centred = pooled - pooled.mean(0)
    necked = centred / (pooled.var(0, correction=0) + 1e-5).sqrt() * model.neck.weight + model.neck.bias
    expected = necked / necked.norm(dim=1, keepdim=True)
    feature = model(images)
    assert feature.dtype == torch.float32
    assert (feature.norm(dim=1) - 1).abs().max() < 1e-6
    assert (feature - expected).abs().max() < 1e-5
    feature[:, 0].sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("after_neck", [False, True])
def test_retrieval_feature(after_neck: bool) -> None:
    model, images = _model("osnet_x0_25"), _images()
    model.neck.running_mean.uniform_(-1, 1)
    model.eval()
    with torch.no_grad():
        pooled = model.backbone.feature_map(images).mean((2, 3))
        necked = (pooled - model.neck.running_mean) / (model.neck.running_var + 1e-5).sqrt()
        expected = F.normalize(necked if after_neck else pooled)
        assert (model.retrieve(images, after_neck) - expected).abs().max() < 1e-6
        assert torch.equal(model.retrieve(images), model.retrieve(images, after_neck=False))
        assert torch.equal(model(images), model.retrieve(images, after_neck=True))


def test_fc_embedding_is_linear_then_batch_norm() -> None:
    model, images = _model("osnet_x0_25", "fc"), _images()
    linear, norm = model.backbone.fc
    norm.running_mean.uniform_(-1, 1)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    model.eval()
    with torch.no_grad():
        before = model.backbone(images) @ linear.weight.T + linear.bias
        after = (before - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
        assert (model.retrieve(images) - F.normalize(before)).abs().max() < 1e-6
        assert (model(images) - F.normalize(after)).abs().max() < 1e-6
        # No ReLU: about half of the entries are negative.
        assert 0.3 < (model(images) < 0).float().mean() < 0.7
    assert not any(name.startswith("neck") for name, _ in model.named_modules())


def test_fc_relu_embedding_is_torchreids_feature() -> None:
    model, images = _filled("osnet_x0_25", "fc-relu").float(), _images()
    linear, norm = model.backbone.fc
    with torch.no_grad():
        before = model.backbone(images) @ linear.weight.T + linear.bias
        after = (before - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
        expected = after.clamp(min=0) / after.clamp(min=0).norm(dim=1, keepdim=True)
        found = model.retrieve(images, after_neck=True)
        assert (found - expected).abs().max() < 1e-6 and torch.equal(model(images), found)
        assert 0.2 < (found == 0).float().mean() < 0.8 and found.min() == 0
        # On the other side of the neck there is no ReLU.
        assert (model.retrieve(images) - F.normalize(before)).abs().max() < 1e-6
        # The same names as of "fc": files of either serve both.
        assert model.state_dict().keys() == ReIDModel("osnet_x0_25", "fc").state_dict().keys()


@pytest.mark.parametrize(("arch", "embedding"), [("osnet_x0_25", "fc"), ("osnet_ain_x0_25", "pool")])
def test_bf16_autocast_keeps_the_embedding_in_fp32(arch: str, embedding: str) -> None:
    model, images = _model(arch, embedding).eval(), _images()
    with torch.no_grad():
        full = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            feature = model(images)
            pooled = model.backbone(images)
        # What comes after the pooling is what fp32 makes of the same pooled feature.
        neck = model.neck if embedding == "pool" else model.backbone.fc
        assert pooled.dtype == feature.dtype == torch.float32
        assert (feature - F.normalize(neck(pooled))).abs().max() < 1e-6
    assert (feature.norm(dim=1) - 1).abs().max() < 1e-6
    assert ((feature * full).sum(1) > 0.99).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("arch", "embedding"), [("osnet_x0_25", "pool"), ("osnet_x0_25", "fc"), ("resnet18", "pool")]
)
def test_networks_of_another_type_give_float32_features(
    arch: str, embedding: str, dtype: torch.dtype
) -> None:
    model, images = _model(arch, embedding).eval(), _images()
    with torch.no_grad():
        full = model(images), model.retrieve(images)
        model.to(dtype)
        converted = model(images.to(dtype)), model.retrieve(images.to(dtype))
    for feature, wanted in zip(converted, full, strict=True):
        assert feature.dtype == torch.float32 and (feature.norm(dim=1) - 1).abs().max() < 1e-6
        # A type of 8 bits of mantissa after 20 layers; two random rows have a cosine below that.
        assert ((feature * wanted).sum(1) > (0.99 if dtype == torch.bfloat16 else 0.9999)).all()


# torch's own InstanceNorm, which OSNet-AIN has, takes no empty batch.
@pytest.mark.parametrize("arch", ["osnet_x0_25", "resnet18"])
def test_no_images_give_no_features(arch: str) -> None:
    model = _model(arch).eval()
    with torch.no_grad():
        assert model(_images(0)).shape == model.retrieve(_images(0)).shape == (0, model.feature_dim)


@pytest.mark.parametrize(("arch", "embedding"), [("osnet_x0_25", "pool"), ("osnet_x0_25", "fc")])
def test_parameter_groups_of_random_weights(arch: str, embedding: str) -> None:
    model = _model(arch, embedding)
    groups = model.parameter_groups(0.1, 0.1)
    assert [group["name"] for group in groups] == (
        ["backbone", "neck"] if embedding == "pool" else ["backbone"]
    )
    assert [group["lr"] for group in groups] == [0.1] * len(groups)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}
    assert len(torch.optim.SGD(groups, lr=0.1).param_groups) == len(groups)


def test_same_seed_same_weights() -> None:
    for first, second in zip(
        _model("osnet_ain_x0_25").state_dict().values(),
        _model("osnet_ain_x0_25").state_dict().values(),
        strict=True,
    ):
        assert torch.equal(first, second)


def test_initial_scale() -> None:
    weight = _model("osnet_x1_0").backbone.conv5.conv.weight
    assert abs(weight.std().item() / (2 / 512) ** 0.5 - 1) < 0.02


def test_bad_requests() -> None:
    assert len(ARCHITECTURES) == 14
    with pytest.raises(UserError, match=r"unknown arch 'resnet51'.*resnet50.*osnet_ain_x0_25"):
        build_model("resnet51")
    with pytest.raises(UserError, match=r"unknown embedding 'mlp'.*pool, fc"):
        build_model("resnet18", embedding="mlp")
    for embedding in ("fc", "fc-relu"):
        with pytest.raises(UserError, match=f"embedding '{embedding}' is .*; resnet18 has none: use 'pool'"):
            build_model("resnet18", embedding=embedding)
    model = _model("osnet_x0_25")
    with pytest.raises(UserError, match=r"16x16 are too small.*32x16"):
        model(torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match=r"got \(2, 1, 64, 32\)"):
        model(torch.zeros(2, 1, 64, 32))
    # The least size passes in training mode, where an instance norm needs more than one pixel.
    assert (_model("osnet_ain_x0_25")(_images(2, 32, 16)).norm(dim=1) - 1).abs().max() < 1e-6
