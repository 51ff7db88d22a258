"""What the names of contenders and operations stand for on the page."""

from __future__ import annotations

CONTENDERS = {
    "snnet": "**snnet_kernels**",
    "snnet-streaming": "snnet_kernels without a cache",
    "snnet-whole-rows": "snnet_kernels over whole rows of the cache",
    "snnet-cuda": "snnet_kernels, CUDA C++ only",
    "snnet-triton": "snnet_kernels, Triton only",
    "snnet-graph": "snnet_kernels in a CUDA graph",
    "pytorch": "PyTorch, vectorised",
    "pytorch-cache": "PyTorch, vectorised, with our cache",
    "pytorch-dense": "PyTorch, vectorised, on dense labels",
    "pytorch-gram": "PyTorch, Gram form with MᵀM at hand",
    "pytorch-fresh-rows": "PyTorch, new rows of S by a product",
    "pytorch-transposed": "PyTorch, `(M @ f.T).T.contiguous()`",
    "pytorch-out": "PyTorch, `torch.mm(..., out=)`",
    "compile": "`torch.compile`",
    "compile-cache": "`torch.compile`, with our cache",
    "compile-static": "`torch.compile`, with our cache, static shapes",
    "loop": "loop over samples",
    "numpy": "numpy",
    "faiss": "faiss `IndexFlatIP`",
    "scipy": "scipy CSR and CSC",
    "bool": "bool matrix",
    "uint8": "uint8 matrix",
    "float32": "float32 matrix",
    "argsort": "numpy, an argsort a query",
    "dense": "numpy, dense matrices",
    "bare-product": "the bare product f Mᵀ",
    "two-products": "the two bare products",
    "backbone": "the backbone alone",
}

OPERATIONS = {
    "similarity": "The product f Mᵀ",
    "mplp": "Label prediction over the cache",
    "streaming-mplp": "Label prediction without a cache",
    "nearest-cache": "Nearest other image, over the cache",
    "nearest-streaming": "Ten nearest other images, without a cache",
    "label-columns": "Label memory: reading columns",
    "label-rows": "Label memory: reading rows",
    "label-write": "Label memory: writing rows",
    "memory-update": "Memory update",
    "cache-update": "Memory and cache update",
    "mmcl-loss": "Three-label `mmcl` loss and gradient, from features",
    "mmcl-loss-at-hand": "Three-label `mmcl` loss and gradient, similarities at hand",
    "l2-loss": "Three-label `l2` loss and gradient, from features",
    "l2-loss-at-hand": "Three-label `l2` loss and gradient, similarities at hand",
    "label-step": "Labels, nearest neighbour, memory and cache update",
    "label-step-with-p": "The three label sets, and the update of P, memory and cache",
    "iteration": "A whole iteration without the backbone",
    "training": "A training iteration with a backbone",
    "rank-metrics": "CMC, mAP and mINP",
    "rerank": "k-reciprocal re-ranking",
    "cluster-memory": "A step of a cluster memory: loss, gradient, update of the centres",
    "cluster-memory-hard": "The same with the hardest image of each cluster",
    "jaccard": "Jaccard distances of a training set, up to 0.6",
    "jaccard-dbscan": "Jaccard distances and DBSCAN on them",
}

PRECISIONS = {"tf32x3": "three tf32 products", "tf32": "plain tf32", "bf16": "bf16 and a float32 recheck"}


def contender(name: str) -> str:
    """A contender in words; of ours in another precision, the precision too."""
    for precision, words in PRECISIONS.items():
        if name.endswith(f"-{precision}"):
            return f"{contender(name.removesuffix(f'-{precision}'))}, {words}"
    return CONTENDERS.get(name, name)
