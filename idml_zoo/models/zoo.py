"""Lists and builds the named models of :mod:`idml_zoo.models.records`. Listing imports no torch; building does."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idml_zoo.models.records import BACKBONES, PUBLISHED, Backbone, Record, Weights, models
from idml_zoo.registry import benchmarks, heads, unknown_name

if TYPE_CHECKING:
    from idml_zoo.data.transforms import TransformConfig
    from idml_zoo.models.model import IDMLModel

__all__ = [
    "BACKBONES",
    "EMBEDDED",
    "HUB",
    "LOCAL",
    "PUBLISHED",
    "Backbone",
    "Record",
    "Weights",
    "create_model",
    "create_transforms",
    "list_models",
    "models",
    "weights_source",
]

LOCAL, HUB = "local-dir:", "hf-hub:"
EMBEDDED = Path(str(resources.files("idml_zoo") / "embedded"))  # weights in the package, a folder for each model


def list_models(
    filter: str | Iterable[str] = "*", exclude: str | Iterable[str] = (), pretrained: bool = False
) -> list[str]:
    """Returns the names of the zoo's models, sorted.

    Args:
        filter: shell pattern, "idml_*_cub", or several; "" for all.
        exclude: a pattern or several; a plain string is one pattern.
        pretrained: only those with published weights.
    """
    return [n for n in models.names(filter, exclude) if not pretrained or models[n].weights is not None]


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    backbone: str | None = None,
    embedding_dim: int | None = None,
    backbone_pretrained: bool | str = False,
    pooling: str | None = None,
    head_options: dict[str, Any] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    verify: bool = True,
    **backbone_options: Any,
) -> IDMLModel:
    """Builds a model. Unlike timm's, it is in eval mode: call ``.train()`` before training.

    Args:
        name: a name of :func:`list_models` ("idml_resnet50_cub"); a head ("idml", "semantic", "features") together
            with ``backbone``; "local-dir:PATH", a folder written by ``save_pretrained``; or "hf-hub:user/name", a
            repository on the Hub, also "hf-hub:user/name@revision".
        pretrained: load the trained weights of that name. Those of a named model are searched in the folder of the
            environment variable IDML_ZOO_WEIGHTS, then in the package, then on the Hub. Their sha256 must be the
            recorded one.
        backbone: any timm model, for a head's name.
        embedding_dim: D; default 512.
        backbone_pretrained: start the backbone from ImageNet weights: True or "timm", those of timm (from the Hub or
            its cache); "package", those of the extra ``idml-zoo[weights]`` (no Hub needed). False or "none": random.
        pooling: "avg+max", "avg" or "native"; see :func:`idml_zoo.models.model.create_backbone`.
        head_options: further options of the head, such as ``{"uncertainty_input": "features"}``.
        revision: commit, branch or tag of a "hf-hub:" name; the default is the newest.
        token, cache_dir: for the Hub; the defaults are its own.
        verify: compute the embedding of the stored probe image again, and refuse weights that no longer give it.
        backbone_options: passed to ``timm.create_model``.

    Raises:
        UnknownNameError: no such name; the nearest ones are given.
        ValueError: options that do not go together, or ``pretrained=True`` for a name without published weights.
        WeightsError: a folder or a repository that does not hold what it should.
        HubError: a repository that cannot be read.
    """
    if name.startswith((LOCAL, HUB)) or (pretrained and name in models):
        given = {"backbone": backbone, "embedding_dim": embedding_dim, "pooling": pooling, "head_options": head_options}
        given |= {"backbone_pretrained": backbone_pretrained not in (False, "none")} | backbone_options
        if surplus := [k for k, v in given.items() if v]:
            raise ValueError(f"{name}: its weights say what the network is; leave out {', '.join(surplus)}")
        return _load(name, pretrained, revision, token, cache_dir, verify)
    _check_revision(name, revision)
    transform: dict[str, Any] = {}
    head = _head_of(name, backbone, pretrained)
    if name in models:
        record, chosen = models[name], BACKBONES[models[name].backbone]
        backbone, embedding_dim = chosen.timm_name, embedding_dim or record.embedding_dim
        backbone_options = {**chosen.options, **backbone_options}
        transform = dict(benchmarks[record.benchmark].transform)
        if chosen.image_size is not None:
            transform["image_size"] = backbone_options.get("img_size", chosen.image_size)
    return _build(
        head, str(backbone), embedding_dim, backbone_pretrained, pooling, head_options, transform, backbone_options
    )


def _check_revision(name: str, revision: str | None) -> None:
    if revision is not None and not name.startswith(HUB):
        raise ValueError(f"revision= is for {HUB!r} names, got {name!r}")


def _head_of(name: str, backbone: str | None, pretrained: bool) -> str:
    """Returns the head that a name of :func:`create_model` stands for; raises ValueError where it stands for none."""
    if name in models:
        record = models[name]
        if backbone is not None:
            raise ValueError(
                f"{name!r} names its backbone already ({record.backbone}); use {record.head!r} with backbone="
            )
        return record.head
    if backbone is None:
        if name in heads:
            raise ValueError(f"{name!r} is a head: create_model({name!r}, backbone='resnet50') puts it on a timm model")
        raise unknown_name("model", name, models, "idml_zoo.list_models() lists all; idml-zoo list on the command line")
    if name not in heads:
        raise unknown_name("head", name, heads)
    if pretrained:
        raise ValueError(f"a head over {backbone} has no published weights; backbone_pretrained=True gives timm's")
    return name


def _load(
    name: str,
    pretrained: bool,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    verify: bool,
) -> IDMLModel:
    """Returns the model of a "local-dir:" or "hf-hub:" name, or a named model with its published weights."""
    from idml_zoo.models.hub import local_folder, split_name

    _check_revision(name, revision)
    if name.startswith(LOCAL):
        return _load_folder(Path(name[len(LOCAL) :]), pretrained, verify)
    if not name.startswith(HUB):
        return _load_named(name, models[name], token, cache_dir, verify)
    repo, named = split_name(name[len(HUB) :])
    if named and revision and named != revision:
        raise ValueError(f"{name!r} names a revision already, not {revision!r}")
    if not (named or revision) and (folder := local_folder(repo)):  # a folder has no revisions
        return _load_folder(folder, pretrained, verify)
    return _load_hub(repo, named or revision, pretrained, token, cache_dir, verify)


def _load_folder(folder: Path, pretrained: bool, verify: bool, sha256: str | None = None) -> IDMLModel:
    from idml_zoo.models.files import local_files
    from idml_zoo.models.pretrained import load

    config, weights = local_files(folder, pretrained)
    return load(config, weights, verify, str(folder), sha256=sha256)


def _load_hub(
    repo: str,
    revision: str | None,
    pretrained: bool,
    token: str | bool | None,
    cache_dir: str | Path | None,
    verify: bool,
    sha256: str | None = None,
) -> IDMLModel:
    from idml_zoo.models.files import CONFIG, MOST_CONFIG, WEIGHTS
    from idml_zoo.models.hub import fetch
    from idml_zoo.models.pretrained import load, most_bytes

    config = fetch(repo, CONFIG, revision, token, cache_dir, MOST_CONFIG)
    if not pretrained:
        return load(config.path, None)
    most = most_bytes(config.path)
    weights = fetch(repo, WEIGHTS, config.commit or revision, token, cache_dir, most)  # both of one commit
    return load(config.path, weights.path, verify, repo, config.commit, sha256)


def _load_named(
    name: str, record: Record, token: str | bool | None, cache_dir: str | Path | None, verify: bool
) -> IDMLModel:
    from idml_zoo.models.hub import local_folder

    weights = record.weights
    if folder := local_folder(name):
        return _load_folder(folder, True, verify, weights.sha256 if weights else None)
    if weights is None:
        raise ValueError(_no_weights(name, record))
    if weights.repo is None:
        return _load_folder(EMBEDDED / name, True, verify, weights.sha256)
    return _load_hub(weights.repo, weights.revision, True, token, cache_dir, verify, weights.sha256)


def _build(
    head: str,
    backbone: str,
    embedding_dim: int | None,
    backbone_pretrained: bool | str,
    pooling: str | None,
    head_options: dict[str, Any] | None,
    transform: dict[str, Any],
    backbone_options: dict[str, Any],
) -> IDMLModel:
    from idml_zoo.models.model import IDMLModel

    if backbone_pretrained not in (True, False, "timm", "none", "package"):
        raise ValueError(f"backbone_pretrained must be True ('timm'), 'package' or False, got {backbone_pretrained!r}")
    model = IDMLModel(
        backbone,
        head,
        embedding_dim,
        pooling,
        head_options,
        pretrained=backbone_pretrained in (True, "timm"),
        **backbone_options,
    )
    if backbone_pretrained == "package":
        from idml_zoo.models.imagenet_weights import load_package_weights

        weights = load_package_weights(model.backbone, backbone)
        transform = {**transform, "mean": weights.mean, "std": weights.std}
    model.transform = model.transform.replace(**transform)
    kinds: dict[bool | str, str] = {True: "timm", False: "none"}
    model.backbone_source = weights_source(kinds.get(backbone_pretrained, str(backbone_pretrained)), backbone)
    return model.eval()


def _no_weights(name: str, record: Record) -> str:
    return (
        f"{name!r} has no published weights yet. Train it: `{record.command(name)}`, then "
        "create_model('local-dir:RUN_FOLDER/model', pretrained=True), or put that folder under $IDML_ZOO_WEIGHTS by "
        "this name; or start from ImageNet with backbone_pretrained=True"
    )


def weights_source(kind: str, backbone: str) -> str:
    """Returns a backbone's first weights as results record them: "none", "timm:resnet50.tv_in1k", "package:<name>".

    Args:
        kind: "none", "timm" or "package".
        backbone: timm name; the tag of packaged weights is dropped, for they are not timm's.
    """
    return kind if kind == "none" else f"{kind}:{backbone.split('.')[0] if kind == 'package' else backbone}"


def create_transforms(model: IDMLModel | TransformConfig) -> tuple[Any, Any]:
    """Returns the (training, evaluation) transforms of a model: PIL RGB image to float32 ``(3, S, S)``.

    Size, interpolation, mean and std come from the backbone's pretrained configuration (or were saved with the
    weights); the test crop is the paper's (resize S/0.875, centre crop S) unless the benchmark needs another.
    """
    from idml_zoo.data.transforms import TransformConfig, build_transforms

    return build_transforms(model if isinstance(model, TransformConfig) else model.transform)
