"""Metrics against slow loops, pytorch-metric-learning and scikit-learn."""

import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_embedding, make_folder

import idml_zoo
from idml_zoo.evaluation.clustering import adjusted_mutual_information, cluster_metrics, pairwise_f1
from idml_zoo.evaluation.kmeans import kmeans
from idml_zoo.evaluation.measure import measure
from idml_zoo.evaluation.retrieval_metrics import as_labels, per_query_metrics, retrieval_metrics
from idml_zoo.metric import Metric, as_metric
from idml_zoo.retrieval.knn import search
from idml_zoo.types import Embedding, RetrievalTask


def measured(e, labels, ks=(1, 2, 4, 8), metric="cosine", severity=None, queries=None):
    is_query = None if queries is None else torch.from_numpy(queries)
    return measure(RetrievalTask.of(e, as_labels(labels), is_query), as_metric(metric), ks, severity)


def lattice_embedding(count: int, seed: int) -> Embedding:
    """Unit vectors with entries 0 and ±1/2: products are exact, so that there are many exact ties and duplicates."""
    rng = np.random.default_rng(seed)
    vectors = np.zeros((count, 8), dtype=np.float32)
    for v in vectors:
        v[rng.choice(8, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    vectors[count // 2 :] = vectors[: count - count // 2]
    semantic = torch.from_numpy(vectors)
    return Embedding(semantic, torch.zeros_like(semantic))


def slow_metrics(neighbours, labels, ks):
    rows = []
    for i, near in enumerate(neighbours):
        r = sum(1 for j, y in enumerate(labels) if y == labels[i] and j != i)
        if r == 0:
            continue
        hit = [labels[j] == labels[i] for j in near]
        precision = [sum(hit[: n + 1]) / (n + 1) for n in range(r)]
        row = {f"recall@{k}": float(any(hit[:k])) for k in ks}
        row |= {
            "r_precision": sum(hit[:r]) / r,
            "map@r": sum(p for p, h in zip(precision, hit[:r], strict=True) if h) / r,
        }
        rows.append(row)
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def test_metrics_equal_the_slow_loop_also_with_single_image_classes():
    rng = np.random.default_rng(0)
    for seed in range(20):
        n = int(rng.integers(8, 40))
        labels = torch.from_numpy(rng.integers(0, 6, n))
        e = make_embedding(n, 4, seed=seed, dtype=torch.float32)
        near = search(e, e, n - 1, exclude_self=True)
        if not any((labels == y).sum() > 1 for y in labels):
            continue
        got = retrieval_metrics(near, labels, labels, (1, 2, 4))
        want = slow_metrics(near.indices.tolist(), labels.tolist(), (1, 2, 4))
        assert got == pytest.approx(want, abs=1e-12)


def test_metrics_equal_pytorch_metric_learning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of that library's own imports
        from pytorch_metric_learning.distances import CosineSimilarity
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
        from pytorch_metric_learning.utils.inference import CustomKNN

        labels = torch.arange(12).repeat_interleave(9)
        centres = torch.randn(12, 16)
        semantic = torch.nn.functional.normalize(centres[labels] + 1.2 * torch.randn(len(labels), 16))
        oracle = AccuracyCalculator(
            include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
            k="max_bin_count",
            knn_func=CustomKNN(CosineSimilarity()),
        ).get_accuracy(semantic, labels)
    ours = idml_zoo.evaluate_embeddings(Embedding(semantic, torch.zeros_like(semantic)), labels)
    assert ours["recall@1"] == pytest.approx(oracle["precision_at_1"], abs=1e-9)
    assert ours["r_precision"] == pytest.approx(oracle["r_precision"], abs=1e-9)
    assert ours["map@r"] == pytest.approx(oracle["mean_average_precision_at_r"], abs=1e-9)
    assert 0.2 < ours["recall@1"] < 1, "a case that is neither trivial nor hopeless"


def test_query_and_gallery_may_differ():
    q, g = make_embedding(4, dtype=torch.float32), make_embedding(6, seed=2, dtype=torch.float32)
    near = search(q, g, 6)
    yq, yg = torch.tensor([0, 1, 2, 9]), torch.tensor([0, 0, 1, 1, 2, 2])
    values = per_query_metrics(near, yq, yg, (1, 6))
    assert values["recall@6"][:3].tolist() == [1, 1, 1] and torch.isnan(values["recall@6"][3])


def test_too_few_neighbours_are_refused_not_padded():
    """The released code reports R@100 from 12 neighbours; here that is an error."""
    e, labels = make_embedding(30, dtype=torch.float32), torch.arange(3).repeat_interleave(10)
    near = search(e, e, 4, exclude_self=True)
    with pytest.raises(ValueError, match="need 20 neighbours, got 4; search with k=20"):
        retrieval_metrics(near, labels, labels, (1, 20))
    with pytest.raises(ValueError, match="30 queries but 29 query labels"):
        retrieval_metrics(near, labels[:29], labels)
    with pytest.raises(ValueError, match="one-dimensional integers"):
        retrieval_metrics(near, labels.float(), labels)
    with pytest.raises(ValueError, match="nothing can be retrieved"):
        retrieval_metrics(near, torch.arange(30), torch.arange(30), (1,))
    for none in ((0,), (-1, 1), ()):
        with pytest.raises(ValueError, match="ks must be one or more numbers ≥ 1"):
            retrieval_metrics(near, labels, labels, none)


def test_clustering_metrics_equal_scikit_learn():
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    labels = np.repeat(np.arange(6), 20)
    vectors = np.random.default_rng(0).normal(size=(6, 8))[labels] + 0.7 * np.random.default_rng(1).normal(
        size=(120, 8)
    )
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    found = [kmeans(torch.from_numpy(vectors), 6, s).clusters.numpy() for s in (0, 1, 2)]
    got = cluster_metrics(vectors, labels, (0, 1, 2))
    nmi = [normalized_mutual_info_score(labels, f) for f in found]
    assert got["nmi"] == pytest.approx(np.mean(nmi)) and got["nmi_std"] == pytest.approx(np.std(nmi, ddof=1))
    assert got["ami"] == pytest.approx(np.mean([adjusted_mutual_info_score(labels, f) for f in found]))
    pairs = [(i, j) for i in range(120) for j in range(i)]
    same, together = ({(i, j) for i, j in pairs if x[i] == x[j]} for x in (labels, found[0]))
    precision, recall = len(same & together) / len(together), len(same & together) / len(same)
    assert pairwise_f1(labels, found[0]) == pytest.approx(2 * precision * recall / (precision + recall))


def test_adjusted_mutual_information_equals_scikit_learns():
    from sklearn.metrics import adjusted_mutual_info_score

    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(1, 120))
        labels, clusters = (
            rng.integers(0, rng.integers(1, count + 1), count),
            rng.integers(0, rng.integers(1, 30), count),
        )
        if rng.random() < 0.3:
            clusters = np.where(rng.random(count) < 0.8, labels, clusters)
        expected = adjusted_mutual_info_score(labels, clusters)
        if len(set(labels)) == len(set(clusters)) == count:
            expected = 1.0  # each image alone, twice: the same partition, of which scikit-learn before 1.7 said 0
        assert adjusted_mutual_information(labels, clusters) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("similarity", ["cosine", "introspective"])
@pytest.mark.parametrize("inside", [True, False])
def test_recall_far_down_the_list_is_counted_instead_of_listed(similarity, inside, monkeypatch):
    from idml_zoo.evaluation import measure as module

    rng = np.random.default_rng(0)
    for seed in range(8):
        e = make_embedding(150, seed=seed, dtype=torch.float32)
        if seed % 2:  # duplicates of other classes: ties around the best positive
            e = e[torch.from_numpy(rng.integers(0, 40, 150))]
        labels = rng.integers(0, 60, 150)
        queries = None if inside else rng.random(150) < 0.4
        ks = (1, 5, 40, 60, 100, 500)
        monkeypatch.setattr(module, "_LISTED", 1000)
        listed = measured(e, labels, ks, similarity, queries=queries)
        monkeypatch.setattr(module, "_LISTED", 1)
        assert measured(e, labels, ks, similarity, queries=queries).metrics == listed.metrics


def test_the_margin_is_between_the_two_nearest_classes():
    e, labels = make_embedding(60, dtype=torch.float32), np.arange(60) // 5
    found = measured(e, labels).per_query["margin"]
    scores = (e.semantic.double() @ e.semantic.double().T).fill_diagonal_(-2).numpy()
    for i in range(60):
        first = labels[scores[i].argmax()]
        assert found[i] == pytest.approx(max(scores[i][labels != first]) - scores[i].max(), abs=1e-6)


def test_no_image_is_its_own_nearest_of_another_class():
    """The list of the first image holds the other class alone; the rest is itself, or itself and one far away."""
    for labels in ([0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0]):
        semantic = F.normalize(torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [1, 0.3], [1, 0.4], [-1, 0.1]]), dim=1)
        e = Embedding(semantic, torch.zeros(6, 2))[torch.arange(len(labels))]
        found = measured(e, torch.tensor(labels), (1,)).per_query["margin"]
        cosines = semantic[0] @ semantic.T
        far = float(cosines[5]) if len(labels) == 6 else float(cosines[1])
        assert -found[0] == pytest.approx(float(cosines[1]) - far, abs=1e-6)


