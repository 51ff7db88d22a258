"""A network in its place: what training, extraction and ranking take together."""

from __future__ import annotations

from dataclasses import dataclass

from snnet.config.options import Config
from snnet.models.embedding import ReIDModel, build_model
from snnet.runtime import Placement


@dataclass(frozen=True, eq=False)
class PlacedModel:
    """A network in its place, and the configuration it works under."""

    model: ReIDModel
    config: Config
    placement: Placement


def network_of(config: Config, weights: str | None) -> ReIDModel:
    """The network that ``config`` describes, from these ``weights`` (a file, "imagenet", or None: random)."""
    model, data = config.model, config.data
    return build_model(
        model.arch, embedding=model.embedding, weights=weights, height=data.height, width=data.width
    )
