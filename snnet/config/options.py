"""The options of the configuration: one declaration has the name, meaning, default and range of each.

A field of a group below is a command-line flag (``data_dir`` is ``--data-dir``) and a key of a YAML preset. The
defaults are the paper's full recipe. ``commands.py`` declares in the same way the flags that only one command has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from snnet.config.fields import FileName, Option, option, options_of
from snnet.config.timm_names import PREFIX, is_timm, timm_input
from snnet.errors import UserError

DatasetName = Literal[
    "synthetic", "market1501", "dukemtmc", "msmt17", "cuhk03", "cuhk03-classic", "veri776", "folder", "custom",
]  # fmt: skip
Architecture = Literal[
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "osnet_x1_0", "osnet_x0_75", "osnet_x0_5", "osnet_x0_25",
    "osnet_ain_x1_0", "osnet_ain_x0_75", "osnet_ain_x0_5", "osnet_ain_x0_25", "osnet_ibn_x1_0",
]  # fmt: skip
Embedding = Literal["pool", "fc", "fc-relu"]
AveragePrecision = Literal["step", "trapezoid"]

SIDE = ">= 16 and <= 8192"  # of an image: none of more pixels than such a square is read
COUNT = ">= 1 and < 1000000000"  # operations count in 32 bits
COUNT_OR_0 = ">= 0 and < 2147483648"
FACTOR = ">= 0 and <= 1e30"  # so that its products with other numbers fit into float32


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they reach the network."""

    dataset: DatasetName = option(
        "synthetic",
        "dataset layout; synthetic is drawn on first use, folder is any tree of crops without identities, "
        "custom a train/query/gallery tree read with --name-pattern",
    )
    data_dir: FileName | None = option(
        None, "folder of the dataset; synthetic: where to store it, none: in a cache folder"
    )
    name_pattern: str | None = option(
        None,
        "for custom and folder: regular expression with the named groups pid and cam (folder: only cam), searched for "
        "in each file's path within the folder of its split",
    )
    camstyle: bool = option(
        False,
        "take each training image in the style of a random camera: itself, or one of its CamStyle images",
    )
    skip_bad_images: bool = option(False, "leave out and count unreadable images instead of stopping")
    height: int = option(256, "height in pixels of the network's input", SIDE)
    width: int = option(128, "width in pixels of the network's input", SIDE)
    batch_size: int = option(
        128,
        "images per step; in training, of all processes together (the paper: 128 with ResNet-50, 64 with OSNet)",
        ">= 2 and < 1000000000",
    )
    image_cache: Literal["auto", "on", "off"] = option(
        "auto", "keep decoded images in memory; auto: if they fit"
    )
    workers: int = option(4, "processes that load images, at most one a CPU; 0: the main process", COUNT_OR_0)


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    arch: Architecture = option(
        "resnet50",
        "the backbone: a ResNet or an OSNet (_x0_5 has half the channels of _x1_0), or timm:NAME (needs the extra "
        "'timm'), with its own input size unless a flag or preset gives one",
        prefix=PREFIX,
    )
    weights: FileName | None = option(
        "imagenet",
        "imagenet (for ResNets; for timm:NAME its pretrained weights), a weight file of torchvision, torchreid, timm "
        "or this package, or none (random weights)",
        metavar="imagenet|FILE|none",
    )
    embedding: Embedding = option(
        "pool",
        "the feature; pool: the pooled one, fc: OSNet's own fully connected layer, fc-relu: the same with its ReLU, as "
        "torchreid ranks",
    )
    retrieval_feature: Literal["auto", "before", "after"] = option(
        "auto",
        "rank with the feature before or after the batch normalisation neck (BNNeck); auto: before, for fc-relu after",
    )


@dataclass(frozen=True)
class TrainingConfig:
    """The optimiser and its schedule."""

    epochs: int = option(60, "passes over the training images", COUNT)
    lr: float = option(0.1, "learning rate of layers not loaded from --weights", "> 0 and <= 1e15")
    backbone_lr_mult: float = option(0.1, "factor on --lr for layers of --weights", ">= 0 and <= 1e15")
    lr_step_epoch: int = option(30, "divide the learning rate by 10 from this epoch on; 0: never", COUNT_OR_0)
    momentum: float = option(0.9, "Nesterov momentum of SGD", ">= 0 and < 1")
    weight_decay: float = option(5e-4, "weight decay of SGD", FACTOR)
    bn_groups: int = option(
        1,
        "equal parts of a batch that are normalised separately (ghost batch normalisation), as on that many processes; "
        "at least one part per process",
        COUNT,
    )
    sync_bn: bool = option(False, "normalise the batch of all processes together (SyncBatchNorm; GPUs only)")


