"""Training over several processes is that of one, and goes on in any number of them."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from snnet.config.options import config_from
from snnet.config.resolve import load_yaml
from snnet.train import train
from snnet.training.pieces import load_whole_checkpoint
from snnet_kernels import PseudoLabelMemory
from tests.forks import TRAINING, python, run_processes
from tests.snnet.tiny_run import GONE, SILENT, command_line, draw_market, records, without_cause

# Kill rank 1 at the end of the second epoch that it does, or at that of the last one, before the checkpoint.
KILL = """
import os, snnet.training.learner as learner
shared, epochs, killed_at = learner.Learner.share_statistics, [0], 2
def killed(self):
    shared(self)
    epochs[0] += 1
    if epochs[0] == killed_at and int(os.environ["RANK"]) == 1:
        os.kill(os.getpid(), 9)
learner.Learner.share_statistics = killed
"""


def ended(*_: Any) -> bool:
    """Measures no epoch, and ends the process."""
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def options(tiny_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of 96 images in steps of 48, whose learning rate lets no rounding grow."""
    data = draw_market(tmp_path_factory.mktemp("data") / "more", identities=16)
    return {
        **tiny_options, "data_dir": str(data), "batch_size": 48, "bn_groups": 6, "epochs": 3, "lr": 1e-7,
        "threshold": 0.3, "min_rank": 5, "rerank": True,
    }  # fmt: skip


def labels(checkpoint: dict[str, Any]) -> set[tuple[int, int]]:
    head = checkpoint["head"]
    memory = PseudoLabelMemory(len(head["memory.features"]))
    own = "pseudo_labels."
    memory.load_state_dict({k[len(own) :]: v for k, v in head.items() if k.startswith(own)})
    row, column = memory.pairs(0, memory.num_instances)
    return set(zip(row.tolist(), column.tolist(), strict=True))


def test_processes_equal_one_with_groups_through_kills_and_other_numbers_of_them(
    options: dict[str, Any], tmp_path: Path
) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    train(config_from({**options, "output_dir": str(one)}))

    # One process is ended behind the first checkpoint.
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("snnet.train.measure", ended)
        train(config_from({**options, "output_dir": str(several)}))

    # Three go on from it, until one of them is killed.
    three = run_processes(3, "-m", "snnet.train", "--resume", str(several), hook=KILL)
    three = [without_cause(answer) for answer in three]
    assert [answer.returncode for answer in three] == [1, -9, 1]
    assert "1 of 3 epochs done, on cpu, float32, channels-last, 3 processes\n" in three[0].stdout
    assert (three[0].stderr, three[2].stderr, three[2].stdout) == (GONE, f"rank 2: {GONE}", "")
    assert sorted(path.name for path in several.glob("checkpoint*")) == [
        *(f"checkpoint-2-{rank}-of-3.safetensors" for rank in range(3)), "checkpoint.pt"
    ]  # fmt: skip

    # Two, of a real torchrun; one is killed, which starts both again, and they come to the end.
    (tmp_path / "trainer.py").write_text(
        f"import os\nif os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':{textwrap.indent(KILL, '    ')}\n"
        "    killed_at = 1\nimport sys; from snnet.config.commands import TrainCommand; from snnet.train import main\n"
        "main(TrainCommand.parse(sys.argv[1:]))\n"
    )
    two = python(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1",
        str(tmp_path / "trainer.py"), "--resume", str(several),
        imports=TRAINING,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("2 of 3 epochs done, on cpu, float32, channels-last, 2 processes\n") == 2
    assert two.stderr.count("exitcode: -9") == 1
    assert sorted(path.name for path in several.glob("checkpoint*")) == [  # the second one of 3 epochs
        "checkpoint-3-0-of-2-2.safetensors", "checkpoint-3-1-of-2-2.safetensors", "checkpoint.pt"
    ]  # fmt: skip
    assert load_yaml(several / "config.yaml")["bn_groups"] == 6
    wanted, found = ((records(folder), load_whole_checkpoint(folder)) for folder in (one, several))
    same, other = labels(found[1]), labels(wanted[1])
    assert len(other) > 200 and len(same ^ other) < 5  # features differ by rounding
    for own, other in zip(found[0], wanted[0], strict=True):
        assert own == pytest.approx(other, abs=2e-4)
    memories = [state["head"]["memory.features"] for _, state in (wanted, found)]
    torch.testing.assert_close(*memories, atol=2e-3, rtol=0)
    momenta = [
        torch.cat([entry["momentum_buffer"].flatten() for entry in state["optimizer"]["state"].values()])
        for _, state in (wanted, found)
    ]
    assert float((momenta[0] - momenta[1]).norm() / momenta[0].norm()) < 1e-2


def test_a_process_that_is_silent_for_the_timeout_ends_the_others(
    options: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    silent = """
if rank == 1:
    import time
    from snnet.training import learner
    learner.Learner.share_statistics = lambda self: time.sleep(6)
"""
    words = command_line(
        {**options, "epochs": 1, "label_start_epoch": 0, "output_dir": str(folder), "quiet": True}
    )
    first, second = run_processes(2, "-m", "snnet.train", *words, "--timeout", "3", hook=silent)
    first, second = without_cause(first), without_cause(second)
    assert first == (1, "", SILENT)
    assert (second.returncode, second.stdout, second.stderr) == (1, "", f"rank 1: {GONE}")
    assert not (folder / "checkpoint.pt").exists() and not (folder / "run.lock").exists()


def test_an_error_of_one_rank_is_told_once_and_ends_all(options: dict[str, Any], tmp_path: Path) -> None:
    diverging = """
if rank == 1:
    from snnet_kernels.distributed.head import ShardedHead
    whole = ShardedHead.forward
    ShardedHead.forward = lambda self, features, index: whole(self, features, index) * float("nan")
"""
    words = command_line(
        {**options, "epochs": 1, "label_start_epoch": 0, "output_dir": str(tmp_path / "run")}
    )
    first, second = run_processes(2, "-m", "snnet.train", *words, "--quiet", hook=diverging)
    assert without_cause(first) == (1, "", GONE)
    assert second == (
        2,
        "",
        "rank 1: error: the loss is not finite at step 0 of epoch 0: training stopped; a checkpoint written before is "
        "intact (a lower --lr may help)\n",
    )
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