def test_the_margin_is_known_where_a_class_of_the_gallery_fills_the_list():
    """Distractors that nobody asks for may be more than the queries' own classes have."""
    e = make_embedding(60, dtype=torch.float32)
    labels = np.where(np.arange(60) < 45, 0, 1 + np.arange(60) % 3)
    queries = np.isin(np.arange(60), [46, 47, 48])
    found = measured(e, labels, (1,), queries=queries).per_query["margin"]
    scores = (e.semantic[queries].double() @ e.semantic[~queries].double().T).numpy()
    known = labels[~queries]
    for i in range(3):
        first = known[scores[i].argmax()]
        assert found[i] == pytest.approx(max(scores[i][known != first]) - scores[i].max(), abs=1e-6)
    assert (found < 0).all()


def test_the_temperature_reaches_search_and_counted_ranks(monkeypatch):
    import idml_zoo.evaluation.measure as module

    e, labels = make_embedding(40, level=2.0, dtype=torch.float32), np.arange(40) % 8
    distances = {tau: idml_zoo.introspective_distance(e, e, tau).fill_diagonal_(9) for tau in (0.3, 5.0)}
    for listed in (32, 1):  # beyond what is listed, the best positive is ranked
        monkeypatch.setattr(module, "_LISTED", listed)
        for tau, d in distances.items():
            order = d.argsort(dim=1, stable=True)
            hit = torch.from_numpy(labels)[order] == torch.from_numpy(labels)[:, None]
            found = measured(e, labels, (1, 20), Metric("introspective", tau)).metrics
            for k in (1, 20):
                assert found[f"recall@{k}"] == pytest.approx(hit[:, :k].any(1).double().mean().item())
    first, second = (d.argsort(dim=1)[:, :20] for d in distances.values())
    assert not torch.equal(first, second)


