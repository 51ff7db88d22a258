"""A run in lines of text, for a log."""

from __future__ import annotations

from typing import Any

from ..floors import read_floors, verdicts
from ..results import run_of
from .tables import microseconds, ratio


def summary_lines(content: dict[str, Any]) -> list[str]:
    """The JSON of ``pytest benchmarks --benchmark-json``: the floors of its device, then every time by operation.

    A time is the median, cold, with what it is of the fastest of this package beside it and, for the package's
    own, how far it is from the hardware floor.
    """
    run = run_of(content)
    lines = [f"rates: {', '.join(f'{name} {rate:.3g}/s' for name, rate in run.rates.items())}"]
    for floor in read_floors():
        for verdict in verdicts(floor, run) if floor.device == run.machine["device"] else ():
            if verdict.measured is not None:
                state = "holds " if verdict.holds else "BROKEN"
                lines.append(
                    f"{state} {verdict.measured:9.2f} for {verdict.limit:<6g} {verdict.shape:<20} {floor.work}"
                )
    for operation in dict.fromkeys(result.operation for result in run.results):
        for shape in run.shapes(operation):
            lines.append(f"{operation}, {shape}")
            ours = run.find(operation, "snnet", shape)
            for name in run.contenders(operation):
                result = run.find(operation, name, shape)
                if result is None:
                    continue
                line = f"  {name:<24} {microseconds(result.seconds):>14}"
                if ours:
                    line += f"  {ratio(result.seconds / ours.seconds):>6} x"
                if result.floor_seconds and name.startswith("snnet"):
                    line += f"  {ratio(result.seconds / result.floor_seconds)} x the floor"
                lines.append(line)
    return lines
