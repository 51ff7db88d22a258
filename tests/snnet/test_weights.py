"""Reading weights: every format, and the names that files give them."""

from __future__ import annotations

import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from snnet.config.options import config_from
from snnet.errors import UserError
from snnet.models import ReIDModel, build_model
from snnet.models.weights import read_state_dict
from snnet.runtime import network_of
from tests.snnet.weight_files import ARCH, Malicious, assert_equal, filled, torchreid_state


@pytest.mark.parametrize("form", ["bare", "state_dict", "model", "module", "legacy", "safetensors"])
def test_torchreid_file_round_trip(tmp_path: Path, form: str) -> None:
    source = filled()
    state = torchreid_state(source)
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth.tar")
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    elif form == "module":
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    elif form in ("state_dict", "model"):
        torch.save({"epoch": 3, form: state}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "bare")
    model = build_model(ARCH, embedding="fc", weights=str(path))
    assert_equal(model.state_dict(), source.state_dict())
    assert model.pretrained


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(("arch", "embedding"), [(ARCH, "pool"), (ARCH, "fc"), ("osnet_ain_x0_25", "pool")])
def test_own_file_round_trip(tmp_path: Path, suffix: str, arch: str, embedding: str) -> None:
    source, path = filled(arch, embedding), tmp_path / f"own{suffix}"
    if suffix == ".pt":
        torch.save({"model": source.state_dict(), "epoch": 4}, path)
    else:
        safetensors.torch.save_file(source.state_dict(), path)
    model = build_model(arch, embedding=embedding, weights=path)
    assert_equal(model.state_dict(), source.state_dict())
    assert [group["lr"] for group in model.parameter_groups(0.1, 0.25)] == [0.025] * (
        1 + (embedding == "pool")
    )


def test_pool_leaves_the_published_head_out(tmp_path: Path) -> None:
    source, path = filled(), tmp_path / "torchreid.pth"
    torch.save(torchreid_state(source), path)
    model = build_model(ARCH, weights=str(path))
    kept = {name: value for name, value in source.backbone.state_dict().items() if not name.startswith("fc.")}
    assert_equal(model.backbone.state_dict(), kept)
    assert torch.equal(model.neck.weight, torch.ones(128))
    backbone, neck = model.parameter_groups(0.1, 0.25)
    assert (backbone["lr"], neck["lr"]) == (0.025, 0.1)
    assert len(neck["params"]) == 2
    assert len(backbone["params"]) + 2 == len(list(model.parameters()))


@pytest.mark.parametrize("own", [False, True])
def test_a_layer_fc_that_is_left_out_is_named(
    own: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, source = tmp_path / "w.pth", filled()
    torch.save({"model": source.state_dict()} if own else torchreid_state(source), path)
    build_model(ARCH, weights=path)
    assert capsys.readouterr().out == (
        f"weights of {path}: its layer fc is left out (--embedding fc keeps it)\n"
    )
    build_model(ARCH, embedding="fc", weights=path)
    # The fc of a ResNet is its classifier.
    resnet = dict(filled("resnet18", "pool").backbone.state_dict())
    torch.save({**resnet, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, path)
    build_model("resnet18", weights=path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_settings_other_than_those_of_the_files_network_are_a_warning(suffix: str, tmp_path: Path) -> None:
    path, state = tmp_path / f"w{suffix}", filled().state_dict()
    settings = {"embedding": "fc", "height": 128, "width": 64, "retrieval_feature": "before"}

    def write(values: dict[str, Any]) -> None:
        if suffix == ".pt":
            torch.save({"model": state, "config": values}, path)
        else:
            safetensors.torch.save_file(state, path, {name: str(value) for name, value in values.items()})

    def warned(**values: object) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            network_of(config_from({"arch": ARCH, **settings, **values}), str(path))
        return [str(warning.message) for warning in caught]

    write(settings)
    assert warned() == []
    assert warned(embedding="pool", height=256, retrieval_feature="after") == [
        f"weights of {path} are of a network with --embedding fc --height 128 --retrieval-feature before, and are "
        "used with --embedding pool --height 256 --retrieval-feature after: features and ranks differ"
    ]
    write({"height": 128, "width": 64})  # another program's
    assert warned(height=256) == []


def test_own_fc_file_serves_pool(tmp_path: Path) -> None:
    source, path = filled(), tmp_path / "own.pt"
    torch.save({"model": source.state_dict()}, path)
    model = build_model(ARCH, weights=str(path))
    assert torch.equal(model.backbone.conv5.conv.weight, source.backbone.conv5.conv.weight)
    assert torch.equal(model.neck.running_var, torch.ones(128))
    assert not model.neck_pretrained


def test_counters_may_be_absent_and_half_precision_is_read(tmp_path: Path) -> None:
    source, path = filled(), tmp_path / "old.pth"
    state = {
        name: value.half()
        for name, value in source.backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert len(state) == 485
    torch.save(state, path)
    model = build_model(ARCH, embedding="fc", weights=str(path))
    weight = model.backbone.conv1.conv.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, source.backbone.conv1.conv.weight.half().float())


# Files of older numpy name its old module; the name can be changed in place in the legacy format.
@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_numpy_values_beside_the_weights_are_dropped(tmp_path: Path, module: bytes) -> None:
    source, path = filled(), tmp_path / "model.pth.tar-60"
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1)
    content = {
        "state_dict": torchreid_state(source),
        "epoch": 60,
        "rank1": np.float64(0.75),
        "cmc": np.arange(3.0),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"cnumpy._core.multiarray\nscalar\n" in data
    path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"c" + module + b"\n"))
    allowed = set(torch.serialization.get_safe_globals())
    model = build_model(ARCH, embedding="fc", weights=str(path))
    assert_equal(model.state_dict(), source.state_dict())
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(
        UserError, match=r"of resnet18 could not be had.*no route.*download https://\S+ where"
    ) as error:
        build_model("resnet18", weights="imagenet")
    assert "\n" not in str(error.value)
    with pytest.raises(
        UserError,
        match=r"^--weights: its default, imagenet, has no weights of osnet_x0_25: give torchreid's file",
    ):
        build_model(ARCH, weights="imagenet")
    # A file that torchvision has downloaded before is used without a network.
    source = filled("resnet18", "pool")
    state = dict(source.backbone.state_dict())
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 512), torch.zeros(1000)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(state, cache / "resnet18-f37072fd.pth")
    model = build_model("resnet18", weights="imagenet")
    assert_equal(model.backbone.state_dict(), source.backbone.state_dict())
    backbone, neck = model.parameter_groups(0.1, 0.1)
    assert backbone["lr"] == pytest.approx(0.01) and neck["lr"] == 0.1
    # The cached file may not run code either.
    torch.save(Malicious(tmp_path / "ran"), cache / "resnet18-f37072fd.pth")
    with pytest.raises(UserError, match="could not be had"):
        build_model("resnet18", weights="imagenet")
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_plain_tensors_only(tmp_path: Path) -> None:
    path = tmp_path / "sparse.pth"
    torch.save({"conv1.conv.weight": torch.eye(3).to_sparse()}, path)
    with pytest.raises(UserError, match="no plain dense tensor"):
        read_state_dict(str(path))


