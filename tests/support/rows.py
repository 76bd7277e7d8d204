"""Results made up for tests."""

from dataclasses import replace

import numpy as np

from idml_zoo.evaluation.protocol import save_result
from idml_zoo.results import ModelInfo, Protocol, Provenance, Result


def make_result(row="idml-a", seed=0, recall=0.5, benchmark="mine", **changes) -> Result:
    return (
        Result(
            benchmark=benchmark,
            row=row,
            seed=seed,
            model=ModelInfo("test_resnet", "idml", 16, "avg+max", 1000, "none", "idml"),
            protocol=Protocol(64, 1.0, "bilinear", [0.5] * 3, [0.5] * 3, "cosine", {"implementation": "faiss"}, "last"),
            metrics={"recall@1": recall, "recall@2": recall, "map@r": 0.1, "auroc_level": None},
            queries=10,
            queries_without_positive=0,
            provenance=Provenance(
                "cmd", "abc", False, {"torch": "2"}, "cpu", "float32", 2, {}, "2026-01-01T00:00:00Z", "ff"
            ),
            training="1 epoch",
        )
        if not changes
        else replace(make_result(row, seed, recall, benchmark), **changes)
    )


def row(root, name, share, seeds=2, n=400, **changes):
    rng = np.random.default_rng(0)
    base = rng.random(n)
    for seed in range(seeds):
        top1 = (base + 0.02 * rng.normal(size=n)) < share
        values = {"top1": top1, "r_precision": top1 / 2, "map@r": top1 / 4}
        means = {"recall@1": float(top1.mean()), "r_precision": float(top1.mean() / 2), "map@r": float(top1.mean() / 4)}
        result = make_result(name, seed, queries=n, metrics=means, per_query=values, **changes)
        save_result(result, root)
    return root / "mine" / name
