"""An embedding and its labels from every rank, with gradient; the identity for one process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from idml_zoo.types import Embedding


def _gather_rows(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """All ranks' rows; backwards, the sum over ranks of the gradient of this rank's rows.

    torch has such a function, but some supported versions deprecate it and others lack it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        return _gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        first = dist.get_rank() * ctx.count
        return gradient[first : first + ctx.count]


def rank_and_count() -> tuple[int, int]:
    """Returns (rank, number of processes W); (0, 1) without torch.distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def gather_dealt(rows: Tensor, total: int) -> Tensor:
    """Returns ``(total, ...)`` rows of all ranks; row i was dealt to rank i modulo W, so shares differ by one at most.

    Without gradient.
    """
    world = rank_and_count()[1]
    share = -(-total // world)
    padded = torch.cat([rows, rows[-1:].expand(share - len(rows), *rows.shape[1:])])
    whole = _gather_rows(padded).view(world, share, *rows.shape[1:])
    return whole.transpose(0, 1).flatten(0, 1)[:total]


def gather(embedding: Embedding, labels: Tensor) -> tuple[Embedding, Tensor]:
    """Returns ``(W·B, D)`` embeddings and ``(W·B,)`` labels of all W ranks, in rank order; the same B on every rank.

    Every rank then computes the whole loss. The gather hands each rank's rows the sum of the W equal gradients, and
    DDP's averaging divides by W: the gradient is that of one process with the whole batch, without further factors.
    """
    if rank_and_count()[1] == 1:
        return embedding, labels
    whole = Embedding(_Gather.apply(embedding.semantic), _Gather.apply(embedding.uncertainty))
    return whole, _gather_rows(labels)
