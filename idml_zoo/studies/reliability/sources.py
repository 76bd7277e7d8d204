"""The embeddings that the coefficients are fitted on and measured with: which model, which images, which part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from idml_zoo.data.corruptions import corrupt
from idml_zoo.data.errors import DataError
from idml_zoo.data.split import Split, hold_out_classes
from idml_zoo.evaluation.embed import Compute, embed_split
from idml_zoo.evaluation.embedders import as_embedder
from idml_zoo.models.zoo import create_model
from idml_zoo.registry import benchmarks
from idml_zoo.types import Embedding

PARTS = ("train", "held-out", "test", "digits")
HELD_OUT = 0.5  # of the training classes, for `part: held-out`; the recipe must have the same val_classes


@dataclass(frozen=True)
class Source:
    """An embedding of images, by a model that was not trained on their classes.

    Attributes:
        name: of the model, within its benchmark and part.
        benchmark: whose images; "digits" for those of scikit-learn.
        part: "train" (by a model that never saw this set), "held-out" (half of the training classes, by a model
            trained on the other half), or "test".
        model: for :func:`~idml_zoo.create_model`, with what its ``options`` say; "pixels" for the pixels themselves.
        options: image_size, backbone, backbone_pretrained, pooling, crop_fraction, seed.
        row: leaderboard row whose recipe trained it, "" for none.
    """

    name: str
    benchmark: str
    part: str
    model: str
    options: dict[str, Any]
    row: str = ""

    @property
    def key(self) -> str:
        """Name of its file."""
        return f"{self.benchmark}.{self.part}.{self.name}"


@dataclass(frozen=True)
class Embedded:
    """An embedding with the ``(N,)`` int64 classes of its images; ``queries``: of the images made worse, or None."""

    embedding: Embedding
    labels: Tensor
    queries: Embedding | None = None


def read_sources(path: Path) -> dict[str, list[Source]]:
    """Returns the sources of a YAML file by their use, "fit" and "test".

    Raises:
        DataError: another use, part or key; a source of the use "fit" with test classes.
    """
    uses: dict[str, list[Source]] = {}
    for use, entries in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        for entry in entries:
            known = {"name", "benchmark", "part", "model", "row"}
            options = {k: v for k, v in entry.items() if k not in known}
            source = Source(**{k: v for k, v in entry.items() if k in known}, options=options)
            if use not in ("fit", "test") or source.part not in PARTS:
                raise DataError(f"{path}: {source.key}: use {use!r} or part {source.part!r} is not one of the study")
            if use == "fit" and source.part not in ("train", "held-out"):
                raise DataError(f"{path}: {source.key}: nothing may be fitted on test classes")
            uses.setdefault(use, []).append(source)
    return uses


def _split(source: Source, root: str) -> Split:
    splits = benchmarks[source.benchmark].splits(root)
    if source.part == "held-out":
        return hold_out_classes(splits.train, HELD_OUT)[1]
    return splits.train if source.part == "train" else splits.test


def _model(source: Source) -> Any:
    options = dict(source.options)
    size = {k: options.pop(k, None) for k in ("image_size", "crop_fraction")}
    torch.manual_seed(options.pop("seed", 0))
    model = create_model(source.model, pretrained=not options, **options)
    model.transform = model.transform.replace(**size)
    return model


def _digits() -> tuple[Tensor, Tensor]:
    """Returns scikit-learn's handwritten digits: ``(N, 64)`` pixels and ``(N,)`` classes."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float(), torch.from_numpy(labels)


def load(source: Source, root: str, cache: Path, corruption: str = "") -> Embedded:
    """Returns an embedding: out of the cache, or computed and put there.

    Args:
        source: what to embed.
        root: folder of the data.
        cache: folder of the embeddings, as safetensors.
        corruption: "NAME:SEVERITY" for queries that are made worse, "" for none.
    """
    clean = _embedding(source, root, cache / f"{source.key}.safetensors", "")
    if not corruption:
        return clean
    path = cache / f"{source.key}.{corruption.replace(':', '')}.safetensors"
    return replace(clean, queries=_embedding(source, root, path, corruption).embedding)


def _embedding(source: Source, root: str, path: Path, corruption: str) -> Embedded:
    from safetensors.torch import load_file, save_file

    if not path.exists():
        if source.benchmark == "digits":
            pixels, labels = _digits()
            model = as_embedder(lambda images: images.flatten(1))
            embedding = model(pixels.view(-1, 1, 8, 8))
        else:
            split = _split(source, root)
            model = _model(source)
            if corruption:
                name, severity = corruption.split(":")
                split = corrupt(split, name, int(severity), side=256)
            embedding = embed_split(model, split, model.transform, Compute(workers=0))
            labels = torch.from_numpy(np.asarray(split.labels, dtype=np.int64))
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"semantic": embedding.semantic, "uncertainty": embedding.uncertainty, "labels": labels}
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    stored = load_file(path)
    return Embedded(Embedding(stored["semantic"], stored["uncertainty"]), stored["labels"])


def keys(sources: Sequence[Source]) -> list[str]:
    """Returns the sources' keys; raises DataError where two share one."""
    names = [s.key for s in sources]
    if len(set(names)) != len(names):
        raise DataError(f"sources share a name: {sorted({n for n in names if names.count(n) > 1})}")
    return names
