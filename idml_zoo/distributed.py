"""An embedding and its labels from every rank, with gradient; the identity for one process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from idml_zoo.types import Embedding


def gather(embedding: Embedding, labels: Tensor) -> tuple[Embedding, Tensor]:
    """``(W·B, D)`` embeddings and ``(W·B,)`` labels of all W ranks, in rank order; the same B on every rank.

    Every rank then computes the whole loss. The gather hands each rank's rows the sum of the W equal gradients, and
    DDP's averaging divides by W: the gradient is that of one process with the whole batch, without further factors.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return embedding, labels
    from torch.distributed.nn.functional import all_gather

    whole = Embedding(
        torch.cat(all_gather(embedding.semantic.contiguous())),
        torch.cat(all_gather(embedding.uncertainty.contiguous())),
    )
    parts = [torch.empty_like(labels) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, labels.contiguous())
    return whole, torch.cat(parts)
