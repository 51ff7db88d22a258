"""``snnet.report``: what a page says of runs of every kind, and how it looks in a browser."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from snnet import report as command
from snnet.config.commands import ReportCommand, SearchCommand, TrainCommand
from snnet.config.options import config_from
from snnet.data import ImageSet, build_dataset, decoding
from snnet.errors import UserError
from snnet.files.own_files import REPORT_MARK, REPORT_PICTURES
from snnet.report import PAGE_FILE, report
from snnet.reporting import ranked
from snnet.reporting.curves import curves
from snnet.reporting.page import duration
from snnet.reporting.ranked import has_labels, label_lists, rank_lists
from snnet.reporting.run import load_run
from snnet.retrieval.features import Identities
from snnet.search import search
from snnet.train import train
from snnet.training import checkpoint
from snnet.training.checkpoint import label_state, load_checkpoint
from snnet_kernels import PseudoLabelMemory
from tests.snnet.browser import browser

EPOCHS = 3


@pytest.fixture(scope="module")
def run(
    tiny_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A finished run with labels from the second epoch on; a low threshold, so that there are some."""
    folder = tmp_path_factory.mktemp("runs") / "a <run> & more"
    changes = {"epochs": EPOCHS, "eval_every": 1, "rerank": True, "threshold": 0.2}
    return folder, train(config_from({**tiny_options, **changes, "output_dir": str(folder)}))


@pytest.fixture(scope="module")
def written(run: tuple[Path, dict[str, Any]]) -> tuple[Path, str]:
    """Its report: the folder and the page."""
    return write(run[0], "--lists", 3, "--top-k", 4)


def write(folder: Path, *flags: object) -> tuple[Path, str]:
    path = report(ReportCommand.parse([str(folder), "--device", "cpu", *map(str, flags)]))
    assert path.name == PAGE_FILE
    return path.parent, path.read_text("utf-8")


def sections(page: str) -> dict[str, str]:
    return dict(re.findall(r'<section aria-labelledby="(\w+)">(.*?)</section>', page, re.S))


def rows(text: str) -> list[list[str]]:
    """The cells of each row of a body of a table, as plain text."""
    found = re.findall(r"<tr>(.*?)</tr>", text, re.S)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in found]
    return [[unescape(re.sub(r"<[^>]*>", "", cell)) for cell in row] for row in cells]


def percent(*fractions: float) -> list[str]:
    return [f"{100 * fraction:.1f}" for fraction in fractions]


def test_the_page_has_the_runs_numbers(run: tuple[Path, dict[str, Any]], written: tuple[Path, str]) -> None:
    folder, results = run
    found = sections(written[1])
    names = ["results", "training", "labels", "ranked", "failures", "time", "configuration", "environment"]
    assert list(found) == names
    measured = rows(found["results"])
    order = ("rank1", "rank5", "rank10", "mAP", "mINP")
    assert measured[1] == ["before training", *percent(*(results["before"][name] for name in order))]
    assert measured[1 + EPOCHS] == ["after 3 epochs", *percent(*(results["after"][name] for name in order))]
    again = ["the last, re-ranked (k-reciprocal)", *percent(*(results["reranked"][name] for name in order))]
    assert measured[2 + EPOCHS] == again
    # Both cameras have half of the 16 queries: their means are those of all.
    cameras = [row for row in measured if row[0].startswith("camera")]
    assert [row[:2] for row in cameras] == [["camera 1", "8"], ["camera 2", "8"]]
    assert np.mean([float(row[3]) for row in cameras]) == pytest.approx(
        100 * results["after"]["mAP"], abs=0.11
    )

    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row[1] for row in rows(found["training"])[1 : 1 + EPOCHS]] == [f"{loss:.3f}" for loss in losses]
    spent = {
        row[0]: float(row[1].replace(",", ""))
        for row in rows(found["time"])
        if row[0] in ("data", "together")
    }
    assert spent["together"] == pytest.approx(sum(results["seconds_by_part"].values()), abs=0.06)
    assert ["--threshold", "0.2"] in [row[:2] for row in rows(found["configuration"])]
    assert f"torch {torch.__version__.split('+')[0]}" in found["environment"]
    assert "a &lt;run&gt; &amp; more</h1>" in written[1] and "<run>" not in written[1]


