"""Fits the default coefficients and measures what confidence is worth.

    python -m idml_zoo.studies.reliability fit --cache EMBEDDINGS       # writes idml_zoo/reliability/defaults.json
    python -m idml_zoo.studies.reliability measure --cache EMBEDDINGS   # writes docs/reliability/measured.json
    python -m idml_zoo.studies.reliability page [--check]               # fills docs/reliability.md from it

The sources are listed in docs/reliability/sources.yaml. Models of one's own training are read from --models: a folder
with KEY/config.json and KEY/model.safetensors. Embeddings are kept in --cache and used again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from idml_zoo.evaluation.provenance import code_state, device_name, versions
from idml_zoo.files import utc_now, write_file
from idml_zoo.reliability.reliability import Reliability, default
from idml_zoo.reports.blocks import outdated, write_blocks
from idml_zoo.studies.pages import report_outdated
from idml_zoo.studies.reliability.fitting import fit_default
from idml_zoo.studies.reliability.measuring import answers_of, as_shipped, measure_promises, measure_source, without_set
from idml_zoo.studies.reliability.page import block, draw
from idml_zoo.studies.reliability.sources import Source, keys, load, read_sources

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "reliability"
SOURCES, MEASURED, PAGE = FOLDER / "sources.yaml", FOLDER / "measured.json", ROOT / "docs" / "reliability.md"
DEFAULTS = ROOT / "idml_zoo" / "reliability" / "defaults.json"
CORRUPTIONS = ("blur:3",)  # of the queries, where the calibration was on clean ones


def _with_models(source: Source, models: Path) -> Source:
    """Returns the source with the folder of its model, where it names none."""
    return source if source.model else replace(source, model=f"local-dir:{models / source.key}")


def fit(args: argparse.Namespace) -> dict[str, Reliability]:
    """Returns the coefficients by the set that they were fitted without, "" for all sets."""
    sources = [_with_models(s, args.models) for s in read_sources(args.sources)["fit"]]
    names = keys(sources)
    answers = {
        name: answers_of(load(source, args.root, args.cache))
        for name, source in zip(names, track(sources, description="fitting"), strict=True)
    }
    sets = sorted({s.benchmark for s in sources})
    note = f"{len(sources)} embeddings of held-out training classes of {', '.join(sets)}"
    return {name: as_shipped(fit_default(answers, note, without=name)) for name in ("", *sets)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of all sources of the use "test"."""
    reliabilities, shipped = fit(args), default()
    if reliabilities[""].to_dict() != shipped.to_dict():
        raise ValueError(f"{DEFAULTS} is not what the sources give; run `fit` first")
    figures: dict[str, Any] = (
        json.loads(args.out.read_text(encoding="utf-8"))["figures"] if args.resume and args.out.exists() else {}
    )
    for source in track(read_sources(args.sources)["test"], description="measuring"):
        judged = source.name in args.promises
        if source.key in figures and (not judged or "promises" in figures[source.key]):
            continue
        source = _with_models(source, args.models)
        data, elsewhere = load(source, args.root, args.cache), without_set(reliabilities, source.benchmark)
        if source.key not in figures:
            figures[source.key] = measure_source(data, elsewhere, shipped) | {"row": source.row}
        if judged:
            worse = {c: load(source, args.root, args.cache, c) for c in CORRUPTIONS}
            figures[source.key]["promises"] = measure_promises(data, worse, elsewhere)
        _write(args.out, figures)
    return figures


def _write(path: Path, figures: Mapping[str, Any]) -> None:
    commit, dirty = code_state()
    about = {
        "command": "python -m idml_zoo.studies.reliability measure",
        "commit": commit,
        "dirty": dirty,
        "created": utc_now(),
        "versions": versions(),
    }
    about["device"] = device_name(torch.device("cpu"))
    write_file(path, json.dumps({"provenance": about, "figures": dict(figures)}, indent=1, sort_keys=True) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Fits, measures, or writes or checks the page; returns an exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fit", "measure", "page"))
    parser.add_argument("--sources", type=Path, default=SOURCES)
    parser.add_argument("--models", type=Path, default=Path("runs/reliability"))
    parser.add_argument("--cache", type=Path, default=Path("runs/embeddings"))
    parser.add_argument("--root", default="data", help="folder of the data (default: data)")
    parser.add_argument("--out", type=Path, default=MEASURED)
    parser.add_argument("--promises", nargs="*", default=["embedded"], help="names of sources whose limits are judged")
    parser.add_argument("--resume", action="store_true", help="keep the figures that are there")
    parser.add_argument("--check", action="store_true", help="with page: write nothing; fail where it is out of date")
    args = parser.parse_args(arguments)
    if args.what == "fit":
        fit(args)[""].save(DEFAULTS)
    elif args.what == "measure":
        measure(args)
    else:
        make = partial(block, figures=json.loads(args.out.read_text(encoding="utf-8"))["figures"])
        if args.check:
            return report_outdated([PAGE], outdated([PAGE], make))
        write_blocks([PAGE], make)
        draw(args.out, FOLDER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
