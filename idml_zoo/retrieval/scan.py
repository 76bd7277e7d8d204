"""Exact search behind a scan that is rounded: bounds first, exact scores for what the bounds leave open.

See :mod:`idml_zoo.retrieval.knn` for what a score is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from idml_zoo.similarity import ALPHA_FLOOR, TAU

TILE = 64  # gallery images that share a bound
SLACK = 8
_GATHERED = 1 << 17  # values held at once for exact scores: what a core's cache holds
_OPEN = 1 << 24  # pairs at once of which some are left open
_HALF_ULP = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}

_ABOVE = 1 + 1e-5  # more than the rounding of a few float32 operations
_TINY = 1e-37  # more than the rounding of numbers below 1e-38


def minus_distance(cos: Tensor, beta: Tensor, tau: float) -> Tensor:
    """−D = −α·exp(−β/(τα)); rises with the cosine and with β."""
    alpha = (2 - 2 * cos).clamp(min=ALPHA_FLOOR**2).sqrt_()
    return torch.exp(beta / (-tau * alpha)).mul_(alpha).neg_()


def exact_scores(q: Tensor, g: Tensor, u: Tensor | None = None, v: Tensor | None = None, tau: float = TAU) -> Tensor:
    """Returns ``(P,)`` scores of P pairs ``(P, D)``, in float64, rounded to float32: what defines the order.

    The inner product; or −D, where their uncertainties u and v are given.
    """
    score = (q.double() * g.double()).sum(1)
    if u is not None and v is not None:
        score = minus_distance(score, torch.linalg.vector_norm(u.double() + v.double(), dim=1), tau)
    return score.float()


def ordered(indices: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Returns rows sorted by descending score, equal scores by ascending index."""
    by_index = indices.argsort(dim=1)
    indices, scores = indices.gather(1, by_index), scores.gather(1, by_index)
    by_score = scores.argsort(dim=1, descending=True, stable=True)
    return indices.gather(1, by_score), scores.gather(1, by_score)


