"""Makes PHASE.json and PHASE.txt of what a phase of gpu_check.sh left in its folder, and drops the raw files."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import torch

QUERY = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"


def machine() -> dict[str, str]:
    """What the figures depend on: GPU, driver, clocks, versions."""
    found = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[0]
        found.update(zip(QUERY.split(","), (field.strip() for field in answer.split(",")), strict=True))
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        found["nvidia-smi"] = f"not readable: {error}"
    return found


def tests_of(path: pathlib.Path) -> list[dict[str, object]]:
    """Name, outcome and seconds of each test in a JUnit file."""
    if not path.is_file():
        return []
    found = []
    for case in ElementTree.parse(path).iter("testcase"):
        outcome = next(
            (child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed"
        )
        found.append({"name": case.get("name"), "outcome": outcome, "seconds": float(case.get("time", 0))})
    path.unlink()
    return found


def counts(tests: list[dict[str, object]]) -> str:
    outcomes = [test["outcome"] for test in tests]
    return (
        ", ".join(f"{outcomes.count(name)} {name}" for name in sorted(set(map(str, outcomes))))
        or "no test ran"
    )


def summarise(phase: str, folder: pathlib.Path) -> tuple[dict[str, object], list[str]]:
    """The phase's own part of the JSON, and its lines of the table."""
    log = (folder / f"{phase}.log").read_text(errors="replace")
    if phase == "build":
        table = log[log.rfind("snnet_kernels on torch") :] if "snnet_kernels on torch" in log else "not built"
        return {"backends": table.splitlines()}, table.splitlines()
    if phase == "tests":
        tests = tests_of(folder / "tests.xml")
        failed = [
            f"  {test['outcome']}: {test['name']}"
            for test in tests
            if test["outcome"] in ("failure", "error")
        ]
        return {"tests": tests}, [counts(tests), *failed]
    if phase == "sanitizer":
        runs = {tool: tests_of(folder / f"{tool}.xml") for tool in ("memcheck", "racecheck")}
        verdicts = re.findall(r"={8} ((?:ERROR|RACECHECK) SUMMARY: .*)", log)
        return {"tests": runs, "verdicts": verdicts}, [
            *(f"{tool}: {counts(tests)}" for tool, tests in runs.items()),
            *verdicts,
        ]
    raw = folder / f"{phase}-raw.json"
    if not raw.is_file() or not raw.read_text().strip():
        return {"benchmarks": []}, ["no benchmark ran"]
    from benchmarks.report import summary_lines

    result = json.loads(raw.read_text())
    raw.unlink()
    return result, summary_lines(result)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=("build", "tests", "floors", "sanitizer", "benchmarks"))
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument(
        "--status", type=int, required=True, help="exit status of the phase (124: out of time)"
    )
    parser.add_argument("--seconds", type=int, required=True)
    arguments = parser.parse_args()
    own, lines = summarise(arguments.phase, arguments.folder)
    about = machine()
    result = {
        "gpu": about,
        "phase": arguments.phase,
        "status": arguments.status,
        "seconds": arguments.seconds,
        **own,
    }
    verdict = {0: "passed", 124: "ran out of time"}.get(
        arguments.status, f"failed with status {arguments.status}"
    )
    head = [
        f"{arguments.phase}: {verdict} after {arguments.seconds} s",
        ", ".join(f"{k} {v}" for k, v in about.items()),
    ]
    (arguments.folder / f"{arguments.phase}.json").write_text(json.dumps(result, indent=1))
    (arguments.folder / f"{arguments.phase}.txt").write_text("\n".join([*head, *lines]) + "\n")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
    sys.exit(main())
