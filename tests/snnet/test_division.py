"""How a batch is divided over processes and groups of batch normalisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from snnet.config.options import Config, config_from
from snnet.errors import UserError
from snnet.models import build_model
from snnet.models.grouped_norm import GroupedBatchNorm
from snnet.system.processes import Processes
from snnet.training.division import check_division, divide_batch_norm, with_groups


def config(**values: Any) -> Config:
    return config_from({"arch": "osnet_x0_25", "batch_size": 12, **values})


@pytest.mark.parametrize(
    ("count", "values", "line"),
    [
        (5, {}, "--batch-size 12 is shared by 5 processes: it must be a multiple of 5, 2 images each or more"),
        (12, {}, "--batch-size 12 is shared by 12 processes: it must be a multiple of 12, 2 images each or more"),
        (3, {"bn_groups": 2}, "--bn-groups 2 is of the whole batch, for 3 processes: it must be a multiple of 3"),
        (1, {"bn_groups": 5}, "--bn-groups 5 must cut --batch-size 12 into equal parts of 2 or more"),
        (1, {"bn_groups": 2, "sync_bn": True}, "--sync-bn contradicts --bn-groups 2: one joins what the other parts"),
        (2, {"neighbors": 0}, "--neighbors 0 is for one process: several find labels by neighbour lists"),
    ],
)  # fmt: skip
def test_what_cannot_be_divided_is_refused(count: int, values: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        check_division(config(**values), Processes(0, count), resumed=False)
    assert str(caught.value) == line


def test_batch_norm_has_a_group_for_each_process_from_the_beginning() -> None:
    begun = [with_groups(config(bn_groups=groups), Processes(1, 3)).training.bn_groups for groups in (1, 6)]
    assert begun == [3, 6]
    assert with_groups(config(), Processes()).training.bn_groups == 1
    assert with_groups(config(sync_bn=True), Processes(0, 2)).training.bn_groups == 1
    check_division(config(bn_groups=4), Processes(0, 3), resumed=True)


@pytest.mark.parametrize(("groups", "count", "own"), [(1, 2, 0), (2, 2, 0), (6, 2, 3), (6, 1, 6), (4, 3, 0)])
def test_a_process_takes_its_part_of_the_groups(
    groups: int, count: int, own: int, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model("osnet_x0_25")
    given = config(bn_groups=groups)
    found = divide_batch_norm(model, given, Processes(0, count), torch.device("cpu"), None)
    assert {m.groups for m in found.modules() if isinstance(m, GroupedBatchNorm)} == ({own} if own else set())
    line = f"batch normalisation treats {count} parts of a batch separately; the run began with {groups}\n"
    assert capsys.readouterr().out == (line if groups % count else "")


def test_batch_norm_of_all_processes_together_keeps_the_activations_of_timm() -> None:
    pytest.importorskip("timm", reason="needs the extra 'timm'")
    model = build_model("timm:mobilenetv3_small_050", height=32, width=32).eval()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    found = divide_batch_norm(model, config(sync_bn=True), Processes(0, 2), torch.device("cuda"), None)
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in found.modules())
    torch.testing.assert_close(found.eval()(images), expected)


def test_batch_norm_of_all_processes_together_needs_gpus() -> None:
    model = build_model("osnet_x0_25")
    with pytest.raises(
        UserError, match=r"^--sync-bn needs GPUs, one a process: torch has it for these alone$"
    ):
        divide_batch_norm(model, config(sync_bn=True), Processes(0, 2), torch.device("cpu"), None)
    assert divide_batch_norm(model, config(sync_bn=True), Processes(), torch.device("cpu"), None) is model
    names = list(model.state_dict())
    found = divide_batch_norm(model, config(sync_bn=True), Processes(0, 2), torch.device("cuda"), None)
    assert list(found.state_dict()) == names
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in found.modules()) == 80
