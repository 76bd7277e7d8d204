"""Exact search against a slow definition: float64 scores one pair at a time, rounded to float32, ties by index."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import make_embedding

import idml_zoo
from idml_zoo.metric import Metric
from idml_zoo.registry import UnknownNameError
from idml_zoo.retrieval import knn, scan
from idml_zoo.retrieval.knn import merge, ranks, search
from idml_zoo.types import Embedding

BACKENDS = ("half", "float32")


def slow_search(queries, gallery, k, similarity, exclude_self, tau=5.0):
    """Every pair, in float64; a stable sort of the float32 scores."""
    scores = torch.empty(len(queries), len(gallery))
    for i in range(len(queries)):
        s = (queries.semantic[i].double() * gallery.semantic.double()).sum(1)
        if similarity == "introspective":
            alpha = (2 - 2 * s).clamp(min=1e-8).sqrt()
            beta = (queries.uncertainty[i].double() + gallery.uncertainty.double()).square().sum(1).sqrt()
            s = -alpha * torch.exp(-beta / (tau * alpha))
        scores[i] = s.float()
    if exclude_self:
        scores.fill_diagonal_(-torch.inf)
    indices = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return indices, scores.gather(1, indices)


KINDS = ("random", "duplicates", "alike", "identical", "lattice", "clusters")


def drawn(seed):
    """A set of images, its queries, whether they are the set itself, and k: of many sizes and of hostile kinds."""
    g = torch.Generator().manual_seed(seed)

    def integer(low, high):
        return int(torch.randint(low, high, (1,), generator=g))

    count, dim, kind = integer(3, 400), integer(2, 60), KINDS[seed % len(KINDS)]
    x = torch.randn(count, dim, generator=g)
    if kind == "duplicates":
        x = x[torch.randint(0, max(1, count // 5), (count,), generator=g)]
    elif kind == "alike":  # every cosine near 1
        x = 1 + 0.01 * x
    elif kind == "identical":
        x = torch.ones(count, dim)
    elif kind == "lattice":
        x = torch.randint(-1, 2, (count, dim), generator=g) + 1e-3
    elif kind == "clusters":
        x = x[torch.randint(0, integer(1, 20), (count,), generator=g)] + 0.05 * x
    u = torch.randn(count, dim, generator=g) * (0.0, 0.01, 0.1, 1.0, 10.0)[integer(0, 5)] / dim**0.5
    if integer(0, 2):
        u = u * torch.rand(count, 1, generator=g)
    gallery = Embedding(F.normalize(x), u)
    exclude_self = bool(integer(0, 2))
    queries = gallery if exclude_self else gallery[torch.randperm(count, generator=g)[: integer(1, count + 1)]]
    most = count - exclude_self
    return queries, gallery, integer(1, most + 1) if integer(0, 2) else min(most, integer(1, 12)), exclude_self


@pytest.mark.parametrize("similarity", ["cosine", "introspective"])
@pytest.mark.parametrize("seed", range(48))
def test_search_equals_the_slow_definition(seed, similarity):
    queries, gallery, k, exclude_self = drawn(seed)
    indices, scores = slow_search(queries, gallery, k, similarity, exclude_self)
    for backend in BACKENDS:
        found = search(queries, gallery, k, similarity, exclude_self, backend=backend)
        assert torch.equal(found.indices, indices), backend
        assert torch.equal(found.scores, scores), backend
        assert found.excludes_self == exclude_self and found.declined is None


@pytest.mark.parametrize("similarity", ["cosine", "introspective"])
@pytest.mark.parametrize("seed", [0, 1, 2, 5])
def test_blocks_and_groups_change_nothing(seed, similarity, monkeypatch):
    queries, gallery, k, exclude_self = drawn(seed)
    whole = search(queries, gallery, k, similarity, exclude_self)
    monkeypatch.setattr(knn, "_SCANNED", 1)
    monkeypatch.setattr(knn, "_ROWS", 7)
    monkeypatch.setattr(scan, "_GATHERED", 5000)
    monkeypatch.setattr(scan, "_OPEN", 5000)
    found = search(queries, gallery, k, similarity, exclude_self)
    assert torch.equal(found.indices, whole.indices) and torch.equal(found.scores, whole.scores)


@pytest.mark.parametrize("similarity", ["cosine", "introspective"])
@pytest.mark.parametrize("seed", range(12))
def test_ranks_are_places_in_the_whole_list(seed, similarity, monkeypatch):
    monkeypatch.setattr(knn, "_SCANNED", 1)
    monkeypatch.setattr(knn, "_ROWS", 5)
    queries, gallery, _, exclude_self = drawn(seed)
    whole = slow_search(queries, gallery, len(gallery) - exclude_self, similarity, exclude_self)[0]
    place = torch.randint(0, whole.shape[1], (len(queries),), generator=torch.Generator().manual_seed(seed))
    columns = whole.gather(1, place[:, None]).squeeze(1)
    rows = torch.arange(0, len(queries), 2)
    for backend in BACKENDS:
        found = ranks(queries, gallery, rows, columns[rows], Metric(similarity), exclude_self, backend=backend)
        assert torch.equal(found, place[rows] + 1)


@pytest.mark.parametrize("similarity", ["cosine", "introspective"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", [0.0, 0.1, 3.0, 100.0])
def test_a_bound_is_never_below_the_score(similarity, dtype, level):
    """On which exactness rests; and the bounds are tight enough to be of use where the level is small."""
    gallery = make_embedding(300, dim=48, level=level, dtype=torch.float32)
    queries = make_embedding(20, dim=48, level=level, seed=3, dtype=torch.float32)
    rows, columns = torch.cartesian_prod(torch.arange(20), torch.arange(300)).unbind(1)
    doubt = (None, None) if similarity == "cosine" else (queries.uncertainty, gallery.uncertainty)
    pairs = (None, None) if similarity == "cosine" else (doubt[0][rows], doubt[1][columns])
    exact = scan.exact_scores(queries.semantic[rows], gallery.semantic[columns], *pairs).view(20, 300)
    for dense in (False, True):
        made = scan.Scan(gallery.semantic, doubt[1], 5.0, dtype, dense)
        scanned, error = made._scanned(queries.semantic, doubt[0], None)
        query_level = made._level(queries.semantic, doubt[0])
        bound = made._bound(scanned, error[:, None], query_level[:, None], made.level).view(20, -1)
        bound = bound.float()[:, made.position]
        assert bool((bound >= exact).all())
        if not dense:
            low = made._bound(scanned, error[:, None], query_level[:, None], made.level, low=True).view(20, -1)
            assert bool((low.float()[:, made.position] <= exact).all())
        if level <= 0.1:
            assert float((bound - exact).max()) < 0.06


def test_scores_agree_with_the_similarities():
    q, g = make_embedding(9, level=2.0, dtype=torch.float32), make_embedding(30, level=2.0, seed=5, dtype=torch.float32)
    found = search(q, g, 30, Metric("introspective", 2.0))
    d = idml_zoo.introspective_distance(q, g, tau=2.0)
    assert torch.allclose(found.scores, -d.gather(1, found.indices), atol=1e-5)
    found = search(q, g, 30)
    assert torch.allclose(found.scores, (q.semantic @ g.semantic.T).gather(1, found.indices), atol=1e-6)


def test_duplicates_tie_exactly_and_go_by_index():
    """As a matrix product would not have it: its rounding depends on where in the matrix a duplicate stands."""
    one = make_embedding(1, dim=37, level=0.3, dtype=torch.float32)
    many = make_embedding(200, dim=37, level=0.3, seed=2, dtype=torch.float32)
    places = [3, 50, 64, 127, 128, 199]
    many.semantic[places], many.uncertainty[places] = one.semantic[0], one.uncertainty[0]
    for similarity in ("cosine", "introspective"):
        found = search(many, many, 5, similarity, exclude_self=True)
        for i in places:
            assert found.indices[i].tolist() == [p for p in places if p != i]
            assert len(found.scores[i].unique()) == 1


def test_uncertain_queries_are_marked_and_still_answered():
    e = make_embedding(40, dtype=torch.float32)
    bound = float(e.level.median())
    found, plain = search(e, e, 3, exclude_self=True, max_uncertainty=bound), search(e, e, 3, exclude_self=True)
    assert found.declined.tolist() == (e.level > bound).tolist() and 0 < int(found.declined.sum()) < 40
    assert torch.equal(found.indices, plain.indices)


@pytest.mark.parametrize("similarity", ["cosine", "introspective"])
def test_a_gallery_in_parts_gives_the_neighbours_of_the_whole(similarity):
    for seed in (1, 2, 4):  # duplicates and ties across the parts
        queries, gallery, _, _ = drawn(seed)
        cuts = [0, len(gallery) // 3, len(gallery) // 2, len(gallery)]
        k = min(7, len(gallery))
        parts = [gallery[slice(*cut)] for cut in pairwise(cuts) if cut[0] < cut[1]]
        offsets = [a for a, b in pairwise(cuts) if a < b]
        found = merge([search(queries, p, min(k, len(p)), similarity) for p in parts], offsets, k)
        whole = search(queries, gallery, k, similarity)
        assert torch.equal(found.indices, whole.indices) and torch.equal(found.scores, whole.scores)
    with pytest.raises(ValueError, match="one offset for each part"):
        merge([whole], [0, 1], 1)
    with pytest.raises(ValueError, match="k must be in 1–"):
        merge([whole], [0], whole.k + 1)


def test_search_refuses_what_it_cannot_do():
    e = make_embedding(5, dtype=torch.float32)
    for bad, message in [
        ({"k": 5, "exclude_self": True}, r"k must be in 1–4"),
        ({"k": 0}, r"k must be in 1–5"),
        ({"k": 2, "max_uncertainty": -1.0}, r"max_uncertainty must be a level"),
    ]:
        with pytest.raises(ValueError, match=message):
            search(e, e, **bad)
    with pytest.raises(UnknownNameError, match="did you mean 'cosine'"):
        search(e, e, 2, metric="cosin")
    with pytest.raises(UnknownNameError, match="did you mean 'float32'"):
        search(e, e, 2, backend="float23")
    with pytest.raises(ValueError, match="8-d and the gallery 4-d"):
        search(e, make_embedding(5, 4, dtype=torch.float32), 2)
    broken = make_embedding(5, dtype=torch.float32)
    broken.semantic[2] = torch.nan
    with pytest.raises(ValueError, match="NaN or inf in 1 of 5"):
        search(broken, e, 2)
    with pytest.raises(ValueError, match="NaN or inf in 1 of 5"):
        search(e, broken, 2)
