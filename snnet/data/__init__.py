"""Datasets of pedestrian crops, and batches of them."""

from snnet.data.datasets import DATASETS, ImageSet, ReIDDataset, build_dataset, dataset_of
from snnet.data.decoding import DecodedImages, decode_images
from snnet.data.loading import BatchLoader, TrainingLoader, extraction_loader, training_loader

__all__ = [
    "DATASETS",
    "BatchLoader",
    "DecodedImages",
    "ImageSet",
    "ReIDDataset",
    "TrainingLoader",
    "build_dataset",
    "dataset_of",
    "decode_images",
    "extraction_loader",
    "training_loader",
]
