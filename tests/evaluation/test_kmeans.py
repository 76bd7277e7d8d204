"""Lloyd's algorithm with its short cuts against the same without them, and against scikit-learn's."""

import numpy as np
import pytest
import torch

from idml_zoo.evaluation import kmeans as module
from idml_zoo.evaluation.kmeans import kmeans


def slow_lloyd(points, clusters, seed, iterations=100):
    """Every point against every centroid, each time; nearness in float64, rounded to float32; first of equals."""
    x = points.double()
    table = points[torch.from_numpy(np.random.RandomState(seed).permutation(len(points))[:clusters])]
    own = None
    for iteration in range(1, iterations + 1):
        half = (-table.double().square().sum(1) / 2).float()
        near = torch.stack([(x * c.double()).sum(1) + h.double() for c, h in zip(table, half, strict=True)], 1).float()
        found = (near == near.max(1, keepdim=True).values).int().argmax(1)
        if own is not None and torch.equal(own, found):
            return own, table, iteration, True
        before, own = own, found
        changed = torch.ones(len(x), dtype=torch.bool) if before is None else before != own
        touched = set(own[changed].tolist()) | (set() if before is None else set(before[changed].tolist()))
        distance = points.square().sum(1) - 2 * near.max(1).values
        far = iter(distance.argsort(descending=True, stable=True).tolist())
        table = table.clone()
        for c in sorted(touched):
            members = x[own == c]
            table[c] = members.mean(0).float() if len(members) else points[next(far)]
    return own, table, iterations, False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(20))
def test_the_clusters_are_those_of_the_plain_algorithm(seed, dtype, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 500)
    g = torch.Generator().manual_seed(seed)
    count = int(torch.randint(20, 300, (1,), generator=g))
    points = torch.randn(count, 6, generator=g)
    if seed % 4 == 1:  # duplicates: centroids that coincide, and clusters that lose all their members
        points = points[torch.randint(0, max(2, count // 4), (count,), generator=g)]
    if seed % 4 == 2:  # exact ties
        points = points.round()
    if seed % 4 == 3:
        points = torch.nn.functional.normalize(points)
    clusters = int(torch.randint(2, max(3, count // (1 + seed % 5)), (1,), generator=g))
    own, table, iterations, converged = slow_lloyd(points, clusters, seed)
    found = kmeans(points, clusters, seed, dtype=dtype)
    assert torch.equal(found.clusters, own)
    assert (found.iterations, found.converged) == (iterations, converged)
    objective = (points.double() - table[own].double()).square().sum(1).mean()
    assert found.objective == pytest.approx(float(objective), rel=1e-9, abs=1e-12)


def test_the_objective_is_no_worse_than_scikit_learns():
    from sklearn.cluster import KMeans

    g = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(40, 16, generator=g))
    points = torch.nn.functional.normalize(centres.repeat_interleave(8, 0) + 0.15 * torch.randn(320, 16, generator=g))
    ours = [kmeans(points, 40, seed).objective for seed in range(10)]
    theirs = [
        KMeans(40, init="random", n_init=1, random_state=seed).fit(points.numpy()).inertia_ / 320 for seed in range(10)
    ]
    assert np.mean(ours) < 1.02 * np.mean(theirs)


def test_most_products_are_spared(monkeypatch):
    compared = []
    real = module._State._nearest

    def counted(self, rows, columns):
        compared.append(len(rows) * len(columns))
        return real(self, rows, columns)

    monkeypatch.setattr(module._State, "_nearest", counted)
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(100, 16, generator=g)
    points = torch.nn.functional.normalize(centres.repeat_interleave(6, 0) + 0.7 * torch.randn(600, 16, generator=g))
    found = kmeans(points, 100)
    assert found.iterations > 5
    assert sum(compared) < 0.6 * found.iterations * 600 * 100


def test_few_iterations_are_said_to_be_few():
    points = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    assert not kmeans(points, 30, iterations=1).converged
    found = kmeans(points, 30)
    assert found.converged and 1 < found.iterations < 100
    alone = kmeans(points, 200)
    assert alone.objective == 0 and len(alone.clusters.unique()) == 200
    assert kmeans(points, 1).clusters.unique().tolist() == [0]


def test_bad_input_is_refused():
    points = torch.randn(5, 2)
    for clusters in (0, 6):
        with pytest.raises(ValueError, match="clusters must be in 1–5"):
            kmeans(points, clusters)
    points[3, 1] = torch.inf
    with pytest.raises(ValueError, match="NaN or inf"):
        kmeans(points, 2)