def test_state_is_returned_by_name(tmp_path: Path) -> None:
    path = tmp_path / "two.pth"
    torch.save({"model": {"module.a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}}, path)
    state = read_state_dict(str(path))
    assert list(state) == ["a", "b"]
    assert state["a"].tolist() == [1.0, 2.0] and state["b"].item() == 3


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
        ("state_dict_ema", "module.", {}),
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


def test_names_that_wrappers_put_between_parts_are_taken_off(tmp_path: Path) -> None:
    """torch.compile and FSDP of a layer, activation checkpoints, the averages of torch.optim.swa_utils."""
    source = filled().backbone.state_dict()
    layers = {
        "conv1.": "_fsdp_wrapped_module.",
        "conv2.": "_orig_mod.",
        "conv3.": "_checkpoint_wrapped_module.",
    }
    wrapped = {"n_averaged": torch.tensor(3)}
    for name, value in source.items():
        layer, _, rest = name.partition(".")
        wrapped[f"module._fsdp_wrapped_module.{layer}.{layers.get(layer + '.', '')}{rest}"] = value
    torch.save(wrapped, tmp_path / "w.pth")
    assert_equal(read_state_dict(str(tmp_path / "w.pth")), dict(source))


def test_two_weights_of_one_name_are_both_seen(tmp_path: Path) -> None:
    state = dict(filled().backbone.state_dict())
    state["module.conv1.conv.weight"] = torch.zeros(16, 3, 7, 7)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"; 1 unexpected: module\.conv1\.conv\.weight$"):
        build_model(ARCH, embedding="fc", weights=tmp_path / "w.pth")


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
    from snnet.models.weight_names import recognised

    with torch.device("meta"):
        for arch in (
            "resnet34",
            "resnet50",
            "resnet101",
            "resnet152",
            "osnet_x0_75",
            "osnet_x1_0",
            "osnet_ain_x1_0",
            "osnet_ibn_x1_0",
        ):
            found = recognised(ReIDModel(arch).backbone.state_dict())
            assert found is not None and found.arch == arch
        resnet = ReIDModel("resnet50").backbone.state_dict()
        grouped = recognised({**resnet, "layer1.0.conv2.weight": torch.zeros(128, 4, 3, 3)})
        ibn = recognised({**resnet, "layer1.0.bn1.IN.weight": torch.zeros(32)})
        clip = recognised({**resnet, "attnpool.positional_embedding": torch.zeros(50, 2048)})
    assert grouped is not None and ibn is not None and clip is not None
    assert (grouped.title, grouped.advice) == ("a wide or grouped ResNet", "this package has none")
    assert (ibn.title, ibn.arch) == ("a ResNet-IBN", None)
    assert (clip.title, clip.advice) == ("the ResNet of CLIP", "this package has none")
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


def test_values_that_are_no_weights(tmp_path: Path) -> None:
    state = dict(filled().backbone.state_dict())
    for value, message in (
        (torch.zeros(16, 3, 7, 7, dtype=torch.int64), "has values of torch.int64, needed are floating-point"),
        (torch.zeros(16, 3, 7, 7, dtype=torch.complex64), "has values of torch.complex64"),
        (torch.zeros(16, 3, 7, 7, device="meta"), "is no plain dense tensor"),
        (
            torch.quantize_per_tensor(torch.zeros(16, 3, 7, 7), 0.1, 0, torch.qint8),
            "is no plain dense tensor",
        ),
        ("text", "is no tensor but a str"),
    ):
        torch.save({**state, "conv1.conv.weight": value}, tmp_path / "w.pth")
        with pytest.raises(UserError, match=f"'conv1.conv.weight' in .*w.pth {message}"):
            build_model(ARCH, embedding="fc", weights=tmp_path / "w.pth")
