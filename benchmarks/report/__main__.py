"""``python -m benchmarks.report``: write docs/benchmarks.md, its figures, and the head of them in the README."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..machine import slug
from ..results import FOLDER, Run, committed_runs, read_run
from . import figures, tables
from .page import page, title

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
IMAGES = DOCS / "images" / "benchmarks"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--add",
        type=Path,
        nargs="+",
        default=[],
        metavar="JSON",
        help="first keep these files of pytest --benchmark-json as the results of their machine",
    )
    parser.add_argument(
        "--machine", help="folder below benchmarks/results (default: named after the hardware)"
    )
    arguments = parser.parse_args()
    try:
        for path in arguments.add:
            print(f"kept as {keep(path, arguments.machine).relative_to(ROOT)}")
        runs = committed_runs()
        if not runs:
            raise ValueError(f"there are no results in {FOLDER.relative_to(ROOT)}: add some with --add")
        drawn = {name: figures.draw(run, IMAGES, name) for name, run in runs.items()}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    (DOCS / "benchmarks.md").write_text(page(runs, drawn, DOCS))
    write_head(ROOT / "README.md", runs)
    print(f"docs/benchmarks.md: {', '.join(runs)}")
    return 0


def keep(path: Path, machine: str | None) -> Path:
    """Copy a run's JSON to the folder of its machine, under the name of the file."""
    run = read_run([path])
    folder = FOLDER / (machine or slug(run.machine))
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    target.write_text(json.dumps(json.loads(path.read_text()), indent=1) + "\n")
    return target


def write_head(readme: Path, runs: dict[str, Run]) -> None:
    """Put the stated ratios of the first machine between the markers of the README, if it has them."""
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        return
    run = next(iter(runs.values()))
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    about = (
        f"{title(run)}, torch {run.machine['torch']}. Every operation, how it grows, and how it was measured:"
    )
    head = f"{BEGIN}\n{tables.head(run)}\n\n{about}\n[docs/benchmarks.md](docs/benchmarks.md).\n{END}"
    readme.write_text(before + head + after)


if __name__ == "__main__":
    sys.exit(main())
