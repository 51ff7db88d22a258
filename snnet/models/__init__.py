"""Feature extractors: ResNet and OSNet backbones with the embedding the method trains."""

from __future__ import annotations

from snnet.models.embedding import ARCHITECTURES, ReIDModel, build_model

__all__ = ["ARCHITECTURES", "ReIDModel", "build_model"]
