"""``snnet.search`` finds what ranking by hand finds, and extracts an image once."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from snnet import search as command
from snnet.config.commands import SearchCommand
from snnet.data import ImageSet, build_dataset
from snnet.errors import UserError
from snnet.reporting import pictures
from snnet.retrieval import gallery_cache
from snnet.retrieval.features import decode
from snnet.retrieval.trained import load_trained_model
from snnet.search import Matches, search, top_matches

MODEL = ("--arch", "osnet_x0_25", "--weights", "none", "--seed", "3")
SIZE = ("--height", "32", "--width", "16", "--workers", "0", "--device", "cpu")


@pytest.fixture
def gallery(tiny_market: Path, tmp_path: Path) -> Path:
    """12 images in two folders."""
    for number, path in enumerate(sorted((tiny_market / "bounding_box_test").iterdir())[::4]):
        folder = tmp_path / "gallery" / f"day{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return tmp_path / "gallery"


@pytest.fixture
def parsed(gallery: Path, tiny_market: Path, tmp_path: Path) -> Callable[..., SearchCommand]:
    def parse(*words: object) -> SearchCommand:
        defaults = {
            "--gallery": gallery, "--query": tiny_market / "query",
            "--picture": "none", "--feature-cache": tmp_path / "cache",
        }  # fmt: skip
        given = [str(word) for word in words]
        for flag, value in defaults.items():
            given += [] if flag in given else [flag, str(value)]
        return SearchCommand.parse([*MODEL, *SIZE, *given])

    return parse


def features(command: SearchCommand, images: ImageSet) -> np.ndarray:
    trained = load_trained_model(None, None, command.given)
    return trained.features(decode(images, trained.config)).numpy()


def test_matches_are_those_of_ranking_by_hand(
    parsed: Callable[..., SearchCommand], gallery: Path, tiny_market: Path
) -> None:
    asked = parsed("--top-k", 5)
    found = search(asked)
    gallery_images = build_dataset("folder", str(gallery)).train
    query_images = build_dataset("folder", str(tiny_market / "query")).train
    similarity = features(asked, query_images) @ features(asked, gallery_images).T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :5]
    assert len(found) == 16
    for i, matches in enumerate(found):
        assert matches.query == query_images.paths[i]
        assert list(matches.gallery) == [gallery_images.paths[j] for j in order[i]]
        np.testing.assert_allclose(matches.similarity, similarity[i, order[i]], atol=1e-6)


def test_top_matches_breaks_ties_in_gallery_order_and_passes_over_the_query_itself() -> None:
    rng = np.random.default_rng(0)
    query = rng.integers(-1, 2, (20, 3)).astype(np.float32)  # few distinct products: ties everywhere
    gallery = rng.integers(-1, 2, (30, 3)).astype(np.float32)
    own = [sorted({int(place) for place in rng.integers(0, 30, count)}) for count in rng.integers(0, 4, 20)]
    for k in (1, 7, 29, 50):
        for i, (places, similarity) in enumerate(top_matches(query, gallery, k, own)):
            row = gallery @ query[i]
            wanted = [j for j in np.argsort(-row, kind="stable") if j not in own[i]][:k]
            assert places.tolist() == wanted and similarity.tolist() == row[wanted].tolist()
    ((places, similarity),) = top_matches(query[:1], gallery[:1], 3, [[0]])
    assert len(places) == len(similarity) == 0


def test_a_query_in_the_gallery_does_not_find_itself_but_its_copies(
    parsed: Callable[..., SearchCommand], gallery: Path
) -> None:
    query = sorted((gallery / "day0").iterdir())[0]
    shutil.copy(query, gallery / "day1" / "copy.png")
    (matches,) = search(parsed("--query", query))
    assert len(matches.gallery) == 10 and str(query) not in matches.gallery
    assert matches.gallery[0] == str(gallery / "day1" / "copy.png")
    assert matches.similarity[0] == pytest.approx(1.0, abs=1e-6)


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of the gallery images that go through the network, a list a search."""
    calls: list[list[str]] = []
    decode_images = gallery_cache.decode

    def watched(images: ImageSet, *how: Any, **named: Any) -> object:
        calls.append(sorted(os.path.basename(path) for path in images.paths))
        return decode_images(images, *how, **named)

    monkeypatch.setattr(gallery_cache, "decode", watched)
    return calls


