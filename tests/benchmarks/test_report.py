"""Results to verdicts, tables and figures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("pytest_benchmark", reason="the benchmarks need pip install '.[bench]'")

from benchmarks import check, instructions
from benchmarks.conftest import selected
from benchmarks.floors import Floor, read_floors, verdicts
from benchmarks.operations import OPERATIONS
from benchmarks.report import __main__ as report
from benchmarks.report import growth, tables, words
from benchmarks.report.__main__ import page, write_head
from benchmarks.report.growth import Curve, curves
from benchmarks.results import Result, Run, read_run, slim
from benchmarks.shapes import shapes
from tests.forks import run_pytest
from tests.paths import ROOT

MACHINE = {
    "device": "cpu", "cpu": "Test CPU", "cores": 2, "threads": 2, "memory_gb": 24, "system": "Linux x86_64",
    "python": "3.11", "torch": "2.14.1", "libraries": {"_C": "gcc"}, "versions": {"numpy": "2"},
}  # fmt: skip


def result(operation: str, contender: str, seconds: float, shape: str = "market-d2048-b64", **more) -> Result:
    return Result(operation, contender, shape, 12_936, 2048, seconds, **more)


def grown(contender: str, n: int, seconds: float, **more) -> Result:
    return Result("label-step", contender, f"n{n}-d256-b64", n, 256, seconds, **more)


@pytest.fixture
def run() -> Run:
    """Ours takes 1 ms, the loop 500 ms; ours grows linearly, the loop as n^1.5."""
    return Run(
        MACHINE,
        files=["`a.json` on 2030-01-02, commit abcdef012345"],
        results=[
            result("label-step", "snnet", 1e-3, warm_seconds=8e-4, peak_bytes=2_000_000),
            result("label-step", "pytorch", 30e-3),
            result("label-step", "compile", 25e-3),
            result("label-step", "loop", 500e-3),
            result("iteration", "snnet", 51e-3),
            result("iteration", "bare-product", 30e-3),
            result("iteration", "snnet", 0.5, "large-d512-b64"),
            result("iteration", "bare-product", 0.25, "large-d512-b64"),
            result("iterations", "snnet", 1.0, "n4000-d256-b64"),
            result("streaming-mplp", "snnet", 1.0, peak_bytes=70_000_000),
            *(grown("snnet", n, n * 1e-7, peak_bytes=n, held_bytes=4 * n * n) for n in (1000, 4000, 12_936)),
            *(grown("loop", n, n**1.5 * 1e-7, peak_bytes=n) for n in (1000, 4000, 12_936)),
        ],
    )


def judged(run: Run, **floor) -> tuple[float | None, bool]:
    (verdict,) = verdicts(Floor(work="", limits={"market-d2048-b64": floor.pop("limit")}, **floor), run)
    return verdict.measured, verdict.holds


def test_a_floor_is_judged_by_the_fastest_baseline(run):
    step = {"operation": "label-step", "bound": "at_least"}
    assert judged(run, **step, limit=20, baselines=("pytorch", "compile")) == (pytest.approx(25), True)
    assert judged(run, **step, limit=26, baselines=("pytorch", "compile")) == (pytest.approx(25), False)
    assert judged(run, **step, limit=1, baselines=("faiss",)) == (None, False)
    over = {"operation": "iteration", "bound": "at_most", "baselines": ("bare-product",)}
    assert judged(run, **over, limit=1.75) == (pytest.approx(1.7), True)
    assert judged(run, **over, limit=1.6) == (pytest.approx(1.7), False)
    streaming = {"operation": "streaming-mplp"}
    assert judged(run, **streaming, bound="megabytes", limit=64) == (70, False)
    assert judged(run, **streaming, bound="microseconds", limit=2e6) == (1e6, True)
    assert judged(run, **streaming, bound="kept_megabytes", limit=80) == (70, True)


def test_a_figure_of_times_that_vary_is_marked(run):
    (steady,) = verdicts(
        Floor("", "label-step", "at_least", {"market-d2048-b64": 1}, baselines=("loop",)), run
    )
    assert not steady.noisy and tables.shown(steady) == "500"
    place = [r.contender for r in run.results].index("loop")
    run.results[place] = replace(run.results[place], iqr=0.151)
    (varied,) = verdicts(steady.floor, run)
    assert varied.noisy and varied.holds and tables.shown(varied) == "500 ±"
    assert "times vary by 30%: measure again" in check.line(varied)
    assert "| 500 × ± |" in tables.head(run) and "| 500 ± |" in tables.stated(run)
    peak = Floor("", "streaming-mplp", "megabytes", {"market-d2048-b64": 1})
    run.results = [replace(r, iqr=r.seconds) for r in run.results]
    assert not next(verdicts(peak, run)).noisy  # no time enters


def test_a_yardstick_is_the_one_measured_in_turn(run):
    floor = Floor("", "iteration", "at_most", {"market-d2048-b64": 1.2}, baselines=("bare-product",))
    assert next(verdicts(floor, run)).measured == pytest.approx(1.7)
    run.results = [replace(r, yardstick_seconds=51e-3) if r.seconds == 51e-3 else r for r in run.results]
    assert next(verdicts(floor, run)).measured == pytest.approx(1.0)


def test_processor_time_and_peaks_are_judged_by_the_baselines(run):
    shape = "market-d512-b12936"
    run.results += [
        result("jaccard", "snnet", 2.0, shape, cpu_seconds=3.0, peak_bytes=300),
        result("jaccard", "dense", 9.0, shape, cpu_seconds=36.0, peak_bytes=2000),
        result("jaccard-dbscan", "snnet", 2.0, shape),
        result("jaccard-dbscan", "dense", 9.0, shape),
    ]

    def measured(operation: str, bound: str, limit: float) -> tuple[float | None, bool]:
        floor = Floor("", operation, bound, {shape: limit}, baselines=("dense",))
        (verdict,) = verdicts(floor, run)
        return verdict.measured, verdict.holds

    assert measured("jaccard", "cpu_at_least", 12.0) == (12.0, True)
    assert measured("jaccard", "cpu_at_least", 12.1) == (12.0, False)
    assert measured("jaccard", "peak_at_most", 0.15) == (0.15, True)
    assert measured("jaccard", "peak_at_most", 0.14) == (0.15, False)
    for bound in ("cpu_at_least", "peak_at_most"):  # not measured
        assert measured("jaccard-dbscan", bound, 1) == (None, False)


def test_growth_is_judged_by_the_time_an_image(run):
    for ours, expected in {"snnet": 1.0, "loop": (4000 / 12_936) ** 0.5}.items():
        floor = Floor("", "label-step", "growth", {"n4000-d256-b64": 1.15}, ours=ours)
        (verdict,) = verdicts(floor, run)
        assert (verdict.measured, verdict.baseline) == (pytest.approx(expected), "") and verdict.holds
        assert floor.shapes == ["n4000-d256-b64", "n12936-d256-b64"]


def test_the_check_fails_where_a_floor_is_broken(run):
    found = {(v.floor.operation, v.shape): v for v in check.judge(run, "cpu")}
    assert found["label-columns", "market-d2048-b64"].measured is None
    assert "BROKEN" in check.line(found["label-columns", "market-d2048-b64"])
    text = check.line(found["iteration", "market-d2048-b64"])
    assert text.startswith("BROKEN") and "1.70 for 1.2" in text
    assert ("iterations", "n1000000-d256-b64") not in found  # optional, and not measured
    # A baseline that was not measured may be the fastest one.
    run.results = [result for result in run.results if result.contender != "compile"]
    found = {v.floor.work: v for v in check.judge(run, "cpu") if v.shape == "market-d2048-b64"}
    without = found["the same: the best PyTorch form without the matrix S"]
    assert (without.measured, without.left_out) == (pytest.approx(30), ("compile",))
    assert "(pytorch, without compile)" in check.line(without)
    rows = tables.stated(run).splitlines()
    assert any(
        "against PyTorch, vectorised, `torch.compile` not measured | ≥ 20 | 30.0 |" in row for row in rows
    )
    assert any(
        "64 columns of a bool matrix | market-d2048-b64 | ≥ 20 | not measured |" in row for row in rows
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_floor_names_what_is_measured(device):
    """Operations, contenders and shapes of floors.yaml are those of the operations; the check runs all it needs."""
    floors = read_floors(device)
    assert len(floors) >= 10
    options = {"device": device, "dim": None}
    sizes = "market,msmt17,large,million"
    known = {
        (operation.name, shape.name, name)
        for operation, shape, name in selected(SimpleNamespace(size=sizes, floors_only=False, **options))
    }
    for floor in floors:
        for name in (floor.ours, *floor.baselines):
            assert {(floor.operation, shape, name) for shape in floor.shapes} <= known, floor.work
    # With --floors-only these and nothing else.
    size = "market,large" if device == "cpu" else "market,msmt17,million"
    found = selected(SimpleNamespace(size=size, floors_only=True, **options))
    entries = {(operation.name, shape.name, name) for operation, shape, name in found}
    needed = [floor for floor in floors if not floor.optional]
    stated = {(floor.operation, shape, floor.ours) for floor in needed for shape in floor.shapes}
    if device == "cpu":  # also torch.compile: what is stated is the best form
        stated |= {(f.operation, shape, name) for f in needed for shape in f.shapes for name in f.baselines}
    allowed = {entry for floor in floors for entry in floor.entries}
    assert stated <= entries <= allowed and len(entries) == len(found)


def test_operations_and_contenders_have_words():
    for operation in OPERATIONS.values():
        assert operation.title and operation.contenders
        for name in operation.contenders:
            assert name in words.CONTENDERS or words.in_words(name) != name, name


def test_floors_of_a_gpu_stand_beside_what_was_counted_for_them():
    floors = read_floors("cuda")
    assert all(set(floor.predicted) == set(floor.limits) for floor in floors)
    over = [
        (floor.work, floor.predicted[shape], limit)
        for floor in floors
        if floor.bound in ("microseconds", "megabytes")
        for shape, limit in floor.limits.items()
        if floor.predicted[shape] > limit
    ]
    assert over == []
    rows = tables.predicted().splitlines()
    assert len(rows) == 2 + sum(len(floor.limits) for floor in floors)
    assert rows[2].startswith(
        "| label sets, P, memory and lists update, µs | market-d2048-b128 | ≤ 30 | 28 µs |"
    )
    assert page({}, {}, ROOT).count(rows[2]) == 1


def test_predictions_of_losses_are_what_their_words_count():
    """At 60 TFLOP/s in float32, 4 TB/s and 2 µs a launch."""
    found = {shape.name: shape for shape in shapes("cuda")}
    for floor in read_floors("cuda"):
        if floor.operation not in ("mmcl-loss", "l2-loss"):
            continue
        for name, predicted in floor.predicted.items():
            _, n, d, batch = found[name]
            product, s = 2 * batch * n * d / 60e6, 4 * batch * n / 4e6
            gathered = (n / 100 + 17) * batch * 4 * d / 4e6
            counted = product + s + gathered if floor.operation == "mmcl-loss" else 2 * product + 3 * s
            assert predicted == pytest.approx(counted + 5 * 2, rel=0.03), (floor.work, name)


def test_a_damaged_file_of_floors_names_the_entry(tmp_path):
    path = tmp_path / "floors.yaml"
    path.write_text(
        "- {work: a, operation: b, at_least: {x: 1}, baselines: [c]}\n- {work: a, operation: b}\n"
    )
    with pytest.raises(ValueError, match="entry 2: needed are work, operation and one of at_least"):
        read_floors("cpu", path)
    path.write_text("- {work: a, operation: b, at_least: {x: 1}}\n")
    with pytest.raises(ValueError, match="entry 1: at_least and baselines"):
        read_floors("cpu", path)
    path.write_text("- {work: a, operation: b, microseconds: {x: 1}, predicted: {y: 1}, counted: c}\n")
    with pytest.raises(ValueError, match="entry 1: predicted is of shapes that have a floor"):
        read_floors("cpu", path)


def test_exponents_are_those_of_power_laws(run):
    ours, loop = curves(run)
    assert (ours.contender, loop.contender) == ("snnet", "loop")
    assert ours.exponent == pytest.approx(1) and loop.exponent == pytest.approx(1.5)
    assert Curve("one", ours.points[:1]).exponent is None


def test_tables_show_ratios_and_no_times_of_a_cpu(run):
    text = tables.operation(run, "label-step")
    assert "| **snnet_kernels** | 1.00 × (1.00 ×) | 2.0 |  |" in text
    assert "| loop over samples | 500 × |" in text
    assert "µs" not in text and " ms" not in text
    warm = [replace(r, warm_seconds=None if r.contender == "snnet" else 1.0) for r in run.results]
    assert "()" not in tables.operation(Run(MACHINE, results=warm), "label-step")  # ours has no warm time
    gpu = Run(MACHINE | {"device": "cuda", "gpu": "GPU"}, results=run.results)
    assert "1,000 µs, 1.00 ×" in tables.operation(gpu, "label-step")
    over_n = tables.growth(run)
    assert "| **snnet_kernels** | 1.00 | 4.00 | 12.9 | 1.00 |" in over_n
    assert "| 1.50 |" in over_n
    assert "| ✗ 70.0 |" in tables.stated(run)


def test_the_page_and_its_figures(run, tmp_path):
    pytest.importorskip("matplotlib", reason="the figures need pip install '.[bench]'")
    paths = growth.draw(run, tmp_path / "images", "test-cpu")
    assert sorted(paths) == ["memory", "time"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths.values())
    text = page({"test-cpu": run}, {"test-cpu": paths}, tmp_path)
    assert "Measured: `a.json` on 2030-01-02, commit abcdef012345." in text
    assert "## Test CPU, 2 threads" in text and "](images/test-cpu-time.png)" in text
    assert OPERATIONS["iterations"].title not in text  # only growth was measured


def test_the_readme_gets_the_head_between_its_markers(run, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\nafter\n")
    more = [
        *(
            result("rank-metrics", name, seconds, "market-gallery")
            for name, seconds in (("snnet", 1), ("argsort", 9))
        ),
        *(result("cluster-update", name, 1.0, "clusters-d2048-b64") for name in ("snnet", "loop")),
        *(result("jaccard", name, 1.0, "market-d512-b12936", cpu_seconds=1.0) for name in ("snnet", "dense")),
    ]
    write_head(readme, {"test-cpu": replace(run, results=[*run.results, *more])})
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert (
        "| labels, nearest neighbour, P, memory and lists update: the usual loop over samples | 500 × |  |"
        in text
    )
    over = (
        "- a whole iteration without the backbone, as a multiple of one bare product f Mᵀ of PyTorch: "
        "1.70 × (d 2048), 2.00 × (n 100,000, d 512)"
    )
    ranked = "- CMC, mAP and mINP of Market-1501's gallery: an argsort a query: 9.00 ×\n"
    assert re.findall("^- .*\n?", text, re.M) == [ranked, over + "\n"]  # times at Market-1501's size
    assert "[docs/benchmarks.md](docs/benchmarks.md)" in text
    readme.write_text("no markers\n")
    write_head(readme, {"test-cpu": run})
    assert readme.read_text() == "no markers\n"


def test_results_survive_the_file(run, tmp_path):
    stats = {"median": 0.5, "iqr": 0.1, "min": 0.4, "max": 0.9, "rounds": 3, "data": [0.4, 0.5, 0.9]}
    info = {"operation": "mplp", "contender": "snnet", "shape": "s", "n": 1, "d": 2}
    output = {
        "machine_info": MACHINE,
        "commit_info": {"id": "abcdef0123456789", "dirty": False, "branch": "b", "project": "p"},
        "datetime": "2030-01-02T03:04:05",
        "benchmarks": [
            {"name": "t", "fullname": "f", "params": {}, "stats": stats, "extra_info": info},
            {"name": "wrong", "stats": stats, "extra_info": {}},  # its answer was not the reference's
        ],
    }
    slim(output)
    assert "data" not in json.dumps(output) and "branch" not in json.dumps(output)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(output))
    found = read_run([path])
    assert found.results == [Result(**info, seconds=0.5, iqr=0.1)]
    assert found.files == ["`a.json` on 2030-01-02, commit abcdef012345"]
    output["commit_info"]["dirty"] = True
    path.write_text(json.dumps(output))
    assert read_run([path]).files == ["`a.json` on 2030-01-02, commit abcdef012345 with uncommitted changes"]
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"a\.json is not the JSON"):
        read_run([path])
    output["benchmarks"] = [{"name": "backwards", "stats": stats | {"median": -1.0}, "extra_info": info}]
    with pytest.raises(ValueError, match=r"^backwards: a median of -1 s is no time$"):
        slim(output)


def written(path: Path, date: str, results: dict[tuple[str, str, str], float], **machine) -> Path:
    """A file of results: seconds by operation, shape and contender."""
    benchmarks = [
        {
            "stats": {"median": seconds, "iqr": 0.0, "rounds": 3},
            "extra_info": {"operation": operation, "contender": contender, "shape": shape} | {"n": 1, "d": 2},
        }
        for (operation, shape, contender), seconds in results.items()
    ]
    content = {"machine_info": MACHINE | machine, "datetime": date}
    path.write_text(json.dumps(content | {"benchmarks": benchmarks}))
    return path


def test_the_newest_run_stands_and_no_ratio_is_of_two_runs(tmp_path):
    step, growth = ("label-step", "market-d512-b64"), [("iterations", f"n{n}-d256-b64") for n in (10, 20)]
    new = {(*step, "snnet"): 1.0, (*growth[0], "snnet"): 3.0}
    old = {
        (*step, "snnet"): 5.0,
        (*step, "loop"): 6.0,
        (*growth[1], "snnet"): 7.0,
        ("l2-loss", "s", "loop"): 8.0,
    }
    paths = [
        written(tmp_path / "a.json", "2032-01-01T00:00:00", new, cores=4),
        written(tmp_path / "b.json", "2031-01-01T00:00:00", old),
        written(tmp_path / "c.json", "2030-01-01T00:00:00", {(*step, "loop"): 9.0}),
    ]
    found = read_run(paths)
    seconds = {(result.operation, result.shape, result.contender): result.seconds for result in found.results}
    assert seconds == new | {("l2-loss", "s", "loop"): 8.0}
    assert found.machine["cores"] == 4
    kept = ["`a.json` on 2032-01-01, an unknown commit", "`b.json` on 2031-01-01, an unknown commit"]
    assert found.files == kept  # nothing is left of the third
    written(paths[1], "2031-01-01T00:00:00", old, torch="2.10.0")
    message = r"b\.json: torch is 2\.10\.0, in the newer .*a\.json it is 2\.14\.1; keep one of them"
    with pytest.raises(ValueError, match=message):
        read_run(paths)


def test_a_smaller_run_does_not_take_the_place_of_a_larger_one(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "FOLDER", tmp_path / "results")
    step = ("label-step", "market-d512-b64")
    path = written(
        tmp_path / "run.json", "2031-01-01T00:00:00", {(*step, "snnet"): 5.0, (*step, "loop"): 6.0}
    )
    kept = report.keep(path)
    assert report.keep(path) == kept  # the same again
    before = kept.read_text()
    written(path, "2032-01-01T00:00:00", {(*step, "snnet"): 4.0})
    with pytest.raises(
        ValueError, match=r"has 1 results that it lacks \(label-step market-d512-b64 loop\): rename"
    ):
        report.keep(path)
    assert kept.read_text() == before


def test_a_run_of_other_software_is_refused_before_it_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "FOLDER", tmp_path / "results")
    results = {("label-step", "market-d512-b64", "snnet"): 5.0}
    kept = report.keep(written(tmp_path / "run.json", "2031-01-01T00:00:00", results))
    other = written(tmp_path / "other.json", "2032-01-01T00:00:00", results, torch="2.10.0")
    with pytest.raises(
        ValueError, match=r"run\.json: torch is 2\.14\.1, in the newer .*other\.json it is 2\.10\.0"
    ):
        report.keep(other)
    assert list(kept.parent.iterdir()) == [kept]
    renewed = written(tmp_path / "run.json", "2032-01-01T00:00:00", results, torch="2.10.0")
    assert report.keep(renewed) == kept  # it takes the place of the only one
    assert read_run([kept]).machine["torch"] == "2.10.0"


def test_instructions_are_counted_in_the_library_alone():
    dump = (
        "desc: Trigger: Client Request: avx2/mplp\n"
        "ob=/lib/libc.so\nfn=memcpy\n1 500\n"
        "ob=/x/_C.abi3.so\nfn=mplp\n10 7\n+2 3\ncob=/lib/libc.so\ncfn=memcpy\ncalls=1 0\n* 500\n* 30\n"
        "ob=/x/_C_cuda.so\nfn=other\n1 9\n"
    )
    assert instructions.read_dump(dump) == ("avx2/mplp", 40)
    stated = json.loads(instructions.FILE.read_text())
    assert set(stated["counts"]) == set(instructions.INSTRUCTION_SETS)
    names = [name for name, _ in instructions._operations()]
    for counts in stated["counts"].values():
        assert list(counts) == names and min(counts.values()) > 1000


def test_an_operation_without_a_stated_count_is_a_failure(capsys):
    stated = {"library": "x", "counts": {"avx2": {"kept": 1000, "grown": 1000, "gone": 1000}}}
    found = {"library": "y", "counts": {"avx2": {"kept": 1020, "grown": 1021, "new": 5}}}
    assert instructions.compare(stated, found) == 1
    answers = [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert answers == ["1.020 of 1,000", "MORE", "NOT STATED: --write", "NOT COUNTED any more"]
    for name in ("grown", "gone", "new"):
        alone = [{**file, "counts": {"avx2": {"kept": 1000}}} for file in (stated, found)]
        assert instructions.compare(*alone) == 0
        for file in (stated, found):
            if name in file["counts"]["avx2"]:
                part = alone[file is found]["counts"]["avx2"]
                part[name] = file["counts"]["avx2"][name]
        assert instructions.compare(*alone) == 1, name


def test_a_smoke_run_writes_results(tmp_path):
    """Every module is collected; a few operations run, at a size that measures nothing."""
    results = tmp_path / "results.json"
    passed, output = run_pytest(
        *("benchmarks", "--benchmark-only", "--size", "tiny", "--threads", "1", "--rounds", "1"),
        *("--no-memory", f"--benchmark-json={results}", "-k"),
        "tiny and (snnet or pytorch-cache) and (label-step or streaming-mplp or label-columns or rank-metrics)",
    )
    assert passed > 0, output
    run = read_run([results])
    assert {result.operation for result in run.results} == {
        *("label-step", "streaming-mplp", "label-columns", "rank-metrics")
    }
    assert all(result.seconds > 0 for result in run.results)
    assert "host" not in json.dumps(json.loads(Path(results).read_text())["machine_info"])


def test_without_pytest_benchmark_the_error_says_what_is_needed():
    _, output = run_pytest("benchmarks", "--benchmark-only", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert output == "ERROR: pytest-benchmark is not here: the benchmarks need pip install '.[bench]'\n\n"


def test_plain_pytorch_does_not_race_against_itself(monkeypatch):
    from benchmarks.conftest import _refuse_plain
    from snnet_kernels import BackendInfo, LibraryInfo

    libraries = (LibraryInfo("_C", False, "not built"), LibraryInfo("_C_cuda", True, "CUDA 13.0"))
    monkeypatch.setattr("snnet_kernels.backend_info", lambda: BackendInfo(None, libraries))
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("snnet_kernels.backends.loaded.without_code", lambda device: {"triton"})
    _refuse_plain("cuda")
    monkeypatch.setattr("snnet_kernels.backends.loaded.without_code", lambda device: {"cuda"})
    with pytest.raises(pytest.UsageError, match=r"^the compiled library _C_cuda has no code for this device"):
        _refuse_plain("cuda")
    message = (
        "^the compiled library _C is not built: without it plain PyTorch races against itself "
        r"\(SNNET_BACKEND=reference runs all the same\)$"
    )
    with pytest.raises(pytest.UsageError, match=message):
        _refuse_plain("cpu")
    monkeypatch.setattr("snnet_kernels.backend_info", lambda: BackendInfo("reference", libraries))
    _refuse_plain("cpu")
