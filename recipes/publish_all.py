"""Publishes every trained run of a folder under its zoo name, for a maintainer with an account on the Hub.

    python recipes/publish_all.py runs --owner idml-zoo --leaderboard leaderboard --dry-run
    python recipes/publish_all.py runs --owner idml-zoo --leaderboard leaderboard

A run belongs to a name where head, backbone, width and benchmark are those of the name's record, and where it has a
result file; of several seeds the first is taken. What is on the Hub already, with the same weights, is left alone. At
the end it prints the lines for PUBLISHED in idml_zoo/zoo.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from idml_zoo.cli.main import main as command
from idml_zoo.files import sha256_of
from idml_zoo.models.files import CONFIG, WEIGHTS, Spec, WeightsError, read_config
from idml_zoo.models.zoo import BACKBONES, PUBLISHED, models
from idml_zoo.reports.card import own_results


def name_of(spec: Spec) -> str | None:
    """The zoo's name for a saved network; None where it has none."""
    for name in models:
        record = models[name]
        backbone = BACKBONES[record.backbone]
        same = spec.model["head"] == record.head and spec.model["embedding_dim"] == record.embedding_dim
        same = same and spec.model["backbone"].split(".")[0] == backbone.timm_name.split(".")[0]
        if same and spec.meta.get("benchmark") == record.benchmark:
            return name
    return None


def found(runs: Path, results: Path) -> dict[str, Path | None]:
    """Of each name that has a trained model: the folder of one that is measured on its test classes; None without one.

    Of several: the variant that the zoo's record trains (``idml``, ``pa``) before others, then the first by path.
    """
    candidates: dict[str, list[tuple[bool, Path]]] = {}
    for config in sorted(p for part in ("model", "best") for p in runs.rglob(f"{part}/{CONFIG}")):
        folder = config.parent
        try:
            spec = read_config(config)
            name = name_of(spec)
            if name and (folder / WEIGHTS).is_file():
                measured = candidates.setdefault(name, [])
                if any(r.protocol.split == "test" for r in own_results(folder, results)):
                    measured.append((spec.meta.get("variant") != models[name].variant, folder))
        except WeightsError as error:
            print(f"skipped  {error}", file=sys.stderr)
    return {name: min(folders)[1] if folders else None for name, folders in sorted(candidates.items())}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of runs")
    parser.add_argument("--owner", required=True, help="user or organisation on the Hub")
    parser.add_argument("--leaderboard", default="leaderboard", help="whose results go with them")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--token")
    args = parser.parse_args(arguments)
    failed = []
    trained = found(args.runs, Path(args.leaderboard) / "results")
    for name, folder in trained.items():
        if folder is None:
            print(f"{name}: no result of trained weights in {args.leaderboard}", file=sys.stderr)
            failed.append(name)
            continue
        known = PUBLISHED.get(name)
        if known and known.sha256 == sha256_of(folder / WEIGHTS):
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


if __name__ == "__main__":
    sys.exit(main())
