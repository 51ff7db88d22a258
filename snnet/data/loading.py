"""Batches for training and extraction, the same whatever the number of worker processes."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from snnet.checks import positive
from snnet.data.decoding import DecodedImages, image_size, load_image
from snnet.data.transforms import UNIFORMS, augment, draw_augmentation, prepare, resize
from snnet.errors import UserError
from snnet.system.cpus import available_cpus
from snnet.system.signals import begin_worker, follow_parent, held

# The first word of every random stream's key, so that no two kinds of stream share one.
PERMUTATION, AUGMENTATION = 1, 2

Batch = tuple[Tensor | np.ndarray, np.ndarray]  # images and index, as a worker hands them over


class BatchLoader:
    """Iterates over (images, index): float32 [B, 3, height, width], normalised, and int64 [B] positions."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            if self._loader.num_workers > 0:
                multiprocessing.Lock()  # fails before DataLoader does, which would print a traceback
            self._loader.worker_init_fn = functools.partial(_begin_worker, _parent())
            with held(), _no_news_of_deaths():
                batches = iter(self._loader)
        except OSError as error:  # no process, or no semaphore in a full /dev/shm
            raise UserError(
                f"cannot start processes that load images ({error.strerror or error}): use --workers 0"
            ) from error
        while (batch := _next(batches)) is not None:
            # A worker hands an error back instead of raising it, which would wrap its message in a traceback.
            if isinstance(batch, UserError):
                raise UserError(str(batch))
            images, index = (
                torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in batch
            )
            yield images, index


class TrainingLoader(BatchLoader):
    """The batches of one epoch, (images, index): float32 [B, 3, height, width], normalised, and int64 [B] positions.

    Each iteration yields the same epoch until :meth:`set_epoch` chooses another; the first one is epoch 0.
    """

    def __init__(self, loader: DataLoader[Any], permutation: _EpochPermutation) -> None:
        super().__init__(loader)
        self._permutation = permutation

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, whose batches the iterations from now on yield."""
        self._permutation.epoch = epoch


def training_loader(
    decoded: DecodedImages,
    *,
    height: int,
    width: int,
    batch_size: int,
    workers: int,
    seed: int,
    camstyle: bool = False,
    pin_memory: bool = False,
    part: int = 0,
    parts: int = 1,
) -> TrainingLoader:
    """Shuffled, augmented batches, the last incomplete one dropped.

    The order depends on (seed, epoch) alone and an image's augmentation on (seed, epoch, index) alone: the
    batches are the same for any number of workers, and a resumed run sees those of an unbroken one. The
    process' own random states are neither read nor changed. Call :meth:`TrainingLoader.set_epoch` before each
    epoch: without it every iteration yields the same batches.

    Args:
        decoded: the training images.
        height, width: the network's input, in pixels.
        batch_size: images a batch.
        workers: processes that prepare batches, kept from epoch to epoch; 0: this process does.
        seed: any number >= 0.
        camstyle: of each image take itself or one of its CamStyle files, at random with equal chances; the files
            are read when they are used.
        pin_memory: put the batches in page-locked memory, for copying to a GPU.
        part, parts: yield the ``part``-th of as many equal, consecutive parts of each batch, for one of several
            processes: put together in order they are the batches of one.

    Raises:
        UserError: a number is out of range, there are fewer images than one batch holds, a batch has no such parts, or
            ``camstyle`` is asked of images without styles; while iterating, an image that can no longer be read.
    """
    _check_numbers(height, width, batch_size, workers)
    if len(decoded) < batch_size:
        raise UserError(
            f"{len(decoded)} training images are fewer than one batch of {batch_size}: lower --batch-size"
        )
    if batch_size % positive(parts, "parts") != 0:
        raise UserError(
            f"--batch-size {batch_size} is shared by {parts} processes: it must be a multiple of {parts}"
        )
    if not 0 <= part < parts:
        raise UserError(f"part must be from 0 to {parts - 1}, not {part}")
    if seed < 0:
        raise UserError(f"seed must be >= 0, not {seed}")
    if camstyle and decoded.images.styles is None:
        raise UserError("CamStyle is on, but the training images were read without their styles")
    share = batch_size // parts
    permutation = _EpochPermutation(len(decoded), batch_size, seed, slice(part * share, (part + 1) * share))
    batches = _TrainingBatches(decoded, height, width, seed, camstyle)
    return TrainingLoader(_data_loader(batches, permutation, workers, pin_memory), permutation)


def extraction_loader(
    decoded: DecodedImages,
    *,
    height: int,
    width: int,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
) -> BatchLoader:
    """All images in order, resized and normalised; the last batch may be smaller. No randomness.

    Raises:
        UserError: a number is out of range; while iterating, an image that can no longer be read.
    """
    _check_numbers(height, width, batch_size, workers)
    batches = _ExtractionBatches(decoded, height, width)
    positions = np.arange(len(decoded))
    in_order = [positions[start : start + batch_size] for start in range(0, len(decoded), batch_size)]
    return BatchLoader(_data_loader(batches, in_order, workers, pin_memory))


def _check_numbers(height: int, width: int, batch_size: int, workers: int) -> None:
    for name, value in (("height", height), ("width", width), ("batch_size", batch_size)):
        positive(value, name)
    if workers < 0:
        raise UserError(f"workers must be >= 0, not {workers}")


def _next(batches: Iterator[Any]) -> Any:
    """The next batch, None behind the last; a :class:`UserError` where a worker has died."""
    try:
        return next(batches, None)
    except RuntimeError as error:
        if not str(error).startswith(("DataLoader worker", "Pin memory thread")):
            raise
        raise UserError(
            "a process that loads images has died, as for want of memory or of room in /dev/shm: use --workers 0, "
            f"or fewer than now ({error})"
        ) from error


@contextmanager
def _no_news_of_deaths() -> Iterator[None]:
    """Undo torch's handler of SIGCHLD, which raises an error wherever this process is when a worker dies.

    Waiting for a batch notices it, too.
    """
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


def _share(images: Tensor) -> Tensor | np.ndarray:
    """A batch as a worker hands it over: in shared memory where there is room, else as an array to be copied.

    The queue would put a tensor into shared memory in another thread. Without room that thread drops the batch, and the
    main process waits for it for ever.
    """
    if get_worker_info() is None:
        return images
    if _can_share:
        try:
            return images.share_memory_()
        except RuntimeError:  # torch's word for a full /dev/shm, where it leaves an empty file
            for left in Path("/dev/shm").glob(f"torch_{os.getpid()}_*"):
                left.unlink(missing_ok=True)
    return images.numpy()


def _as_it_is(batch: Any) -> Any:
    return batch


_can_share = False  # whether this process, a worker, can hand over a tensor in shared memory


def _parent() -> int | None:
    """The process that the workers follow; None in a thread that may end before it."""
    alone = sys.platform != "linux" or threading.current_thread() is not threading.main_thread()
    return None if alone else os.getpid()


def _begin_worker(parent: int | None, worker: int) -> None:
    global _can_share
    begin_worker()
    if parent is not None:  # it holds the connections of several processes, which see its end by them
        follow_parent(parent, signal.SIGTERM)
    with contextlib.suppress(OSError, RuntimeError):  # it takes a socket in the temporary folder, too
        ForkingPickler.dumps(torch.zeros(1))
        _can_share = True


def _data_loader(batches: Dataset[Any], sampler: Any, workers: int, pin_memory: bool) -> DataLoader[Any]:
    return DataLoader(
        batches,
        batch_size=None,  # an item of the dataset is a whole batch
        sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=min(workers, available_cpus()),  # torch warns of more
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # A forked worker shares the decoded pixels; any other start would copy gigabytes to it.
        multiprocessing_context="fork" if workers > 0 and sys.platform == "linux" else None,
        # DataLoader draws a seed for its workers from the global random state unless it has its own.
        generator=torch.Generator(),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, as worker processes have: how work is split between threads can change the last bit.

    The operations are small, too, so that waking threads up for them takes longer than it saves.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _EpochPermutation(Sampler[tuple[int, np.ndarray]]):
    """Yields (epoch, index int64 [b]) for each whole batch of the epoch's permutation: ``taken`` of its images."""

    def __init__(self, count: int, batch_size: int, seed: int, taken: slice) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.taken = taken
        self.epoch = 0

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        order = np.random.default_rng([PERMUTATION, self.seed, self.epoch]).permutation(self.count)
        for batch in range(len(self)):
            yield self.epoch, order[batch * self.batch_size : (batch + 1) * self.batch_size][self.taken]