def test_names_that_are_no_utf8_are_searched_and_kept(
    parsed: Callable[..., SearchCommand], gallery: Path, extracted: list[list[str]]
) -> None:
    odd = gallery.with_name(os.fsdecode(b"gallery\xff"))
    gallery.rename(odd)
    image = sorted((odd / "day0").iterdir())[0].rename(odd / os.fsdecode(b"\xfe.png"))
    first = search(parsed("--gallery", odd, "--top-k", 12))
    assert search(parsed("--gallery", odd, "--top-k", 12)) == first and len(extracted) == 1
    assert sum(str(image) in matches.gallery for matches in first) == 16
    assert any(line.endswith(image.name) for line in command.match_table(first, odd))


def test_only_new_content_is_extracted_and_results_do_not_change(
    parsed: Callable[..., SearchCommand], gallery: Path, extracted: list[list[str]]
) -> None:
    def found() -> list[Matches]:
        cached, fresh = search(parsed()), search(parsed("--feature-cache", "none"))
        extracted.pop()  # that of the search without a cache
        assert [m.gallery for m in cached] == [m.gallery for m in fresh]
        for ours, theirs in zip(cached, fresh, strict=True):
            np.testing.assert_allclose(ours.similarity, theirs.similarity, atol=1e-6)
        return cached

    first = found()
    names = sorted(path.name for path in gallery.rglob("*.png"))
    assert extracted == [names] and len(names) == 12
    assert found() == first and len(extracted) == 1  # nothing to do

    one, two, three = sorted((gallery / "day0").iterdir())[:3]
    os.utime(one)  # touched: read again, known by its content
    two.rename(gallery / "renamed.png")
    third = three.read_bytes()
    three.unlink()
    assert {image for m in found() for image in m.gallery} <= {str(path) for path in gallery.rglob("*.png")}
    assert len(extracted) == 1

    # Other content under the same name, size and time of change.
    times = one.stat()
    picture = Image.open(one).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    picture.save(one, compress_level=0)
    size = one.stat().st_size
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(one, compress_level=0)
    assert one.stat().st_size == size
    os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))
    (gallery / "new.png").write_bytes(third)  # came back: it had been dropped
    found()
    assert extracted[1:] == [sorted([one.name, "new.png"])]


def test_another_network_size_or_feature_has_features_of_its_own(
    parsed: Callable[..., SearchCommand], extracted: list[list[str]], tmp_path: Path
) -> None:
    for number, words in enumerate(
        ([], ["--seed", 4], ["--height", 48], ["--retrieval-feature", "after"], ["--arch", "resnet18"]), 1
    ):
        before = search(parsed(*words))
        assert len(extracted) == number and search(parsed(*words)) == before
        assert len(extracted) == number
    assert len(os.listdir(tmp_path / "cache")) == 5


def test_a_damaged_cache_is_made_again_and_one_that_cannot_be_written_is_a_warning(
    parsed: Callable[..., SearchCommand], extracted: list[list[str]], tmp_path: Path
) -> None:
    first = search(parsed())
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.warns(UserWarning, match=r"features-\w+.npz is damaged and is made again"):
        assert search(parsed()) == first
    assert search(parsed()) == first and len(extracted) == 2
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="the gallery's features are not kept"):
        assert search(parsed("--feature-cache", tmp_path / "file")) == first


