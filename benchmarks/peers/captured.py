"""An iteration of SNNetHead as a CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

import snnet_kernels as sk

from ..case import Batch


class CapturedIteration:
    """Forward, backward and update of ``head``, captured once and replayed on batches of the same size.

    It is run a few times before the capture, on the stream that captures, so that whatever is set up at first use is
    there.
    """

    WARM_UP = 3

    def __init__(self, head: sk.SNNetHead, batch: Batch) -> None:
        self.head = head
        self.index = batch.index.clone()
        self.features = batch.features.detach().clone().requires_grad_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UP):
                self._iterate()
        torch.cuda.current_stream().wait_stream(stream)
        self.features.grad = None  # the capture makes its own, which each replay writes anew
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self._iterate()

    def _iterate(self) -> Tensor:
        self.features.grad = None
        loss = self.head(self.features, self.index)
        loss.backward()
        self.head.update_(self.index, self.features.detach())
        return loss.detach()

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient with respect to the features [B, d]: buffers, until the next replay."""
        self.index.copy_(batch.index)
        with torch.no_grad():
            self.features.copy_(batch.features)
        self.graph.replay()
        return self.loss, self.features.grad
