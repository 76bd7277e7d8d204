"""How fast an uncertain image learns: the paper's "adaptive and slower pace" [R], in theory and on a trained model.

:func:`pair_gradients` follows each loss's pull on a positive and push on a negative pair as the pair's uncertainty
grows; :func:`sample_gradients` measures the pace of every image of a split; :func:`plot_gradients` draws both.

Sources: [R] the paper's abstract and public README, [C] the authors' public code, [D] derived and checked by us.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idml_zoo.evaluation.embed import embed
from idml_zoo.losses.pairs import contrastive, fastap, multi_similarity, triplet
from idml_zoo.losses.proxies import proxy_anchor, proxy_nca
from idml_zoo.registry import unknown_name
from idml_zoo.similarity import TAU, introspective_similarity
from idml_zoo.types import Embedding

if TYPE_CHECKING:
    from idml_zoo.data.split import Split
    from idml_zoo.data.transforms import TransformConfig

BATCH_SIZE = 120  # the authors' [C]


@dataclass(frozen=True)
class Scene:
    """The smallest batch that shows what a loss does: one positive and one negative pair.

    Attributes:
        title: the loss.
        matrix: what it is a function of: "distance" D, "squared" D² or "similarity" S.
        alpha: semantic distances of the positive and of the negative pair at which neither is settled yet: inside the
            hinges, at the threshold, or where images start (√2, orthogonal to the proxies).
        loss: of the positive's and the negative's 0-d D, D² or S.
    """

    title: str
    matrix: str
    alpha: tuple[float, float]
    loss: Callable[[Tensor, Tensor], Tensor]


def _in_batch(loss: Callable[..., Tensor], far: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Anchor, positive, negative; the last two as far apart as can be, so that no loss acts on them."""
    labels = torch.tensor([0, 0, 1])

    def value(positive: Tensor, negative: Tensor) -> Tensor:
        itself, apart = positive.new_tensor(0.0), positive.new_tensor(far)
        rows = [itself, positive, negative, positive, itself, apart, negative, apart, itself]
        return loss(torch.stack(rows).view(3, 3), labels)

    return value


def _to_proxies(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """One image, its own proxy and another."""
    label = torch.zeros(1, dtype=torch.int64)
    return lambda positive, negative: loss(torch.stack([positive, negative])[None], label)


def _margin(positive: Tensor, negative: Tensor) -> Tensor:
    """The sum of margin_loss: its mean over open hinges would make one pair's closing move the other's gradient."""
    return F.relu(positive - 1.2 + 0.2) + F.relu(1.2 - negative + 0.2)


# With the settings that the losses start from (section 4 of the method) [D].
SCENES: dict[str, Scene] = {
    "contrastive": Scene("Contrastive", "distance", (1.0, 0.4), _in_batch(contrastive, 2)),
    "triplet": Scene("Triplet", "distance", (1.0, 1.05), _in_batch(triplet, 2)),  # semi-hard
    "margin": Scene("Margin", "distance", (1.2, 1.2), _margin),
    "fastap": Scene("FastAP", "squared", (1.0, 1.0), _in_batch(fastap, 4)),
    "multi_similarity": Scene("Multi-Similarity", "similarity", (1.0, 1.0), _in_batch(multi_similarity, -1)),
    "proxy_nca": Scene("ProxyNCA", "squared", (2**0.5, 2**0.5), _to_proxies(proxy_nca)),
    "proxy_anchor": Scene("Proxy Anchor", "similarity", (2**0.5, 2**0.5), _to_proxies(proxy_anchor)),
}

# ∂/∂α of D, D² and S at fixed β, relative to its value at x = 0 [D].
_SLOPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "distance": lambda x: (1 + x) * np.exp(-x),
    "squared": lambda x: (1 + x) * np.exp(-2 * x),
    "similarity": lambda x: (1 + x / 2) * np.exp(-x),
}


def slope(ratio: np.ndarray, matrix: str = "distance") -> np.ndarray:
    """The closed form of ∂/∂α at x = β/(τα), relative to x = 0, in (0, 1] and falling: what the metric itself does [D].

    (1 + x)·e^(−x) for the "distance" D, (1 + x)·e^(−2x) for D² ("squared"), (1 + x/2)·e^(−x) for the "similarity" S.
    """
    if matrix not in _SLOPES:
        raise unknown_name("matrix", matrix, _SLOPES)
    return _SLOPES[matrix](np.asarray(ratio, dtype=np.float64))


