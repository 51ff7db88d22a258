"""Features of a folder of images, kept on disk and found again by what the images contain.

An image whose size and times are as they were is not even read. One that was touched, moved or renamed is read, and
known by its SHA-256. Only new content goes through the network.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from snnet.data import ImageSet, decode_images
from snnet.data.decoding import warn_of_skipped
from snnet.errors import UserError
from snnet.files.arrays import open_arrays, write_arrays
from snnet.files.outputs import write_atomically
from snnet.retrieval.features import decode
from snnet.retrieval.trained import TrainedModel
from snnet.system.progress import progress, say


@dataclass(frozen=True)
class _Entry:
    """An image file as it was seen."""

    stat: tuple[int, int, int]  # size, and times of the last change of content and of the inode, in ns
    digest: str  # SHA-256 of the content


@dataclass(frozen=True, eq=False)
class _Cache:
    """What a cache file holds."""

    entries: dict[str, _Entry]  # by the file's name, relative to the folder
    features: dict[str, np.ndarray]  # float32 [d] by digest


def gallery_features(
    trained: TrainedModel, images: ImageSet, folder: Path, cache_folder: Path | None
) -> tuple[ImageSet, np.ndarray]:
    """The readable images of ``folder`` and their retrieval features, float32 [n, d].

    Only what ``cache_folder`` does not hold is extracted; None keeps nothing on disk. Raises
    :class:`~snnet.errors.UserError` where an image cannot be read, unless unreadable ones are to be left out.
    """
    if cache_folder is None:
        decoded = decode(images, trained.config)
        return decoded.images, trained.features(decoded).cpu().numpy()
    file = cache_file(trained, folder, cache_folder)
    known = _read(file, trained.model.feature_dim)
    names = [os.path.relpath(path, folder) for path in images.paths]
    entries = _look_at(
        dict(zip(names, images.paths, strict=True)), known, trained.config.data.skip_bad_images
    )
    digests = [entries[name].digest if name in entries else None for name in names]
    features = {digest: known.features[digest] for digest in digests if digest in known.features}
    say(
        f"{folder}: features of {sum(d in features for d in digests):,} of {len(images):,} images from {file}"
    )
    fresh = {digest: i for i, digest in enumerate(digests) if digest is not None and digest not in features}
    if fresh:
        features |= _extract(trained, images, fresh)
    kept = np.array([digest in features for digest in digests], dtype=bool)
    if not kept.all():
        # Of several files with one content, each is named.
        skipped = decode_images(images.select(~kept), skip_bad=True, cache=False, tell_skipped=False).skipped
        warn_of_skipped(skipped, len(images))
    if entries != known.entries or features.keys() != known.features.keys():
        _write(file, _Cache(entries, features))
    rows = [features[digest] for digest in digests if digest in features]
    return images.select(kept), np.stack(rows)


def cache_file(trained: TrainedModel, folder: Path, cache_folder: Path) -> Path:
    """Where the features of a folder by this very network are kept."""
    key = f"{os.path.realpath(folder)}\n{trained.fingerprint()}"
    return (
        cache_folder / f"features-{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}.npz"
    )


def _look_at(paths: dict[str, str], known: _Cache, skip_bad: bool) -> dict[str, _Entry]:
    """Every file's entry by its name, reading only those that may have changed.

    ``skip_bad``: leave out files that cannot be read.
    """
    entries: dict[str, _Entry] = {}
    for name, path in progress(paths.items(), "looking for changes", unit="image"):
        try:
            found = os.stat(path)
            stat = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            before = known.entries.get(name)
            if before is not None and before.stat == stat:
                entries[name] = before
            else:
                entries[name] = _Entry(stat, _digest(path))
        except OSError as error:
            problem = f"cannot read image {path!r}: {error.strerror or error}"
            if not skip_bad:
                raise UserError(f"{problem} (repair or remove it, or use --skip-bad-images)") from error
    return entries


def _digest(path: str) -> str:
    """The SHA-256 of a file, whatever its size."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _extract(trained: TrainedModel, images: ImageSet, fresh: dict[str, int]) -> dict[str, np.ndarray]:
    """Features of the images ``fresh`` (a digest's position among ``images``) by digest, without unreadable ones."""
    digest_of = {images.paths[position]: digest for digest, position in fresh.items()}
    decoded = decode(images.select(np.array(list(fresh.values()))), trained.config, tell_skipped=False)
    if not len(decoded):
        return {}
    features = trained.features(decoded).cpu().numpy()
    return {digest_of[path]: row for path, row in zip(decoded.images.paths, features, strict=True)}


def _read(file: Path, feature_dim: int) -> _Cache:
    """What ``file`` holds; nothing where it is not there or damaged."""
    if not file.exists():
        return _Cache({}, {})
    try:
        with open_arrays(file) as arrays:
            kind = arrays.types["features"]
            if kind.dtype != np.float32 or kind.shape[1:] != (feature_dim,):
                raise ValueError("features of another shape")
            digests, stats = arrays.read("digests").tolist(), arrays.read("stats").tolist()
            content, features = arrays.read("feature_digests").tolist(), arrays.read("features")
            names = arrays.read("names").tolist()
        entries = {
            name: _Entry((size, modified, changed), digest)
            for name, (size, modified, changed), digest in zip(names, stats, digests, strict=True)
        }
        return _Cache(entries, dict(zip(content, features, strict=True)))
    # A damaged file can fail anywhere in the reader; it is only a cache.
    except Exception as error:
        warnings.warn(f"{file} is damaged and is made again ({type(error).__name__})", stacklevel=2)
        return _Cache({}, {})


def _write(file: Path, cache: _Cache) -> None:
    entries, features = cache.entries, cache.features
    stats = np.array([entry.stat for entry in entries.values()], dtype=np.int64).reshape(-1, 3)

    def write(handle: IO[bytes]) -> None:
        arrays = {
            "names": np.array(list(entries), dtype=np.str_),
            "stats": stats,
            "digests": np.array([entry.digest for entry in entries.values()], dtype=np.str_),
            "feature_digests": np.array(list(features), dtype=np.str_),
            "features": np.stack(list(features.values())),
        }
        write_arrays(handle, arrays)

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, write)
    except (OSError, UserError) as error:
        warnings.warn(f"the gallery's features are not kept: {error}", stacklevel=2)
