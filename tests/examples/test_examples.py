"""The examples run, and their fused and un-fused forms agree."""

from __future__ import annotations

import re
import runpy

import pytest
import torch

from snnet_kernels.distributed import whole_state
from tests.forks import TRAINING, python, run_processes
from tests.paths import ROOT
from tests.snnet.tiny_run import draw_market


@pytest.mark.parametrize(
    ("name", "comparisons"), [("mmcl_trainer", 1), ("snnet_loop", 1), ("cluster_trainer", 2)]
)
def test_example(name, comparisons):
    script = str(ROOT / "examples" / f"{name}.py")
    answer = python(script, "--images", "96", "--epochs", "2", "--device", "cpu", imports=TRAINING)
    assert answer.returncode == 0, answer.stderr[-3000:]
    losses = [float(loss) for loss in re.findall(r"^epoch \d: loss (\d+\.\d+)", answer.stdout, re.MULTILINE)]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)
    assert len(re.findall(r"un-fused: \d+\.\d times as fast", answer.stdout)) == comparisons
    pairs = re.findall(r"the same results: (\S+) and (\S+)", answer.stdout)
    assert len(pairs) == comparisons
    for fused, unfused in pairs:
        assert float(fused) == pytest.approx(float(unfused), rel=1e-5)


@pytest.mark.parametrize("name", ["mmcl_trainer", "snnet_loop", "cluster_trainer", "distributed_loop"])
def test_fewer_images_than_a_batch_are_refused(name, monkeypatch, capsys):
    script = ROOT / "examples" / f"{name}.py"
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr("sys.argv", [str(script), "--images", "31", "--device", "cpu"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().err.endswith("error: --images must be at least 32, a batch, got 31\n")


def test_a_speed_up_of_a_single_step_is_told(capsys):
    speed_up = runpy.run_path(str(ROOT / "examples" / "speed.py"))["speed_up"]
    assert speed_up("one", lambda value: value, lambda value: value, [(2.0,)]) > 0
    assert "the same results: 2.000000 and 2.000000" in capsys.readouterr().out


def test_distributed_loop(tmp_path):
    """Two processes print what one prints, in its place, and leave the pieces of one head."""
    script = str(ROOT / "examples" / "distributed_loop.py")
    words = ["--images", "96", "--epochs", "2", "--warm-up", "1", "--device", "cpu"]
    first, second = run_processes(2, script, *words, hook=f"import os; os.chdir({str(tmp_path)!r})")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    losses = re.findall(r"^epoch \d: loss (\d+\.\d+)", first.stdout, re.MULTILINE)
    assert len(losses) == 2 and all(0 < float(loss) < 20 for loss in losses) and second.stdout == ""
    pieces = [torch.load(tmp_path / f"head-{rank}.pt") for rank in range(2)]
    assert whole_state(pieces)["memory.features"].shape == (96, 128)


def test_a_number_of_processes_that_does_not_divide_the_batch_is_refused(monkeypatch):
    script = ROOT / "examples" / "distributed_loop.py"
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr("sys.argv", [str(script), "--device", "cpu"])
    for name, value in (("init_process_group", None), ("get_rank", 0), ("get_world_size", 3)):
        monkeypatch.setattr(torch.distributed, name, lambda *_, value=value: value)
    with pytest.raises(
        SystemExit, match=r"^the number of processes must divide the batch of 32 images, got 3$"
    ):
        runpy.run_path(str(script))


def test_the_help_of_cluster_contrast_has_every_default(capsys):
    pytest.importorskip("sklearn")
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "examples" / "cluster_contrast.py"))["main"](["--help"])
    told = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "--arch ARCH default: osnet_x0_25" in told and "--lr LR default: 0.00035" in told
    assert told.count("default: ") == 18


def test_cluster_contrast(tmp_path, capsys):
    """On 48 images of 8 identities, some epochs of a small network, with both forms of the memory."""
    pytest.importorskip("sklearn")
    flags = {
        "dataset": "market1501", "data-dir": draw_market(tmp_path / "tiny"), "height": 32, "width": 16, "batch": 16,
        "epochs": 2, "iterations": 4, "k1": 6, "k2": 2, "device": "cpu", "lr": 0.0005,
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    main = runpy.run_path(str(ROOT / "examples" / "cluster_contrast.py"))["main"]
    printed = []
    for more in ([], ["--hard"]):
        main(words + more)
        printed.append(capsys.readouterr().out.splitlines())
    mean, hard = (re.sub("loss .*", "", lines[0]) for lines in printed)
    assert mean == hard and printed[0][0] != printed[1][0]  # the same clusters, another memory
    for lines in printed:
        for line in lines[:-1]:
            epoch = re.fullmatch(
                r"epoch \d: (\d+) clusters, (\d+) of 48 images in none, loss (\d+\.\d+)", line
            )
            clusters, alone, loss = (float(number) for number in epoch.groups())
            assert 4 <= clusters <= (48 - alone) / 4 and 0 < loss < 20
        assert len(lines) == 3 and re.fullmatch(r"rank-1 \d+\.\d%, mAP \d+\.\d%", lines[-1])