@dataclass(frozen=True)
class PairGradients:
    """How a loss's pull and push change with uncertainty.

    Attributes:
        loss: its name.
        ratio: ``(N,)`` x = β/(τα) ≥ 0.
        positive, negative: ``(N,)`` |∂L/∂α| of the pair, divided by its value at x = 0.
        slope: ``(N,)`` the metric's own part, :func:`slope`; what is left is the loss's weighting of the pair.
    """

    loss: str
    ratio: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    slope: np.ndarray


def _matrix_value(matrix: str, alpha: Tensor, beta: Tensor, tau: float) -> Tensor:
    factor = torch.exp(-beta / (tau * alpha))
    if matrix == "similarity":
        return 1 - alpha.square() / 2 * factor
    return alpha * factor if matrix == "distance" else (alpha * factor).square()


def pair_gradients(
    loss: str, ratio: np.ndarray, alpha: float | tuple[float, float] | None = None, tau: float = TAU
) -> PairGradients:
    """|∂L/∂α| of a positive and of a negative pair against x = β/(τα), at fixed α, relative to x = 0; by autograd.

    The result [D]:

    - Contrastive, triplet and margin follow :func:`slope` exactly, until the hinge of a margin positive closes (D ≤ 1)
      and it is left alone. So do FastAP and ProxyNCA where both pairs are equally far, and so equally ranked.
    - Multi-Similarity and Proxy Anchor weigh a pair by its S, which uncertainty brings closer to 1: they let go of an
      uncertain positive sooner than the metric does, but **push an uncertain negative harder at first**.
    - Pairs that are settled (choose ``alpha`` so: (0.9, 1.1) for ProxyNCA) are no longer weighed near zero once
      uncertainty draws both together: their gradient *grows*, by orders of magnitude. The slower pace belongs to the
      metric and to undecided pairs; it is no property of every loss.

    Args:
        loss: a name of ``SCENES``.
        ratio: ``(N,)`` x ≥ 0, the same for both pairs.
        alpha: semantic distance of both pairs, or (positive, negative), in (0, 2]; None for the scene's own.
        tau: temperature; the curves do not depend on it, as x holds it already.

    Raises:
        ValueError: unknown loss, a ratio below 0, or an α where the loss has no gradient even without uncertainty.
    """
    if loss not in SCENES:
        raise unknown_name("loss", loss, SCENES)
    scene = SCENES[loss]
    x = np.asarray(ratio, dtype=np.float64)
    if x.ndim != 1 or not (x >= 0).all():
        raise ValueError(f"ratio must be (N,) numbers ≥ 0, got shape {x.shape}")
    pair = scene.alpha if alpha is None else (alpha, alpha) if isinstance(alpha, (int, float)) else alpha
    at = torch.tensor(pair, dtype=torch.float64, requires_grad=True)

    def gradient(value: float) -> list[float]:
        beta = value * tau * at.detach()
        positive, negative = _matrix_value(scene.matrix, at, beta, tau).unbind()
        return torch.autograd.grad(scene.loss(positive, negative), at)[0].abs().tolist()

    start = np.array(gradient(0.0))
    if not (start > 0).all():
        raise ValueError(f"{loss} does not act on pairs at α = {pair} even without uncertainty; choose another alpha")
    relative = np.array([gradient(float(v)) for v in x]).reshape(-1, 2) / start
    return PairGradients(loss, x, relative[:, 0], relative[:, 1], slope(x, scene.matrix))


def gradient_curves(ratio: np.ndarray | None = None, tau: float = TAU) -> list[PairGradients]:
    """:func:`pair_gradients` of every loss; by default for x from 0 to 4."""
    x = np.linspace(0, 4, 161) if ratio is None else ratio
    return [pair_gradients(name, x, tau=tau) for name in SCENES]


