"""The network that a command works with: from a checkpoint, or from weights from elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from snnet.config.options import Config
from snnet.config.resolve import checked_values, config_from_run, resolve, with_whole_paths
from snnet.data import DecodedImages
from snnet.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from snnet.errors import UserError
from snnet.retrieval.features import extract_features, retrieval_kind
from snnet.runtime import PlacedModel, check_same_options, network_of, prepare
from snnet.system.processes import ALONE, Processes
from snnet.system.progress import say
from snnet.training.checkpoint import load_checkpoint, load_state
from snnet_kernels.version import __version__

BELONG_TO_CHECKPOINT = ("arch", "embedding", "weights")


@dataclass(frozen=True, eq=False)
class TrainedModel(PlacedModel):
    """A network in its place, and the configuration it works under.

    ``model`` is a :class:`~snnet.models.ReIDModel`, ``placement`` its device, number format and memory layout,
    ``config`` a :class:`~snnet.config.options.Config`.
    """

    def fingerprint(self) -> str:
        """SHA-256 of the weights, the preprocessing and the number format: it changes wherever the features may."""
        digest = hashlib.sha256(json.dumps(self.description(), sort_keys=True).encode())
        digest.update(f"{self.placement.device.type} {self.placement.amp}".encode())
        for name, value in self.model.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check_same(self, processes: Processes, others: Mapping[str, Any] | None = None) -> None:
        """Raise :class:`~snnet.errors.UserError` where ``processes`` have another network or other options than rank 0.

        ``others`` are values by name that must be the same, too.
        """
        if processes.are_several:
            others = {**(others or {}), "the checksum of the network": self.fingerprint()}
            check_same_options(self.config, self.placement.device, processes, others)

    def features(self, images: DecodedImages, processes: Processes = ALONE) -> Tensor:
        """Retrieval features [n, d] of images in order, float32 on the network's device, rows of norm 1.

        Each of several ``processes`` calls it with its share of the images.
        """
        return extract_features(self, images, retrieval_kind(self.config), processes)

    def description(self) -> dict[str, Any]:
        """What its features depend on besides the weights: values that JSON can hold."""
        config = self.config
        return {
            "made_by": f"snnet {__version__}",
            "arch": config.model.arch,
            "embedding": config.model.embedding,
            "retrieval_feature": config.model.retrieval_feature,
            "height": config.data.height,
            "width": config.data.width,
            "orientation": "as EXIF or XMP says",
            "transparency": "on black",
            "resize": "bilinear, antialiased",
            "channels": "RGB",
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
        }


def load_trained_model(
    checkpoint: Path | str | None,
    preset: str | None,
    given: dict[str, Any],
    *,
    contents: dict[str, Any] | None = None,
) -> TrainedModel:
    """The network of ``checkpoint`` (a file, or the folder of a run); without one, that of ``--weights``.

    What is not in ``given`` (values by flat name) comes from the checkpoint's configuration; without one,
    from the preset or the defaults. From a checkpoint, ``device``, ``deterministic``, ``channels_last``,
    ``image_cache`` and ``workers`` are not taken: these have their defaults unless they are given. ``contents`` is what
    the checkpoint holds, where it has been read already. Seeds the process by ``seed``. ``deterministic`` switches
    torch's deterministic mode on; nothing switches it off. cuDNN may choose the fastest algorithms unless that mode is
    on.

    Raises :class:`~snnet.errors.UserError` for a checkpoint or weights that cannot be used, and where ``given`` has an
    unknown name or a value of a wrong type, or contradicts the checkpoint.
    """
    texts = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    given = with_whole_paths(checked_values(texts, "given"))
    if checkpoint is None:
        config = resolve(preset, given)
        placement = prepare(config.runtime)
        model = network_of(config, config.model.weights)
        if config.model.weights is None:
            say(
                f"{config.model.arch} has random weights, of --seed {config.runtime.seed}: it was never trained"
            )
    else:
        contents = contents or load_checkpoint(checkpoint)
        config = _configuration(contents["config"], str(checkpoint), given)
        placement = prepare(config.runtime)
        model = network_of(config, None)
        load_state(model, contents["model"], Path(checkpoint), "network")
    placement.place(model)
    return TrainedModel(model, config, placement)


def _configuration(values: dict[str, Any], source: str, given: dict[str, Any]) -> Config:
    trained = checked_values(values, source)
    if not {"arch", "embedding"} <= trained.keys():
        raise UserError(f"{source} is not a whole checkpoint: its configuration is missing")
    for name in BELONG_TO_CHECKPOINT:
        if name in given and given[name] != trained.get(name):
            raise UserError(f"--{name} {given[name]} contradicts {source}, which has {trained.get(name)}")
    if given.get("dataset", trained.get("dataset")) != trained.get("dataset"):
        trained |= {"data_dir": None, "name_pattern": None}  # these were the other dataset's
    return config_from_run(trained, given)