def test_evaluate_embeddings_refuses_hopeless_data():
    e = make_embedding(6, dtype=torch.float32)
    for labels, message in [
        (torch.zeros(5, dtype=torch.int64), "6 embeddings but 5 labels"),
        (torch.arange(6), "alone in its class"),
        (torch.zeros(6, dtype=torch.int64), "all images are of one class"),
    ]:
        with pytest.raises(ValueError, match=message):
            idml_zoo.evaluate_embeddings(e, labels)


def test_evaluate_gives_a_valid_result_and_leaves_the_model_as_it_was(tmp_path):
    from idml_zoo.results import read_result

    benchmark = idml_zoo.table_benchmark("mine", str(make_folder(tmp_path / "images")))
    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=16).train()
    model.transform = model.transform.replace(image_size=32)
    result = idml_zoo.evaluate(model, benchmark, device="cpu", progress=False, seed=3)
    assert model.training and result.queries == 12 and result.protocol.image_size == 32
    path = idml_zoo.save_result(result, tmp_path / "results")
    assert path == tmp_path / "results" / "mine" / "idml-test_resnet" / "seed3.json"
    again = read_result(path)
    assert again.metrics == result.metrics and again.provenance == result.provenance
    instructions = torch.backends.cpu.get_cpu_capability()
    assert re.fullmatch(rf"cpu \(\S.*, {instructions}\)", result.provenance.device)  # "cpu (AMD EPYC, AVX2)"
    per_query = np.load(path.with_suffix(".queries.npz"))
    assert per_query["top1"].mean() == pytest.approx(result.metrics["recall@1"])
    second = idml_zoo.evaluate(model, benchmark, device="cpu", progress=False, seed=3)
    assert second.metrics == result.metrics