def test_unreadable_images_stop_the_search_or_are_left_out(
    parsed: Callable[..., SearchCommand], gallery: Path, tmp_path: Path
) -> None:
    whole = search(parsed())
    (gallery / "broken.png").write_bytes(b"no image")
    (gallery / "dangling.png").symlink_to(gallery / "nowhere")
    with pytest.raises(UserError, match=r"cannot read image .*dangling.png': No such file"):
        search(parsed())
    (gallery / "copy.png").write_bytes(b"no image")
    (gallery / "link.png").symlink_to(gallery / "broken.png")
    (gallery / "twin.png").write_bytes(sorted((gallery / "day0").iterdir())[0].read_bytes())
    said = []
    # Without a cache, with one that knows the readable images, and with one that knows their twin too.
    for cache in ("none", *[tmp_path / "cache"] * 2):
        with pytest.warns(UserWarning) as warned:
            found = search(parsed("--skip-bad-images", "--feature-cache", cache, "--top-k", 20))
        assert {len(matches.gallery) for matches in found} == {13}
        said.append([str(warning.message) for warning in warned])
    bad = [f"cannot read image '{gallery / name}.png': " for name in ("broken", "copy", "dangling", "link")]
    reasons = ["not an image, or its header is damaged"] * 4
    reasons[2] = "No such file or directory"
    listed = "; ".join(name + reason for name, reason in zip(bad, reasons, strict=True))
    assert said == [[f"left out 4 of 17 images: {listed}"]] * 3
    for name in ("copy.png", "link.png", "twin.png"):
        (gallery / name).unlink()
    with pytest.warns(UserWarning, match="left out 2 of 14 images"):
        assert search(parsed("--skip-bad-images")) == whole
    (gallery / "dangling.png").unlink()
    with pytest.raises(UserError, match=r"cannot read image .*broken.png'"):
        search(parsed())


def test_a_gallery_of_which_nothing_can_be_read_is_named(
    parsed: Callable[..., SearchCommand], gallery: Path
) -> None:
    for path in [path for path in gallery.rglob("*") if path.is_file()]:
        path.unlink()
        path.symlink_to(gallery / "nowhere")
    with pytest.raises(UserError, match=r"none of the 12 images can be read: .*No such file"):
        search(parsed("--skip-bad-images"))


def test_a_query_that_a_link_leads_to_does_not_find_itself(
    parsed: Callable[..., SearchCommand], gallery: Path
) -> None:
    query = sorted((gallery / "day0").iterdir())[0]
    (gallery / "day1" / "link.png").symlink_to(query)
    (matches,) = search(parsed("--query", query))
    assert not {os.path.realpath(query)} & {os.path.realpath(path) for path in matches.gallery}


