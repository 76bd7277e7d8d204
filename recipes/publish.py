"""Publishes trained models, for maintainers: on the Hub, or inside the package.

    python recipes/publish.py hub runs --owner idml-zoo --leaderboard leaderboard --dry-run
    python recipes/publish.py package runs/cub2010/ROW/seed0/model idml_tf_efficientnet_lite0_cub2010

`hub` publishes every trained run of a folder under its zoo name. A run belongs to a name where head, backbone, width
and benchmark are those of the name's record, and where it has a result file. Of several seeds the first is taken. A
model that is on the Hub already, with the same weights, is left alone.

`package` puts one model where `pretrained=True` finds it without a network: half-precision weights, card and result.
The half-precision weights are measured anew on the benchmark, whose data must be at hand. So the card has the numbers
of the stored weights, not of those that they were rounded from.

Both print the lines for PUBLISHED in idml_zoo/models/records.py.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from idml_zoo.cli.main import main as command
from idml_zoo.evaluation.protocol import evaluate, save_result
from idml_zoo.files import sha256_of
from idml_zoo.models.files import CONFIG, WEIGHTS, Spec, WeightsError, read_config
from idml_zoo.models.zoo import BACKBONES, EMBEDDED, LOCAL, PUBLISHED, create_model, models
from idml_zoo.reports.card import build_card, check_card, results_of_weights
from idml_zoo.results import Result, ResultError, TrainingRecord

MAX_BYTES = 10_000_000  # of weights inside the package


def zoo_name(spec: Spec) -> str | None:
    """Returns the zoo's name for a saved network, or None."""
    for name in models:
        record = models[name]
        backbone = BACKBONES[record.backbone]
        same = spec.model["head"] == record.head and spec.model["embedding_dim"] == record.embedding_dim
        same = same and spec.model["backbone"].split(".")[0] == backbone.timm_name.split(".")[0]
        if same and spec.meta.get("benchmark") == record.benchmark:
            return name
    return None


def measured_models(runs: Path, results: Path) -> dict[str, Path | None]:
    """Returns the folder of one measured model for each name that has a trained model; None where none is measured.

    Of several: the variant that the zoo's record trains (``idml``, ``pa``) before others, then the first by path.
    """
    candidates: dict[str, list[tuple[bool, Path]]] = {}
    for config in sorted(p for part in ("model", "best") for p in runs.rglob(f"{part}/{CONFIG}")):
        folder = config.parent
        try:
            spec = read_config(config)
            name = zoo_name(spec)
            if name and (folder / WEIGHTS).is_file():
                measured = candidates.setdefault(name, [])
                if _test_result(folder, results):
                    measured.append((spec.meta.get("variant") != models[name].variant, folder))
        except WeightsError as error:
            print(f"skipped  {error}", file=sys.stderr)
    return {name: min(folders)[1] if folders else None for name, folders in sorted(candidates.items())}


def _test_result(folder: Path, results: Path) -> Result | None:
    """Returns a result of a folder's weights on the test classes, or None."""
    return next((r for r in results_of_weights(folder, results) if r.protocol.split == "test"), None)


