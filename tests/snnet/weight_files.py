"""Networks and states of which the tests write files of weights, and an object that would run code."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from snnet.models import ReIDModel

ARCH = "osnet_x0_25"


def filled(arch: str = ARCH, embedding: str = "fc") -> ReIDModel:
    """A model whose every value differs from a fresh one's."""
    torch.manual_seed(7)
    model = ReIDModel(arch, embedding)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model


def torchreid_state(model: ReIDModel) -> dict[str, Tensor]:
    state = OrderedDict(model.backbone.state_dict())
    state["classifier.weight"], state["classifier.bias"] = torch.zeros(751, 512), torch.zeros(751)
    return state


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)
