"""The command ``idml-zoo data``: lists, prepares, verifies and shows benchmarks and one's images."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idml_zoo.cli.arguments import add_images, add_root, chosen_images, load_images
from idml_zoo.data.benchmark import Benchmark
from idml_zoo.data.errors import DataError, MissingDataError
from idml_zoo.data.folders import MANIFEST
from idml_zoo.registry import benchmarks

if TYPE_CHECKING:
    from idml_zoo.data.preparation.check import Report
    from idml_zoo.data.split import Split

_SUFFIXES = (".png", ".jpg", ".webp")


def add_parsers(commands: Any) -> None:
    """Adds ``data`` and its four actions to the command line."""
    parser = commands.add_parser("data", help="find, prepare, verify and look at benchmarks and your own images")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    listed = actions.add_parser("list", help="every benchmark: its size, and whether its images are on this machine")
    add_root(listed)
    listed.set_defaults(run=_list)

    prepared = actions.add_parser(
        "prepare",
        help="check every image of a benchmark and write one uniform copy of it",
        description="Checks counts, decodes every image, and writes <root>/prepared/<name>: Arrow shards with encoded "
        "images, label, path and split, which the recipes and `datasets` read. Nothing half-written is left behind.",
    )
    add_images(prepared)
    prepared.add_argument("--download", action="store_true", help="first get the official archive, where a link works")
    prepared.add_argument("--archive", nargs="+", default=[], metavar="FILE", help="first extract official archive(s)")
    prepared.add_argument("--skip-broken", action="store_true", help="leave out images that cannot be read; list them")
    prepared.add_argument("--allow-leaks", action="store_true", help="accept images that are in train and in test")
    prepared.add_argument("--force", action="store_true", help="prepare again what is prepared already")
    prepared.set_defaults(run=_prepare)

    verified = actions.add_parser(
        "verify", help="check counts again, decode every image, name every broken file, print fingerprints"
    )
    add_images(verified)
    verified.set_defaults(run=_verify)

    shown = actions.add_parser("show", help="write a contact sheet as a picture")
    add_images(shown)
    shown.add_argument(
        "--out", default="", metavar="FILE", help=f"{', '.join(_SUFFIXES)} (default: <name>-<split>.png)"
    )
    shown.add_argument("--split", choices=("train", "test"), default="train", help="(default: train)")
    shown.add_argument("--classes", type=int, default=8, help="rows (default 8)")
    shown.add_argument("--images", type=int, default=8, help="columns (default 8)")
    shown.add_argument("--size", type=int, default=112, help="of each image, pixels (default 112)")
    shown.add_argument("--seed", type=int, default=0, help="draws the images of a class (default 0)")
    shown.add_argument("--corruption", metavar="KIND:SEVERITY", help="corrupt the images first, for example blur:3")
    shown.set_defaults(run=_show)


def _list(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("name", "state", "train", "test", "title"):
        table.add_column(title, justify="right" if title in ("train", "test") else "left", no_wrap=title != "title")
    for name in benchmarks.names():
        record: Benchmark = benchmarks[name]
        c = record.counts
        sizes = (f"{c[1]:,} / {c[0]:,}", f"{c[3]:,} / {c[2]:,}") if c else ("", "")
        table.add_row(name, _state(record, args.root), *sizes, record.title)
    out = Console(highlight=False)
    out.print(table)
    out.print(f"\nimages / classes of each split; looked for under {args.root}", style="dim", soft_wrap=True)
    return 0


def _state(record: Benchmark, root: str) -> str:
    """Returns the state of a benchmark in a word or two. Its lists are read; its images are not decoded."""
    if record.embedded:
        return "embedded"
    if (record.prepared_folder(root) / MANIFEST).is_file():
        return "prepared"
    try:
        record.splits(root)
    except MissingDataError:
        return "not found"
    except DataError:
        return "damaged"
    return "found"


def _prepare(args: argparse.Namespace) -> int:
    from idml_zoo.data.preparation.prepare import prepare

    record = chosen_images(args)
    if record.embedded:
        print(f"{record.name} is embedded in the package; there is nothing to prepare")
        return 0
    folder = record.prepared_folder(args.root)
    if (folder / MANIFEST).is_file() and not args.force:
        record.splits(args.root)
        source = f" --source {folder}" if args.source else ""
        verify = f"idml-zoo data verify {record.name}{source}"
        print(f"{folder} is prepared already; `{verify}` checks it, --force makes it again")
        return 0
    if args.archive or args.download:
        if _is_extracted(record, args.root):  # by an earlier run, which failed in a later step
            print(f"{record.name} is extracted under {args.root} already; delete it there to extract it again")
        else:
            _extract(record, args)
    folder, report = prepare(
        record, record.originals(args.root), args.root, args.skip_broken, args.allow_leaks, sys.stderr.isatty()
    )
    _print(report)
    print(f"prepared {folder}")
    return 0


def _is_extracted(record: Benchmark, root: str) -> bool:
    """Returns whether the original images lie under the data root, with the expected counts."""
    try:
        record.check(record.originals(root))
    except DataError:
        return False
    return True


def _extract(record: Benchmark, args: argparse.Namespace) -> None:
    """Extracts official archives, named or downloaded, under the data root.

    Raises:
        DataError: an archive is missing, damaged, or has no working link.
    """
    from idml_zoo.data.preparation.archives import extract
    from idml_zoo.data.preparation.download import fetch, verify_archive

    official = {a.name: a for a in record.archives}
    files = [Path(f) for f in args.archive]
    for file in files:
        if not file.is_file():
            raise DataError(f"no archive {file}; --archive names files that were downloaded by hand")
        if file.name in official:
            verify_archive(file, official[file.name])
    if args.download:
        if not record.archives or any(a.url is None for a in record.archives):
            raise DataError(f"{record.name} cannot be downloaded any more. {record.remedy}")
        files += [fetch(a, Path(args.root) / "downloads") for a in record.archives]
    for file in files:
        if file.suffix == ".mat":
            Path(args.root).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, Path(args.root) / file.name)
        else:
            extract(file, Path(args.root))


def _verify(args: argparse.Namespace) -> int:
    from idml_zoo.data.preparation.check import check_splits

    record = chosen_images(args)
    splits = load_images(record, args)
    report = check_splits(splits, sys.stderr.isatty())
    _print(report)
    expected = _manifest_fingerprints(record, args)
    changed = [k for k, v in expected.items() if report.fingerprints[k] != v]
    for key in changed:
        print(f"{key}: the fingerprint is not that of the manifest; prepare it again: --force", file=sys.stderr)
    verdict = "ok" if report.ok and not changed else "NOT ok"
    print(f"{record.name}: {verdict} ({splits.origin or 'embedded'})")
    return 0 if verdict == "ok" else 1


def _manifest_fingerprints(record: Benchmark, args: argparse.Namespace) -> dict[str, str]:
    """Returns the fingerprint of each split in the manifest of a prepared copy; {} without one."""
    from idml_zoo.data.store import read_manifest

    folder = Path(args.source) if args.source else record.prepared_folder(args.root)
    if not (folder / MANIFEST).is_file():
        return {}
    return {k: v["fingerprint"] for k, v in read_manifest(folder)["splits"].items()}


def _print(report: Report) -> None:
    for key, count in report.images.items():
        print(f"{key:<6} {count:>7,} images {report.classes[key]:>6,} classes  sha256 {report.fingerprints[key]}")
    low, middle, high = report.sides
    print(f"shorter sides {low}–{high} px, median {middle}; {report.copies} copies of other images of the same split")
    for broken in report.broken:
        print(f"broken: {broken.name}: {broken.reason}")
    for first, second in report.leaks:
        print(f"in train and test: {first} = {second}")


def _show(args: argparse.Namespace) -> int:
    from idml_zoo.data.preparation.sheet import contact_sheet

    record = chosen_images(args)
    splits = load_images(record, args)
    split: Split = getattr(splits, args.split)
    if args.corruption:
        from idml_zoo.data.corruptions import corrupt

        kind, _, severity = args.corruption.partition(":")
        if not severity.isdigit():
            raise DataError(f"--corruption must look like blur:3, got {args.corruption!r}")
        split = corrupt(split, kind, int(severity), side=256)
    out = Path(args.out or f"{record.name}-{args.split}.png")
    if out.suffix.lower() not in _SUFFIXES:
        raise DataError(f"--out must end in {', '.join(_SUFFIXES)}, got {out}")
    sheet = contact_sheet(split, args.classes, args.images, args.size, args.seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
    print(out)
    return 0