def test_the_page_needs_nothing_else(written: tuple[Path, str]) -> None:
    folder, text = written
    sources = re.findall(r'\b(?:src|href)="([^"]*)"', text)
    assert len(sources) > 40
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)
    assert "<script" not in text and "url(" not in text and "@import" not in text
    images = re.findall(r"<img [^>]*>", text)
    assert all(re.search(r'alt="[^"]+"', image) for image in images)
    assert {path.name for path in folder.iterdir()} == {PAGE_FILE, *REPORT_PICTURES}


def test_frames_and_words_of_a_list_agree(written: tuple[Path, str]) -> None:
    ranked = sections(written[1])["ranked"]
    entries = re.findall(
        r'<li class="(right|wrong)(?: apart)?"><img alt="rank ([1-4]), (right|wrong), ([^"]*)"', ranked
    )
    assert [int(rank) for _, rank, _, _ in entries] == [1, 2, 3, 4] * 3
    assert all(frame == word for frame, _, word, _ in entries)
    queries = re.findall(r"<p>query ([\d,]+) · identity (\d+), camera (\d) · average precision", ranked)
    assert [query for query, _, _ in queries] == ["1", "9", "16"]  # evenly spread over 16
    for place, (_, identity, camera) in enumerate(queries):
        for frame, _, _, words in entries[4 * place : 4 * place + 4]:
            assert (f"identity {identity}," in words) == (frame == "right")
            assert (frame, f"camera {camera}" in words) != ("right", True)  # its own camera is ignored


