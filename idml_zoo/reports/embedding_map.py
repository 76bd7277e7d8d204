"""A map of an embedding: every image at a place in the plane, coloured by its uncertainty level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from idml_zoo.registry import unknown_name
from idml_zoo.types import Embedding

PROJECTIONS = ("pca", "umap")


def project(embedding: Embedding, how: str = "pca", seed: int = 0) -> np.ndarray:
    """``(N, 2)`` places of the semantic embeddings: their two principal components, or UMAP's.

    Raises:
        UnknownNameError: another projection.
        ImportError: UMAP without the package ``umap-learn``.
    """
    if how not in PROJECTIONS:
        raise unknown_name("projection", how, PROJECTIONS)
    vectors = embedding.semantic.double()
    if how == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise ImportError("a UMAP map needs the package umap-learn: pip install umap-learn") from error
        return np.asarray(UMAP(metric="cosine", random_state=seed).fit_transform(vectors.numpy()))
    centred = vectors - vectors.mean(0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes[:, -2:].flip(1)
    axes = axes * torch.sign(axes.gather(0, axes.abs().argmax(0, keepdim=True)))  # eigenvectors have no sign
    return (centred @ axes).numpy()


def draw_map(path: Path, places: np.ndarray, level: np.ndarray, wrong: np.ndarray, rows: np.ndarray, how: str) -> Path:
    """Every image at its place, coloured by its level; a cross where its nearest neighbour is wrong."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axis = figure.add_subplot()
    missed = np.zeros(len(places), dtype=bool)
    missed[rows[wrong]] = True
    size = float(np.clip(20_000 / len(places), 4, 40))
    limits = (float(level.min()), max(float(np.quantile(level, 0.99)), float(level.min()) + 1e-9))
    for part, marker, label in ((~missed, "o", "nearest neighbour right"), (missed, "x", "wrong")):
        shown = axis.scatter(
            places[part, 0],
            places[part, 1], c=level[part], s=size, marker=marker, cmap="viridis", vmin=limits[0], vmax=limits[1],
            linewidths=0.8 if marker == "x" else 0, label=f"{label} ({int(part.sum()):,})",
        )  # fmt: skip
    figure.colorbar(shown, ax=axis, label="uncertainty level ‖u‖")
    axis.set_xlabel(f"{how.upper()} 1")
    axis.set_ylabel(f"{how.upper()} 2")
    axis.legend(loc="best", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": ""})
    return path
