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
from collections.abc import Iterator
from pathlib import Path

from idml_zoo.cli import main as command
from idml_zoo.weights import CONFIG, WEIGHTS, Spec, WeightsError, read_config, sha256_of
from idml_zoo.zoo import BACKBONES, PUBLISHED, models


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


def found(runs: Path) -> Iterator[tuple[str, Path]]:
    """(name, model folder) of the first seed of each name, in order of path."""
    seen: set[str] = set()
    for config in sorted(runs.rglob(f"model/{CONFIG}")):
        try:
            name = name_of(read_config(config))
        except WeightsError as error:
            print(f"skipped  {error}", file=sys.stderr)
            continue
        if name and name not in seen and (config.parent / WEIGHTS).is_file():
            seen.add(name)
            yield name, config.parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of runs")
    parser.add_argument("--owner", required=True, help="user or organisation on the Hub")
    parser.add_argument("--leaderboard", default="leaderboard", help="whose results go with them")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--token")
    args = parser.parse_args(arguments)
    failed, count = [], 0
    for name, folder in found(args.runs):
        count += 1
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
    if not count:
        print(f"no trained model under {args.runs} has a name of the zoo (`idml-zoo list`)")
    if failed:
        print(f"not published: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
