"""What a reader hands on: which files belong to which split, and the numbers their names carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split: image files, with identity and camera numbers where they are known.

    Attributes:
        paths: the files, in the order that fixes each image's index.
        pids: int64 [n] identities; None where they are unknown. -1 marks junk: no person.
        cams: int64 [n] cameras; None where they are unknown.
        styles: for each image its CamStyle files, rendered as other cameras would have seen it (none for
            some images, perhaps); None where CamStyle is off.
        left_out: in words, which files beside these images are left out: how many of each kind, and the name of one.

    Raises:
        ValueError: if a field's length is not the number of paths.
    """

    paths: tuple[str, ...]
    pids: np.ndarray | None
    cams: np.ndarray | None
    styles: tuple[tuple[str, ...], ...] | None = None
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("pids", "cams", "styles"):
            values = getattr(self, field)
            if values is not None and len(values) != len(self.paths):
                raise ValueError(f"{field} has {len(values)} entries for {len(self.paths)} paths")

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, keep: np.ndarray) -> ImageSet:
        """The images where ``keep`` (bool [n], or int64 positions) says so, in that order."""
        positions = np.arange(len(self))[keep]
        return ImageSet(
            paths=tuple(self.paths[i] for i in positions),
            pids=None if self.pids is None else self.pids[positions],
            cams=None if self.cams is None else self.cams[positions],
            styles=None if self.styles is None else tuple(self.styles[i] for i in positions),
            left_out=self.left_out,
        )

    @staticmethod
    def joined(parts: Sequence[ImageSet]) -> ImageSet:
        """The images of parts of one split, in order."""

        def together(name: str) -> np.ndarray | None:
            values = [getattr(part, name) for part in parts]
            return None if any(value is None for value in values) else np.concatenate(values)

        styles = [part.styles for part in parts]
        return ImageSet(
            paths=tuple(path for part in parts for path in part.paths),
            pids=together("pids"),
            cams=together("cams"),
            styles=None if None in styles else tuple(files for part in styles for files in part or ()),
            left_out=parts[0].left_out,
        )

    def summary(self) -> str:
        """One line: images, and identities, cameras, junk, CamStyle files and what is left out, where there are any."""
        parts = [_count(len(self), "image", "images")]
        if self.pids is not None:
            parts.append(_count(len(np.unique(self.pids[self.pids >= 0])), "identity", "identities"))
        if self.cams is not None:
            parts.append(_count(len(np.unique(self.cams)), "camera", "cameras"))
        if self.pids is not None and (junk := int((self.pids < 0).sum())):
            parts.append(f"{junk:,} of them junk (pid -1)")
        if self.styles is not None:
            parts.append(_count(sum(map(len, self.styles)), "CamStyle file", "CamStyle files"))
        left_out = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return ", ".join(parts) + left_out


@dataclass(frozen=True, eq=False)
class ReIDDataset:
    """The splits of one dataset; ``query`` and ``gallery`` are None where nothing can be evaluated."""

    name: str
    train: ImageSet
    query: ImageSet | None
    gallery: ImageSet | None

    def summary(self) -> str:
        """A line naming the dataset and a line a split."""
        splits = {"train": self.train, "query": self.query, "gallery": self.gallery}
        lines = [f"  {name:<8}{split.summary()}" for name, split in splits.items() if split is not None]
        return "\n".join([f"dataset {self.name}", *lines])

    def evaluation_cams(self) -> tuple[np.ndarray, np.ndarray]:
        """Camera numbers of query and gallery for the rule that ignores same-camera matches.

        Where cameras are unknown, the queries get 0 and the gallery 1: the rule then ignores nothing, so a
        copy of the query in the gallery counts as a match.

        Raises:
            ValueError: if there is no query or no gallery.
        """
        if self.query is None or self.gallery is None:
            raise ValueError(f"dataset {self.name} has no query and gallery to evaluate on")
        if self.query.cams is None or self.gallery.cams is None:
            return np.zeros(len(self.query), np.int64), np.ones(len(self.gallery), np.int64)
        return self.query.cams, self.gallery.cams


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