class Scan:
    """A gallery made ready to be scanned by inner product, or by the introspective distance.

    Args:
        gallery: ``(M, D)`` float32; unit vectors, where there is uncertainty.
        uncertainty: ``(M, D)`` float32, for the introspective distance.
        tau: temperature of that.
        dtype: of the product.
        dense: for the introspective distance: take the product of the uncertainties too, instead of bounding β by the
            levels.
        slack: candidates beyond k that are scored exactly at once.
    """

    def __init__(
        self,
        gallery: Tensor,
        uncertainty: Tensor | None = None,
        tau: float = TAU,
        dtype: torch.dtype = torch.float32,
        dense: bool = False,
        slack: int = SLACK,
    ) -> None:
        self.slack = slack
        self.gallery, self.uncertainty, self.tau, self.dtype = gallery, uncertainty, tau, dtype
        self.dense = dense and uncertainty is not None
        self.by_level = not self.dense and uncertainty is not None
        level = gallery.new_zeros(len(gallery)) if uncertainty is None else torch.linalg.vector_norm(uncertainty, dim=1)
        # tiles of like levels, so that a tile's highest level says much of each
        order = level.argsort(stable=True) if self.by_level else torch.arange(len(level), device=level.device)
        self.position = order.argsort()  # of a gallery row, in that order
        self.tiles = -(-len(level) // TILE)
        self.order = torch.cat([order, order[-1:].expand(self.tiles * TILE - len(level))])  # the last tile is filled up
        self.level = level[self.order].view(self.tiles, TILE)
        self.uncertain = uncertainty[self.order] if self.dense and uncertainty is not None else None
        self.table = gallery[self.order]
        self.norm, self.rounded = torch.linalg.vector_norm(gallery, dim=1).max(), gallery.new_zeros(())
        if dtype != torch.float32:
            exact, self.table = self.table, self.table.to(dtype)
            self.rounded = (self.table.float() - exact).square().sum(1).max().sqrt()
        self._fine: Scan | None = None
        self._fine_first = False

    def _finer(self) -> Scan | None:
        """Returns the same gallery with tighter bounds and slower products; None where this is the finest."""
        if self._fine is None and (self.by_level or self.dtype != torch.float32):
            self._fine = Scan(self.gallery, self.uncertainty, self.tau, dense=True)
        return self._fine

    def _scanned(self, q: Tensor, u: Tensor | None, self_rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns a ``(B, T, TILE)`` scan of every gallery image in the tiles' order, and its ``(B, 1)`` error.

        The scan is a rounded product; a dense one already the bound of the score. What is excluded is −inf.
        The error is, by Cauchy and Schwarz, ‖q − q̃‖·‖g‖ + ‖q̃‖·‖g − g̃‖, and D roundings of a sum in float32.
        """
        rounded = q.to(self.dtype)
        values = rounded @ self.table.T
        norm = torch.linalg.vector_norm(q, dim=1, keepdim=True)
        off = (rounded.float() - q).square().sum(1, keepdim=True).sqrt()
        error = 1.01 * (off * self.norm + norm * self.rounded) + self._product_error(q) * norm * self.norm
        if self.dense:
            assert self.uncertain is not None and u is not None
            a, b = torch.linalg.vector_norm(u, dim=1, keepdim=True), self.level.view(1, -1)
            squared = torch.addmm(a.square() + b.square(), u, self.uncertain.T, alpha=2)
            squared += self._product_error(q) * (a + b).square()
            values = minus_distance(values + error, squared.clamp_(min=0).sqrt_().mul_(_ABOVE), self.tau)
            values = values.div_(_ABOVE).add_(_TINY)
        values[:, len(self.gallery) :] = -torch.inf
        if self_rows is not None:
            values[torch.arange(len(values), device=values.device), self.position[self_rows]] = -torch.inf
        return values.view(len(values), self.tiles, TILE), error

    def _product_error(self, q: Tensor) -> float:
        """Of a product of unit vectors: D roundings in float32, unless torch was allowed to be less precise."""
        if self.dtype == torch.float32:
            least = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}[torch.get_float32_matmul_precision()]
        else:  # on a GPU, partial sums may be added in half precision
            least = 8 * _HALF_ULP[self.dtype] if q.is_cuda else 0.0
        return least + (q.shape[1] + 8) * 2.0**-23

    def _bound(
        self, scanned: Tensor, error: Tensor, query_level: Tensor, gallery_level: Tensor, low: bool = False
    ) -> Tensor:
        """Returns what the scores cannot exceed; with ``low``, what they cannot fall below.

        It rises with the scan, so that a tile's highest scan and highest level give the tile's bound. Few passes: that
        is most of what a search costs beside its product.
        """
        if self.dense:
            return scanned
        sign = -1 if low else 1
        ulp = sign * _HALF_ULP[self.dtype] * 1.01
        # value·(1 ± ulp) ± error; −inf stays
        value = torch.nn.functional.leaky_relu(scanned.float(), (1 - ulp) / (1 + ulp))
        if not self.by_level:
            return torch.add(sign * error, value, alpha=1 + ulp)
        # |‖u_q‖ − ‖u_g‖| ≤ β ≤ ‖u_q‖ + ‖u_g‖
        beta = (query_level - gallery_level).abs() / _ABOVE if low else (query_level + gallery_level) * _ABOVE
        squared = torch.add(2 - 2 * sign * error, value, alpha=-2 * (1 + ulp))
        alpha = squared.clamp_(min=ALPHA_FLOOR**2).sqrt_()
        weight = torch.div(beta / -self.tau, alpha).exp_()
        return torch.addcmul(alpha.new_full((), sign * _TINY), alpha, weight, value=-(_ABOVE**-sign))

    def nearest(
        self, q: Tensor, k: int, u: Tensor | None = None, self_rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns ``(B, k)`` indices and scores of a block of B queries.

        Args:
            q: ``(B, D)`` float32.
            k: at most the number of gallery images that are not excluded.
            u: ``(B, D)`` their uncertainty, where the gallery has one.
            self_rows: ``(B,)`` gallery row of each query's own image, which it may not find; None for no such row.
        """
        finer = self._finer() if self._fine_first else None
        if finer:
            return finer.nearest(q, k, u, self_rows)
        self._fine_first = False
        scanned, error = self._scanned(q, u, self_rows)
        level, highest = self._level(q, u), self.level[:, -1]
        tile_bound = self._bound(scanned.amax(2), error, level, highest)
        tiles = tile_bound.topk(min(self.tiles, k + self.slack)).indices
        inside = scanned.gather(1, tiles[:, :, None].expand(-1, -1, TILE))  # (B, opened, TILE)
        bounds = self._bound(inside, error[:, None], level[:, None], highest[tiles][:, :, None]).flatten(1)
        best = bounds.topk(min(bounds.shape[1], k + self.slack))
        position = tiles.gather(1, best.indices // TILE) * TILE + best.indices % TILE
        scores = self._listed_scores(q, u, position)
        scores.masked_fill_(best.values == -torch.inf, -torch.inf)
        indices, scores = (t[:, :k] for t in ordered(self.order[position], scores))
        # what was not scored may still be nearer than the k-th, up to its bound
        bounds.scatter_(1, best.indices, -torch.inf)
        tile_bound.scatter_(1, tiles, -torch.inf)
        nearest = torch.maximum(bounds.amax(1), tile_bound.amax(1))
        undecided = (nearest >= scores[:, -1]).nonzero().squeeze(1)
        refused = 0
        for rows in undecided.split(max(1, _OPEN // (self.tiles * TILE))) if len(undecided) else ():
            threshold, excluded, query_u = scores[rows, -1:], *(None if t is None else t[rows] for t in (self_rows, u))
            row, slot = (bounds[rows] >= threshold).nonzero().unbind(1)
            column = tiles[rows[row], slot // TILE] * TILE + slot % TILE
            more, tile = (tile_bound[rows] >= threshold).nonzero().unbind(1)
            behind = self._bound(scanned[rows[more], tile], error[rows[more]], level[rows[more]], highest[tile, None])
            pair, slot = (behind >= threshold[more]).nonzero().unbind(1)
            row, column = torch.cat([row, more[pair]]), torch.cat([column, tile[pair] * TILE + slot])
            finer = self._finer()
            if finer and len(row) * TILE > len(rows) * len(self.gallery):  # products of all are cheaper than so many
                refused += len(rows)
                indices[rows], scores[rows] = finer.nearest(q[rows], k, query_u, excluded)
            else:
                indices[rows], scores[rows] = self._settled(q[rows], query_u, indices[rows], scores[rows], row, column)
        # where the bounds decide little, for example for embeddings that are all alike, begin with the finer ones
        self._fine_first = refused > len(q) // 2
        return indices, scores

    def ceiling(self, q: Tensor, u: Tensor | None = None, self_rows: Tensor | None = None) -> Tensor:
        """Returns ``(B,)`` what the score of each query's nearest cannot exceed: cheaper than finding it.

        Arguments as those of :meth:`nearest`; a self row of −1 excludes nothing.
        """
        scanned, error = self._scanned(q, u, None)
        if self_rows is not None:
            rows = (self_rows >= 0).nonzero().squeeze(1)
            scanned.view(len(q), -1)[rows, self.position[self_rows[rows]]] = -torch.inf
        return self._bound(scanned.amax(2), error, self._level(q, u), self.level[:, -1]).amax(1)

    def rank(self, q: Tensor, columns: Tensor, u: Tensor | None = None, self_rows: Tensor | None = None) -> Tensor:
        """Returns ``(B,)`` int64, from 1: the rank of gallery image ``columns[b]`` among all the neighbours of query b.

        Arguments as those of :meth:`nearest`; not of a dense scan.
        """
        scanned, error = self._scanned(q, u, self_rows)
        level, everyone = self._level(q, u), torch.arange(len(q), device=q.device)
        score = self._score(q, u, everyone, self.position[columns])[:, None]
        high, low = (
            self._bound(scanned, error[:, None], level[:, None], self.level, low).flatten(1) for low in (False, True)
        )
        rank = 1 + (low > score).sum(1)
        row, position = ((high >= score) & (low <= score)).nonzero().unbind(1)
        exact, index = self._score(q, u, row, position), self.order[position]
        before = (exact > score[row, 0]) | ((exact == score[row, 0]) & (index < columns[row]))
        return rank.index_add_(0, row[before], torch.ones_like(row[before]))

    def exact(self, q: Tensor, u: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
        """Returns ``(P,)`` exact scores of pairs: ``rows`` of the queries q, with uncertainty u, and gallery images."""
        return self._score(q, u, rows, self.position[columns])

    @staticmethod
    def _level(q: Tensor, u: Tensor | None) -> Tensor:
        return q.new_zeros(len(q), 1) if u is None else torch.linalg.vector_norm(u, dim=1, keepdim=True)

    def _score(self, q: Tensor, u: Tensor | None, rows: Tensor, position: Tensor) -> Tensor:
        """Returns ``(P,)`` exact scores of the block's ``rows`` and the gallery images at tile ``position``."""
        out = torch.empty(len(rows), device=rows.device)
        step = max(1, _GATHERED // q.shape[1])
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            row, column = rows[part], self.order[position[part]]
            query_u, gallery_u = (None if t is None else t[i] for t, i in ((u, row), (self.uncertainty, column)))
            out[part] = exact_scores(q[row], self.gallery[column], query_u, gallery_u, self.tau)
        return out

    def _listed_scores(self, q: Tensor, u: Tensor | None, position: Tensor) -> Tensor:
        """Returns ``(B, c)`` exact scores of B queries and c gallery images each: :meth:`_score`, bit for bit, but the
        queries are not gathered, which takes most of its time."""
        count, dim = position.shape[1], q.shape[1]
        out = torch.empty(position.shape, device=position.device)
        step = max(1, _GATHERED // (dim * count))
        for start in range(0, len(q), step):
            part = slice(start, start + step)
            columns = self.order[position[part].flatten()]
            products = self.gallery.index_select(0, columns).double().view(-1, count, dim)
            score = products.mul_(q[part].double()[:, None]).sum(2)
            if u is not None and self.uncertainty is not None:
                sums = self.uncertainty.index_select(0, columns).double().view(-1, count, u.shape[1])
                beta = torch.linalg.vector_norm(sums.add_(u[part].double()[:, None]), dim=2)
                score = minus_distance(score, beta, self.tau)
            out[part] = score
        return out

    def _settled(
        self, q: Tensor, u: Tensor | None, indices: Tensor, scores: Tensor, row: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the ``(B, k)`` nearest among those listed and P more pairs."""
        k = indices.shape[1]
        by_row = row.argsort(stable=True)
        row, position = row[by_row], position[by_row]
        count = torch.bincount(row, minlength=len(q))
        rank = k + torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        beyond = (0, int(count.max()))
        indices = torch.nn.functional.pad(indices, beyond, value=len(self.gallery))
        scores = torch.nn.functional.pad(scores, beyond, value=-torch.inf)
        indices[row, rank] = self.order[position]
        scores[row, rank] = self._score(q, u, row, position)
        indices, scores = ordered(indices, scores)
        return indices[:, :k], scores[:, :k]