@pytest.mark.parametrize("similarity", ["cosine", "introspective"])
def test_queries_are_searched_in_the_gallery_alone(similarity):
    """Against a slow loop over the definition, on labels of which some have no image in the gallery."""
    embedding = make_embedding(40, seed=3, dtype=torch.float32)
    rng = np.random.default_rng(0)
    labels, queries = rng.integers(0, 6, 40), rng.random(40) < 0.4
    labels[:2], queries[:2] = 6, True  # a class of queries only: nothing to find
    severity = rng.random(40)[queries]
    found = measured(embedding, labels, (1, 3), similarity, severity, queries)
    if similarity == "cosine":
        scores = (embedding.semantic @ embedding.semantic.T).numpy()
    else:
        scores = -idml_zoo.introspective_distance(embedding, embedding).numpy()
    gallery = np.flatnonzero(~queries)
    hits, maps = [], []
    for q in np.flatnonzero(queries):
        order = gallery[np.argsort(-scores[q, gallery], kind="stable")]
        right = labels[order] == labels[q]
        r = right.sum()
        if r:
            hits.append([right[:1].any(), right[:3].any()])
            precision = np.cumsum(right) / np.arange(1, len(right) + 1)
            maps.append((precision * right)[:r].sum() / r)
    assert [found.metrics["recall@1"], found.metrics["recall@3"]] == pytest.approx(np.mean(hits, axis=0))
    assert found.metrics["map@r"] == pytest.approx(np.mean(maps))
    assert found.without_positive == queries.sum() - len(hits) >= 2
    assert all(len(v) == queries.sum() for v in found.per_query.values())


def test_a_benchmark_with_queries_is_measured_as_one(tmp_path):
    from support.official import make_inshop

    from idml_zoo.data.benchmark import Benchmark
    from idml_zoo.data.sets.inshop import load_inshop

    make_inshop(tmp_path)
    record = Benchmark("shop", "Shop", load_inshop, ks=(1, 2))
    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=8)
    result = idml_zoo.evaluate(model, record, root=tmp_path, device="cpu", progress=False)
    assert result.queries == 3
    assert result.protocol.self_removal == "queries are not in the gallery"
    assert {"recall@1", "recall@2"} <= set(result.metrics)


def test_perfect_clusters_score_one_and_no_more():
    """Sizes whose entropies round upwards made an AMI of 1.0000000000000002."""
    for classes in range(2, 30):
        labels = np.repeat(np.arange(classes), np.arange(classes) % 3 + 2)
        vectors = np.eye(classes, dtype=np.float32)[labels]
        found = cluster_metrics(vectors, labels, seeds=(0, 1))
        assert all(0 <= v <= 1 for v in found.values())