@dataclass(frozen=True)
class SampleGradients:
    """The measured pace of the N images of a split, in its order.

    Attributes:
        level: ``(N,)`` float64 uncertainty level ‖u‖.
        introspective: ``(N,)`` ‖∂L/∂ŝ‖ along the sphere, with the introspective similarity.
        plain: ``(N,)`` the same with the cosine.
        metric: ``(N,)`` the same with the introspective similarity, each pair weighed as the loss weighs it by its
            cosine: what the metric does, without what the loss makes of it.
    """

    level: np.ndarray
    introspective: np.ndarray
    plain: np.ndarray
    metric: np.ndarray

    @property
    def pace(self) -> np.ndarray:
        """``(N,)`` introspective / plain: below 1 the image learns more slowly than without uncertainty."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.introspective / self.plain

    @property
    def metric_pace(self) -> np.ndarray:
        """``(N,)`` metric / plain: the pace if the loss weighed every pair as without uncertainty."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.metric / self.plain


def sample_gradients(
    model: nn.Module,
    split: Split,
    transform: TransformConfig | None = None,
    *,
    tau: float = TAU,
    scale: float = 32.0,
    margin: float = 0.1,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> SampleGradients:
    """How fast each image of a split would learn under Proxy Anchor, with introspection and without.

    Trained proxies are not stored with a model, so the split's class means stand in for them: the normalised mean of
    the semantic embeddings of each class, certain (u_p = 0), and among them the image's own. The images are embedded
    in eval mode and drawn at random into batches, over which the loss is taken as in training. An image's gradient is
    ∂L/∂ŝ without its component along ŝ, which the normalisation stops before it reaches the network.

    Two things act on the pace: the metric's slope, which falls with uncertainty, and the loss's weighting of pairs by
    their S, which uncertainty raises: each proxy shares its push among the images of the batch by a softmax of S, and
    an uncertain image takes a larger share of it [D]. ``metric`` keeps the second as it is without uncertainty.

    Args:
        model: returns an Embedding.
        split: the images; its labels choose each image's own class.
        transform: preprocessing; None for the model's own.
        tau: temperature of the introspective metric.
        scale, margin: of Proxy Anchor.
        batch_size: images in a batch of the loss.
        seed: of the batches.
        workers, device, progress: of :func:`idml_zoo.evaluation.embed.embed`.
    """
    chosen: Any = getattr(model, "transform", None) if transform is None else transform
    if chosen is None:
        raise ValueError("the model says nothing of its preprocessing; give transform=TransformConfig(...)")
    embedding = embed(model, split, chosen, workers=workers, device=device, progress=progress)
    # float64: a settled image's gradient lies far below float32's rounding of its neighbours'
    semantic, uncertainty = F.normalize(embedding.semantic.double()), embedding.uncertainty.double()
    labels = torch.from_numpy(np.asarray(split.labels, dtype=np.int64))
    sums = torch.zeros(split.num_classes, semantic.shape[1], dtype=torch.float64)
    prototypes = F.normalize(sums.index_add_(0, labels, semantic))
    norms = torch.zeros(3, len(labels), dtype=torch.float64)
    for rows in torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).split(batch_size):
        s = semantic[rows].requires_grad_()
        introspective = introspective_similarity(Embedding(s, uncertainty[rows]), prototypes, tau)
        plain = s @ prototypes.T
        ours, plainly = (_weights(matrix, labels[rows], scale, margin) for matrix in (introspective, plain))
        for i, (matrix, weights) in enumerate(((introspective, ours), (plain, plainly), (introspective, plainly))):
            (full,) = torch.autograd.grad(matrix, s, weights, retain_graph=True)
            unit = s.detach()
            norms[i, rows] = torch.linalg.vector_norm(full - (full * unit).sum(1, keepdim=True) * unit, dim=1)
    level = torch.linalg.vector_norm(uncertainty, dim=1)
    return SampleGradients(level.numpy(), *norms.numpy())


