"""The page ``docs/benchmarks.md`` from the results of all machines, and their head in the README."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..machine import title
from ..operations import OPERATIONS
from ..results import Run
from . import tables

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def page(runs: Mapping[str, Run], figures: Mapping[str, Mapping[str, Path]], folder: Path) -> str:
    """The page for ``runs`` and their ``figures`` by machine; ``folder`` is where it will lie."""
    loader = FileSystemLoader(Path(__file__).parent)
    templates = Environment(
        loader=loader, trim_blocks=True, undefined=StrictUndefined
    )  # Markdown: nothing escaped
    paths = {
        name: {k: path.relative_to(folder) for k, path in drawn.items()} for name, drawn in figures.items()
    }
    found = {"runs": runs, "figures": paths, "operations": OPERATIONS, "tables": tables, "title": title}
    return templates.get_template("page.md").render(found) + "\n"


def write_head(readme: Path, runs: Mapping[str, Run]) -> None:
    """Put the stated ratios of the first machine between the markers of the README, if it has them."""
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        return
    run = next(iter(runs.values()))
    before, rest = text.split(BEGIN, 1)
    machine = f"{title(run.machine)}, torch {run.machine['torch']}"
    about = f"{machine}. Every operation, how it grows, and how it was measured:"
    head = f"{BEGIN}\n{tables.head(run)}\n\n{about}\n[docs/benchmarks.md](docs/benchmarks.md).\n{END}"
    readme.write_text(before + head + rest.split(END, 1)[1])
