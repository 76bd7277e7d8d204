"""Lloyd's k-means, exactly, without most of its products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from idml_zoo.retrieval.scan import Scan

_BLOCK = 1 << 25  # scores held at once


@dataclass(frozen=True)
class Clustering:
    """What k-means found.

    Attributes:
        clusters: ``(N,)`` int64 cluster of each point.
        objective: mean squared distance of a point to its centroid.
        iterations: that were needed.
        converged: whether the last one changed nothing.
    """

    clusters: Tensor
    objective: float
    iterations: int
    converged: bool


def kmeans(
    points: Tensor, clusters: int, seed: int = 0, iterations: int = 100, dtype: torch.dtype = torch.float32
) -> Clustering:
    """Lloyd's algorithm from random distinct points, until nothing changes.

    Each iteration gives every point its nearest centroid (equally near: the first), as the plain algorithm would, at a
    fraction of its cost: a centroid whose members stayed did not move, so only the moved ones are compared with all
    points, and only a point whose own centroid fell behind what any other could be (a bound kept from its last full
    comparison) is compared with all centroids. A centroid that loses its last member takes over the point that lies
    farthest from its own.

    Args:
        points: ``(N, D)`` float32.
        clusters: K, 1 ≤ K ≤ N.
        seed: of the first centroids.
        iterations: at most.
        dtype: of the products, see :class:`~idml_zoo.retrieval.scan.Scan`; the clusters do not depend on it.

    Raises:
        ValueError: K out of range, or NaN or inf.
    """
    if not 1 <= clusters <= len(points):
        raise ValueError(f"clusters must be in 1–{len(points)} (the number of points), got {clusters}")
    if not bool(torch.isfinite(points).all()):
        raise ValueError("the points have NaN or inf; the network diverged or its weights or images are broken")
    state = _State(points, clusters, seed, dtype)
    for iteration in range(1, iterations + 1):
        if not state.step():
            return Clustering(state.cluster, state.objective(), iteration, True)
    return Clustering(state.cluster, state.objective(), iterations, False)


class _State:
    """Points, centroids, and bounds of their nearness: x·c − ‖c‖²/2, which falls with the distance.

    Attributes:
        cluster: ``(N,)`` cluster of each point; ``near``: ``(N,)`` nearness of its centroid.
        other: ``(N,)`` what the nearness of any other centroid cannot exceed.
    """

    def __init__(self, points: Tensor, clusters: int, seed: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        chosen = np.random.RandomState(seed).permutation(len(points))[:clusters]  # the stream of numbers is frozen
        # one more column carries −‖c‖²/2, so that a nearness is one product
        self.points = torch.cat([points, points.new_ones(len(points), 1)], 1)
        self.table = self._rows(points[torch.from_numpy(chosen).to(points.device)])
        self.cluster = torch.full((len(points),), -1, device=points.device)
        self.near = points.new_full((len(points),), -torch.inf)
        self.other = points.new_full((len(points),), torch.inf)
        self.moved = torch.arange(clusters, device=points.device)

    @staticmethod
    def _rows(centroids: Tensor) -> Tensor:
        return torch.cat([centroids, centroids.double().square().sum(1, keepdim=True).div(-2).float()], 1)

    def _nearness(self, rows: Tensor) -> Tensor:
        """Returns the nearness of each row's centroid, as the scan scores it: in float64, rounded to float32."""
        out = torch.empty(len(rows), device=rows.device)
        for part in torch.arange(len(rows), device=rows.device).split(1 << 14):
            r = rows[part]
            out[part] = (self.points[r].double() * self.table[self.cluster[r]].double()).sum(1).float()
        return out

    def _nearest(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the two centroids of ``columns`` nearest to each of ``rows``: ``(R, 2)`` columns and nearness."""
        scan = Scan(self.table[columns], dtype=self.dtype, slack=2)
        count = min(2, len(columns))
        index = torch.zeros(len(rows), 2, dtype=torch.int64, device=rows.device)
        near = self.points.new_full((len(rows), 2), -torch.inf)
        for part in torch.arange(len(rows), device=rows.device).split(max(64, _BLOCK // len(columns))):
            nearest = scan.nearest(self.points[rows[part]], count)
            index[part, :count], near[part, :count] = columns[nearest[0]], nearest[1]
        return index, near

    def step(self) -> bool:
        """Does one iteration; returns False where no point changed its cluster."""
        before = self.cluster.clone()
        everyone = torch.arange(len(self.points), device=self.points.device)
        if len(self.moved) * 2 > len(self.table):
            self._compare(everyone)
        else:
            self._compare_moved(everyone)
        changed = (self.cluster != before).nonzero().squeeze(1)
        if not len(changed):
            return False
        affected = torch.cat([self.cluster[changed], before[changed]]).unique()
        self._move(affected[affected >= 0])
        return True

    def _compare(self, rows: Tensor) -> None:
        """Compares points with all centroids."""
        index, near = self._nearest(rows, torch.arange(len(self.table), device=rows.device))
        self.cluster[rows], self.near[rows], self.other[rows] = index[:, 0], near[:, 0], near[:, 1]

    def _compare_moved(self, everyone: Tensor) -> None:
        """Compares points with the moved centroids; with all of them where the bounds leave that open."""
        slot = torch.full((len(self.table),), -1, device=everyone.device)  # among the moved ones
        slot[self.moved] = torch.arange(len(self.moved), device=everyone.device)
        members = (slot[self.cluster] >= 0).nonzero().squeeze(1)  # points of a cluster whose centroid has moved
        self.near[members] = self._nearness(members)
        scan = Scan(self.table[self.moved], dtype=self.dtype)
        ceiling = torch.empty_like(self.near)
        for rows in everyone.split(max(64, _BLOCK // len(self.moved))):
            ceiling[rows] = scan.ceiling(self.points[rows], self_rows=slot[self.cluster[rows]])
        reached = ceiling >= self.near
        quiet = ~reached  # no moved centroid can be as near as their own
        undecided = quiet & (self.other >= self.near)  # but one that stayed may be
        self.other = torch.where(quiet, torch.maximum(self.other, ceiling), self.other)
        if bool(reached.any()):
            undecided[self._contest(reached.nonzero().squeeze(1))] = True
        if bool(undecided.any()):
            self._compare(undecided.nonzero().squeeze(1))

    def _contest(self, rows: Tensor) -> Tensor:
        """Gives ``rows`` to the nearest of their own and the moved centroids; returns those still open."""
        index, near = self._nearest(rows, self.moved)
        cluster, near_own, other = self.cluster[rows], self.near[rows], self.other[rows]
        itself = index[:, 0] == cluster  # then the nearest other is the second
        rival, rival_near = torch.where(itself, index[:, 1], index[:, 0]), torch.where(itself, near[:, 1], near[:, 0])
        third = torch.where(itself | (index[:, 1] == cluster), -torch.inf, near[:, 1])
        wins = (rival_near > near_own) | ((rival_near == near_own) & (rival < cluster))
        best = torch.maximum(rival_near, near_own)
        # what is left of the others: the loser of the two, and the moved ones behind them
        loser = torch.minimum(rival_near, near_own)
        self.other[rows] = torch.maximum(other, torch.where(wins, torch.maximum(loser, third), rival_near))
        self.cluster[rows], self.near[rows] = torch.where(wins, rival, cluster), best
        return rows[other >= best]

    def _move(self, affected: Tensor) -> None:
        """Moves the affected centroids to the mean of their members; the empty ones to the points that lie farthest."""
        slot = torch.full((len(self.table),), -1, device=affected.device)
        slot[affected] = torch.arange(len(affected), device=affected.device)
        members = (slot[self.cluster] >= 0).nonzero().squeeze(1)
        position = slot[self.cluster[members]]
        count = torch.bincount(position, minlength=len(affected))
        total = self.points.new_zeros(len(affected), self.points.shape[1] - 1, dtype=torch.float64)
        for part in torch.arange(len(members), device=members.device).split(1 << 14):
            total.index_add_(0, position[part], self.points[members[part], :-1].double())
        mean = (total / count.clamp(min=1)[:, None]).float()
        empty = (count == 0).nonzero().squeeze(1)
        if len(empty):
            distance = self.points[:, :-1].square().sum(1) - 2 * self.near
            far = distance.argsort(descending=True, stable=True)[: len(empty)]
            mean[empty] = self.points[far, :-1]
        self.table[affected] = self._rows(mean)
        self.moved = affected

    def objective(self) -> float:
        total = 0.0
        for part in torch.arange(len(self.points), device=self.points.device).split(1 << 14):
            off = self.points[part, :-1].double() - self.table[self.cluster[part], :-1].double()
            total += float(off.square().sum())
        return total / len(self.points)
