"""The commands: the flags that each has for itself, and what they come to together. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from snnet.config.command_line import Command
from snnet.config.fields import option
from snnet.config.options import OPTIONS, Config, members
from snnet.config.resolve import default_preset, preset_names, preset_values, resolve, resumed, run_of
from snnet.errors import UserError
from snnet.files.paths import cache_folder

if TYPE_CHECKING:
    from typing_extensions import Self

COUNT = ">= 1 and < 1000000000"  # of images: operations count them in 32 bits
CONFIG_HELP = f"preset: {', '.join(preset_names())}; or a file"


def timeout_option() -> float:
    """The flag of commands whose processes wait for each other while they work."""
    return option(
        120.0,
        "of several processes: seconds for which one may be silent before the others end",
        "> 0 and < 1e6",
    )


@dataclass(frozen=True, kw_only=True)
class NetworkCommand(Command):
    """A command that works with a network: that of a checkpoint, or that of --arch and --weights."""

    no_network: ClassVar[str] = "no network to use"

    checkpoint: Path | None = option(
        None,
        "a checkpoint, or the folder of a run; without one --weights must be named, with --arch or --config",
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
            raise UserError(f"{self.no_network}: give --checkpoint, or --arch and --weights")
        if "weights" not in {**preset_values(self.preset), **self.given}:
            source = f"--config {self.preset}" if self.preset else f"--arch {self.given['arch']}"
            raise UserError(f"{source} needs --weights: a file, imagenet (ResNets), or none for random ones")
        command = self
        if self.preset is None and "dataset" in self.shared:
            command = dataclasses.replace(self, preset=default_preset(self.given))
        resolve(command.preset, command.given)
        return command


@dataclass(frozen=True, kw_only=True)
class TrainCommand(Command):
    """Train SNNet without labels. Without --config, the dataset 'synthetic' uses the preset 'synthetic', sized for a
    small CPU; every other dataset uses the defaults shown, the paper's full recipe.
    """

    module = "snnet.train"
    shared = tuple(OPTIONS)

    preset: str | None = option(None, CONFIG_HELP, metavar="NAME|FILE.yaml", flag="--config")
    resume: Path | None = option(
        None,
        "continue the run in this folder, or that this checkpoint is of, as it was set",
        metavar="FILE|DIR",
    )
    timeout: float = timeout_option()
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
    """Rank the gallery for every query and report CMC and mAP, for a checkpoint or for --arch and --weights. What is
    not given comes from the checkpoint; without one, from --config or the defaults shown.
    """

    module = "snnet.evaluate"
    shared = (
        *members("data", "model", "runtime", but=("camstyle", "deterministic")),
        "average_precision",
        "single_gallery_shot",
        "rerank",
    )
    no_network = "nothing to evaluate"

    json: bool = option(False, "print one JSON object instead of a table")
    query_expansion: int | None = option(
        None,
        "also rank with each feature drawn towards those of its INT nearest images (fast-reid takes 10)",
        COUNT,
    )
    roc: bool = option(
        False,
        "also report how many true pairs a threshold accepts that accepts 0.01, 0.1 and 1 percent of false ones",
    )


Split = Literal["train", "query", "gallery", "all"]


@dataclass(frozen=True, kw_only=True)
class ExtractCommand(NetworkCommand):
    """Write the retrieval features of a dataset's images, or of any folder of crops (--dataset folder), to one file:
    rows of length 1, with the images' names, and identities and cameras where they are known. What is not given comes
    from the checkpoint.
    """

    module = "snnet.extract"
    shared = members("data", "model", "runtime", but=("camstyle", "deterministic"))

    output: Path = option(
        MISSING,
        "what to write: .npz or .safetensors",
        metavar="FILE",
        lacking="nothing to write to: give --output FILE.npz or FILE.safetensors",
    )
    split: Split = option("all", "the images to take; a folder of crops has only train")


@dataclass(frozen=True, kw_only=True)
class LabelCommand(Command):
    """Predict pseudo labels from any file of features, one row an image: y (MPLP), y_sym (who has the image as
    positive) and y_nh (the labels of its nearest neighbour), as sparse matrices (CSR) in a .npz file. Rows of other
    lengths than 1 are normalised.
    """

    module = "snnet.label"
    usage = "FEATURES --output FILE.npz [flags]"
    shared = ("threshold", "min_rank", "device")

    features: Path = option(
        MISSING,
        "a .npz, .npy, .safetensors, .pt or .pth file",
        flag="",
        metavar="FEATURES",
        lacking="nothing to label: give a file of features (snnet.extract writes one)",
    )
    output: Path = option(
        MISSING, "what to write", metavar="FILE.npz", lacking="nothing to write to: give --output FILE.npz"
    )
    key: str | None = option(
        None, "the array to take from a file that has several (default: features)", metavar="NAME"
    )
    classes: Literal["components", "dbscan"] | None = option(
        None,
        "also write one class an image, -1 for outliers: images joined by mutual positives, or the clusters of DBSCAN "
        "on Jaccard distances (needs the extra 'cluster')",
    )
    eps: float | None = option(
        None,
        "of --classes dbscan: largest Jaccard distance of neighbours, above 0 and below 1 (default 0.6)",
        "> 0 and < 1",
    )
    min_samples: int | None = option(
        None,
        "of --classes dbscan: neighbours that make an image the core of a class (default 4)",
        COUNT,
    )
    k1: int | None = option(
        None, "of --classes dbscan: neighbours that the Jaccard distance compares (default 30)", COUNT
    )
    k2: int | None = option(None, "of --classes dbscan: neighbours that it averages over (default 6)", COUNT)
    group_pattern: str | None = option(
        None,
        "what it finds in the images' names (its first parenthesis, else all of it) is their group, such as the "
        "tracklet: images of one group are not each other's nearest neighbour",
        metavar="REGEX",
    )
    timeout: float = timeout_option()

    @property
    def clustering(self) -> dict[str, Any]:
        """What was given of the settings of DBSCAN."""
        names = ("eps", "min_samples", "k1", "k2")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def completed(self) -> LabelCommand:
        """Settings of DBSCAN are for --classes dbscan alone."""
        if self.clustering and self.classes != "dbscan":
            raise UserError(f"--{next(iter(self.clustering)).replace('_', '-')} is for --classes dbscan")
        return super().completed()


LACKING = "nothing to search: give --gallery DIR and --query IMAGE or DIR"


@dataclass(frozen=True, kw_only=True)
class SearchCommand(NetworkCommand):
    """Find the crops of a gallery that are most like a query, by the cosine of their features: a table, and one
    picture. No identities are needed. A gallery's features are kept on disk; images that were added or changed are
    noticed by their content.
    """

    module = "snnet.search"
    usage = "--gallery DIR --query IMAGE|DIR --checkpoint FILE|DIR [flags]"
    shared = (
        *members("model"), "height", "width", "skip_bad_images", "batch_size", "image_cache", "workers",
        *members("runtime", but=("deterministic",)),
    )  # fmt: skip

    gallery: Path = option(MISSING, "any tree of crops to search in", metavar="DIR", lacking=LACKING)
    query: Path = option(
        MISSING, "a crop to search for, or a tree of them", metavar="IMAGE|DIR", lacking=LACKING
    )
    top_k: int = option(10, "matches to show for each query", COUNT)
    picture: Path | None = option(Path("matches.png"), "the picture to write, or none", metavar="FILE.png")
    feature_cache: Path | None = option(
        cache_folder,
        "folder to keep galleries' features in, or none (default $SNNET_CACHE, else ~/.cache/snnet); its files, "
        "features-*.npz, can be deleted at any time",
        metavar="DIR",
    )
    json: bool = option(False, "print a JSON list, a query an entry, instead of a table")


@dataclass(frozen=True, kw_only=True)
class ExportCommand(NetworkCommand):
    """Write a network for use elsewhere: .onnx is the retrieval feature of prepared images, for any batch size, checked
    against PyTorch by onnxruntime before it is written (needs the extra 'onnx'); .safetensors is the weights alone,
    which --weights reads.
    """

    module = "snnet.export"
    usage = "--checkpoint FILE|DIR --output FILE [flags]"
    shared = (*members("model"), "height", "width", "seed")

    output: Path = option(
        MISSING,
        "what to write: .onnx or .safetensors",
        metavar="FILE",
        lacking="nothing to write to: give --output FILE.onnx or FILE.safetensors",
    )
    opset: int = option(
        18,  # the lowest that torch's exporter writes
        "version of ONNX's operators, 18 or more; the file has the lowest IR version that this opset allows",
        ">= 18",
    )


@dataclass(frozen=True, kw_only=True)
class ReportCommand(Command):
    """Write what a run has measured as one HTML page that needs nothing else, and its pictures as PNG: curves,
    evaluation, ranked lists, the hardest failures, pseudo labels, time, configuration and environment. A run that
    still goes on can be reported too.
    """

    module = "snnet.report"
    usage = "RUN [flags]"
    shared = ("data_dir", "batch_size", "image_cache", "workers", "device")

    run: Path = option(
        MISSING,
        "the folder of a run",
        flag="",
        metavar="RUN",
        lacking="nothing to report: give the folder of a run",
    )
    output: Path | None = option(
        None,
        "folder to write to (default: report, in that of the run); files that no report wrote are left alone",
        metavar="DIR",
    )
    lists: int = option(8, "ranked lists of each kind", COUNT)
    top_k: int = option(10, "images of a list", COUNT)
    images: bool = option(
        True,
        "leave out all that shows images of the dataset; neither it nor the checkpoint is then read",
        flag="--no-images",
    )

    @property
    def folder(self) -> Path:
        """The folder to write to."""
        return self.output or self.run / "report"
