"""``snnet.report`` on files that are damaged, hostile or someone else's."""

from __future__ import annotations

import ast
import json
import os
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import snnet
from snnet.config.commands import ReportCommand
from snnet.errors import UserError
from snnet.files.own_files import REPORT_MARK, REPORT_PICTURES
from snnet.report import PAGE_FILE, report
from snnet.reporting.curves import curves
from snnet.reporting.page import Contents, page, visible
from snnet.reporting.pictures import Tile
from snnet.reporting.ranked import RankedGallery
from snnet.reporting.run import load_run

RANKS = {"rank1": 0.5, "rank5": 0.625, "rank10": 1.0, "mAP": 0.375, "mINP": 0.25}
MEASURED = {**RANKS, "queries": 16, "queries_without_match": 0, "average_precision": "step"}
EPOCH = {"loss": 2.5, "positives": 3.0, "label_precision": 0.75, **RANKS, "seconds": 60.0} | {
    f"seconds_{part}": 10.0 for part in ("data", "forward", "labels", "backward", "update", "measure")
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files of a run of three epochs, without a checkpoint."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("epochs: 3\n")
    lines = [json.dumps({"epoch": epoch, **EPOCH}) for epoch in range(3)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "results.json").write_text(json.dumps({"before": MEASURED, "after": MEASURED}, indent=2) + "\n")
    (folder / "environment.json").write_text(json.dumps([{"first_epoch": 0, "versions": {"torch": "2"}}]))
    return folder


def shown(folder: Path) -> str:
    loaded = load_run(folder)
    return page(Contents(loaded, curves(loaded), dict.fromkeys(curves(loaded), "<svg></svg>")))


def write(folder: Path, *flags: object) -> Path:
    return report(ReportCommand.parse([str(folder), "--no-images", *map(str, flags)])).parent


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"loss": 2.5', '"loss" 2.5', "it is not JSON: Expecting ':' delimiter: column 21"),
        ('"loss": 2.5', '"loss": "2.5"', "loss must be a number from -3.5e[+]38 to 3.5e[+]38, got '2.5'"),
        ('"loss": 2.5', '"loss": true', "loss must be a number from -3.5e[+]38 to 3.5e[+]38, got True"),
        ('"loss": 2.5', '"loss": [[[]]]', r"loss must be a number .* got \[\[\[\]\]\]"),
        ('"loss": 2.5', '"loss": 1e300', r"loss must be a number .* got 1e[+]300"),
        ('"loss": 2.5', f'"loss": 1{"0" * 400}', "loss must be a number .* got a whole number of 1,329 bits"),
        ('"loss": 2.5', f'"loss": 1{"0" * 5000}', r"it is not JSON: Exceeds the limit \(4300.*…"),
        ('"loss": 2.5', f'"loss": {"[" * 100_000}', "it is not JSON: maximum recursion depth exceeded.*"),
        ('"rank1": 0.5', '"rank1": 9.5', "rank1 must be a number from 0 to 1, got 9.5"),
        ('"rank5"', '"rank\\u001b"', "rank5 is missing"),
        ('"seconds": 60.0', '"seconds": NaN', "seconds must be a number from 0 to 3.5e[+]38, got nan"),
        ('"seconds": 60.0', '"seconds": -60.0', "seconds must be a number from 0 to 3.5e[+]38, got -60.0"),
        ('"seconds":', '"second":', "seconds is missing"),
        ('"epoch": 1', '"epoch": 7', "epoch must be 1, got 7"),
        ('{"epoch": 1', '["epoch", 1', r"it is not JSON: Expecting ',' delimiter: column \d+"),
    ],
    ids=range(15),
)
def test_a_damaged_line_of_the_metrics_is_named(run: Path, old: str, new: str, message: str) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[1] = lines[1].replace(old, new)
    (run / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError) as error:
        load_run(run)
    expected = rf"{run}/metrics.jsonl: line 2 is not the metrics of epoch 1: ({message})"
    assert re.fullmatch(expected, str(error.value))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"mAP": 0.375', '"mAP" 0.375', " is not the results of .*, but it is not JSON: Expecting .*: line 6, "),
        ('"mAP": 0.375', '"mAP": 37.5', ": before is not rank metrics: mAP must be a number from 0 to 1, got 37.5"),
        ('"mAP": 0.375', '"mAP": NaN', ": before is not rank metrics: mAP must be a number from 0 to 1, got nan"),
        ('"mAP"', '"mAQ"', ": before is not rank metrics: mAP is missing"),
        ('"queries": 16', '"queries": "16"', ": before is not rank metrics: queries must be a whole number from 0 to"),
        ('"step"', '"s\\u0007ep"', r": before is not rank metrics: average_precision must be .*, got 's\\x07ep'"),
        ('"queries": 16', '"queries": 16.5', ": before is not rank metrics: queries must be a whole .*, got 16.5"),
    ],
)  # fmt: skip
def test_damaged_results_are_named(run: Path, old: str, new: str, message: str) -> None:
    text = (run / "results.json").read_text()
    (run / "results.json").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=f"{run}/results.json{message}"):
        load_run(run)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"rank5", b"rank\xff", "before is not rank metrics: rank5 is missing"),
        (b": 0.625", b"\xff 0.625", "line 4, "),
    ],
)
def test_bytes_that_are_no_utf8_are_named(run: Path, old: bytes, new: bytes, message: str) -> None:
    content = (run / "results.json").read_bytes()
    (run / "results.json").write_bytes(content.replace(old, new, 1))
    with pytest.raises(UserError, match=f"results.json.*{message}"):
        load_run(run)


