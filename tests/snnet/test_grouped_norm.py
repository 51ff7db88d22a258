"""Batch normalisation of parts of a batch apart is that of several processes."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch import Tensor

from snnet.errors import UserError
from snnet.models import ReIDModel, build_model
from snnet.models.grouped_norm import GroupedBatchNorm, group_batch_norms

TIMM = importlib.util.find_spec("timm") is not None


def gradient(model: ReIDModel) -> Tensor:
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([part.flatten() for part in found])


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 32, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("arch", "embedding", "layers"),
    [
        ("osnet_x0_25", "pool", 80),
        ("osnet_ain_x0_25", "fc", 75),
        # Its layers have the activation too.
        pytest.param(
            "timm:mobilenetv3_small_050", "pool", 35, marks=pytest.mark.skipif(not TIMM, reason="no timm")
        ),
    ],
)
def test_parts_apart_are_what_processes_compute(
    arch: str, embedding: str, layers: int, images: Tensor
) -> None:
    torch.manual_seed(0)
    whole = build_model(arch, embedding=embedding, height=32, width=16)
    together, *shares = [copy.deepcopy(whole) for _ in range(4)]
    names = list(whole.state_dict())
    group_batch_norms(whole, 3)
    assert sum(isinstance(module, GroupedBatchNorm) for module in whole.modules()) == layers
    assert list(whole.state_dict()) == names

    weights = torch.randn(6, whole.feature_dim, generator=torch.Generator().manual_seed(1))
    features = whole(images)
    (features * weights).sum().backward()
    (together(images) * weights).sum().backward()
    apart = [model(part) for model, part in zip(shares, images.chunk(3), strict=True)]
    assert torch.allclose(features, torch.cat(apart), atol=1e-6, rtol=0)
    (torch.cat(apart) * weights).sum().backward()
    own, other = gradient(whole), sum(map(gradient, shares))
    assert float((own - other).norm() / own.norm()) < 1e-3  # near-zero variances magnify rounding
    assert float((own - gradient(together)).norm() / own.norm()) > 0.1
    # The running statistics are those of the first part.
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, shares[0].state_dict()[name], atol=1e-5), name
    whole.eval()
    shares[0].eval()
    assert torch.allclose(whole(images[:5]), shares[0](images[:5]), atol=1e-5)


def test_one_group_changes_nothing() -> None:
    model = build_model("osnet_x0_25")
    group_batch_norms(model, 1)
    assert not any(isinstance(module, GroupedBatchNorm) for module in model.modules())


def test_a_batch_without_equal_parts_is_an_error(images: Tensor) -> None:
    model = build_model("osnet_x0_25")
    group_batch_norms(model, 4)
    with pytest.raises(
        UserError,
        match=r"^a batch of 6 has no 4 equal parts: --batch-size must be a multiple of --bn-groups$",
    ):
        model(images)


def test_a_state_dict_goes_either_way(images: Tensor) -> None:
    torch.manual_seed(0)
    plain, grouped = build_model("osnet_x0_25"), build_model("osnet_x0_25")
    group_batch_norms(grouped, 2)
    grouped.load_state_dict(plain.state_dict())
    grouped.train()(images)
    plain.load_state_dict(grouped.state_dict())
    assert torch.equal(plain.eval()(images), grouped.eval()(images))