@dataclass(frozen=True)
class MethodConfig:
    """The pseudo labels and the loss."""

    lambda_base: float = option(1.0, "weight of the main label's loss", FACTOR)
    lambda_sym: float = option(0.8, "weight of the symmetric label's loss (S)", FACTOR)
    lambda_nh: float = option(0.6, "weight of the nearest neighbour's label's loss (N)", FACTOR)
    threshold: float = option(0.6, "cosine similarity above which an image is a candidate", ">= -1 and <= 1")
    min_rank: int = option(
        10, "a candidate is consistent up to rank max(number of candidates, INT) of its anchor", COUNT_OR_0
    )
    loss_kind: Literal["mmcl", "l2"] = option(
        "mmcl",
        "mmcl: with hard negatives; l2: the sum over all images as printed in the paper (no --lr was found that works)",
    )
    delta: float = option(5.0, "mmcl: weight of the positive term", FACTOR)
    hard_negative_ratio: float = option(0.01, "mmcl: share of the negatives that are hard", ">= 0 and <= 1")
    label_source: Literal["memory", "feature"] = option(
        "memory",
        "predict labels from the similarities of memory rows, or of the live feature (fewer positives, more of "
        "them right)",
    )
    label_start_epoch: int = option(
        5, "first epoch (from 0) with predicted labels; before it each image is its own class", COUNT_OR_0
    )
    neighbors: int = option(
        256,
        "store up to this many of the largest similarities per image (12 bytes each), which makes label prediction "
        "fast; labels do not depend on it; 0: none",
        COUNT_OR_0,
    )


@dataclass(frozen=True)
class OutputConfig:
    """What is measured and written."""

    output_dir: FileName | None = option(None, "folder of the run; none: runs/<dataset>-<arch>-<time>")
    eval_every: int = option(0, "epochs between evaluations; 0: only before and after training", COUNT_OR_0)
    average_precision: AveragePrecision = option(
        "step", "definition of mAP: step (usual today) or trapezoid (official Market-1501 code)"
    )
    single_gallery_shot: bool = option(
        False,
        "CMC as the mean over 10 random galleries with one image per identity (CUHK03's protocol of 100 test "
        "identities); mAP is unchanged",
    )
    rerank: bool = option(
        False, "also report the last evaluation after k-reciprocal re-ranking (k1 20, k2 6, lambda 0.3)"
    )
    checkpoint_every: int = option(1, "epochs between checkpoints (the last epoch always has one)", COUNT)


@dataclass(frozen=True)
class RuntimeConfig:
    """How a command runs on this machine."""

    device: str = option("auto", "auto, cpu, cuda or cuda:N; auto: cuda where there is one")
    seed: int = option(
        0, "seed of everything random in a run; the drawn set is always the same", ">= 0 and < 4294967296"
    )
    deterministic: bool = option(
        False,
        "use only algorithms that give the same bits every time (slower on CUDA, and there not in a step in which more "
        "than twice --neighbors pairs of one image pass the floors of the neighbour lists)",
    )
    amp: bool = option(
        False,
        "run the network in bfloat16; features, similarities and memory stay float32 (faster on a CPU only with "
        "AVX512-BF16 or AMX)",
    )
    channels_last: bool | None = option(
        None, "channels-last memory layout of the network; auto: on a CPU and with --amp, where it is faster"
    )


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on, in groups."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


GROUPS: dict[str, type] = get_type_hints(Config)
OPTIONS: dict[str, Option] = {
    name: declared for group, cls in GROUPS.items() for name, declared in options_of(cls, group).items()
}
# Keys of older presets and runs. They are accepted without effect: labels never depended on their values.
RETIRED = ("cache",)


def members(*groups: str, but: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names of the options of these groups, without those of ``but``."""
    return tuple(name for name, o in OPTIONS.items() if o.group in groups and name not in but)


def flatten(config: Config) -> dict[str, Any]:
    """Every field by its flat name, in the order of the groups."""
    return {name: getattr(getattr(config, option.group), name) for name, option in OPTIONS.items()}


def config_from(values: dict[str, Any]) -> Config:
    """The configuration with these values (by flat name), and defaults for the rest.

    ``retrieval_feature`` "auto" becomes what it stands for; a network of timm brings the input size. Raises
    :class:`~snnet.errors.UserError` naming the flag where a value cannot be.
    """
    values = {name: OPTIONS[name].checked(value, OPTIONS[name].flag) for name, value in values.items()}
    arch = values.get("arch", "")
    if is_timm(arch) and not {"height", "width"} <= values.keys():
        own = timm_input(arch)
        values = {"height": own.height, "width": own.width, **values}
    relu = values.get("embedding") == "fc-relu"  # the feature of torchreid is always after the neck
    if relu and values.get("retrieval_feature") == "before":
        raise UserError(
            "--retrieval-feature before contradicts --embedding fc-relu, whose ReLU comes after the batch "
            "normalisation: use after, or --embedding fc"
        )
    if values.get("retrieval_feature", "auto") == "auto":
        values["retrieval_feature"] = "after" if relu else "before"
    config = Config(
        **{
            group: cls(**{name: values[name] for name in members(group) if name in values})
            for group, cls in GROUPS.items()
        }
    )
    method = config.method
    if method.lambda_base == method.lambda_sym == method.lambda_nh == 0:
        raise UserError("--lambda-base, --lambda-sym and --lambda-nh are all 0: at least one must be above 0")
    return config