def test_values_that_are_not_finite_are_left_out_and_said(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[1] = lines[1].replace("2.5", "NaN").replace('"mAP": 0.375', '"mAP": -Infinity')
    (run / "metrics.jsonl").write_text("\n".join(lines))
    text = shown(run)
    assert '<p class="note">Left out, since they are not finite: loss, mAP of epoch 1.</p>' in text
    charts = curves(load_run(run))
    assert charts["loss"].series[0].points == [(1, 2.5), (3, 2.5)]
    assert [name for name, chart in charts.items() if not chart.each_epoch] == ["retrieval"]


def test_results_are_of_a_finished_run_only(run: Path) -> None:
    """An earlier run in the same folder may have left its results."""
    assert "50.0 %<small>after 3 epochs, 50.0 % before training</small>" in shown(run)
    (run / "config.yaml").write_text("epochs: 60\n")
    text = shown(run)
    assert "50.0 %<small>after 3 epochs</small>" in text and "before training" not in text
    assert "3 of 60 epochs done" in text


def test_a_number_at_the_head_names_its_epoch(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[2] = lines[2].replace('"label_precision": 0.75, ', "")
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert "<dt>label precision</dt><dd>75.0 %<small>after 2 epochs</small>" in shown(run)


@pytest.mark.parametrize("name", ["metrics.jsonl", "results.json", "environment.json"])
def test_one_changed_byte_gives_a_page_or_one_line(run: Path, name: str) -> None:
    content = (run / name).read_bytes()
    rng = np.random.default_rng(0)
    named = 0
    for place in rng.permutation(len(content))[:60].tolist():
        damaged = bytearray(content)
        damaged[place] = int(rng.integers(0, 256))
        (run / name).write_bytes(damaged)
        try:
            assert shown(run).endswith("</body></html>\n")
        except UserError as error:
            named += 1
            assert str(error).startswith(f"{run / name}") and str(error).isprintable()
    assert named > 10 if name != "environment.json" else named == 0


@pytest.mark.parametrize("content", ["[" * 100_000, "{}", '[{"first_epoch": "0"}]', "\xff"])
def test_an_environment_that_cannot_be_read_is_said(run: Path, content: str) -> None:
    (run / "environment.json").write_text(content, "latin-1")
    assert "It was not recorded (environment.json is missing or damaged)." in shown(run)
    os.truncate(run / "environment.json", 2**41)  # which takes no place on the disk
    assert "It was not recorded (environment.json is missing or damaged)." in shown(run)
    (run / "environment.json").write_text('[{"first_epoch": 0, "backends": {"a": ["cpu"]}, "versions": [1]}]')
    assert "Where the epochs from 0 on were trained." in shown(run)


@pytest.mark.parametrize(("name", "most"), [("metrics.jsonl", "268,435,456"), ("results.json", "1,048,576")])
def test_a_file_without_an_end_is_not_read(name: str, most: str, run: Path) -> None:
    os.truncate(run / name, 2**41)
    with pytest.raises(UserError, match=f"^{run / name} has more than {most} bytes$"):
        load_run(run)


def test_names_and_values_are_shown_escaped(run: Path) -> None:
    """Markup, terminal sequences, direction marks and bytes that are no UTF-8, wherever a text can come from."""
    evil = "\x1b]0;x\x07<img src=x onerror=alert(1)>\"'\u202egpj.\u200b\x9b2J\udcff"
    visible = "\\x1b]0;x\\x07<img src=x onerror=alert(1)>\"'\\u202egpj.\\u200b\\x9b2J\\udcff"
    (run / "config.yaml").write_text(
        json.dumps({"epochs": 3, "data_dir": evil[:-1], "name_pattern": evil[:-1]})
    )
    start = {"first_epoch": 0, evil: evil, "versions": {evil: evil}, "backends": {evil: evil, "b": [evil]}}
    (run / "environment.json").write_text(json.dumps([start]))
    path = os.path.join(os.fsencode(run), os.fsencode(evil))
    with open(path, "wb") as file:
        Image.new("RGB", (2, 4)).save(file, "PNG")
    tile = Tile(os.fsdecode(path), evil, True, alt=evil)
    loaded = load_run(run)
    contents = Contents(loaded, lists={"pseudo_labels": [(evil, [tile])]}, missing={"ranked": evil})
    text = page(contents)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "<img src=x" not in text and text.count("<img ") == 1
    (image,) = re.findall('<img alt="([^"]*)" title="([^"]*)" src="data:image/jpeg;base64,', text)
    assert [unescape(words) for words in image] == [visible, visible]
    assert unescape(text).count(visible) == 6 + 5  # list, tile, note; of the environment
    assert unescape(text).count(visible[:-6]) == 6 + 5 + 4  # options, twice


def test_a_space_of_any_script_is_shown_as_it_is() -> None:
    assert visible("a\u3000b\u00a0c\u2028") == "a\u3000b\u00a0c\\u2028"


@pytest.mark.parametrize("name", [PAGE_FILE, "loss.png", "pseudo_labels.png"])
@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder"])
def test_what_no_report_wrote_is_never_replaced_or_deleted(
    run: Path, tmp_path: Path, name: str, kind: str
) -> None:
    """Whether this report has a file of that name (loss) or not (pseudo_labels)."""
    out, target = tmp_path / "out", tmp_path / "target"
    out.mkdir()
    path = out / name
    if kind == "file":
        path.write_bytes(b"my own picture")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(target)
        if kind == "link":
            target.write_text(REPORT_MARK)
    with pytest.raises(
        UserError,
        match=f"^{path} is in the way: it was not written by python -m snnet.report; move it, or name",
    ):
        write(run, "--output", out)
    assert list(out.iterdir()) == [path] and path.is_symlink() == ("link" in kind)
    assert kind != "file" or path.read_bytes() == b"my own picture"


def test_a_report_replaces_and_deletes_the_files_of_the_one_before(run: Path) -> None:
    out = write(run)
    drawn = {"loss", "retrieval", "label_quality", "positives", "seconds"}
    assert {path.name for path in out.iterdir()} == {PAGE_FILE, *(f"{name}.png" for name in drawn)}
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "notes.txt").write_text("mine")
    assert all(REPORT_MARK.encode() in content[:1024] for content in first.values())
    write(run)
    assert {name: (out / name).read_bytes() for name in first} == first
    for name in REPORT_PICTURES:
        (out / name).write_bytes(first["loss.png"])
    (run / "metrics.jsonl").write_text(json.dumps({"epoch": 0, **EPOCH}) + "\n")
    write(run)
    assert {path.name for path in out.iterdir()} == {PAGE_FILE, "notes.txt"}


def test_matplotlib_is_imported_only_where_charts_are_drawn() -> None:
    found = []
    for path in sorted(Path(snnet.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        inside = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
        for node in ast.walk(tree):
            names: list[Any] = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if any(str(name).split(".")[0] == "matplotlib" for name in names) and node.col_offset == 0:
                found.append((path.name, id(node) in inside))
    assert found == []


@pytest.mark.parametrize("single", [False, True])
def test_the_page_says_what_galleries_cmc_is_of(run: Path, single: bool) -> None:
    (run / "config.yaml").write_text(f"epochs: 3\nsingle_gallery_shot: {str(single).lower()}\n")
    text = shown(run)
    about = "Percent; 16 queries, mAP by the step definition."
    assert text.count(about) > 0
    assert text.count(f"{about} CMC is of galleries with one image an identity.") == single * text.count(
        about
    )


@pytest.mark.parametrize(
    ("epochs", "options", "words"),
    [
        (
            2,
            "epochs: 3\n",
            "No ranks are recorded yet: no epoch has any. Those before training are taken from the checkpoint (not "
            "with --no-images), or from the results of a finished run.",
        ),
        (3, "epochs: 3\n", "No ranks are recorded in the metrics and the results of the run."),
        (
            2,
            "epochs: 3\ndataset: folder\ndata_dir: x\n",
            "Nothing was evaluated: a folder of crops has no queries and no identities.",
        ),
    ],
)
def test_a_run_without_ranks_says_where_they_come_from(
    epochs: int, options: str, words: str, run: Path
) -> None:
    (run / "config.yaml").write_text(options)
    (run / "results.json").unlink()
    lines = [json.dumps({"epoch": epoch, "loss": 2.5, "seconds": 1.0}) for epoch in range(epochs)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for text in (shown(run), (write(run) / PAGE_FILE).read_text("utf-8")):
        assert f'<p class="note">{words}</p>' in unescape(text)


@pytest.mark.parametrize("whole", ["", " in the whole gallery"])
def test_the_page_says_what_is_of_the_whole_gallery(run: Path, whole: str) -> None:
    (run / "config.yaml").write_text(f"epochs: 3\nsingle_gallery_shot: {str(bool(whole)).lower()}\n")
    cameras = [(1, 8, 0.5, 0.25), (2, 8, 1.0, 0.75)]
    for failed, words in (
        (3, f"the queries whose first right image comes last{whole}; where"),
        (0, f"None: every query with a match has a right image at its first rank{whole}."),
    ):
        contents = Contents(load_run(run), retrieval=RankedGallery([], [], failed, 16, cameras))
        contents.lists = {"ranked_lists": [], "failures": [("a query", [])] * bool(failed)}
        text = " ".join(page(contents).split())
        assert f"by the camera of the query; rank-1 and mAP{whole} in percent." in text
        assert f"of 16 queries with a match the first rank{whole} is right for {16 - failed}." in text
        assert words in text
