"""``python -m benchmarks.report``: write docs/benchmarks.md, its figures, and the head of them in the README."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..machine import slug
from ..results import FOLDER, committed_runs, read_run
from . import figures
from .page import page, write_head

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"


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
        drawn = {name: figures.draw(run, DOCS / "images" / "benchmarks", name) for name, run in runs.items()}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    (DOCS / "benchmarks.md").write_text(page(runs, drawn, DOCS))
    write_head(ROOT / "README.md", runs)
    print(f"docs/benchmarks.md: {', '.join(runs)}")
    return 0


def keep(path: Path, machine: str | None) -> Path:
    """Copy a run's JSON to the folder of its machine, under the name of the file."""
    target = FOLDER / (machine or slug(read_run([path]).machine)) / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(json.loads(path.read_text()), indent=1) + "\n")
    return target


if __name__ == "__main__":
    sys.exit(main())
