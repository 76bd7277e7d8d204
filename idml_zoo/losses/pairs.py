"""Losses over the pairs of a batch: functions of a ``(B, B)`` matrix of the batch with itself, plain or introspective.

The diagonal, an image with itself, never counts. A batch without what a loss needs (a positive pair, a semi-hard
triplet) gives a zero that still has a graph. Averages are those of pytorch-metric-learning: over the terms above zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _masks(matrix: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``(B, B)`` booleans: positive pairs, without the diagonal, and negative pairs."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or labels.shape != matrix.shape[:1]:
        raise ValueError(f"expected (B, B) and (B,), got {tuple(matrix.shape)} and {tuple(labels.shape)}")
    same = labels[:, None] == labels
    return same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def _mean_of_nonzero(values: Tensor) -> Tensor:
    return values.sum() / (values > 0).sum().clamp(min=1)


def contrastive(distance: Tensor, labels: Tensor, margin: float = 0.5) -> Tensor:
    """Contrastive loss (Hadsell et al., CVPR 2006), in the form with plain distances.

        L = mean of d over positive pairs + mean of [m − d]₊ over negative pairs, each over its terms above zero

    Args:
        distance: ``(B, B)`` d ≥ 0.
        labels: ``(B,)`` int64.
        margin: m.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: if the shapes disagree.
    """
    positive, negative = _masks(distance, labels)
    pull = torch.where(positive, distance, 0)
    push = torch.where(negative, F.relu(margin - distance), 0)
    return _mean_of_nonzero(pull) + _mean_of_nonzero(push)


def triplet(distance: Tensor, labels: Tensor, margin: float = 0.1) -> Tensor:
    """Triplet loss over all semi-hard triplets of the batch (Schroff et al., CVPR 2015).

        L = mean of [d(a,p) − d(a,n) + m]₊ over triplets with d(a,p) < d(a,n) ≤ d(a,p) + m

    Args:
        distance: ``(B, B)`` d ≥ 0; mining is on the same matrix.
        labels: ``(B,)`` int64.
        margin: m.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: if the shapes disagree.
    """
    positive, negative = _masks(distance, labels)
    anchor, other = positive.nonzero(as_tuple=True)
    gap = distance[anchor] - distance[anchor, other][:, None]  # (P, B) d(a, n) − d(a, p)
    semihard = negative[anchor] & (gap > 0) & (gap <= margin)
    return _mean_of_nonzero(torch.where(semihard, F.relu(margin - gap), 0))


def margin_loss(
    distance: Tensor,
    semantic_distance: Tensor,
    labels: Tensor,
    dim: int,
    boundary: float | Tensor = 1.2,
    margin: float = 0.2,
    generator: torch.Generator | None = None,
    cutoff: float = 0.5,
    nonzero_cutoff: float = 1.4,
) -> Tensor:
    """Margin loss with distance-weighted negatives (Wu et al., "Sampling Matters", ICCV 2017).

        L = Σ [d(a,p) − b + m]₊ + [b − d(a,n) + m]₊  /  number of terms above zero

    over all positive pairs (a, p), each with one negative n drawn with probability ∝ 1/q(α), where
    log q(α) = (D−2) log α + (D−3)/2 log(1 − α²/4) is the density of distances between points on the unit sphere.

    Args:
        distance: ``(B, B)`` d, what the loss acts on.
        semantic_distance: ``(B, B)`` α of unit vectors, what the sampling goes by: an introspective distance has no
            such density [D]. The sampling has no gradient.
        labels: ``(B,)`` int64.
        dim: D ≥ 3.
        boundary: b; may be a tensor that learns.
        margin: m.
        generator: a CPU generator for the drawing; None for the global one.
        cutoff: a smaller α counts as this one, so that the nearest negatives are not always drawn.
        nonzero_cutoff: negatives with a larger α are not drawn, as their gradient is nearly that of chance. An anchor
            that has no others draws among all its negatives.

    Returns:
        A scalar ≥ 0; 0 for a batch without positive or without negative pairs.

    Raises:
        ValueError: if the shapes disagree, or D < 3.
    """
    positive, negative = _masks(distance, labels)
    if dim < 3:
        raise ValueError(f"the density of distances on the sphere needs at least 3 dimensions, got {dim}")
    anchor, other = (positive & negative.any(1, keepdim=True)).nonzero(as_tuple=True)
    if not len(anchor):
        return (distance.sum() + boundary) * 0  # what learns gets a gradient, if of 0
    drawn = _draw_negatives(semantic_distance, negative, dim, cutoff, nonzero_cutoff, anchor, generator)
    pull = F.relu(distance[anchor, other] - boundary + margin)
    push = F.relu(boundary - distance[anchor, drawn] + margin)
    return (pull.sum() + push.sum()) / ((pull > 0).sum() + (push > 0).sum()).clamp(min=1)


@torch.no_grad()
def _negative_weights(
    semantic_distance: Tensor, negative: Tensor, dim: int, cutoff: float, nonzero_cutoff: float
) -> Tensor:
    """Returns ``(B, B)`` 1/q(α) of each row's negatives, the largest scaled to 1; 0 for what must not be drawn."""
    alpha = semantic_distance.clamp(min=cutoff)
    log_weight = -(dim - 2) * alpha.log() - (dim - 3) / 2 * (1 - alpha.square() / 4).clamp(min=1e-8).log()
    allowed = negative & (semantic_distance < nonzero_cutoff)
    allowed = torch.where(allowed.any(1, keepdim=True), allowed, negative)
    log_weight = log_weight.masked_fill(~allowed, torch.finfo(log_weight.dtype).min / 2)
    return (log_weight - log_weight.amax(1, keepdim=True)).exp() * allowed


