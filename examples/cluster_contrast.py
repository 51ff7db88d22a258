"""Cluster contrast (Dai et al., ACCV 2022) on the parts of this package: the whole recipe in one file.

Each epoch: features of all images, their Jaccard graph, DBSCAN on it (images in no cluster are left out), a memory of
the clusters' centres, and steps on batches of P clusters with K images each. Needs the extra `cluster`.

    python examples/cluster_contrast.py                                            # the drawn set
    python examples/cluster_contrast.py --dataset market1501 --data-dir DIR --arch resnet50 --weights imagenet \
        --height 256 --width 128 --batch 256 --instances 16 --epochs 50 --iterations 200 --workers 8
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.cluster import DBSCAN
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset

import snnet_kernels as sk
from snnet.data import build_dataset, decode_images
from snnet.data.decoding import DecodedImages
from snnet.data.loading import extraction_loader
from snnet.data.transforms import UNIFORMS, augment, draw_augmentation
from snnet.models import ReIDModel, build_model
from snnet.retrieval.rank_metrics import rank_metrics
from snnet_kernels.compat.cluster_contrast import ClusterMemory


def main(words: list[str] | None = None) -> None:
    flags = arguments(words)
    torch.manual_seed(flags.seed)
    data = build_dataset(flags.dataset, flags.data_dir)
    images, query, gallery = (decode_images(part) for part in (data.train, data.query, data.gallery))
    model = build_model(flags.arch, embedding=flags.embedding, weights=flags.weights).to(flags.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=flags.lr, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=20, gamma=0.1)
    cluster = DBSCAN(eps=flags.eps, min_samples=4, metric="precomputed")
    for epoch in range(flags.epochs):
        features = extract(model, images, flags)
        graph = sk.jaccard_graph(features, flags.k1, flags.k2, max_distance=flags.eps)
        labels = cluster.fit_predict(graph.to_scipy())
        clusters, alone = labels.max() + 1, (labels < 0).sum()
        if clusters < flags.batch // flags.instances:
            raise SystemExit(f"{clusters} clusters are too few for a batch: raise --eps, or lower --batch")
        memory = ClusterMemory(features.shape[1], clusters, temp=0.05, momentum=0.1, use_hard=flags.hard)
        memory.features = centres(features, torch.from_numpy(labels).to(flags.device))
        losses, batches = [], PKBatches(images, labels, epoch, flags)
        for inputs, targets in DataLoader(batches, batch_size=None, num_workers=flags.workers):
            loss = memory(model(inputs.to(flags.device)), targets.to(flags.device))
            optimizer.zero_grad()
            loss.backward()  # the memory takes the features up here
            optimizer.step()
            losses.append(loss.detach())
        schedule.step()
        found = f"{clusters} clusters, {alone} of {len(labels)} images in none"
        print(f"epoch {epoch}: {found}, loss {torch.stack(losses).mean():.3f}")
    similarity = extract(model, query, flags) @ extract(model, gallery, flags).t()
    people = data.query.pids, data.gallery.pids, *data.evaluation_cams()
    ranks = rank_metrics(similarity.cpu().numpy(), *people)
    print(f"rank-1 {ranks.rank1:.1%}, mAP {ranks.mAP:.1%}")


@torch.no_grad()
def extract(model: ReIDModel, images: DecodedImages, flags: argparse.Namespace) -> Tensor:
    """Features [n, d] of all images in order, rows of length 1."""
    options = {name: getattr(flags, name) for name in ("height", "width", "workers")}
    model.eval()
    loader = extraction_loader(images, batch_size=flags.batch, **options)
    features = torch.cat([model(batch.to(flags.device)) for batch, _ in loader])
    model.train()
    return features


def centres(features: Tensor, labels: Tensor) -> Tensor:
    """The mean feature of each cluster [clusters, d], normalised."""
    kept = labels >= 0
    sums = features.new_zeros(int(labels.max()) + 1, features.shape[1])
    return normalize(sums.index_add(0, labels[kept], features[kept]), dim=1)


class PKBatches(Dataset):
    """(images [P K, 3, height, width], clusters int64 [P K]): augmented, K images of each of P clusters."""

    def __init__(self, images: DecodedImages, labels: np.ndarray, epoch: int, flags: argparse.Namespace):
        self.images, self.labels, self.flags, self.epoch = images, labels, flags, epoch

    def __len__(self) -> int:
        return self.flags.iterations

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        k, rng = self.flags.instances, np.random.default_rng([self.flags.seed, self.epoch, number])
        chosen = rng.permutation(self.labels.max() + 1)[: self.flags.batch // k]
        members = [np.flatnonzero(self.labels == label) for label in chosen]
        index = np.concatenate([rng.choice(own, k, replace=len(own) < k) for own in members])
        numbers, size = rng.random((len(index), UNIFORMS)), (self.flags.height, self.flags.width)
        changes = draw_augmentation(numbers, self.images.sizes[index], *size)
        pixels = augment([self.images.image(i) for i in index.tolist()], changes, *size)
        return pixels, torch.from_numpy(self.labels[index])


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = {"dataset": "synthetic", "data-dir": None, "arch": "osnet_x0_25", "weights": None}
    sizes = {"height": 64, "width": 32, "batch": 64, "instances": 4, "iterations": 40, "epochs": 10}
    more = {"embedding": "pool", "workers": 0, "k1": 30, "k2": 6, "eps": 0.6, "lr": 3.5e-4, "seed": 0}
    for name, default in (names | {"device": device} | sizes | more).items():
        kind = str if default is None else type(default)
        parser.add_argument(f"--{name}", type=kind, default=default, help="default: %(default)s")
    parser.add_argument("--hard", action="store_true", help="a centre takes up its hardest image alone")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
