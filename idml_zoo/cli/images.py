"""What the commands share that look at images: a benchmark, or one's own."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from idml_zoo.data.benchmark import Benchmark, table_benchmark
from idml_zoo.data.errors import DataError
from idml_zoo.registry import benchmarks

if TYPE_CHECKING:
    from idml_zoo.data.split import Splits


def add_root(one: argparse.ArgumentParser) -> None:
    """The folder of the data."""
    one.add_argument("--root", default="data", help="folder that holds the data (default: data)")


def add_images(one: argparse.ArgumentParser, revision: str = "--revision") -> None:
    """The arguments that name images; ``revision`` is another word where that one is the model's."""
    one.add_argument("benchmark", help="a name of `idml-zoo data list`; with --source, a name for your own images")
    add_root(one)
    one.add_argument(
        "--source",
        metavar="PATH_OR_ID",
        help="a folder of class folders, Parquet file(s), or a Hub data set id, user/name or user/name:configuration",
    )
    one.add_argument(
        revision, dest="data_revision", help="commit of a Hub data set (default: the latest, which is recorded)"
    )
    one.add_argument("--hub-split", help="train, test, train+test or all (default: all for a benchmark, else train)")
    one.add_argument("--image-column", default="image")
    one.add_argument("--label-column", default="label")
    one.add_argument("--train-classes", help="of your own images: 0-99 (default: the first half)")
    one.add_argument("--test-classes", help="of your own images: 100-199, or all (default: the others)")


def chosen_images(args: argparse.Namespace) -> Benchmark:
    """The registered benchmark, one over its copy elsewhere, or one over somebody's own images.

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
    """Its splits, counts checked; ``--source`` comes before a prepared copy of the same name."""
    return record.check(record.originals(args.root)) if args.source else record.splits(args.root)