def test_the_picture_shows_query_and_matches_in_order(
    parsed: Callable[..., SearchCommand],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in (pictures, command):
        monkeypatch.setattr(module, "PICTURE_ROWS", 3)
        monkeypatch.setattr(module, "PICTURE_COLUMNS", 4)
    found = search(parsed("--picture", tmp_path / "m.png", "--top-k", 7))
    assert "m.png: the matches of 3 of 16 queries, the first 4 of each\n" in capsys.readouterr().out
    picture = np.asarray(Image.open(tmp_path / "m.png"))
    margin, caption, frame = pictures.MARGIN, pictures.CAPTION, pictures.FRAME
    width, height = pictures.WIDTH, pictures.HEIGHT
    cell, line = width + 2 * frame + margin, height + 2 * frame + caption + margin
    assert picture.shape == (margin + 3 * line, 3 * margin + 5 * cell, 3)
    for row, matches in enumerate(found[:3]):
        top = margin + row * line + frame
        for column, path in enumerate([matches.query, *matches.gallery[:4]]):
            left = margin + column * cell + 2 * margin * (column > 0) + frame
            crop = Image.open(path).convert("RGB").resize((width, height))  # 32 x 16, as the frames are
            shown = picture[top : top + height, left : left + width]
            np.testing.assert_array_equal(shown, np.asarray(crop))


def test_the_picture_of_a_search_is_no_image_of_the_next_one(
    parsed: Callable[..., SearchCommand],
    gallery: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the default it lies in the current folder, which may be the gallery's."""
    monkeypatch.chdir(gallery)
    first = search(by_default := dataclasses.replace(parsed(), picture=SearchCommand.picture))
    assert Image.open("matches.png").info["Software"] == "written by python -m snnet.search"
    assert search(by_default) == first
    written = "left out: 1 written by snnet.report or snnet.search (one is 'matches.png')"
    assert written in capsys.readouterr().out
    both = dataclasses.replace(by_default, query=gallery)
    assert len(search(both)) == 12
    with pytest.raises(
        UserError, match=r"^--query matches.png: the only image is the picture of a search, which"
    ):
        search(dataclasses.replace(by_default, query=Path("matches.png")))
    assert search(parsed()) == first
    # One of another name is recognised where this search replaces it.
    Path("matches.png").rename("mine.png")
    assert search(dataclasses.replace(by_default, picture=Path("mine.png"))) == first
    assert "left out: the picture of an earlier search" in capsys.readouterr().out
    assert "mine.png" in str(search(parsed("--top-k", 13)))


def test_a_file_that_no_search_wrote_is_replaced_only_if_it_is_named(
    parsed: Callable[..., SearchCommand], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (5, 5)).save("matches.png")
    mine = Path("matches.png").read_bytes()
    words = [*MODEL, *SIZE, "--gallery", "gallery", "--query", "gallery", "--feature-cache", "none"]
    with pytest.raises(
        UserError, match=r"^matches.png is in the way: it was not written by python -m snnet.search;"
    ):
        search(SearchCommand.parse(words))
    assert Path("matches.png").read_bytes() == mine
    search(SearchCommand.parse([*words, "--picture", "matches.png"]))
    assert Path("matches.png").read_bytes() != mine
    search(SearchCommand.parse(words))  # now a search has written it


def test_the_command_prints_a_table_or_one_json_object(
    parsed: Callable[..., SearchCommand],
    gallery: Path,
    tiny_market: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    query = sorted((tiny_market / "query").iterdir())[0]
    (wanted,) = search(parsed("--query", query, "--top-k", 2))
    capsys.readouterr()
    words = [*MODEL, *SIZE, "--gallery", gallery, "--query", query, "--top-k", 2, "--picture", "none"]
    words += ["--feature-cache", tmp_path / "cache"]
    command.main(SearchCommand.parse([*map(str, words)]))
    table = capsys.readouterr()
    first = os.path.relpath(wanted.gallery[0], gallery)
    assert table.out.splitlines()[0] == str(query)
    assert table.out.splitlines()[2] == f"     1  {wanted.similarity[0]:>10.4f}  {first}"
    assert "features of 12 of 12 images" in table.err
    command.main(SearchCommand.parse([*map(str, words), "--json", "--quiet"]))
    printed = capsys.readouterr()
    ((record),) = json.loads(printed.out)
    assert record["query"] == str(query) and [m["image"] for m in record["matches"]] == list(wanted.gallery)
    assert record["matches"][1]["similarity"] == pytest.approx(wanted.similarity[1], abs=1e-6)
    assert printed.err == ""


def test_what_cannot_be_searched_is_named(
    parsed: Callable[..., SearchCommand], tmp_path: Path, gallery: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    for words, message in (
        (("--gallery", tmp_path / "gone"), r"--gallery .*gone: there is no such folder$"),
        (("--gallery", tmp_path / "text.png"), r"--gallery .*text.png: there is no such folder$"),
        (("--gallery", tmp_path / "empty"), r"^--gallery .*empty: the folder '.*empty' holds no image"),
        (("--query", tmp_path / "empty"), r"^--query .*empty: the folder '.*empty' holds no image"),
        (("--query", tmp_path / "gone.png"), r"--query .*gone.png: there is no such folder or image"),
        (("--query", tmp_path / "text.png"), r"cannot read image '.*text.png': not an image"),
        (("--picture", tmp_path / "m.jpg"), r"--picture .*m.jpg: the name must end in .png"),
        (("--top-k", 0), "^--top-k: must be a whole number >= 1 and < 1000000000, got '0'$"),
        (("--checkpoint", tmp_path), "no checkpoint at"),
    ):
        with pytest.raises(UserError, match=message):
            search(parsed(*words))
    with pytest.raises(UserError, match=r"^--query IMAGE\|DIR is missing: a crop to search for"):
        SearchCommand.parse([*MODEL, "--gallery", str(gallery)])
    with pytest.raises(UserError, match="no network to use: give --checkpoint, or --arch and --weights"):
        SearchCommand.parse(["--gallery", str(gallery), "--query", str(gallery)])


def test_a_cache_is_of_a_folder_and_of_weights(
    parsed: Callable[..., SearchCommand], gallery: Path, tmp_path: Path
) -> None:
    trained = load_trained_model(None, None, parsed().given)
    file = gallery_cache.cache_file(trained, gallery, tmp_path)
    (tmp_path / "link").symlink_to(gallery)
    assert gallery_cache.cache_file(trained, tmp_path / "link", tmp_path) == file
    assert gallery_cache.cache_file(trained, gallery / "day0", tmp_path) != file
    with torch.no_grad():
        next(trained.model.parameters()).view(-1)[0] += 1e-6
    assert gallery_cache.cache_file(trained, gallery, tmp_path) != file
