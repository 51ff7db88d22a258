"""What the names of contenders stand for on the page."""

from __future__ import annotations

CONTENDERS = {
    "snnet": "**snnet_kernels**",
    "snnet-streaming": "snnet_kernels without lists",
    "snnet-graph": "snnet_kernels in a CUDA graph",
    "pytorch": "PyTorch, vectorised",
    "pytorch-cache": "PyTorch, vectorised, with a cached S",
    "pytorch-dense": "PyTorch, vectorised, on dense labels",
    "pytorch-gram": "PyTorch, Gram form with MᵀM at hand",
    "pytorch-transposed": "PyTorch, `(M @ f.T).T.contiguous()`",
    "compile": "`torch.compile`",
    "compile-cache": "`torch.compile`, with a cached S",
    "compile-static": "`torch.compile`, with a cached S, static shapes",
    "loop": "loop over samples",
    "numpy": "numpy",
    "faiss": "faiss `IndexFlatIP`",
    "scipy": "scipy CSR and CSC",
    "bool": "bool matrix",
    "bool-mirrored": "bool matrix beside its transpose",
    "uint8": "uint8 matrix",
    "float32": "float32 matrix",
    "argsort": "numpy, an argsort a query",
    "dense": "numpy, dense matrices",
    "bare-product": "the bare product f Mᵀ",
    "two-products": "the two bare products",
    "backbone": "the backbone alone",
}
PRECISIONS = {"tf32x3": "three tf32 products", "tf32": "plain tf32", "bf16": "bf16 and a float32 recheck"}


def in_words(name: str) -> str:
    """A contender in words; of ours in another precision, the precision too."""
    for precision, words in PRECISIONS.items():
        if name.endswith(f"-{precision}"):
            return f"{in_words(name.removesuffix(f'-{precision}'))}, {words}"
    return CONTENDERS.get(name, name)