def _draw_negatives(
    semantic_distance: Tensor,
    negative: Tensor,
    dim: int,
    cutoff: float,
    nonzero_cutoff: float,
    anchor: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Returns ``(P,)`` a negative for each anchor, drawn on the CPU, so that every device draws the same."""
    weights = _negative_weights(semantic_distance, negative, dim, cutoff, nonzero_cutoff)[anchor]
    return torch.multinomial(weights.cpu(), 1, generator=generator).squeeze(1).to(anchor.device)


def fastap(squared_distance: Tensor, labels: Tensor, bins: int = 10) -> Tensor:
    """FastAP (Cakir et al., CVPR 2019): one minus the average precision, from soft histograms of D².

        AP_i = 1/N_i⁺ Σ_j h_j⁺ H_j⁺ / H_j,   L = mean of 1 − AP_i over images with a positive

    h⁺ and h are histograms over [0, 4] of the positives' and of all distances with triangular bins, H⁺ and H their
    cumulative sums.

    Args:
        squared_distance: ``(B, B)`` D² in [0, 4].
        labels: ``(B,)`` int64.
        bins: number of intervals.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: if the shapes disagree.
    """
    positive, negative = _masks(squared_distance, labels)
    width = 4 / bins
    centres = torch.linspace(0, 4, bins + 1, dtype=squared_distance.dtype, device=squared_distance.device)
    pulse = F.relu(1 - (squared_distance[..., None] - centres).abs() / width)  # (B, B, bins + 1)
    positives = (pulse * positive[..., None]).sum(1)
    pairs = positives + (pulse * negative[..., None]).sum(1)
    precision = positives.cumsum(1) / pairs.cumsum(1).clamp(min=1e-12)
    count = positive.sum(1)
    average = (positives * precision).sum(1) / count.clamp(min=1)
    has_positive = count > 0
    return torch.where(has_positive, 1 - average, 0).sum() / has_positive.sum().clamp(min=1)


def multi_similarity(
    similarity: Tensor,
    labels: Tensor,
    scale_positive: float = 2.0,
    scale_negative: float = 50.0,
    threshold: float = 0.5,
    epsilon: float | None = 0.1,
) -> Tensor:
    """Multi-Similarity (Wang et al., CVPR 2019), with its mining of pairs.

        L = 1/B Σ_i  1/α log(1 + Σ_{P_i} e^{−α(s−λ)}) + 1/β log(1 + Σ_{N_i} e^{β(s−λ)})

    Mining keeps positives with s − ε < the most similar negative, negatives with s + ε > the least similar positive.

    Args:
        similarity: ``(B, B)`` s.
        labels: ``(B,)`` int64.
        scale_positive, scale_negative: α and β.
        threshold: λ.
        epsilon: ε of the mining; None keeps all pairs.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: if the shapes disagree.
    """
    positive, negative = _masks(similarity, labels)
    if epsilon is not None:
        values = similarity.detach()
        easiest = values.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
        hardest = values.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
        positive, negative = positive & (values - epsilon < easiest), negative & (values + epsilon > hardest)
    floor = torch.finfo(similarity.dtype).min / 2
    pull = torch.logsumexp((-scale_positive * (similarity - threshold)).masked_fill(~positive, floor), 1)
    push = torch.logsumexp((scale_negative * (similarity - threshold)).masked_fill(~negative, floor), 1)
    return (F.softplus(pull) / scale_positive + F.softplus(push) / scale_negative).mean()
