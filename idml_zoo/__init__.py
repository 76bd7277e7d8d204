"""idml_zoo: a model zoo and benchmark harness for introspective deep metric learning, over timm.

Names are loaded when they are first used, so that ``import idml_zoo`` imports neither torch nor timm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from idml_zoo._moved import install as _install_old_names
from idml_zoo.version import __version__

_install_old_names()

if TYPE_CHECKING:
    from idml_zoo.data.benchmark import Benchmark, table_benchmark
    from idml_zoo.evaluation.embed import MeasuredSplit, embed
    from idml_zoo.evaluation.measure import evaluate_embeddings
    from idml_zoo.evaluation.protocol import evaluate, save_result
    from idml_zoo.evaluation.retrieval_metrics import retrieval_metrics
    from idml_zoo.metric import Metric
    from idml_zoo.models.model import IDMLModel
    from idml_zoo.models.zoo import create_model, create_transforms, list_models
    from idml_zoo.registry import benchmarks
    from idml_zoo.reliability.errors import ReliabilityError, RiskNotReachable
    from idml_zoo.reliability.reliability import Reliability
    from idml_zoo.reports.card import model_card
    from idml_zoo.results import TrainingRecord
    from idml_zoo.retrieval.answers import assess
    from idml_zoo.retrieval.fit import fit_reliability
    from idml_zoo.retrieval.knn import search
    from idml_zoo.similarity import cosine, introspective_distance, introspective_similarity, released_similarity
    from idml_zoo.types import Embedding, Neighbours, RetrievalTask

_PUBLIC = {
    "Benchmark": "data.benchmark",
    "Embedding": "types",
    "IDMLModel": "models.model",
    "Metric": "metric",
    "Neighbours": "types",
    "benchmarks": "registry",
    "assess": "retrieval.answers",
    "cosine": "similarity",
    "create_model": "models.zoo",
    "create_transforms": "models.zoo",
    "MeasuredSplit": "evaluation.embed",
    "Reliability": "reliability.reliability",
    "ReliabilityError": "reliability.errors",
    "RetrievalTask": "types",
    "RiskNotReachable": "reliability.errors",
    "TrainingRecord": "results",
    "embed": "evaluation.embed",
    "evaluate": "evaluation.protocol",
    "evaluate_embeddings": "evaluation.measure",
    "fit_reliability": "retrieval.fit",
    "introspective_distance": "similarity",
    "introspective_similarity": "similarity",
    "list_models": "models.zoo",
    "model_card": "reports.card",
    "released_similarity": "similarity",
    "retrieval_metrics": "evaluation.retrieval_metrics",
    "save_result": "evaluation.protocol",
    "search": "retrieval.knn",
    "table_benchmark": "data.benchmark",
}

__all__ = [
    "Benchmark",
    "Embedding",
    "IDMLModel",
    "MeasuredSplit",
    "Metric",
    "Neighbours",
    "Reliability",
    "ReliabilityError",
    "RetrievalTask",
    "RiskNotReachable",
    "TrainingRecord",
    "__version__",
    "assess",
    "benchmarks",
    "cosine",
    "create_model",
    "create_transforms",
    "embed",
    "evaluate",
    "evaluate_embeddings",
    "fit_reliability",
    "introspective_distance",
    "introspective_similarity",
    "list_models",
    "model_card",
    "released_similarity",
    "retrieval_metrics",
    "save_result",
    "search",
    "table_benchmark",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'idml_zoo' has no attribute {name!r}; it has {', '.join(_PUBLIC)}")
    value = getattr(importlib.import_module(f"idml_zoo.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
