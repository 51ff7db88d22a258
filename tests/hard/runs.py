"""Tiny trainings as processes, and what is to be true of their folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from snnet.errors import UserError
from snnet.training.checkpoint import load_checkpoint
from tests.forks import Program, end_session, start
from tests.hard.formats import same
from tests.hard.isolation import one_line
from tests.snnet import tiny_run
from tests.snnet.tiny_run import command_line, draw_market, tiny_options, untimed

SECONDS = 120.0  # after which a process counts as hanging: the machine may be busy
# What a process has imported that forks for every command.
COMMANDS = tuple(f"snnet.{name}" for name in ("train", "evaluate", "extract", "label", "search", "report"))
IMPORTS = (*COMMANDS, "torch._dynamo")


def start_command(module: str, arguments: list[str], log: Path, hook: str = "") -> Program:
    """Start ``python -m MODULE ARGUMENTS``, whose stderr goes to ``log``, after the statements ``hook``."""
    return start("-m", module, *arguments, imports=IMPORTS, hook=hook, log=log)


def run_command(module: str, arguments: list[str], log: Path, hook: str = "") -> int | None:
    """The exit code of such a command; what does not end is killed, and its code is None."""
    started = start_command(module, arguments, log, hook)
    code = started.wait(SECONDS)
    end_session(started.pid)
    return code


def train_arguments(data: Path, folder: Path, **others: Any) -> list[str]:
    """The command line of a training of one CPU second into ``folder``."""
    options = {"batch_size": 6, "epochs": 2, "output_dir": str(folder), **others}
    return [*command_line(tiny_options(data, **options)), "--quiet"]


def outcome(folder: Path) -> tuple[Any, ...]:
    """Everything that a finished run ends with but its times."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    metrics = [untimed(record) for record in load_checkpoint(folder)["metrics"]]
    return *tiny_run.outcome(folder), config, metrics


def files(folder: Path) -> set[str]:
    """Names below a run's folder; the numbers in TensorBoard's are its own."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {re.sub(r"tfevents\..*", "tfevents", name) for name in names}


def checkpoint_problem(folder: Path) -> str | None:
    """What is wrong with the checkpoint of a run that was ended; None where it is whole or not there."""
    if not (folder / "checkpoint.pt").exists():
        return None
    try:
        load_checkpoint(folder)
    except UserError as error:
        return f"the checkpoint cannot be used: {error}"
    return None


def error_problem(code: int | None, text: str) -> str | None:
    """What is wrong with how a command refused to work; None where it is one line and status 2."""
    if code != 2:
        return f"exit {code}: {last_line(text)}"
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    if len(lines) != 1 or not one_line(lines[0]) or "Traceback" in text:
        return f"not one line of error: {last_line(text)}"
    return None


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["(nothing was printed)"])[-1][:160]


class Unbroken:
    """A run that was left alone, to compare with."""

    def __init__(self, folder: Path) -> None:
        self.data = draw_market(folder / "data", identities=2)
        self.folder = folder / "unbroken"
        code = run_command("snnet.train", train_arguments(self.data, self.folder), folder / "unbroken.log")
        if code != 0:
            raise RuntimeError(f"a training fails: {(folder / 'unbroken.log').read_text()}")
        self.outcome, self.files = outcome(self.folder), files(self.folder)

    def resumed_problem(self, folder: Path, log: Path) -> str | None:
        """Continue the run in ``folder``, or start it where it says that nothing is there to continue; then say what
        is wrong with how it ended, None where it ended as the unbroken one."""
        code = run_command("snnet.train", ["--resume", str(folder), "--quiet"], log)
        if code != 0:
            problem = error_problem(code, log.read_text(errors="replace"))
            if problem or (folder / "checkpoint.pt").exists():
                return f"resuming: {problem or last_line(log.read_text(errors='replace'))}"
            code = run_command("snnet.train", train_arguments(self.data, folder), log)
            if code != 0:
                return f"starting again: exit {code}: {last_line(log.read_text(errors='replace'))}"
        if not same(outcome(folder), self.outcome):
            return "another outcome than that of an unbroken run"
        left = files(folder) - self.files
        return f"left behind: {', '.join(sorted(left))[:160]}" if left else None
