"""Loaders whose batches depend on nothing but (seed, epoch, index)."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import random
import re
import signal
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snnet.data import (
    DecodedImages,
    ImageSet,
    decode_images,
    decoding,
    extraction_loader,
    loading,
    training_loader,
)
from snnet.data.transforms import prepare
from snnet.errors import UserError
from tests.snnet.few_images import draw_images


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    return draw_images(tmp_path)


@pytest.fixture
def decoded(images: ImageSet) -> DecodedImages:
    return decode_images(images)


def load(decoded: DecodedImages, epoch: int = 0, **changes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    arguments = {"height": 24, "width": 12, "batch_size": 3, "workers": 0, "seed": 4, **changes}
    loader = training_loader(decoded, **arguments)
    loader.set_epoch(epoch)
    return list(loader)


def equal(one: list[tuple[torch.Tensor, torch.Tensor]], two: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_extraction_keeps_order_and_drops_nothing(decoded: DecodedImages, workers: int) -> None:
    loader = extraction_loader(decoded, height=24, width=12, batch_size=3, workers=workers)
    batches = list(loader)
    assert len(loader) == 3 and [len(index) for _, index in batches] == [3, 3, 1]
    assert torch.cat([index for _, index in batches]).tolist() == list(range(7))
    expected = prepare([decoded.image(i) for i in range(7)], 24, 12)
    assert torch.equal(torch.cat([images for images, _ in batches]), expected)


def test_training_visits_each_image_at_most_once_an_epoch(decoded: DecodedImages) -> None:
    batches = load(decoded)
    seen = torch.cat([index for _, index in batches])
    assert [len(index) for _, index in batches] == [3, 3] and seen.dtype == torch.int64
    assert len(set(seen.tolist())) == 6 and seen.min() >= 0 and seen.max() <= 6
    orders = {tuple(torch.cat([index for _, index in load(decoded, epoch)]).tolist()) for epoch in range(8)}
    assert len(orders) == 8
    assert {index for order in orders for index in order} == set(range(7))


def test_batches_depend_on_seed_and_epoch_only(decoded: DecodedImages) -> None:
    expected = load(decoded, epoch=3)
    assert equal(expected, load(decoded, epoch=3))
    assert equal(expected, load(decoded, epoch=3, workers=2))
    assert not equal(expected, load(decoded, epoch=4))
    assert not equal(expected, load(decoded, epoch=3, seed=5))


def test_an_image_is_augmented_alike_wherever_it_lands_in_a_batch(decoded: DecodedImages) -> None:
    def by_index(batch_size: int) -> dict[int, torch.Tensor]:
        batches = load(decoded, batch_size=batch_size)
        images, index = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return dict(zip(index.tolist(), images, strict=True))

    small, whole = by_index(2), by_index(7)
    assert len(small) == 6 and len(whole) == 7
    for index, image in small.items():
        torch.testing.assert_close(image, whole[index], rtol=0, atol=1e-5)


def test_augmentation_differs_between_images_and_epochs(images: ImageSet) -> None:
    decoded = decode_images(images.select(np.array([0, 0])))
    one, two = (load(decoded, epoch, batch_size=2)[0][0] for epoch in (0, 1))
    assert (one[0] - one[1]).abs().mean() > 0.1
    assert min((one[i] - two[j]).abs().mean() for i in (0, 1) for j in (0, 1)) > 0.1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_serves_all_epochs(decoded: DecodedImages, workers: int) -> None:
    loader = training_loader(decoded, height=24, width=12, batch_size=3, workers=workers, seed=4)
    for epoch in (2, 0, 0, 1):
        loader.set_epoch(epoch)
        assert len(loader) == 2 and equal(list(loader), load(decoded, epoch))


def test_an_epoch_after_a_broken_one_is_whole(decoded: DecodedImages) -> None:
    loader = training_loader(decoded, height=24, width=12, batch_size=3, workers=2, seed=4)
    next(iter(loader))
    loader.set_epoch(1)
    assert equal(list(loader), load(decoded, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_states_are_left_alone(decoded: DecodedImages, workers: int) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    threads = torch.get_num_threads()
    load(decoded, workers=workers)
    list(extraction_loader(decoded, height=24, width=12, batch_size=3, workers=workers))
    drawn = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    assert drawn == (torch.rand(1).item(), np.random.rand(), random.random())
    assert torch.get_num_threads() == threads


def test_global_random_states_do_not_change_the_batches(decoded: DecodedImages) -> None:
    torch.manual_seed(1)
    one = load(decoded)
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    assert equal(one, load(decoded))


def test_fewer_images_than_a_batch_is_an_error(decoded: DecodedImages) -> None:
    with pytest.raises(
        UserError, match="7 training images are fewer than one batch of 8: lower --batch-size"
    ):
        load(decoded, batch_size=8)
    assert len(load(decoded, batch_size=7)) == 1


@pytest.mark.parametrize("load", [training_loader, extraction_loader])
def test_sizes_that_no_loader_can_have_are_named(decoded: DecodedImages, load: Callable[..., object]) -> None:
    sizes = {"height": 24, "width": 12, "batch_size": 3, "workers": 0}
    sizes |= {"seed": 0} if load is training_loader else {}
    for name in ("height", "width", "batch_size"):
        with pytest.raises(UserError, match=f"{name} must be an integer of at least 1, got 0"):
            load(decoded, **{**sizes, name: 0})
    with pytest.raises(UserError, match="workers must be >= 0, not -1"):
        load(decoded, **{**sizes, "workers": -1})


@pytest.mark.parametrize(("batch_size", "parts"), [(6, 2), (6, 3), (3, 3), (7, 1)])
def test_parts_of_several_processes_are_the_batches_of_one(
    decoded: DecodedImages, batch_size: int, parts: int
) -> None:
    for epoch in (0, 1):
        shares = [
            load(decoded, epoch, batch_size=batch_size, part=part, parts=parts) for part in range(parts)
        ]
        together = [
            tuple(torch.cat([batch[k] for batch in batches]) for k in (0, 1))
            for batches in zip(*shares, strict=True)
        ]
        assert [len(index) for _, index in shares[0]] == [batch_size // parts] * (7 // batch_size)
        assert equal(together, load(decoded, epoch, batch_size=batch_size))  # type: ignore[arg-type]


def test_a_batch_that_processes_cannot_share_is_an_error(decoded: DecodedImages) -> None:
    with pytest.raises(
        UserError, match=r"^--batch-size 3 is shared by 2 processes: it must be a multiple of 2$"
    ):
        load(decoded, parts=2)
    with pytest.raises(UserError, match=r"^part must be from 0 to 2, not 3$"):
        load(decoded, part=3, parts=3)
    with pytest.raises(UserError, match=r"^parts must be an integer of at least 1, got 0$"):
        load(decoded, parts=0)


def test_without_set_epoch_the_epoch_is_the_same(decoded: DecodedImages) -> None:
    loader = training_loader(decoded, height=24, width=12, batch_size=3, workers=0, seed=4)
    assert equal(list(loader), list(loader)) and equal(list(loader), load(decoded, 0))


def test_a_negative_seed_is_an_error(decoded: DecodedImages) -> None:
    with pytest.raises(UserError, match="seed must be >= 0, not -1"):
        load(decoded, seed=-1)


@pytest.fixture
def styled(images: ImageSet, tmp_path: Path) -> DecodedImages:
    """Black images; all but the last have two styles, a pure red and a pure green one."""
    styles = []
    for index, path in enumerate(images.paths):
        Image.new("RGB", (12, 24)).save(path)
        for name, colour in (("red", (255, 0, 0)), ("green", (0, 255, 0))):
            Image.new("RGB", (12, 24), colour).save(tmp_path / f"{index}_{name}.png")
        styles.append(tuple(str(tmp_path / f"{index}_{name}.png") for name in ("red", "green")))
    styles[6] = ()
    return decode_images(ImageSet(images.paths, images.pids, images.cams, tuple(styles)))


def camstyle_batch(styled: DecodedImages) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(training_loader(styled, height=20, width=10, batch_size=7, workers=0, seed=0, camstyle=True))


def test_camstyle_takes_an_image_or_one_of_its_styles_with_equal_chances(styled: DecodedImages) -> None:
    originals, reds, greens = 0, 0, 0
    for epoch in range(30):
        loader = training_loader(styled, height=24, width=12, batch_size=7, workers=0, seed=0, camstyle=True)
        loader.set_epoch(epoch)
        ((batch, index),) = loader
        for image, i in zip(batch, index.tolist(), strict=True):
            red, green, blue = (image.amax(dim=(1, 2)) > 0).tolist()
            assert not blue and not (red and green) and (i < 6 or not (red or green))
            if i < 6:
                originals, reds, greens = originals + (not red and not green), reds + red, greens + green
    assert originals + reds + greens == 180 and min(originals, reds, greens) > 40


def test_a_batch_holds_one_image_of_native_size_at_a_time(
    styled: DecodedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = camstyle_batch(styled)
    most = 0
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    original = loading.load_image

    def load_watched(path: str) -> torch.Tensor:
        nonlocal most
        image = original(path)
        alive.add(image)
        most = max(most, len(alive))
        return image

    for module in (loading, decoding):
        monkeypatch.setattr(module, "load_image", load_watched)
    from_disk = dataclasses.replace(styled, pixels=None)
    assert equal(camstyle_batch(from_disk), expected)
    assert most == 1


def test_an_image_that_has_changed_its_size_is_named(images: ImageSet) -> None:
    decoded = decode_images(images, cache=False)
    Image.new("RGB", (5, 5)).save(images.paths[3])
    with pytest.raises(UserError) as caught:
        load(decoded, batch_size=7)
    assert str(caught.value) == f"cannot read image {images.paths[3]!r}: it had another size before"


def test_camstyle_off_leaves_the_styles_alone(styled: DecodedImages) -> None:
    assert load(styled)[0][0].max() <= 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_style_file_is_named_on_one_line(styled: DecodedImages, workers: int) -> None:
    for path in styled.images.styles[3]:
        Path(path).write_bytes(b"")
    loader = training_loader(
        styled, height=24, width=12, batch_size=7, workers=workers, seed=0, camstyle=True
    )
    with pytest.raises(UserError, match=r"3_(red|green)\.png': the file is empty") as raised:
        list(loader)
    assert "\n" not in str(raised.value)


def refuse_shared_memory(tensor: torch.Tensor) -> torch.Tensor:
    raise RuntimeError(
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux only")
@pytest.mark.parametrize("lacking", ["room", "folder for sockets"])
def test_batches_arrive_without_shared_memory(
    decoded: DecodedImages, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    if lacking == "room":
        monkeypatch.setattr(torch.Tensor, "share_memory_", refuse_shared_memory)
    else:  # a socket's path has at most 107 bytes
        monkeypatch.setattr("multiprocessing.util.get_temp_dir", lambda: "/tmp/" + "x" * 200)
    assert equal(load(decoded, workers=1), load(decoded))


def test_a_system_that_starts_no_process_is_told_how_to_go_on(
    decoded: DecodedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiprocessing.Lock", refuse)
    with pytest.raises(UserError) as caught:
        load(decoded, workers=1)
    assert str(caught.value) == (
        "cannot start processes that load images (No space left on device): use --workers 0"
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux only")
def test_a_worker_that_is_killed_is_one_line(decoded: DecodedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(
        "torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data.__defaults__", (0.1,)
    )
    monkeypatch.setattr(DecodedImages, "image", lambda self, index: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError) as caught:
        load(decoded, workers=1)
    assert re.fullmatch(
        r"a process that loads images has died, as for want of memory or of room in /dev/shm: use --workers 0, or "
        r"fewer than now \(DataLoader worker \(pid\(s\) \d+\) exited unexpectedly\)",
        str(caught.value),
    )
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


def test_camstyle_without_styles_is_an_error(decoded: DecodedImages) -> None:
    with pytest.raises(UserError, match="read without their styles"):
        training_loader(decoded, height=24, width=12, batch_size=2, workers=0, seed=0, camstyle=True)


def test_damaged_styles_are_found_before_training(styled: DecodedImages) -> None:
    images = styled.images
    bad = images.styles[0][0]
    with open(bad, "wb") as file:
        file.write(b"not an image")
    with pytest.raises(UserError, match=os.path.basename(bad)):
        decode_images(images)
    with pytest.warns(UserWarning, match="left out 1 of 12 CamStyle images"):
        kept = decode_images(images, skip_bad=True).images
    assert kept.styles[0] == images.styles[0][1:] and kept.styles[1:] == images.styles[1:]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux only")
@pytest.mark.parametrize("in_thread", [False, True])
def test_a_worker_ends_with_the_process_but_not_with_a_thread(
    in_thread: bool, decoded: DecodedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def number(_: torch.Tensor) -> np.ndarray:
        found, get_parent_death_signal = ctypes.c_int(), 2
        ctypes.CDLL(None).prctl(get_parent_death_signal, ctypes.byref(found))
        return np.array([found.value])

    monkeypatch.setattr(loading, "_share", number)
    with ThreadPoolExecutor() as threads:
        batches = threads.submit(load, decoded, workers=1).result() if in_thread else load(decoded, workers=1)
    assert [int(told) for told, _ in batches] == [0 if in_thread else signal.SIGTERM] * 2
