"""The commands: the flags of each one, and the checks of their combinations. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from snnet.config.command_line import Command
from snnet.config.fields import option
from snnet.config.options import COUNT, OPTIONS, Config, members
from snnet.config.resolve import default_preset, preset_names, preset_values, resolve, resumed, run_of
from snnet.errors import UserError
from snnet.files.own_files import SEARCH_PICTURE
from snnet.files.paths import cache_folder

if TYPE_CHECKING:
    from typing_extensions import Self

CONFIG_HELP = f"preset: {', '.join(preset_names())}; or a file"


def _timeout() -> Any:
    """The flag of commands whose processes meet again and again."""
    text = "with several processes: seconds to wait for a process before the others end"
    return option(120.0, text, "> 0 and < 1e6")


@dataclass(frozen=True, kw_only=True)
class NetworkCommand(Command):
    """A command that works with a network: that of a checkpoint, or that of --arch and --weights."""

    without_default = ("weights",)

    checkpoint: Path | None = option(
        None,
        "a checkpoint, or the folder of a run: settings that are not given come from it, but for those of its machine "
        "(device, memory layout, loading of images); without it give --weights, "
        "with --arch or --config: they come from --config or the defaults shown",
        metavar="FILE|DIR",
    )
    preset: str | None = option(None, CONFIG_HELP, metavar="NAME|FILE.yaml", flag="--config")

    def completed(self) -> Self:
        """Without a checkpoint the weights must be named, by --weights or in the file of --config.

        Features of a network that nobody trained look like any others.
        """
        if self.checkpoint is not None:
            if self.preset is not None:
                raise UserError("--config cannot be given with --checkpoint, which has its own configuration")
            return super().completed()
        if "arch" not in self.given and self.preset is None:
            raise UserError("no network to use: give --checkpoint, or --arch and --weights")
        if "weights" not in {**preset_values(self.preset), **self.given}:
            source = f"--config {self.preset}" if self.preset else f"--arch {self.given['arch']}"
            raise UserError(f"{source} needs --weights: a file, imagenet (ResNets), or none for random ones")
        command = self
        if self.preset is None and "dataset" in self.shared:
            command = dataclasses.replace(self, preset=default_preset(self.given))
        resolve(command.preset, command.given)
        return command

    @property
    def network_files(self) -> tuple[Path, ...]:
        """The file that the network comes from, where there is one."""
        if self.checkpoint is not None:
            return (self.checkpoint,)
        weights = resolve(self.preset, self.given).model.weights
        return () if weights is None else (Path(weights),)


@dataclass(frozen=True, kw_only=True)
class TrainCommand(Command):
    """Train SNNet without labels. Without --config, the dataset 'synthetic' uses the preset 'synthetic', which is sized
    for a small CPU; every other dataset uses the defaults shown, which are the paper's full recipe.
    """

    module = "snnet.train"
    shared = tuple(OPTIONS)

    preset: str | None = option(None, CONFIG_HELP, metavar="NAME|FILE.yaml", flag="--config")
    resume: Path | None = option(
        None,
        "continue the run of this folder or checkpoint, with the configuration it began with",
        metavar="FILE|DIR",
    )
    timeout: float = _timeout()
    config: Config = field(default_factory=Config)

    def completed(self) -> TrainCommand:
        """Flags win over the preset, wherever they stand; a resumed run keeps the configuration it began with."""
        if self.resume is None:
            preset = default_preset(self.given) if self.preset is None else self.preset
            return dataclasses.replace(self, preset=preset, config=resolve(preset, self.given))
        if self.preset is not None:
            raise UserError("--config cannot be given with --resume: the run keeps its own configuration")
        run = run_of(self.resume)
        return dataclasses.replace(self, resume=run, config=resumed(run, self.given))


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(NetworkCommand):
    """Rank the gallery for every query and report CMC and mAP, for a checkpoint or for --arch and --weights."""

    module = "snnet.evaluate"
    shared = (
        *members("data", "model", "runtime", but=("camstyle", "deterministic")),
        "average_precision",
        "single_gallery_shot",
        "rerank",
    )

    json: bool = option(False, "print one JSON object instead of a table")
    query_expansion: int | None = option(
        None,
        "also rank after query expansion over the INT nearest images of each (fast-reid's aqe uses 10)",
        COUNT,
    )
    roc: bool = option(
        False,
        "also report the true positive rate of pairs at false positive rates of at most 0.01, 0.1 and 1 percent",
    )


Split = Literal["train", "query", "gallery", "all"]


@dataclass(frozen=True, kw_only=True)
class ExtractCommand(NetworkCommand):
    """Write the retrieval features of a dataset's images, or of any folder of crops (--dataset folder), to one file:
    rows of length 1, with the images' names, and identities and cameras if they are known.
    """

    module = "snnet.extract"
    shared = members("data", "model", "runtime", but=("camstyle", "deterministic"))

    output: Path = option(
        MISSING,
        "what to write: .npz or .safetensors",
        metavar="FILE",
    )
    split: Split = option("all", "the images to extract; a folder of crops has only train")


@dataclass(frozen=True, kw_only=True)
class LabelCommand(Command):
    """Predict pseudo labels from any file of features, one row per image: y (MPLP), y_sym (the images that have this
    image as positive) and y_nh (the label of its nearest neighbour), as sparse matrices (CSR) in a .npz file. If a row
    is not of length 1, all rows are normalised.
    """

    module = "snnet.label"
    usage = "FEATURES --output FILE.npz [flags]"
    shared = ("threshold", "min_rank", "device")

    features: Path = option(
        MISSING,
        "a .npz, .npy, .safetensors, .pt or .pth file, such as snnet.extract writes",
        flag="",
        metavar="FEATURES",
    )
    output: Path = option(MISSING, "what to write", metavar="FILE.npz")
    key: str | None = option(
        None, "the array to take from a file that has several (default: features)", metavar="NAME"
    )
    classes: Literal["components", "dbscan"] | None = option(
        None,
        "also write one class per image, -1 for outliers: connected components of the mutual positives, or clusters of "
        "DBSCAN on Jaccard distances (needs the extra 'cluster')",
    )
    eps: float | None = option(
        None,
        "dbscan: largest Jaccard distance of neighbours, above 0 and below 1 (default 0.6)",
        "> 0 and < 1",
    )
    min_samples: int | None = option(None, "dbscan: neighbours that make a core sample (default 4)", COUNT)
    k1: int | None = option(
        None,
        "dbscan: neighbours that the Jaccard distance compares (default 30); lower it where a person usually has far "
        "fewer images, or different persons become one class",
        COUNT,
    )
    k2: int | None = option(None, "dbscan: neighbours that it averages (default 6)", COUNT)
    group_pattern: str | None = option(
        None,
        "regular expression that finds the group of an image, such as its tracklet, in its name (the first capture "
        "group, else the whole match): images of one group are not each other's nearest neighbour",
        metavar="REGEX",
    )
    timeout: float = _timeout()

    @property
    def clustering(self) -> dict[str, Any]:
        """The settings of DBSCAN that were given."""
        names = ("eps", "min_samples", "k1", "k2")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def completed(self) -> LabelCommand:
        """Settings of DBSCAN need --classes dbscan."""
        if self.clustering and self.classes != "dbscan":
            raise UserError(f"--{next(iter(self.clustering)).replace('_', '-')} is for --classes dbscan")
        return super().completed()


@dataclass(frozen=True, kw_only=True)
class SearchCommand(NetworkCommand):
    """Find the crops of a gallery that are most similar to a query, by the cosine similarity of their features. Prints
    a table and writes a picture. No identities are needed. A gallery's features are cached on disk; images that were
    added or changed are detected by their content.
    """

    module = "snnet.search"
    usage = "--gallery DIR --query IMAGE|DIR --checkpoint FILE|DIR [flags]"
    shared = (
        *members("model"), "height", "width", "skip_bad_images", "batch_size", "image_cache", "workers",
        *members("runtime", but=("deterministic",)),
    )  # fmt: skip

    gallery: Path = option(MISSING, "any tree of crops to search in", metavar="DIR")
    query: Path = option(MISSING, "a crop to search for, or a tree of them", metavar="IMAGE|DIR")
    top_k: int = option(10, "matches to show for each query", COUNT)
    picture: Path | None = option(
        Path(SEARCH_PICTURE),
        "the picture to write, or none: at most 50 queries, and 50 matches of each; a file that no search wrote is "
        "replaced only if it is named here",
        metavar="FILE.png",
    )
    feature_cache: Path | None = option(
        cache_folder,
        "folder to cache galleries' features in, or none (default $SNNET_CACHE, else ~/.cache/snnet); its files, "
        "features-*.npz, can be deleted at any time",
        metavar="DIR",
    )
    json: bool = option(False, "print a JSON list with one entry per query instead of a table")


@dataclass(frozen=True, kw_only=True)
class ExportCommand(NetworkCommand):
    """Write a network for use elsewhere. .onnx computes the retrieval feature of preprocessed images, for any batch
    size; its result in onnxruntime is compared with PyTorch's before it is written (needs the extra 'onnx').
    .safetensors has only the weights, and --weights reads it.
    """

    module = "snnet.export"
    usage = "--checkpoint FILE|DIR --output FILE [flags]"
    shared = (*members("model"), "height", "width", "seed")

    output: Path = option(
        MISSING,
        "what to write: .onnx or .safetensors",
        metavar="FILE",
    )
    opset: int = option(
        18,  # the lowest that torch's exporter writes
        "ONNX opset version, 18 or more; the file has the lowest IR version that this opset allows",
        ">= 18 and < 1000",
    )


@dataclass(frozen=True, kw_only=True)
class ReportCommand(Command):
    """Write a report of a run as one self-contained HTML page, and its pictures as PNG: curves, evaluation, ranked
    lists, the hardest failures, pseudo labels, time, configuration and environment. A run that has not finished can
    be reported too. Settings that are not given come from the run, but for those of its machine.
    """

    module = "snnet.report"
    usage = "RUN [flags]"
    shared = ("data_dir", "batch_size", "image_cache", "workers", "device")

    run: Path = option(
        MISSING,
        "the folder of a run",
        flag="",
        metavar="RUN",
    )
    output: Path | None = option(
        None,
        "folder to write to (default: report in the folder of the run); files that no report wrote are left alone",
        metavar="DIR",
    )
    lists: int = option(8, "ranked lists of each kind (of which a PNG has 50 at most)", COUNT)
    top_k: int = option(10, "images per list (of which a PNG has 50 at most)", COUNT)
    no_images: bool = option(
        False,
        "leave out everything that shows images of the dataset; then neither the dataset nor the checkpoint is read",
    )

    @property
    def folder(self) -> Path:
        """The folder to write to."""
        return self.output or self.run / "report"