class _TrainingBatches(Dataset[Any]):
    """Batches by (epoch, index int64 [B])."""

    def __init__(self, decoded: DecodedImages, height: int, width: int, seed: int, camstyle: bool) -> None:
        self.decoded = decoded
        self.height = height
        self.width = width
        self.seed = seed
        self.styles = decoded.images.styles if camstyle else None

    def __getitem__(self, key: tuple[int, np.ndarray]) -> Batch | UserError:
        epoch, index = key
        uniforms = np.stack(
            [
                np.random.default_rng([AUGMENTATION, self.seed, epoch, i]).random(1 + UNIFORMS)
                for i in index.tolist()
            ]
        )
        styles = [self._style(*pair) for pair in zip(index.tolist(), uniforms[:, 0], strict=True)]
        sizes = self.decoded.sizes[index]
        try:
            for place, style in enumerate(styles):
                if style is not None:
                    sizes[place] = image_size(style)
            augmentation = draw_augmentation(uniforms[:, 1:], sizes, self.height, self.width)
            with _one_thread():  # cropped and resized as they come: a batch of large images is never held
                images = map(self._image, index.tolist(), styles, sizes.tolist())
                batch = augment(images, augmentation, self.height, self.width)
        except UserError as error:
            return error
        return _share(batch), index

    def _style(self, index: int, choice: float) -> str | None:
        """Which of the image (None) and its CamStyle files ``choice`` in [0, 1) picks."""
        styles = self.styles[index] if self.styles is not None else ()
        picked = int(choice * (len(styles) + 1))
        return styles[picked - 1] if picked else None

    def _image(self, index: int, style: str | None, size: list[int]) -> Tensor:
        image = self.decoded.image(index) if style is None else load_image(style)
        if list(image.shape[1:]) != size:
            path = self.decoded.images.paths[index] if style is None else style
            raise UserError(f"cannot read image {path!r}: it had another size before")
        return image


class _ExtractionBatches(Dataset[Any]):
    """Batches by index int64 [B]."""

    def __init__(self, decoded: DecodedImages, height: int, width: int) -> None:
        self.decoded = decoded
        self.height = height
        self.width = width

    def __getitem__(self, index: np.ndarray) -> Batch | UserError:
        try:
            with _one_thread():  # resized as they come: a batch of large images is never held
                images = [resize([self.decoded.image(i)], self.height, self.width)[0] for i in index.tolist()]
                batch = prepare(images, self.height, self.width)
        except UserError as error:
            return error
        return _share(batch), index
