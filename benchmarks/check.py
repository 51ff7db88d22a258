"""``python -m benchmarks.check``: a short run that fails where a ratio of ``floors.yaml`` does not hold.

All ratios are of one run, so that a slower machine or a slow moment changes both sides.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from .floors import BOUNDS, Verdict, read_floors, verdicts
from .results import Run, read_run

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=f"{__doc__}Other options are those of the benchmarks.")
    parser.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="which floors (default: cpu)"
    )
    known, others = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "check.json"
        failed = _run(known.device, results, others)
        if failed or not results.exists():  # a contender that failed its gate would be missing, too
            return failed or 1
        found = judge(read_run([results]), known.device)
    for verdict in found:
        print(line(verdict))
    broken = sum(not verdict.holds for verdict in found)
    print(f"{len(found) - broken} of {len(found)} floors hold")
    return 1 if broken else 0


def judge(run: Run, device: str) -> list[Verdict]:
    """What ``run`` says of every floor of ``device``; of an optional one only what was measured."""
    found = [verdict for floor in read_floors(device) for verdict in verdicts(floor, run)]
    return [verdict for verdict in found if not verdict.floor.optional or verdict.measured is not None]


def line(verdict: Verdict) -> str:
    """One verdict as a line of text."""
    measured = "not measured" if verdict.measured is None else f"{verdict.measured:.2f}"
    state = "holds" if verdict.holds else "BROKEN"
    meaning = BOUNDS[verdict.floor.bound].meaning
    without = f", without {', '.join(verdict.left_out)}" if verdict.left_out else ""
    against = f" ({verdict.baseline}{without})" if verdict.baseline else ""
    noise = f" [times vary by {verdict.spread:.0%}: measure again]" if verdict.noisy else ""
    measure = f"{verdict.shape:<20} {measured:>12} for {verdict.limit:g}"
    return f"{state:<7}{measure}  {verdict.floor.work}{against} [{meaning}]{noise}"


def _run(device: str, results: Path, others: list[str]) -> int:
    if device == "cpu" and not any(word.startswith("--size") for word in others):
        others = ["--size=market,large", *others]
    command = [
        *(sys.executable, "-m", "pytest", str(HERE), "--benchmark-only", "--quiet"),
        *("--floors-only", "--device", device, f"--benchmark-json={results}", *others),
    ]
    return subprocess.run(command, cwd=HERE.parent, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