def publish_on_hub(args: argparse.Namespace) -> int:
    """Pushes every measured model under its name; returns the exit status."""
    failed = []
    trained = measured_models(args.runs, Path(args.leaderboard) / "results")
    for name, folder in trained.items():
        if folder is None:
            print(f"{name}: no result of trained weights in {args.leaderboard}", file=sys.stderr)
            failed.append(name)
            continue
        published = PUBLISHED.get(name)
        if published and published.sha256 == sha256_of(folder / WEIGHTS):
            print(f"{name}: published already")
            continue
        words = ["push", str(folder), "--repo", f"{args.owner}/{name}", "--leaderboard", args.leaderboard]
        words += ["--dry-run"] if args.dry_run else []
        words += ["--token", args.token] if args.token else []
        print(f"\n{name}")
        if command(words):
            failed.append(name)
    if not trained:
        print(f"no trained model under {args.runs} has a name of the zoo (`idml-zoo list`)")
    if failed:
        print(f"not published: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def store_in_package(folder: Path, name: str, leaderboard: Path, root: str, into: Path, dtype: torch.dtype) -> str:
    """Makes ``into/name`` from a model's folder; returns the line for PUBLISHED.

    Args:
        folder: of the trained model.
        name: of the zoo; its record must be of this network and benchmark.
        leaderboard: where the result of these weights is.
        root: folder of the data.
        into: where named models lie.
        dtype: of the stored weights.

    Raises:
        WeightsError: no model there, one of another name, or one that would be too large.
        ResultError: no result of these weights on the test classes.
    """
    spec = read_config(folder / CONFIG)
    if (actual := zoo_name(spec)) != name:
        raise WeightsError(f"{folder} is {actual or 'no model that the zoo has a name for'}, not {name}")
    old = _test_result(folder, leaderboard / "results")
    if old is None:
        raise ResultError(f"{leaderboard} has no result of the weights in {folder}; `idml-zoo eval` makes one")
    model = create_model(f"{LOCAL}{folder}", pretrained=True)
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / name
        model.save_pretrained(made, dtype=dtype, **spec.meta)
        if (size := (made / WEIGHTS).stat().st_size) > MAX_BYTES:
            raise WeightsError(
                f"{name} would take {size / 1e6:.1f} MB; at most {MAX_BYTES / 1e6:.0f} come with the package"
            )
        save_result(_measure_again(made, old, root, dtype), Path(temporary) / "results")
        build_card(made, Path(temporary) / "results", name)
        if differing := check_card(made):
            raise ResultError(f"the card of {name} does not agree with its result: {differing[0]}")
        sha = sha256_of(made / WEIGHTS)
        new = into / f".{name}.part"
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(made, new)  # the old one goes only when the new one is whole
        shutil.rmtree(into / name, ignore_errors=True)
        new.rename(into / name)
    return f'    "{name}": Weights("{sha}"),'


def _measure_again(made: Path, old: Result, root: str, dtype: torch.dtype) -> Result:
    """Returns the result of the stored weights, with the history of the result that they were rounded from."""
    return evaluate(
        create_model(f"{LOCAL}{made}", pretrained=True),
        old.benchmark,
        root=root,
        row=old.row,
        seed=old.seed,
        training=replace(
            TrainingRecord.of(old),
            description=f"{old.training}, stored as {str(dtype).removeprefix('torch.')}",
            weights_sha256=sha256_of(made / WEIGHTS),
        ),
    )


def _store(args: argparse.Namespace) -> int:
    """Runs the command ``package``; returns the exit status."""
    dtype = getattr(torch, args.dtype)
    print(store_in_package(args.folder, args.name, args.leaderboard, args.root, args.into, dtype))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Runs one of the two commands; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="{hub,package}")

    one = commands.add_parser("hub", help="publish every trained run of a folder on the Hub")
    one.add_argument("runs", type=Path, help="folder of runs")
    one.add_argument("--owner", required=True, help="user or organisation on the Hub")
    one.add_argument("--leaderboard", default="leaderboard", help="whose results go with them (default: leaderboard)")
    one.add_argument("--dry-run", action="store_true", help="check everything and show what would be uploaded")
    one.add_argument("--token", help="with write access (default: the one that is logged in, or HF_TOKEN)")
    one.set_defaults(run=publish_on_hub)

    one = commands.add_parser("package", help="put a trained model into the package")
    one.add_argument("folder", type=Path, help="of the trained model")
    one.add_argument("name", help="of the zoo: `idml-zoo list`")
    one.add_argument("--leaderboard", type=Path, default=Path("runs/leaderboard"), help="(default: runs/leaderboard)")
    one.add_argument("--root", default="data", help="folder that holds the data (default: data)")
    one.add_argument("--into", type=Path, default=EMBEDDED, help="folder of named models (default: the package)")
    one.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    one.set_defaults(run=_store)

    args = parser.parse_args(arguments)
    try:
        return int(args.run(args))
    except (ValueError, OSError, LookupError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
