"""Backbones of timm: names, input, weights in the layouts of published re-identification transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from snnet.config.commands import ExportCommand, TrainCommand
from snnet.config.options import config_from, flatten
from snnet.config.timm_names import parse_timm, timm_input
from snnet.data import build_dataset
from snnet.errors import UserError
from snnet.export import export
from snnet.models import ReIDModel, build_model
from snnet.retrieval.features import decode_retrieval_set, rank_gallery, retrieval_features
from snnet.retrieval.trained import load_trained_model
from snnet.train import train

timm = pytest.importorskip("timm", reason="needs the extra 'timm'")
CONV, VIT, SWIN = "timm:resnet10t", "timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224"
PASS = f"{VIT},reg_tokens=3"


def built(arch: str, height: int = 64, width: int = 32, **options: Any) -> ReIDModel:
    torch.manual_seed(0)
    return build_model(arch, height=height, width=width, **options).eval()


def images(height: int = 64, width: int = 32) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_names_and_arguments() -> None:
    assert parse_timm("timm:a.b,reg_tokens=3,drop_path_rate=0.1,global_pool=avg,x=True") == (
        "a.b",
        {"reg_tokens": 3, "drop_path_rate": 0.1, "global_pool": "avg", "x": True},
    )
    for arch, message in (
        ("timm:a,b", "'b' is no argument of the network"),
        ("timm:a,b=1,b=2", "'b=2' is no argument of the network"),
        ("timm:a,pretrained=True", "pretrained cannot be given, this package sets it"),
        ("timm:a,checkpoint_path=x", "checkpoint_path cannot be given, this package sets it"),
        ("timm:a,b=/etc/x", "'/etc/x' must be a number, True, False or a word"),
        ("timm:a,b=[1]", r"'\[1\]' must be a number, True, False or a word"),
    ):
        with pytest.raises(UserError, match=f"^--arch {arch.replace('[', '.').replace(']', '.')}: {message}"):
            parse_timm(arch)


def test_names_that_there_are_not() -> None:
    for arch, message in (
        ("timm:resnet10x", "has no network 'resnet10x'; did you mean 'timm:resnet10t'?"),
        ("timm:hf-hub:timm/resnet10t", "has no network 'hf-hub:timm/resnet10t'"),
        ("timm:resnet10t.none", r"has no such weights of resnet10t; there are resnet10t.c3_in1k"),
    ):
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            timm_input(arch)
    with pytest.raises(UserError, match=r"cannot build resnet10t for images of 64x32 \(TypeError"):
        built("timm:resnet10t,no_such_argument=1")
    with pytest.raises(
        UserError, match=r"cannot build convit_tiny for images of 64x32 \(RuntimeError: The exp"
    ):
        built("timm:convit_tiny")
    with pytest.raises(
        UserError, match=f"'fc' is the Linear layer that OSNet has of its own; {CONV} has none"
    ):
        built(CONV, embedding="fc")


def test_a_network_whose_features_have_another_length_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    network = timm.create_model("resnet10t", num_classes=0)
    network.head_hidden_size = 513
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: network)
    with pytest.raises(UserError, match=r"the feature of an image is \[1, 512\], needed is \[1, 513\]\)$"):
        built(CONV)


def test_the_extra_is_named_where_timm_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        UserError, match=f"^--arch {CONV} needs timm, .*: pip install '..timm.' in the checkout$"
    ):
        TrainCommand.parse(["--arch", CONV, "--dataset", "folder", "--data-dir", "d"])


def test_the_input_size_is_the_networks_own_unless_it_is_given() -> None:
    def size(*words: str) -> tuple[int, int]:
        line = ["--arch", CONV, "--dataset", "folder", "--data-dir", "d", *words]
        data = TrainCommand.parse(line).config.data
        return data.height, data.width

    own = timm.models.get_pretrained_cfg("resnet10t").input_size[1:]
    assert (size(), own) == ((176, 176), (176, 176))
    assert size("--height", "64") == (64, 176)
    assert size("--height", "64", "--width", "32") == (64, 32)
    assert size("--config", "paper_resnet50") == (256, 128)
    values = flatten(config_from({"arch": CONV}))
    assert (values["arch"], values["height"]) == (CONV, 176)


def test_building_draws_the_random_numbers_of_timm_alone() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=(64, 32)).state_dict()
    after = torch.get_rng_state()
    model = built(VIT)
    assert torch.equal(torch.get_rng_state(), after)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize(("arch", "dim"), [(CONV, 512), (VIT, 192), (PASS, 192)])
def test_features_are_timms_of_images_normalised_its_way(arch: str, dim: int) -> None:
    model = built(arch)
    assert model.feature_dim == dim
    pixels = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    own = timm_input(arch)
    usual = (pixels - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    theirs = (pixels - torch.tensor(own.mean)[:, None, None]) / torch.tensor(own.std)[:, None, None]
    with torch.no_grad():
        got = model.retrieve(usual)
        expected = torch.nn.functional.normalize(model.backbone(theirs), dim=1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert own.mean == ((0.5, 0.5, 0.5) if arch != CONV else (0.485, 0.456, 0.406))


def test_own_weights_round_trip_and_other_sizes_are_resampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = built(VIT)
    torch.save(source.state_dict(), tmp_path / "own.pt")
    again = build_model(VIT, height=64, width=32, weights=tmp_path / "own.pt")
    assert again.state_dict().keys() == source.state_dict().keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name
    capsys.readouterr()
    larger = build_model(VIT, height=128, width=64, weights=tmp_path / "own.pt")
    said = capsys.readouterr().out
    assert "position embeddings of 4 x 2 patches, resampled to 8 x 4\n" in said
    positions = larger.backbone.pos_embed
    assert positions.shape == (1, 33, 192)
    assert torch.equal(positions[:, 0], source.backbone.pos_embed[:, 0])
    small = source.backbone.pos_embed[:, 1:].detach().mean()
    assert float(positions[:, 1:].detach().mean()) == pytest.approx(float(small), abs=1e-3)


def with_positions(height: int, width: int) -> tuple[dict[str, Tensor], Tensor]:
    """Weights for images of that size, and their position embeddings as a picture [1, d, rows, columns]."""
    model = built(VIT, height, width)
    rows, columns = height // 16, width // 16
    grid = torch.randn(1, 192, rows, columns, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model.backbone.pos_embed[:, 1:] = grid.flatten(2).transpose(1, 2)
    return model.state_dict(), grid


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((128, 256), (256, 128)),
        ((128, 256), (256, 256)),
        ((256, 64), (256, 128)),
        ((256, 64), (128, 128)),
        ((256, 128), (384, 128)),
    ],
)
def test_positions_of_a_checkpoint_are_resampled_from_its_own_grid(
    old: tuple[int, int], new: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, grid = with_positions(*old)
    config = {"height": old[0], "width": old[1], "embedding": "pool", "retrieval_feature": "before"}
    torch.save({"format": "snnet-checkpoint", "model": state, "config": config}, tmp_path / "w.pt")
    positions = built(VIT, *new, weights=tmp_path / "w.pt").backbone.pos_embed.detach()
    (rows, columns), (new_rows, new_columns) = (tuple(side // 16 for side in size) for size in (old, new))
    expected = torch.nn.functional.interpolate(grid, (new_rows, new_columns), mode="bicubic", antialias=True)
    assert torch.equal(positions[:, 1:], expected.flatten(2).transpose(1, 2))
    assert torch.equal(positions[:, 0], state["backbone.pos_embed"][:, 0])
    said = f"position embeddings of {rows} x {columns} patches, resampled to {new_rows} x {new_columns}\n"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("of_checkpoint", [True, False])
@pytest.mark.parametrize("size", [(128, 256), (256, 64), (256, 128)])
def test_positions_for_the_networks_own_grid_stay(
    size: tuple[int, int], of_checkpoint: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, _ = with_positions(*size)
    config = {"height": size[0], "width": size[1], "embedding": "pool", "retrieval_feature": "before"}
    checkpoint = {"format": "snnet-checkpoint", "model": state, "config": config}
    torch.save(checkpoint if of_checkpoint else state, tmp_path / "w.pt")
    model = built(VIT, *size, weights=tmp_path / "w.pt")
    assert torch.equal(model.backbone.pos_embed, state["backbone.pos_embed"])
    rows, columns = size[0] // 16, size[1] // 16
    told = (
        f"position embeddings of {rows * columns} patches, taken to be {rows} x {columns} as the network's\n"
    )
    assert (told in capsys.readouterr().out) == (not of_checkpoint and size != (256, 128))


def test_a_size_in_a_checkpoint_that_is_not_that_of_its_positions_does_not_count(tmp_path: Path) -> None:
    state, _ = with_positions(256, 128)
    rest = {"embedding": "pool", "retrieval_feature": "before"}
    sizes = (
        {"height": 4, "width": 2},
        {"height": "256"},
        {"height": torch.zeros(2), "width": 3},
        {"height": "x", "width": "1" * 5000},
    )
    for config in (*({**size, **rest} for size in sizes), []):
        torch.save({"format": "snnet-checkpoint", "model": state, "config": config}, tmp_path / "w.pt")
        model = built(VIT, 256, 128, weights=tmp_path / "w.pt")
        assert torch.equal(model.backbone.pos_embed, state["backbone.pos_embed"])


@pytest.mark.parametrize(
    ("container", "prefix"),
    [
        ("teacher", "backbone."),
        ("teacher", "module.backbone."),
        (None, "base."),
        (None, "module.base."),
        (None, ""),
    ],
)
def test_layout_of_transreid_ssl(container: str | None, prefix: str, tmp_path: Path) -> None:
    source = built(VIT).backbone.state_dict()
    state = {prefix + name: value for name, value in source.items()}
    others = (
        {"head.mlp.0.weight": torch.zeros(2, 2)} if container else {"classifier.weight": torch.zeros(2, 2)}
    )
    content: Any = state | {prefix.partition("b")[0] + name: value for name, value in others.items()}
    if container:
        student = {name: torch.full_like(value, 7) for name, value in content.items()}
        content = {"student": student, container: content, "epoch": 3}
    torch.save(content, tmp_path / "w.pth")
    model = built(VIT, weights=tmp_path / "w.pth")
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, source[name]), name


def test_layouts_that_have_no_place(tmp_path: Path) -> None:
    source = dict(built(VIT).backbone.state_dict())
    for added, message in (
        (
            {"sie_embed": torch.zeros(6, 1, 192)},
            r"has embeddings of the cameras of one dataset \(sie_embed\)",
        ),
        ({"patch_embed.conv.0.weight": torch.zeros(64, 3, 7, 7)}, "with a convolutional stem"),
        (
            {f"part_token{i}": torch.zeros(1, 1, 192) for i in (1, 2, 3)},
            f"of PASS with 3 part tokens, which {VIT} has no place for; needed is --arch {VIT},reg_tokens=3$",
        ),
        ({"pos_embed": torch.zeros(1, 8, 192)}, "1 of another shape: pos_embed .1, 8, 192. for .1, 9, 192."),
    ):
        torch.save(source | added, tmp_path / "w.pth")
        with pytest.raises(UserError, match=f"^weights: .*w.pth.*{message}"):
            built(VIT, weights=tmp_path / "w.pth")
    torch.save(source, tmp_path / "w.pth")
    with pytest.raises(
        UserError, match="this looks like a vision transformer: --arch timm:vit_tiny_patch16_224; keys of"
    ):
        built("osnet_x0_25", weights=tmp_path / "w.pth")


def pass_state() -> dict[str, Tensor]:
    """Random weights of a ViT in the layout of PASS, patches of 64 x 32 pixels."""
    state = dict(built(VIT).backbone.state_dict())
    rng = torch.Generator().manual_seed(2)
    names = (
        "cls_token",
        "part_token1",
        "part_token2",
        "part_token3",
        "cls_pos",
        "part1_pos",
        "part2_pos",
        "part3_pos",
    )
    state |= {name: torch.randn(1, 1, 192, generator=rng) for name in names}
    state["pos_embed"] = torch.randn(1, 8, 192, generator=rng)
    return state


def test_layout_of_pass(tmp_path: Path) -> None:
    state = pass_state()
    torch.save({"teacher": {f"backbone.{name}": value for name, value in state.items()}}, tmp_path / "w.pth")
    model = built(PASS, weights=tmp_path / "w.pth")
    network = model.backbone
    with torch.no_grad():  # as PASS adds its tokens and positions
        x = images()
        tokens = [
            state[name].expand(2, 1, 192) for name in ("cls_token", *(f"part_token{i}" for i in (1, 2, 3)))
        ]
        patches = network.patch_embed(torch.addcmul(model.input_shift, x, model.input_scale))
        positions = [state[name] for name in ("cls_pos", "part1_pos", "part2_pos", "part3_pos", "pos_embed")]
        sequence = torch.cat([*tokens, patches], dim=1) + torch.cat(positions, dim=1)
        expected = network.norm(network.blocks(sequence))[:, 0]
        torch.testing.assert_close(model.retrieve(x), torch.nn.functional.normalize(expected, dim=1))
    del state["part2_pos"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=f"w.pth does not fit {PASS}: 'part2_pos'"):
        built(PASS, weights=tmp_path / "w.pth")


# Of SOLIDER's own code (semantic weight 0.2) with the weights below: every 96th entry of its feature, and its norm.
SOLIDER = [-0.218243, -0.385773, 1.258883, -0.521872, 1.257236, 0.965294, -0.913335, 0.050791]
SOLIDER_NORM = 25.954041


def test_a_run_rebuilds_its_network_without_weights_or_network_access(
    tiny_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        **tiny_options,
        "arch": VIT,
        "epochs": 1,
        "label_start_epoch": 0,
        "output_dir": str(tmp_path / "run"),
    }
    results = train(config_from(options))
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", _other_normalisation)
    trained = load_trained_model(tmp_path / "run", None, {})
    assert (trained.config.model.arch, trained.config.data.height) == (VIT, 32)
    dataset = build_dataset("market1501", tiny_options["data_dir"])
    retrieval = decode_retrieval_set(dataset, trained.config)
    assert retrieval is not None
    features = retrieval_features(trained, retrieval)
    assert rank_gallery(*features, retrieval, "step").mAP == pytest.approx(results["after"]["mAP"], abs=1e-9)
    lines = export(
        ExportCommand.parse(
            ["--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "w.safetensors")]
        )
    )
    assert f"load it with --arch {VIT} --embedding pool" in lines[1]
    again = build_model(VIT, height=32, width=16, weights=tmp_path / "w.safetensors").eval()
    with torch.no_grad():
        torch.testing.assert_close(again.retrieve(images(32, 16)), trained.model.retrieve(images(32, 16)))


def _other_normalisation(name: str) -> Any:
    """What a later timm might have by the same name."""
    return timm.models.PretrainedCfg(fixed_input_size=True) if hasattr(timm.models, "PretrainedCfg") else None


def solider_state() -> dict[str, Tensor]:
    """Random weights of SOLIDER's Swin-Tiny by its names."""
    rng = np.random.default_rng(0)
    state: dict[str, Tensor] = {}

    def add(name: str, *shape: int, around: float = 0.0) -> None:
        drawn = rng.standard_normal(shape, dtype=np.float32)
        state[name] = torch.from_numpy(around + (0.1 if len(shape) == 1 else 0.05) * drawn)

    def norm(name: str, size: int) -> None:
        add(f"{name}.weight", size, around=1.0)
        add(f"{name}.bias", size)

    def linear(name: str, out: int, size: int) -> None:
        add(f"{name}.weight", out, size)
        add(f"{name}.bias", out)

    add("patch_embed.projection.weight", 96, 3, 4, 4)
    add("patch_embed.projection.bias", 96)
    norm("patch_embed.norm", 96)
    for stage, (depth, heads) in enumerate(((2, 3), (2, 6), (6, 12), (2, 24))):
        d = 96 << stage
        for block in range(depth):
            at = f"stages.{stage}.blocks.{block}"
            norm(f"{at}.norm1", d)
            add(f"{at}.attn.w_msa.relative_position_bias_table", 169, heads)
            state[f"{at}.attn.w_msa.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
            linear(f"{at}.attn.w_msa.qkv", 3 * d, d)
            linear(f"{at}.attn.w_msa.proj", d, d)
            norm(f"{at}.norm2", d)
            linear(f"{at}.ffn.layers.0.0", 4 * d, d)
            linear(f"{at}.ffn.layers.1", d, 4 * d)
        if stage < 3:
            norm(f"stages.{stage}.downsample.norm", 4 * d)
            add(f"stages.{stage}.downsample.reduction.weight", 2 * d, 4 * d)
        norm(f"norm{stage}", d)
        for kind in "wb":
            linear(f"semantic_embed_{kind}.{stage}", min(2 * d, 768), 2)
    return state


@pytest.mark.parametrize("container", ["teacher", None])
def test_layout_of_solider(container: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {f"backbone.{name}": value for name, value in solider_state().items()}
    torch.save({container: state} if container else state, tmp_path / "w.pth")
    arch = f"{SWIN},always_partition=True"
    model = built(arch, 224, 224, weights=tmp_path / "w.pth")
    assert "SOLIDER's semantic weight is set to 0.2\n" in capsys.readouterr().out
    values = np.sin(np.arange(3 * 224 * 224, dtype=np.float32)).reshape(1, 3, 224, 224)
    with torch.no_grad():
        feature = model.backbone(torch.from_numpy(values))[0]
    np.testing.assert_allclose(feature[::96].numpy(), SOLIDER, rtol=0, atol=1e-4)
    assert float(feature.norm()) == pytest.approx(SOLIDER_NORM, abs=1e-3)
