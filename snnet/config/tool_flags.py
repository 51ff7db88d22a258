"""The command lines of the tools around a run: extract, label, search, export, report. Imports no torch."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snnet.config.flags import CommandParser, default_preset, network_preset, whole_number
from snnet.config.options import OPTIONS, config_from
from snnet.errors import UserError
from snnet.files.paths import cache_folder

LOWEST_OPSET = 18  # of ONNX, below which torch's exporter does not write
SPLITS = ("train", "query", "gallery", "all")

_MODEL = tuple(name for name, option in OPTIONS.items() if option.group == "model")
_INPUT = ("height", "width")
_DATA = tuple(name for name, option in OPTIONS.items() if option.group == "data" and name != "camstyle")
_IMAGES = (*_INPUT, "skip_bad_images", "batch_size", "image_cache", "workers")
_MACHINE = ("device", "seed", "amp", "channels_last")


@dataclass(frozen=True)
class NetworkChoice:
    """Where the network comes from; ``given`` holds the flags that were on the command line, by flat name."""

    checkpoint: Path | None
    preset: str | None
    given: dict[str, Any]


@dataclass(frozen=True)
class ExtractCommand:
    """A parsed ``snnet.extract`` command line."""

    network: NetworkChoice
    split: str
    output: Path
    quiet: bool


def parse_extract_command(arguments: list[str]) -> ExtractCommand:
    """Checked as far as that goes without opening the checkpoint."""
    parser = CommandParser(
        "snnet.extract",
        "Write the retrieval features of a dataset's images, or of any folder of crops (--dataset folder), "
        "to one file: rows of length 1, with the images' names, and identities and cameras where they are "
        "known. What is not given comes from the checkpoint.",
    )
    parser.add_network()
    parser.add_argument("--output", metavar="FILE", type=Path, help="what to write: .npz or .safetensors")
    parser.add_argument(
        "--split", choices=SPLITS, help="the images to take (default all; a folder of crops has only train)"
    )
    parser.add_options((*_DATA, *_MODEL, *_MACHINE))
    given = parser.parse(arguments)
    own = _pop(given, output=None, split="all", quiet=False)
    network = _network_choice(given, default_preset(given))
    if own["output"] is None:
        raise UserError("nothing to write to: give --output FILE.npz or FILE.safetensors")
    return ExtractCommand(network, **own)


@dataclass(frozen=True)
class LabelCommand:
    """A parsed ``snnet.label`` command line; ``options`` holds the flags of the method and the device."""

    features: Path
    key: str | None
    output: Path
    options: dict[str, Any]
    quiet: bool
    classes: str | None = None
    clustering: dict[str, Any] = field(
        default_factory=dict
    )  # k1, k2, eps, min_samples, where they were given
    group_pattern: str | None = None


def parse_label_command(arguments: list[str]) -> LabelCommand:
    """Checked as far as that goes without opening the file."""
    parser = CommandParser(
        "snnet.label",
        "Predict pseudo labels from any file of features, one row an image: y (MPLP), y_sym (who has the image "
        "as positive) and y_nh (the labels of its nearest neighbour), as sparse matrices (CSR) in a .npz file. "
        "Rows of other lengths than 1 are normalised.",
        usage="FEATURES --output FILE.npz [flags]",
    )
    parser.add_argument(
        "features",
        metavar="FEATURES",
        type=Path,
        nargs="?",
        default=None,  # argparse would take its word for "absent" as a path
        help="a .npz, .npy, .safetensors, .pt or .pth file",
    )
    parser.add_argument("--output", metavar="FILE.npz", type=Path, help="what to write")
    parser.add_argument(
        "--key", metavar="NAME", help="the array to take from a file that has several (default: features)"
    )
    parser.add_argument(
        "--classes",
        choices=("components", "dbscan"),
        help="also write one class an image, -1 for outliers: images joined by mutual positives, or the clusters of "
        "DBSCAN on Jaccard distances (needs the extra 'cluster')",
    )
    for name, kind, text in (
        ("--eps", _share, "largest Jaccard distance of neighbours, above 0 and below 1 (default 0.6)"),
        ("--min-samples", whole_number, "neighbours that make an image the core of a class (default 4)"),
        ("--k1", whole_number, "neighbours that the Jaccard distance compares (default 30)"),
        ("--k2", whole_number, "neighbours that it averages over (default 6)"),
    ):
        metavar = "FLOAT" if kind is _share else "INT"
        parser.add_argument(name, metavar=metavar, type=kind, help=f"of --classes dbscan: {text}")
    parser.add_argument(
        "--group-pattern",
        metavar="REGEX",
        help="what it finds in the images' names (its first parenthesis, else all of it) is their group, such as the "
        "tracklet: images of one group are not each other's nearest neighbour",
    )
    parser.add_options(("threshold", "min_rank", "device"), preset=False)
    given = parser.parse(arguments)
    clustering: dict[str, Any] = {}
    for name in ("eps", "min_samples", "k1", "k2"):
        if name in given:
            clustering[name] = given.pop(name)
    own = _pop(
        given,
        features=None,
        key=None,
        output=None,
        classes=None,
        group_pattern=None,
        quiet=False,
    )
    if clustering and own["classes"] != "dbscan":
        raise UserError(f"--{next(iter(clustering)).replace('_', '-')} is for --classes dbscan")
    if own["features"] is None:
        raise UserError("nothing to label: give a file of features (snnet.extract writes one)")
    if own["output"] is None:
        raise UserError("nothing to write to: give --output FILE.npz")
    config_from(given)
    return LabelCommand(**own, clustering=clustering, options=given)


@dataclass(frozen=True)
class SearchCommand:
    """A parsed ``snnet.search`` command line."""

    network: NetworkChoice
    gallery: Path
    query: Path
    top_k: int
    picture: Path | None
    feature_cache: Path | None  # the folder
    json: bool
    quiet: bool


def parse_search_command(arguments: list[str]) -> SearchCommand:
    """Checked as far as that goes without opening the checkpoint or an image."""
    parser = CommandParser(
        "snnet.search",
        "Find the crops of a gallery that are most like a query, by the cosine of their features: a table, and "
        "one picture. No identities are needed. A gallery's features are kept on disk; images that were added or "
        "changed are noticed by their content.",
        usage="--gallery DIR --query IMAGE|DIR --checkpoint FILE|DIR [flags]",
    )
    parser.add_argument("--gallery", metavar="DIR", type=Path, help="any tree of crops to search in")
    parser.add_argument(
        "--query", metavar="IMAGE|DIR", type=Path, help="a crop to search for, or a tree of them"
    )
    parser.add_argument(
        "--top-k", metavar="INT", type=whole_number, help="matches to show for each query (default 10)"
    )
    parser.add_argument(
        "--picture", metavar="FILE.png", type=Path, help="the picture to write, or none (default matches.png)"
    )
    parser.add_argument(
        "--feature-cache",
        metavar="DIR",
        type=Path,
        help="folder to keep galleries' features in, or none (default $SNNET_CACHE, else ~/.cache/snnet); its "
        "files, features-*.npz, can be deleted at any time",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list, a query an entry, instead of a table"
    )
    parser.add_network()
    parser.add_options((*_MODEL, *_IMAGES, *_MACHINE), preset=False)
    given = parser.parse(arguments)
    cache = None if "feature_cache" in given else cache_folder()
    own = _pop(
        given, gallery=None, query=None, top_k=10, picture=Path("matches.png"), feature_cache=cache,
        json=False, quiet=False,
    )  # fmt: skip
    if own["gallery"] is None or own["query"] is None:
        raise UserError("nothing to search: give --gallery DIR and --query IMAGE or DIR")
    own |= {name: None for name in ("picture", "feature_cache") if str(own[name]) == "none"}
    return SearchCommand(_network_choice(given), **own)


@dataclass(frozen=True)
class ExportCommand:
    """A parsed ``snnet.export`` command line."""

    network: NetworkChoice
    output: Path
    opset: int
    quiet: bool


def parse_export_command(arguments: list[str]) -> ExportCommand:
    """Checked as far as that goes without opening the checkpoint."""
    parser = CommandParser(
        "snnet.export",
        "Write a network for use elsewhere: .onnx is the retrieval feature of prepared images, for any batch "
        "size, checked against PyTorch by onnxruntime before it is written (needs the extra 'onnx'); "
        ".safetensors is the weights alone, which --weights reads.",
        usage="--checkpoint FILE|DIR --output FILE [flags]",
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="what to write: .onnx or .safetensors")
    parser.add_argument(
        "--opset",
        metavar="INT",
        type=whole_number,
        help=f"version of ONNX's operators (default {LOWEST_OPSET}, the lowest); the file "
        "has the lowest IR version that this opset allows",
    )
    parser.add_network()
    parser.add_options((*_MODEL, *_INPUT, "seed"), preset=False)
    given = parser.parse(arguments)
    if "opset" in given and given["opset"] < LOWEST_OPSET:
        raise UserError(f"--opset must be >= {LOWEST_OPSET}, got {given['opset']}")
    own = _pop(given, output=None, opset=LOWEST_OPSET, quiet=False)
    if own["output"] is None:
        raise UserError("nothing to write to: give --output FILE.onnx or FILE.safetensors")
    return ExportCommand(_network_choice(given), **own)


@dataclass(frozen=True)
class ReportCommand:
    """A parsed ``snnet.report`` command line; ``options`` holds the flags of data and machine."""

    run: Path
    output: Path  # the folder
    lists: int
    top_k: int
    images: bool
    options: dict[str, Any]
    quiet: bool


def parse_report_command(arguments: list[str]) -> ReportCommand:
    """Checked as far as that goes without opening the run."""
    parser = CommandParser(
        "snnet.report",
        "Write what a run has measured as one HTML page that needs nothing else, and its pictures as PNG: curves, "
        "evaluation, ranked lists, the hardest failures, pseudo labels, time, configuration and environment. A run "
        "that still goes on can be reported too.",
        usage="RUN [flags]",
    )
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", default=None, help="the folder of a run")
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="folder to write to (default: report, in that of the run); files that no report wrote are left alone",
    )
    parser.add_argument(
        "--lists", metavar="INT", type=whole_number, help="ranked lists of each kind (default 8)"
    )
    parser.add_argument("--top-k", metavar="INT", type=whole_number, help="images of a list (default 10)")
    parser.add_argument(
        "--no-images",
        action="store_true",
        help="leave out all that shows images of the dataset; neither it nor the checkpoint is then read",
    )
    parser.add_options(("data_dir", "batch_size", "image_cache", "workers", "device"), preset=False)
    given = parser.parse(arguments)
    own = _pop(given, run=None, output=None, lists=8, top_k=10, no_images=False, quiet=False)
    if own["run"] is None:
        raise UserError("nothing to report: give the folder of a run")
    config_from(given)
    images = not own.pop("no_images")
    own["output"] = own["output"] or own["run"] / "report"
    return ReportCommand(**own, images=images, options=given)


def _network_choice(given: dict[str, Any], default: str | None = None) -> NetworkChoice:
    """Take the network's flags out of ``given``, which then holds options alone; ``default``: its preset."""
    checkpoint, config = given.pop("checkpoint", None), given.pop("config", None)
    preset = network_preset(checkpoint, config, given, "no network to use", default)
    return NetworkChoice(checkpoint, preset, given)


def _pop(given: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Take a command's own flags out of ``given``."""
    return {name: given.pop(name, default) for name, default in defaults.items()}


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and below 1, got '{text}'")
    return number
