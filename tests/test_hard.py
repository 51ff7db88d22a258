"""Each attack of ``make test-hard`` at a size of seconds, and that the attacks see what they look for."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels import backends
from tests.hard import files, fuzz, hostile, isolation, kills, signals, two_runs, walks
from tests.hard.damage import damaged
from tests.hard.drawing import close, instruction_sets
from tests.hard.formats import Format, feature_files
from tests.hard.isolation import outcomes
from tests.hard.runs import Unbroken
from tests.hard.share import Share
from tests.hard.tally import Tally
from tests.hard.walk import STEPS


def share(folder: Path, scale: float) -> Share:
    return Share(seed=0, scale=scale, part=0, parts=1, folder=folder)


@pytest.fixture(autouse=True)
def one_instruction_set() -> Iterator[None]:
    """The attacks go from one to the next."""
    before = backends.instruction_set() if instruction_sets() else None
    yield
    if before is not None:
        backends.select_instruction_set(before)


@pytest.mark.parametrize(
    ("attack", "scale", "calls"),
    [(hostile.hostile, 1e-3, 80), (hostile.aliased, 1e-3, 20), (walks.attack, 4e-3, 80)],
)
def test_attacks_on_the_kernels(
    attack: Callable[[Share], Tally], scale: float, calls: int, tmp_path: Path
) -> None:
    tally = attack(share(tmp_path, scale))
    assert calls <= sum(tally.tries.values()) < calls + STEPS
    assert tally.failures == {}


def test_valid_calls_are_right(tmp_path: Path) -> None:
    tally = fuzz.attack(share(tmp_path, 1e-4))
    assert sum(count for kind, count in tally.tries.items() if not fuzz.is_no_call(kind)) >= 88
    assert tally.failures == {}


def test_a_wrong_label_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mplp = sk.mplp

    def wrong(*arguments: object, **options: object) -> torch.Tensor:
        labels = mplp(*arguments, **options)  # type: ignore[arg-type]
        labels[:1, 0] ^= 1
        return labels

    monkeypatch.setattr(sk, "mplp", wrong)
    tally = fuzz.attack(share(tmp_path, 1e-4))
    assert set(tally.failures) == {"valid mplp"}


def test_damaged_files_are_counted(tmp_path: Path) -> None:
    formats = feature_files(tmp_path)
    tally = Tally()
    files.damage_all(share(tmp_path, 0.004), formats, tally)
    assert sum(tally.tries.values()) == 12
    assert set(tally.tries) == {f"damaged {format.name}" for format in formats}
    assert tally.failures == {}


def test_content_that_is_not_what_was_written_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)))
    unchecked = Format("unchecked", path, path.read_bytes, "checked")
    tally = Tally()
    files.damage_all(share(tmp_path, 0.002), [unchecked], tally)
    assert tally.failures == {"damaged unchecked": 6}
    assert path.read_bytes() == bytes(range(256))


def test_what_a_try_may_not_do() -> None:
    def ends() -> str:
        import os

        os._exit(3)

    def raises() -> str:
        raise KeyError("key")

    found = list(outcomes([lambda: "read", ends, raises, lambda: "read"]))
    assert [word for word, _, _ in found] == ["read", "failure", "failure", "read"]
    assert found[2][1].startswith("KeyError 'key' in test_hard.py")
    assert found[2][2].splitlines()[-2:] == ['    raise KeyError("key")', "KeyError: 'key'"]


def test_a_try_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "ENDLESS_SECONDS", 0.05)
    monkeypatch.setattr(isolation, "IDLE_SECONDS", 0.2)

    def works() -> str:
        while True:
            pass

    def waits() -> str:
        signal.pause()
        return "read"

    found = list(outcomes([works, waits, lambda: "read"]))
    assert [text for _, text, _ in found] == ["took more than 0.05 s of CPU time", "hung for 0.2 s", ""]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    return Unbroken(tmp_path_factory.mktemp("unbroken"))


def test_a_kill_and_a_signal(unbroken: Unbroken, tmp_path: Path) -> None:
    tally = Tally()
    kills.at_operations(share(tmp_path, 1e-3), unbroken, tally)
    signals.while_training(
        tmp_path, unbroken, share(tmp_path, 1).random(7), signal.SIGINT, False, tally, "", 2
    )
    assert tally.tries == {"kill at a file operation": 1, "signal to a training with no workers": 1}
    assert tally.failures == {}


@pytest.mark.parametrize("command", ["training", "evaluation"])
def test_a_command_that_is_deaf_to_a_signal_is_seen(
    command: str, unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a signal meets after its end is none."""
    attack = signals.while_training if command == "training" else signals.while_working
    deaf = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    start = signals.start_command
    monkeypatch.setattr(signals, "start_command", lambda *words: start(*words[:3], deaf + "".join(words[3:])))
    for moment, (failures, notes) in {0.02: (1, 0), 1e3: (0, 1)}.items():
        tally, random = Tally(), SimpleNamespace(uniform=lambda *_, moment=moment: moment)
        attack(tmp_path, unbroken, random, signal.SIGINT, False, tally, "", 0)  # type: ignore[arg-type]
        assert sum(tally.failures.values()) == failures and sum(tally.notes.values()) == notes
        assert all(
            problem.startswith("went on to its end") for said in tally.words.values() for problem in said
        )


def test_a_failure_is_told_when_it_happens_with_what_was_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr(Tally, "told", told)
    tally = Tally()
    for output in ("one\ntwo", "another"):
        tally.failed("signal", "exit -2, not 130", "seed 0 signal 15", output)
    assert told.getvalue() == "FAILED signal: exit -2, not 130\n  seed 0 signal 15\n  one\n  two\n"
    assert tally.table().splitlines()[-1] == "signal: 2 x exit -2, not 130 (seed 0 signal 15)"


def test_two_writers_of_one_checkpoint(tmp_path: Path) -> None:
    tally = Tally()
    two_runs.two_writers(share(tmp_path, 0.005), tally)
    assert tally.tries == {"checkpoint that two processes write": 10}
    assert tally.failures == {}


def test_every_way_of_damage_changes_the_content() -> None:
    random = share(Path(), 1).random(0)
    ways = {damaged(random, bytes(range(256)), text=True)[0] for _ in range(200)}
    assert ways == {
        "flipped", "truncated", "zeroed", "exchanged", "overwritten", "repeated", "hostile_text",
    }  # fmt: skip


def test_values_that_are_not_finite_are_compared_each_by_itself() -> None:
    inf, nan = float("inf"), float("nan")
    found = torch.tensor([nan, -inf, 1.0])
    assert close(found, found.clone(), 0.0)
    for other in ([0.0, -inf, 1.0], [nan, inf, 1.0], [nan, -5.0, 1.0], [nan, -inf, 1.1]):
        assert not close(found, torch.tensor(other), 2e-5)
        assert not close(torch.tensor(other), found, 2e-5)
