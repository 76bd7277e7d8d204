"""The keywords of version 0.1 still work, with a warning that says what replaces them."""

import dataclasses

import pytest
import torch
from conftest import make_embedding, make_folder

import idml_zoo
from idml_zoo.evaluation.embed import MeasuredSplit, embed
from idml_zoo.results import TrainingRecord


def same(first, second) -> bool:
    """But for what depends on the clock."""
    plain = [
        dataclasses.replace(r, provenance=dataclasses.replace(r.provenance, created="", seconds={}), cost={})
        for r in (first, second)
    ]
    return plain[0] == plain[1]


def test_search_and_evaluate_embeddings():
    e = make_embedding(40, level=2.0, dtype=torch.float32)
    with pytest.warns(DeprecationWarning, match=r"search: give metric=idml_zoo.Metric\(similarity, tau\) instead of"):
        old = idml_zoo.search(e, e, 5, similarity="introspective", tau=2.0)
    new = idml_zoo.search(e, e, 5, metric=idml_zoo.Metric("introspective", 2.0))
    assert torch.equal(old.indices, new.indices) and torch.equal(old.scores, new.scores)
    labels = torch.arange(40) % 8
    with pytest.warns(DeprecationWarning, match="evaluate_embeddings"):
        metrics = idml_zoo.evaluate_embeddings(e, labels, similarity="introspective", tau=None)
    assert metrics == idml_zoo.evaluate_embeddings(e, labels, metric="introspective")


def test_evaluate(tmp_path):
    mine = idml_zoo.table_benchmark("mine", str(make_folder(tmp_path / "photos")))
    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=8)
    model.transform = model.transform.replace(image_size=32)
    train = mine.splits().train
    embedding = embed(model, train, progress=False, device="cpu")
    how = {"device": "cpu", "progress": False, "cluster_seeds": (0,)}
    training = {"variant": "pa", "checkpoint": "validation", "recipe": "a: 1", "statistics": {"level": 1.0}}
    with pytest.warns(DeprecationWarning, match="evaluate: .*similarity.* went into metric=Metric"):
        old = idml_zoo.evaluate(
            model,
            mine,
            similarity="introspective",
            tau=2.0,
            split=train,
            split_name="train",
            embedding=embedding,
            corruptions=["blur"],
            severities=[2],
            training="5 epochs",
            train_seconds=3.0,
            **training,
            **how,
        )
    record = TrainingRecord(pretrained="none", description="5 epochs", seconds=3.0, **training)
    new = idml_zoo.evaluate(
        model,
        mine,
        metric=idml_zoo.Metric("introspective", 2.0),
        split=MeasuredSplit(train, "train", embedding),
        corruptions={"blur": [2]},
        training=record,
        **how,
    )
    assert same(old, new)
    assert new.protocol.tau == 2.0 and new.training == "5 epochs" and new.protocol.split == "train"
    with pytest.raises(TypeError, match="evaluate\\(\\) has no argument 'batch'"):
        idml_zoo.evaluate(model, mine, batch=3)
