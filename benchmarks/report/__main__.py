"""``python -m benchmarks.report``: write docs/benchmarks.md, its figures, and the head of them in the README."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..machine import slug, title
from ..operations import OPERATIONS
from ..results import FOLDER, Run, committed_runs, read_run
from . import growth, tables

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    kept = "first keep these files of pytest --benchmark-json as the results of their machine"
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="JSON", help=kept)
    try:
        for path in parser.parse_args().add:
            print(f"kept as {keep(path).relative_to(ROOT)}")
        runs = committed_runs()
        if not runs:
            raise ValueError(f"there are no results in {FOLDER.relative_to(ROOT)}: add some with --add")
        drawn = {name: growth.draw(run, DOCS / "images" / "benchmarks", name) for name, run in runs.items()}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    (DOCS / "benchmarks.md").write_text(page(runs, drawn, DOCS))
    write_head(ROOT / "README.md", runs)
    print(f"docs/benchmarks.md: {', '.join(runs)}")
    return 0


def keep(path: Path) -> Path:
    """Copy a run's JSON to the folder of its machine, under the name of the file.

    Raises ValueError if a file of that name has results that this run does not have, or if the others in the folder
    are of other software; then nothing is written.
    """
    target = FOLDER / slug(read_run([path]).machine) / path.name
    if target.exists():
        lost = sorted(_measured(target) - _measured(path))
        if lost:
            raise ValueError(
                f"{path}: {path.name} of this machine has {len(lost)} results that it lacks ({' '.join(lost[0])}): "
                f"rename it, or delete {target.relative_to(ROOT)} first"
            )
    read_run([path, *(other for other in target.parent.glob("*.json") if other != target)])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(json.loads(path.read_text()), indent=1) + "\n")
    return target


def _measured(path: Path) -> set[tuple[str, str, str]]:
    return {(result.operation, result.shape, result.contender) for result in read_run([path]).results}


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


if __name__ == "__main__":
    sys.exit(main())