@pytest.fixture(scope="module")
def crops(
    tiny_options: dict[str, Any], tiny_market: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run on a folder without identities, in which one image cannot be read, and that folder."""
    root = tmp_path_factory.mktemp("crops")
    shutil.copytree(tiny_market / "bounding_box_train", root / "data")
    (root / "data" / "0003_broken.png").write_bytes(b"no image")
    changes = {"dataset": "folder", "data_dir": str(root / "data"), "skip_bad_images": True, "threshold": 0.2}
    with pytest.warns(UserWarning, match="left out 1 of 49 images"):
        train(config_from({**tiny_options, **changes, "epochs": 2, "output_dir": str(root / "run")}))
    return root / "run", root / "data"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the images that have been decoded."""
    names, decode = set(), decoding._decode

    def watched(path: str) -> np.ndarray:
        names.add(Path(path).name)
        return decode(path)

    monkeypatch.setattr(decoding, "_decode", watched)
    return names


def test_pictures_of_commands_are_no_images_of_a_folder(
    tiny_options: dict[str, Any], tiny_market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run, its report and a search in the folder of crops itself: none of them adds an image."""
    shutil.copytree(tiny_market / "bounding_box_train", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    options = {**tiny_options, "dataset": "folder", "data_dir": ".", "threshold": 0.2}
    options |= {"epochs": 1, "label_start_epoch": 0, "output_dir": "run"}
    results = train(config_from(options))
    write(Path("run"), "--lists", 1)
    write(Path("run"), "--lists", 1, "--output", ".")
    (query,) = sorted(tmp_path.glob("0001_c1*_000000_*"))
    words = ["--gallery", ".", "--query", query, "--feature-cache", "none", "--checkpoint", "run"]
    search(SearchCommand.parse([*map(str, words), "--device", "cpu"]))
    assert len(list(tmp_path.rglob("*.png"))) == 48 + 3  # one of each command
    shutil.copy(query, "loss.png")  # under such a name someone's own is an image
    Path("failures.png").symlink_to("pseudo_labels.png")
    images = build_dataset("folder", ".").train
    assert len(images) == 50 and {"./loss.png", "./failures.png"} < set(images.paths)
    assert images.left_out == ("3 written by snnet.report or snnet.search (one is 'matches.png')",)
    for name in ("loss.png", "failures.png"):
        Path(name).unlink()
    command_line = TrainCommand.parse(["--resume", "run"])
    assert train(command_line.config, command_line.resume) == results


def test_a_folder_without_identities_shows_its_labels_and_says_the_rest(
    crops: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(command, "load_trained_model")  # there is nothing to rank with it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "left out")
        _, text = write(crops[0], "--lists", 2, "--top-k", 5, "--output", tmp_path)
    found = sections(text)
    assert "a folder of crops has no queries and no identities" in found["results"]
    assert "the dataset has no queries and no gallery with identities" in found["ranked"]
    assert "failures" not in found
    assert len(re.findall(r"rank \d, (labelled positive|not labelled), similarity", found["labels"])) == 10
    assert "✓" not in found["labels"] and "identity" not in found["labels"]


def test_only_the_training_images_that_are_shown_are_decoded(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, decoded: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, read_torch = [], checkpoint.read_torch
    monkeypatch.setattr(checkpoint, "read_torch", lambda path: read.append(path) or read_torch(path))
    _, text = write(run[0], "--lists", 2, "--top-k", 3, "--output", tmp_path)
    shown = set(re.findall(r'title="([^"]*)"', sections(text)["labels"]))
    assert 4 <= len(shown) <= 8
    assert {name for name in decoded if int(name[:4]) <= 100} == shown  # identities above are not trained on
    assert read == [run[0] / "checkpoint.pt"]  # once for all parts


def test_a_shown_training_image_that_has_been_damaged_is_named(
    crops: tuple[Path, Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(crops[1], data)
    (data / "0003_broken.png").unlink()  # the rest are the images of the run
    first = min(data.iterdir())
    first.write_bytes(first.read_bytes()[:200])
    with pytest.warns(UserWarning, match=f"^pseudo labels: not shown: cannot read image '{first}': "):
        _, text = write(crops[0], "--data-dir", data, "--output", tmp_path / "out")
    assert f"Not shown: cannot read image &#39;{first}&#39;" in sections(text)["labels"]


def test_labels_are_not_shown_with_other_pictures_of_the_same_names(
    crops: tuple[Path, Path], tmp_path: Path
) -> None:
    """As ``--resume`` refuses them; the copied picture need not be one that is shown."""
    data = tmp_path / "data"
    shutil.copytree(crops[1], data)
    (data / "0003_broken.png").unlink()  # the rest are the images of the run
    *_, one, other = sorted(data.rglob("*.png"))
    shutil.copy(one, other)
    reason = "the training images that were found are not those of the run"
    with pytest.warns(UserWarning, match=f"^pseudo labels: not shown: {reason}$"):
        _, text = write(crops[0], "--data-dir", data, "--output", tmp_path / "out")
    assert f"Not shown: {reason}." in sections(text)["labels"]
    assert not (tmp_path / "out" / "pseudo_labels.png").exists()


@pytest.mark.parametrize(
    ("begin", "reason"),
    [
        (1, "no image has another as positive"),
        (2, "no labels have been predicted yet: the checkpoint is of the warm-up"),
    ],
)
def test_a_label_memory_without_positives_is_said(
    begin: int, reason: str, tiny_options: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"threshold": 0.99999, "label_start_epoch": begin, "epochs": 2, "output_dir": str(tmp_path)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no labels
        train(config_from({**tiny_options, **changes}))
    with pytest.warns(UserWarning, match=f"^pseudo labels: not shown: {reason}$"):
        _, text = write(tmp_path)
    assert f"Not shown: {reason}." in sections(text)["labels"]


def test_what_is_missing_is_said(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run[0], folder, ignore=shutil.ignore_patterns("report"))
    (folder / "environment.json").unlink()
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        re.sub(r"(?m)^data_dir: .*$", f"data_dir: {tmp_path / 'gone'}", config)
    )
    with pytest.warns(UserWarning) as warned:
        _, text = write(folder, "--output", tmp_path / "out")
    (message,) = [str(warning.message) for warning in warned]
    assert message.startswith(
        "ranked lists and pseudo labels: not shown, for want of the images: dataset market1501:"
    )
    found = sections(text)
    for name in ("ranked", "labels"):
        assert re.search(r"for want of the images: dataset market1501: .*gone.* does not exist", found[name])
    assert "environment.json is missing" in found["environment"]
    assert len(rows(found["results"])) == 2 + EPOCHS + 1  # what was logged is there all the same

    (folder / "checkpoint.pt").unlink()
    (folder / "results.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(lines[0] + "\n")
    out, text = write(folder, "--output", tmp_path / "out")
    assert "1 of 3 epochs done" in text and "curves begin with the second" in text
    assert "for want of a checkpoint: no checkpoint at" in sections(text)["labels"]
    assert [path.name for path in out.iterdir()] == [PAGE_FILE]  # pictures of the report before are gone

    (folder / "metrics.jsonl").unlink()
    assert "No epoch is done yet." in write(folder)[1]


def test_the_page_says_of_which_epoch_the_log_is_and_of_which_the_checkpoint(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """A run that goes on writes its log after each epoch, its checkpoint less often."""
    folder = tmp_path / "copy"
    shutil.copytree(run[0], folder, ignore=shutil.ignore_patterns("report"))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace(f"epochs: {EPOCHS}\n", "epochs: 60\n"))
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    with (folder / "metrics.jsonl").open("a") as file:
        for epoch in (3, 4):
            file.write(json.dumps({**last, "epoch": epoch, "rank1": 0.9, "mAP": 0.8}) + "\n")
    _, text = write(folder, "--lists", 2, "--output", tmp_path / "out")
    before = 100 * run[1]["before"]["mAP"]
    assert f"<dd>80.0 %<small>after 5 epochs, {before:.1f} % before training</small>" in text
    found = sections(text)
    assert "The checkpoint after 3 epochs by the camera of the query" in found["results"]
    for name in ("labels", "ranked", "failures"):
        assert "<p>The checkpoint after 3 epochs: " in found[name]


def test_images_can_be_left_out(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, text = write(run[0], "--no-images", "--output", tmp_path / "out")
    assert "<img" not in text and "left out (--no-images)" in sections(text)["ranked"]
    assert not {"ranked_lists.png", "failures.png", "pseudo_labels.png"} & {
        path.name for path in out.iterdir()
    }


def test_what_was_asked_for_and_cannot_be_is_an_error_before_anything_is_written(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "ranked_lists.png").write_bytes(REPORT_MARK.encode() + b", the report before")
    with pytest.raises(UserError, match=r"dataset market1501: .*gone.* does not exist"):
        write(run[0], "--data-dir", tmp_path / "gone", "--output", out)
    assert [path.name for path in out.iterdir()] == ["ranked_lists.png"]
    with pytest.raises(UserError, match=r"dataset market1501: .*gone.* does not exist"):
        write(run[0], "--data-dir", tmp_path / "gone", "--output", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match=r"^--device cuda:99: torch .* sees"):
        write(run[0], "--device", "cuda:99", "--output", out)
    assert [path.name for path in out.iterdir()] == ["ranked_lists.png"]
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=rf"--output {path}: must be a folder that can be written to"):
            write(run[0], "--output", path)


def test_a_folder_that_is_no_run_and_damaged_files_are_named(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no run there \(config.yaml is missing\)"):
        write(tmp_path)
    with pytest.raises(UserError, match=r"^RUN is missing: the folder of a run$"):
        ReportCommand.parse([])
    shutil.copy(run[0] / "config.yaml", tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0, "loss": 1.0, "seconds": 1.0}\n{"epoch": 1, "lo')
    with pytest.raises(UserError, match=r"metrics.jsonl: line 2 is not the metrics of epoch 1"):
        write(tmp_path)
    records = [{"epoch": epoch, "loss": 1.0, "seconds": 1.0} for epoch in range(EPOCHS)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(UserError, match=r"results.json is not the results of a run"):
        write(tmp_path)


def test_rankings_are_those_of_a_sort() -> None:
    """Lists, first matches and failures against the definitions, with junk and images of the query's camera."""
    rng = np.random.default_rng(0)
    query, gallery = (torch.nn.functional.normalize(torch.randn(n, 8), dim=1) for n in (30, 60))
    pids, cams = rng.integers(0, 12, 30), rng.integers(0, 3, 30)
    gallery_pids, gallery_cams = rng.integers(-1, 10, 60), rng.integers(0, 3, 60)
    retrieval = Identities(pids, gallery_pids, cams, gallery_cams)
    found = rank_lists(query, gallery, retrieval, "step", lists=5, length=7)

    rankings, firsts = {}, {}
    for row in range(30):
        listed = [
            j
            for j in range(60)
            if gallery_pids[j] != -1 and (gallery_pids[j], gallery_cams[j]) != (pids[row], cams[row])
        ]
        order = sorted(listed, key=lambda j: -float(query[row] @ gallery[j]))
        right = [rank for rank, j in enumerate(order, start=1) if gallery_pids[j] == pids[row]]
        if right:
            rankings[row], firsts[row] = order, right[0]
    assert found.counted == len(rankings) < 30
    assert found.failed == sum(first > 1 for first in firsts.values())
    rows_with_match = sorted(rankings)
    expected = [rows_with_match[round(place)] for place in np.linspace(0, len(rankings) - 1, 5)]
    assert [one.image for one in found.sample] == expected
    worst = sorted(firsts.values(), reverse=True)[:5]
    assert [firsts[one.image] for one in found.failures] == worst
    for one in [*found.sample, *found.failures]:
        assert [shown.image for shown in one.shown] == rankings[one.image][:7]
        assert [shown.right for shown in one.shown] == [
            gallery_pids[s.image] == pids[one.image] for s in one.shown
        ]
        if firsts[one.image] > 7:
            assert one.first_match is not None and one.first_match.rank == firsts[one.image]
            assert one.first_match.image == rankings[one.image][firsts[one.image] - 1]
        else:
            assert one.first_match is None
    assert sum(queries for _, queries, _, _ in found.cameras) == found.counted
    rank1 = sum(queries * share for _, queries, share, _ in found.cameras) / found.counted
    assert rank1 == pytest.approx(1 - found.failed / found.counted)


@pytest.mark.parametrize("queries_at_a_time", [7, 300])
def test_rankings_of_nearly_equal_images_agree_with_their_ranks(
    queries_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Similarities differ by their rounding alone, which depends on how many rows are multiplied at a time."""
    monkeypatch.setattr(ranked, "PAIRS_AT_A_TIME", queries_at_a_time * 1000)
    random, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    base, apart = torch.randn(1, 256, generator=random), torch.randn(1060, 256, generator=random)
    features = torch.nn.functional.normalize(base + 0.01 * apart, dim=1)
    pids, cams = rng.integers(0, 60, 1060), rng.integers(0, 6, 1060)
    retrieval = Identities(pids[:60], pids[60:], cams[:60], cams[60:])
    found = rank_lists(features[:60], features[60:], retrieval, "step", lists=60, length=5)
    assert found.counted == len(found.sample) == 60 and found.failed == len(found.failures) > 50
    deep = [one for one in found.failures if one.first_match]
    assert len(deep) > 30 and all(one.first_match.right for one in deep)
    assert all(any(shown.right for shown in one.shown) for one in found.failures if not one.first_match)
    assert not any(one.shown[0].right for one in found.failures)
    assert sum(one.shown[0].right for one in found.sample) == 60 - found.failed


def test_label_lists_are_read_from_the_memories(run: tuple[Path, dict[str, Any]]) -> None:
    memory, held = label_state(load_checkpoint(run[0]), 48, run[0])

    images = ImageSet(("",) * 48, np.arange(48) // 6 - 1, None)  # the first six are nobody
    lists = label_lists(memory, held, images, lists=4, length=47)
    assert [one.image for one in lists] == [0, 16, 31, 47]
    labels = held.to_dense()
    assert has_labels(held)
    for one in lists:
        positives = {shown.image for shown in one.shown if shown.labelled}
        assert positives | {one.image} == set(torch.nonzero(labels[one.image]).flatten().tolist())
        similarity = [shown.similarity for shown in one.shown]
        assert similarity == sorted(similarity, reverse=True) and len(similarity) == 47
        known = one.image >= 6
        assert all(shown.right == (known and shown.image // 6 == one.image // 6) for shown in one.shown)
    assert not has_labels(PseudoLabelMemory(9))


def test_an_old_log_without_the_parts_of_time_has_the_other_curves(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("epochs: 5\nlabel_start_epoch: 1\n")
    lines = [{"epoch": e, "loss": 3.0 - e, "positives": 1.0 + e, "seconds": 60.0} for e in range(2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = load_run(tmp_path)
    charts = curves(run)
    assert list(charts) == ["loss", "positives"]
    assert all(one.each_epoch for one in charts.values())
    assert charts["loss"].series[0].points == [(1, 3.0), (2, 2.0)] and charts["loss"].mark == (
        1,
        "labels begin",
    )
    assert (run.finished, run.before, run.latest("loss", "positives"), run.latest("mAP")) == (
        False,
        {},
        lines[1],
        {},
    )


def test_words_for_numbers() -> None:
    times = [duration(seconds) for seconds in (0.26, 59.94, 61, 3599.6, 7265)]
    assert times == ["0.3 s", "59.9 s", "1 min 01 s", "1 h 00 min", "2 h 01 min"]


def test_in_a_browser(written: tuple[Path, str], run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    address = (written[0] / PAGE_FILE).as_uri()
    paper = {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 25, 29)"}
    with browser() as opened:
        for scheme, width in (("light", 1200), ("dark", 1200), ("light", 360)):
            page = opened.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
            messages: list[str] = []
            page.on("console", lambda message, messages=messages: messages.append(message.text))
            page.on("request", lambda request, messages=messages: messages.append(request.url))
            page.goto(address)
            # The page itself and images inside it are all that is ever asked for.
            assert [m for m in messages if not m.startswith("data:image/jpeg")] == [address]
            assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth >= 16)")
            assert page.evaluate("document.images.length") == len(re.findall("<img ", written[1]))
            assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper[scheme]
            tile = page.get_by_role("definition").nth(1).inner_text()
            assert tile.split("\n")[0] == f"{100 * run[1]['after']['mAP']:.1f} %"
            charts = page.get_by_role("img", name="Training loss")
            assert charts.count() == 1 and charts.bounding_box()["width"] > 300
            # Each chart is as high as it should be, its words as large as they can be read.
            sizes = page.evaluate(
                "[...document.querySelectorAll('svg text')].map(t => t.ownerSVGElement.getBoundingClientRect().width"
                " / 480 * parseFloat(getComputedStyle(t).fontSize))"
            )
            assert len(sizes) >= 5 * 8 and min(sizes) >= 7.3
            for link in page.locator("nav a").all():
                link.click()
                assert page.locator(":target").inner_text() == link.inner_text()
            page.get_by_text("Numbers").first.click()
            assert page.locator("details[open] tbody tr").count() == EPOCHS
            page.screenshot(path=tmp_path / f"{scheme}-{width}.png")
            page.close()
        page = opened.new_page(color_scheme="dark")
        page.goto(address)
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper["light"]
        assert not page.locator("nav").is_visible()
        assert page.pdf(format="A4").count(b"/Type /Page\n") >= 3
    shot = np.asarray(Image.open(tmp_path / "dark-1200.png").convert("RGB")).reshape(-1, 3)
    assert (shot == (22, 25, 29)).all(axis=1).mean() > 0.5
