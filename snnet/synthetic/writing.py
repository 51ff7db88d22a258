"""Writes the set to disk, once, in the Market-1501 layout."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from PIL import Image

from snnet.errors import UserError
from snnet.files.drafts import clear_abandoned, draft_folder
from snnet.files.paths import cache_folder, expand_home
from snnet.files.text import parse_json, read_bytes
from snnet.synthetic.image import draw_image
from snnet.synthetic.plan import GALLERY_FOLDER, QUERY_FOLDER, TRAIN_FOLDER, Shot, plan_shots
from snnet.system.cpus import available_cpus
from snnet.system.progress import progress
from snnet.system.signals import begin_worker, follow_parent, held

VERSION = 1  # of the drawing: it rises whenever the same seed would give other pixels
MANIFEST = "manifest.json"
_MOST_MANIFEST_BYTES = 2**20
_CHUNK = 48  # images a worker draws before it reports
_MAX_PROCESSES = 8

Digests = dict[str, str]  # "folder/name" of an image to the SHA-256 of its pixels


def generate(root: str | os.PathLike[str] | None = None, *, seed: int = 0) -> Path:
    """Draw the built-in set of ``seed`` and return its folder; a finished one is used as it is.

    The folder is ``root/synthetic-v1-seed{seed}`` with ``bounding_box_train``, ``query`` and
    ``bounding_box_test`` (PNG, 128 x 64 pixels, height x width) and a ``manifest.json``: name, version, seed,
    number of images in each folder and a SHA-256 over all pixels. ``root`` is by default ``$SNNET_CACHE``, else
    ``~/.cache/snnet``; where it is given, the set is not drawn among other files. It appears whole or not at all: it
    is drawn in a folder beside its own and renamed. Where two processes draw it at once, both end with the one
    that was finished first.

    Raises:
        UserError: ``seed`` is no whole number ≥ 0, ``root`` cannot be written or has other content, or the folder
            is there without being a finished set.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed of the synthetic set: got {seed!r}, need a whole number >= 0")
    parent = cache_folder() if root is None else Path(expand_home(os.fspath(root)))
    target = parent / f"synthetic-v{VERSION}-seed{seed}"
    if not target.exists():
        try:
            if root is not None:
                _check_own(parent)
            _draw_beside(target, seed)
        except OSError as error:
            raise UserError(
                f"cannot write the synthetic set into {parent}: {error.strerror or error}"
            ) from error
    _check_finished(target)
    return target


def _check_own(parent: Path) -> None:
    """Raise unless ``parent`` is new, or holds our own files alone: nothing is drawn among a user's."""
    names = sorted(path.name for path in parent.iterdir()) if parent.exists() else []
    ours = (".", "lost+found", "synthetic-v", "features-")  # hidden files are nobody's images
    if foreign := [name for name in names if not name.startswith(ours)]:
        raise UserError(
            f"the synthetic set is not drawn into {parent}, which holds other files ({foreign[0]}): needed is an "
            "empty or a new folder"
        )


def _draw_beside(target: Path, seed: int) -> None:
    """Draw the set in a hidden sibling of ``target`` and rename it; whatever happens, the sibling is gone then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_abandoned(target.parent)
    with draft_folder(target.parent) as draft:
        _draw_set(draft, seed)
        try:
            os.replace(draft, target)
        except OSError:
            if not target.is_dir():  # else another process was faster; its set has the same pixels
                raise


def _draw_set(folder: Path, seed: int) -> None:
    shots = plan_shots(seed)
    counts = {}
    for name in (TRAIN_FOLDER, QUERY_FOLDER, GALLERY_FOLDER):
        (folder / name).mkdir()
        counts[name] = sum(shot.folder == name for shot in shots)
    chunks = [shots[start : start + _CHUNK] for start in range(0, len(shots), _CHUNK)]
    digests: Digests = {}
    with progress(None, "drawing the synthetic set", total=len(shots), unit="image") as bar:
        for drawn in _draw_chunks(folder, seed, chunks):
            digests.update(drawn)
            bar.update(len(drawn))
    total = hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode())
    manifest = {
        "name": "synthetic",
        "version": VERSION,
        "seed": seed,
        "images": counts,
        "sha256": total.hexdigest(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _draw_chunks(folder: Path, seed: int, chunks: list[list[Shot]]) -> Iterator[Digests]:
    """Draw the chunks in any order, in as many processes as there are processors; in this one if it gets no others."""
    processes = min(_processors(), _MAX_PROCESSES, len(chunks))
    pool = None if processes < 2 else _pool(processes)
    if pool is None:
        for chunk in chunks:
            yield _draw_chunk(folder, seed, chunk)
        return
    try:
        for done in as_completed([pool.submit(_draw_chunk, folder, seed, chunk) for chunk in chunks]):
            yield done.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that draws the synthetic set has died, as for want of memory: try again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(processes: int) -> ProcessPoolExecutor | None:
    """Processes that have started; None where the system gives none."""
    others = set(multiprocessing.active_children())
    # Forked workers need no `if __name__ == "__main__"` in the calling script. They use numpy and pillow only, no
    # lock of the parent's other threads, which is what Python's warning about forking is for.
    with held(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        try:
            pool = ProcessPoolExecutor(
                processes,
                multiprocessing.get_context("fork"),
                initializer=_follow_parent,
                initargs=(os.getpid(),),
            )
            pool.submit(os.getpid)  # starts them all
        except (OSError, RuntimeError):  # no semaphore, as in a full /dev/shm, no process or no thread
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
                child.join()
            return None
    return pool


def _draw_chunk(folder: Path, seed: int, shots: list[Shot]) -> Digests:
    digests = {}
    for shot in shots:
        pixels = draw_image(seed, shot)
        name = f"{shot.folder}/{shot.file_name}"
        Image.fromarray(pixels).save(folder / name, compress_level=1)
        digests[name] = hashlib.sha256(pixels.tobytes()).hexdigest()
    return digests


def _processors() -> int:
    """Processors to draw on; 1 where forking is not safe or, in a daemon, not allowed."""
    if not sys.platform.startswith("linux") or multiprocessing.current_process().daemon:
        return 1
    return available_cpus()


def _follow_parent(parent: int) -> None:
    """Leave Ctrl-C to the parent, and die with it where it is killed."""
    begin_worker()
    follow_parent(parent, signal.SIGKILL)  # a pool's idle workers would wait for ever


def _check_finished(folder: Path) -> None:
    """Raise unless ``folder`` holds a manifest and as many images as it says."""
    try:
        counts = parse_json(read_bytes(folder / MANIFEST, most_bytes=_MOST_MANIFEST_BYTES))["images"]
        found = {name: len(list((folder / name).glob("*.png"))) for name, _ in counts.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{folder} is no finished synthetic set: delete it, and the set is drawn again"
        ) from None
    for name, count in counts.items():
        if found[name] != count:
            raise UserError(
                f"{folder / name} holds {found[name]} images, need {count}: delete {folder}, and the set is drawn again"
            )
