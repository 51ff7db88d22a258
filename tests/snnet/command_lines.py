"""Command lines that run in the process of the tests."""

from __future__ import annotations

import importlib

from snnet.config.commands import (
    EvaluateCommand,
    ExportCommand,
    ExtractCommand,
    LabelCommand,
    ReportCommand,
    SearchCommand,
    TrainCommand,
)
from snnet.system.command import run_command

COMMANDS = (
    TrainCommand, EvaluateCommand, ExtractCommand, LabelCommand, SearchCommand, ExportCommand, ReportCommand,
)  # fmt: skip


def run_line(*words: str) -> None:
    """Do as ``python -m snnet.WORDS`` does: the first word names the command."""
    name, *arguments = words
    command = next(one for one in COMMANDS if one.module == f"snnet.{name}")
    main = importlib.import_module(command.module).main
    run_command(lambda: main(command.parse(arguments)))
