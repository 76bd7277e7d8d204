"""Puts a trained model where `pretrained=True` finds it without a network: half-precision weights, card and result.

    python recipes/take_away.py runs/cub2010/ROW/seed0/model idml_tf_efficientnet_lite0_cub2010

The half-precision weights are measured anew on the benchmark, whose data must be at hand: the card has the numbers of
what is given away, not of what it was made from. Prints the line for PUBLISHED in idml_zoo/zoo.py.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from publish_all import name_of

from idml_zoo.evaluation.protocol import evaluate, save_result
from idml_zoo.files import sha256_of
from idml_zoo.models.files import CONFIG, WEIGHTS, WeightsError, read_config
from idml_zoo.models.zoo import EMBEDDED, LOCAL, create_model
from idml_zoo.reports.card import build_card, check_card, own_results
from idml_zoo.results import ResultError

MOST = 10_000_000  # bytes


def take_away(folder: Path, name: str, leaderboard: Path, root: str, into: Path, dtype: torch.dtype) -> str:
    """Makes ``into/name`` from a model's folder; the line for PUBLISHED.

    Args:
        folder: with the trained model.
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
    if (known := name_of(spec)) != name:
        raise WeightsError(f"{folder} is {known or 'no model that the zoo has a name for'}, not {name}")
    old = next((r for r in own_results(folder, leaderboard / "results") if r.protocol.split == "test"), None)
    if old is None:
        raise ResultError(f"{leaderboard} has no result of the weights in {folder}; `idml-zoo eval` makes one")
    model = create_model(f"{LOCAL}{folder}", pretrained=True)
    p = old.provenance
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / name
        model.save_pretrained(made, dtype=dtype, **spec.meta)
        if (size := (made / WEIGHTS).stat().st_size) > MOST:
            raise WeightsError(f"{name} would take {size / 1e6:.1f} MB; at most {MOST / 1e6:.0f} come with the package")
        sha = sha256_of(made / WEIGHTS)
        result = evaluate(
            create_model(f"{LOCAL}{made}", pretrained=True),
            old.benchmark,
            root=root,
            row=old.row,
            seed=old.seed,
            variant=old.model.variant,
            pretrained=old.model.pretrained,
            checkpoint=old.protocol.checkpoint,
            training=f"{old.training}, stored as {str(dtype).removeprefix('torch.')}",
            train_seconds=p.seconds.get("train"),
            recipe=p.recipe,
            statistics=old.statistics,
            weights_sha256=sha,
            trained=p.trained or {"command": p.command, "commit": str(p.commit), "created": p.created},
        )
        save_result(result, Path(place) / "results")
        build_card(made, Path(place) / "results", name)
        if wrong := check_card(made):
            raise ResultError(f"the card of {name} does not agree with its result: {wrong[0]}")
        new = into / f".{name}.part"
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(made, new)  # the old one goes only when the new one is whole
        shutil.rmtree(into / name, ignore_errors=True)
        new.rename(into / name)
    return f'    "{name}": Weights("{sha}"),'


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the trained model's")
    parser.add_argument("name", help="of the zoo: `idml-zoo list`")
    parser.add_argument(
        "--leaderboard", type=Path, default=Path("runs/leaderboard"), help="(default: runs/leaderboard)"
    )
    parser.add_argument("--root", default="data", help="folder that holds the data (default: data)")
    parser.add_argument("--into", type=Path, default=EMBEDDED, help="default: the package")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    args = parser.parse_args(arguments)
    try:
        dtype = getattr(torch, args.dtype)
        print(take_away(args.folder, args.name, args.leaderboard, args.root, args.into, dtype))
    except (ValueError, OSError, LookupError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
