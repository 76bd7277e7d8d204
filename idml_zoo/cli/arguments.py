"""Arguments that several commands share, and what they mean: a model, a metric, images, how to compute."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idml_zoo.data.benchmark import Benchmark, table_benchmark
from idml_zoo.data.errors import DataError
from idml_zoo.metric import SIMILARITIES
from idml_zoo.registry import benchmarks

if TYPE_CHECKING:
    from idml_zoo.data.split import Splits
    from idml_zoo.metric import Metric
    from idml_zoo.models.model import IDMLModel


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name a model."""
    parser.add_argument(
        "model", help="a name of `idml-zoo list`, 'local-dir:FOLDER', 'hf-hub:user/name', or a head with --backbone"
    )
    parser.add_argument(
        "--pretrained",
        action=argparse.BooleanOptionalAction,
        help="trained weights (default: where the name has any)",
    )
    parser.add_argument("--revision", help="commit, branch or tag, of an 'hf-hub:' name")
    parser.add_argument(
        "--backbone", help="timm model, for a head ('idml', 'semantic', 'features' = plain pooled features)"
    )
    parser.add_argument(
        "--backbone-weights",
        choices=("none", "timm", "package"),
        default="none",
        help="pretrained weights of --backbone: of timm, or of an installed package (default: none)",
    )
    parser.add_argument(
        "--pooling",
        choices=("avg+max", "avg", "native"),
        help="of the backbone's features (default: what the model was made with; avg+max for CNNs, native for ViTs)",
    )


def positive(text: str) -> int:
    """Returns a whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def add_metric(parser: argparse.ArgumentParser) -> None:
    """Adds ``--similarity`` and ``--tau``."""
    parser.add_argument("--similarity", choices=SIMILARITIES, default="cosine", help="of the search (default: cosine)")
    add_tau(parser)


def add_tau(parser: argparse.ArgumentParser) -> None:
    """Adds the temperature of the introspective search; None where it is not given."""
    parser.add_argument(
        "--tau", type=_tau, help="of the introspective search (default: what the model was trained with, else 5)"
    )


def _tau(text: str) -> float:
    """Returns a temperature, for argparse."""
    from idml_zoo.metric import check_tau

    value = float(text)
    try:
        check_tau(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return value


def chosen_metric(args: argparse.Namespace, model: IDMLModel) -> Metric:
    """Returns the metric that ``--similarity`` and ``--tau`` name; the temperature is the model's where none is."""
    from idml_zoo.metric import Metric

    return Metric(args.similarity, model.tau if args.tau is None else float(args.tau))


def open_model(args: argparse.Namespace) -> IDMLModel:
    """Returns the model that the arguments name; its ``origin`` is None where it is untrained."""
    from idml_zoo.models.hub import local_folder
    from idml_zoo.models.zoo import HUB, LOCAL, create_model, models

    trained = args.pretrained
    if trained is None:
        has_weights = args.model in models and (
            models[args.model].weights is not None or local_folder(args.model) is not None
        )
        trained = args.model.startswith((LOCAL, HUB)) or (has_weights and args.backbone_weights == "none")
    if not trained:
        import torch

        torch.manual_seed(getattr(args, "seed", None) or 0)
    model = create_model(
        args.model,
        trained,
        backbone=args.backbone,
        pooling=args.pooling,
        backbone_pretrained=args.backbone_weights,
        revision=args.revision,
    )
    if not trained and (args.model != "features" or args.backbone_weights == "none"):
        what = "its head's weights are" if args.backbone_weights != "none" else "its weights are"
        print(f"note: this model is untrained: {what} random", file=sys.stderr)
    return model


def add_compute(parser: argparse.ArgumentParser, workers: bool = True) -> None:
    """Adds how embeddings are computed."""
    parser.add_argument("--batch-size", type=positive, default=64, help="images at once (default 64)")
    if workers:
        parser.add_argument("--workers", type=int, default=0, help="processes that decode images (default: this one)")
    parser.add_argument("--device", help="default: cuda where there is one")


def chosen_compute(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the keywords of :func:`idml_zoo.embed` that the arguments give."""
    return {"batch_size": args.batch_size, "workers": args.workers, "device": args.device}


def add_root(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of the data."""
    parser.add_argument("--root", default="data", help="folder that holds the data (default: data)")


def add_images(parser: argparse.ArgumentParser, revision: str = "--revision") -> None:
    """Adds the arguments that name images; ``revision`` is the option for their commit."""
    parser.add_argument("benchmark", help="a name of `idml-zoo data list`; with --source, a name for your own images")
    add_root(parser)
    parser.add_argument(
        "--source",
        metavar="PATH_OR_ID",
        help="a folder of class folders, Parquet file(s), or a Hub data set id, user/name or user/name:configuration",
    )
    parser.add_argument(
        revision, dest="data_revision", help="commit of a Hub data set (default: the latest, which is recorded)"
    )
    parser.add_argument("--hub-split", help="train, test, train+test or all (default: all for a benchmark, else train)")
    parser.add_argument("--image-column", default="image", help="of Parquet files and Hub data sets (default: image)")
    parser.add_argument("--label-column", default="label", help="the same for class numbers (default: label)")
    parser.add_argument("--train-classes", help="of your own images: 0-99 (default: the first half)")
    parser.add_argument("--test-classes", help="of your own images: 100-199, or all (default: the others)")


def chosen_images(args: argparse.Namespace) -> Benchmark:
    """Returns the registered benchmark, one over its copy elsewhere, or one over your own images.

    Raises:
        UnknownNameError: no such benchmark.
        DataError: a path in the place of a name, or classes chosen where they are fixed.
    """
    if not args.source:
        if args.benchmark not in benchmarks and Path(args.benchmark).exists():
            raise DataError(f"{args.benchmark} is a path: give a name, and the path with --source")
        record: Benchmark = benchmarks[args.benchmark]
        if args.train_classes or args.test_classes:
            raise DataError(f"{record.name} is a registered benchmark: its classes are fixed")
        columns = (args.image_column, args.label_column) != ("image", "label")
        if args.data_revision or args.hub_split or columns:
            raise DataError("a revision, --hub-split, --image-column and --label-column go with --source")
        return record
    options = {"revision": args.data_revision, "image_column": args.image_column, "label_column": args.label_column}
    source = Path(args.source).absolute() if Path(args.source).exists() else args.source
    if args.benchmark not in benchmarks:
        train, test = args.train_classes, args.test_classes
        return table_benchmark(args.benchmark, source, train, test, args.hub_split or "train", **options)
    record = benchmarks[args.benchmark]
    if record.embedded or args.train_classes or args.test_classes:
        raise DataError(
            f"{record.name} is a registered benchmark: its images or classes are fixed; choose another name"
        )
    train, test = record.classes or (None, None)
    table = table_benchmark(record.name, source, train, test, args.hub_split or "all", **options)
    return replace(record, load=table.load)


def load_images(record: Benchmark, args: argparse.Namespace) -> Splits:
    """Returns its splits, counts checked; ``--source`` comes before a prepared copy of the same name."""
    return record.check(record.originals(args.root)) if args.source else record.splits(args.root)
