"""What the names of weights tell: which prefix and container they stand under, and which network they are of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from snnet.errors import UserError
from snnet.models import ReIDModel, build_model
from snnet.models.weight_names import recognised
from snnet.models.weights import read_state_dict
from tests.snnet.test_weights import ARCH, assert_equal, filled


@pytest.mark.parametrize(
    ("container", "prefix", "others"),
    [
        (None, "model.", {}),
        (None, "backbone.", {"heads.bottleneck.weight": torch.zeros(1)}),
        ("net", "module.", {}),
        ("network", "net.", {"queue": torch.zeros(2)}),
        ("state_dict", "module.encoder_q.", {"module.encoder_k.conv2.0.conv1.conv.weight": torch.zeros(1)}),
        ("student", "_orig_mod.", {}),
        ("model_state_dict", "", {}),
    ],
)
def test_prefixes_and_containers_of_training_programs(
    container: str | None,
    prefix: str,
    others: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, path = filled(), tmp_path / "w.pth"
    state = {prefix + name: value for name, value in source.backbone.state_dict().items()} | others
    torch.save(state if container is None else {container: state, "epoch": 3}, path)
    assert_equal(read_state_dict(str(path)), source.backbone.state_dict())
    said = capsys.readouterr().out
    taken = prefix.removeprefix("module.").removeprefix("_orig_mod.")
    assert (f"those whose names begin with '{taken}'" in said) == bool(taken)
    assert (f"those under '{container}'" in said) == (container not in (None, "state_dict"))
    assert (f", not {len(others)} others\n" in said) == bool(others)


def test_a_whole_model_behind_a_prefix_keeps_its_neck(tmp_path: Path) -> None:
    source = filled(embedding="pool")
    torch.save({f"model.{name}": value for name, value in source.state_dict().items()}, tmp_path / "w.pth")
    model = build_model(ARCH, weights=tmp_path / "w.pth")
    assert_equal(model.state_dict(), source.state_dict())
    assert model.neck_pretrained


@pytest.mark.parametrize(
    ("arch", "wanted", "title"),
    [
        ("osnet_x0_25", "resnet18", "an OSNet: --arch osnet_x0_25"),
        ("osnet_ain_x0_5", "osnet_x0_25", "an OSNet-AIN: --arch osnet_ain_x0_5"),
        ("resnet18", "osnet_x0_25", "a ResNet: --arch resnet18"),
    ],
)
def test_weights_of_another_network_are_told_by_name(
    arch: str, wanted: str, title: str, tmp_path: Path
) -> None:
    torch.save(ReIDModel(arch).backbone.state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        UserError, match=f"^weights: this looks like {title}; keys of .*w.pth do not fit {wanted}"
    ):
        build_model(wanted, weights=tmp_path / "w.pth")


def test_networks_are_told_by_names_and_shapes() -> None:
    with torch.device("meta"):
        for arch in (
            "resnet34",
            "resnet50",
            "resnet101",
            "resnet152",
            "osnet_x0_75",
            "osnet_x1_0",
            "osnet_ain_x1_0",
        ):
            found = recognised(ReIDModel(arch).backbone.state_dict())
            assert found is not None and found.arch == arch
        resnet = ReIDModel("resnet50").backbone.state_dict()
        grouped = recognised({**resnet, "layer1.0.conv2.weight": torch.zeros(128, 4, 3, 3)})
        ibn = recognised({**resnet, "layer1.0.bn1.IN.weight": torch.zeros(32)})
    assert grouped is not None and ibn is not None
    assert (grouped.title, grouped.advice) == ("a wide or grouped ResNet", "this package has none")
    assert (ibn.title, ibn.arch) == ("a ResNet-IBN", None)
    assert recognised({"cls_token": torch.zeros(1)}).title == "a vision transformer"  # type: ignore[union-attr]
    patches = torch.zeros(384, 3, 16, 16, device="meta")
    parts = {f"part_token{i}": torch.zeros(1, 1, 384) for i in (1, 2, 3)}
    for state, title, named in (
        ({"patch_embed.proj.weight": patches}, "a vision transformer", "timm:vit_small_patch16_224"),
        (
            {"patch_embed.proj.weight": patches, **parts},
            "a vision transformer with 3 part tokens",
            "timm:vit_small_patch16_224,reg_tokens=3",
        ),
        (
            {"patch_embed.projection.weight": patches[:96]}
            | {f"stages.2.blocks.{i}.norm1.weight": patches[0] for i in range(6)},
            "a Swin transformer",
            "timm:swin_tiny_patch4_window7_224",
        ),
    ):
        transformer = recognised(state)
        assert transformer is not None and (transformer.title, transformer.arch) == (title, named)
    assert recognised({"a": torch.zeros(1)}) is None