def _weights(matrix: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """∂L/∂M: how Proxy Anchor weighs the pairs of a matrix."""
    leaf = matrix.detach().requires_grad_()
    return torch.autograd.grad(proxy_anchor(leaf, labels, scale, margin), leaf)[0]


_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#777777"  # Okabe and Ito: told apart by every kind of colour vision


def plot_gradients(path: str | Path, curves: Sequence[PairGradients], samples: SampleGradients | None = None) -> Path:
    """Draws the curves, one panel for each loss, and below them the measured pace against the level; returns the path.

    Args:
        path: of the file; its ending chooses the format (.png, .svg, .pdf).
        curves: from :func:`gradient_curves`.
        samples: from :func:`sample_gradients`; None leaves the lower panel out.

    Raises:
        ValueError: no image of ``samples`` has a pace.
    """
    from matplotlib.figure import Figure

    columns = min(4, len(curves) + 1)
    rows = -(-(len(curves) + 1) // columns)  # one place is the legend's
    below = 0 if samples is None else 1
    figure = Figure(figsize=(2.5 * columns, 2.4 * rows + 3.6 * below), layout="constrained")
    grid = figure.add_gridspec(rows + below, columns, height_ratios=[2.4] * rows + [3.6] * below)
    for i, curve in enumerate(curves):
        axis = figure.add_subplot(grid[i // columns, i % columns])
        _draw_curve(axis, curve)
        if i % columns == 0:
            axis.set_ylabel("|∂L/∂α|, relative to x = 0")
        axis.set_xlabel("x = β / (τα)")
    legend = figure.add_subplot(grid[len(curves) // columns, len(curves) % columns])
    legend.axis("off")
    handles, names = figure.axes[0].get_legend_handles_labels()
    legend.legend(handles, names, loc="center", frameon=False, fontsize=10, title="undecided pairs\nat fixed α")
    if samples is not None:
        _draw_samples(figure.add_subplot(grid[rows, :]), samples)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # no version in a PNG, so that the same numbers give the same file
    figure.savefig(path, dpi=110, metadata={"Software": ""} if path.suffix == ".png" else None)
    return path


def _draw_curve(axis: Any, curve: PairGradients) -> None:
    axis.plot(curve.ratio, curve.slope, color=_GREY, linewidth=5, alpha=0.35, label="the metric alone\n(closed form)")
    axis.plot(curve.ratio, curve.positive, color=_BLUE, linewidth=1.8, label="positive pair")
    axis.plot(curve.ratio, curve.negative, "--", color=_ORANGE, linewidth=1.8, label="negative pair")
    axis.set_title(SCENES[curve.loss].title, fontsize=11)
    axis.set_xlim(curve.ratio.min(), curve.ratio.max())
    axis.set_ylim(0, max(1.1, 1.05 * curve.positive.max(), 1.05 * curve.negative.max()))
    axis.grid(alpha=0.3)


def _draw_samples(axis: Any, samples: SampleGradients) -> None:
    """Every image as a dot, and median and quartiles of (up to) ten equally filled bins of the level."""
    shown = np.isfinite(samples.pace) & (samples.pace > 0)
    if not shown.any():
        raise ValueError(f"none of {len(shown)} images has a gradient with and without introspection: nothing to draw")
    level, pace = samples.level[shown], samples.pace[shown]
    axis.scatter(level, pace, s=6, color=_GREY, alpha=0.25, linewidths=0, rasterized=True, label="one image")
    parts = np.array_split(np.argsort(level, kind="stable"), min(10, max(1, len(level) // 5)))
    centres = [np.median(level[p]) for p in parts]
    low, middle, high = np.array([np.quantile(pace[p], [0.25, 0.5, 0.75]) for p in parts]).T
    spread = np.stack([middle - low, high - middle])
    axis.errorbar(centres, middle, spread, fmt="o-", color=_BLUE, capsize=3, label="median and quartiles")
    metric = samples.metric_pace[shown]
    slopes = [np.median(metric[p]) for p in parts]
    axis.plot(centres, slopes, "s--", color=_ORANGE, markersize=5, label="median, pairs weighed as by the cosine")
    axis.axhline(1, color="black", linewidth=1, linestyle=":", label="as without uncertainty")
    if pace.max() > 10 * pace.min():
        axis.set_yscale("log")
    axis.set_xlabel("uncertainty level ‖u‖ of the image")
    axis.set_ylabel("pace: ‖∂L/∂ŝ‖, introspective / cosine")
    axis.set_title(f"Proxy Anchor on {len(level):,} images of the trained model", fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9, loc="best")
