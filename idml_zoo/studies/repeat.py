"""Trains a row again from the recipe in its result file, and says whether its numbers came back.

    python recipes/repeat.py leaderboard/results/glyphs/idml-test_resnet-64px-tuned/seed0.json
    python recipes/repeat.py RESULT.json --root /data --within 0.5     # on a GPU, or with other versions: in points

A recipe out of a file may come from a stranger: it trains a network that timm knows on a registered benchmark, and what
names another place (one's own images, a repository of the Hub, other folders) needs --trust.

With the same code, versions, processor and number of threads a run on a CPU gives the same weights, bit for bit. Exits
with 0 where every metric comes back, with 1 where one is further off than allowed. The new run goes to runs/repeat.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from idml_zoo.reports.leaderboard import in_order, title
from idml_zoo.results import Result, ResultError, read_result
from idml_zoo.training.recipes import training_loop
from idml_zoo.training.untrusted import check_recipe, read_recipe


def repeat(old: Result, out: Path, root: str | None = None, trust: bool = False) -> Result:
    """The result of the same run, made anew under ``out``.

    Args:
        old: its recipe is taken for a stranger's.
        out: folder of the run and of its leaderboard.
        root: folder of the data; None for the recipe's.
        trust: let the recipe name places: images, folders, the Hub.

    Raises:
        ResultError: it was not trained by the recipe, the recipe asks for what a stranger's may not, or the run failed
            (which has said why).
    """
    p = old.provenance
    if not p.recipe or not p.weights_sha256:
        raise ResultError(
            f"{old.benchmark}/{old.row}: no recipe in its result; only what recipes/train.py trained repeats"
        )
    recipe = read_recipe(p.recipe)
    recipe |= {"output": str(out), "leaderboard": str(out / "leaderboard"), "tracker": ""}  # nothing elsewhere
    if root is not None:
        recipe["data_root"] = root
    if p.threads and "cpu" in p.device:
        recipe["threads"] = p.threads
    if not trust:
        check_recipe(recipe, root is not None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        if training_loop().main(["--config", str(path)]) != 0:
            raise ResultError(f"{old.benchmark}/{old.row}: the run did not finish; started again, it goes on")
    return read_result(old.path(out / "leaderboard" / "results"))


def differences(old: Result, new: Result) -> dict[str, float]:
    """New minus old of every metric in either, in points; NaN where one of them has none."""
    names = in_order({*old.metrics, *new.metrics})
    pairs = {n: (old.metrics.get(n), new.metrics.get(n)) for n in names}
    return {
        n: 0.0 if a == b else float("nan") if a is None or b is None else 100 * (b - a) for n, (a, b) in pairs.items()
    }


def circumstances(old: Result, new: Result) -> list[str]:
    """What was not the same, in words."""
    then, now = (
        {
            "code": f"{p.commit} with uncommitted changes" if p.dirty else p.commit,
            "device": p.device,
            "threads": p.threads,
            "images": p.data_sha256[:12],
            **p.versions,
        }
        for p in (old.provenance, new.provenance)
    )
    return [f"{k} {then.get(k)} → {now.get(k)}" for k in dict.fromkeys([*then, *now]) if then.get(k) != now.get(k)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="result file of one seed")
    parser.add_argument("--root", help="folder that holds the data (default: as in the recipe)")
    parser.add_argument("--within", type=float, default=0.0, metavar="POINTS", help="largest difference (default 0)")
    parser.add_argument("--trust", action="store_true", help="let the recipe name images, folders and the Hub")
    parser.add_argument("--out", type=Path, default=Path("runs/repeat"), help="(default: runs/repeat)")
    args = parser.parse_args(arguments)
    try:
        old = read_result(args.result)
        new = repeat(old, args.out, args.root, args.trust)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    off = differences(old, new)
    out = Console(soft_wrap=True, markup=False, highlight=False)
    table = Table(title=f"{old.benchmark}/{old.row}, seed {old.seed}, percent")
    for name in ("", "then", "now", "difference"):
        table.add_column(name, justify="right" if name else "left")
    for name, points in off.items():
        values = [r.metrics.get(name) for r in (old, new)]
        cells = ["–" if v is None else f"{100 * v:.2f}" for v in values]
        table.add_row(title(name), *cells, "0" if points == 0 else f"{points:+.3g}")
    out.print(table)
    same = old.provenance.weights_sha256 == new.provenance.weights_sha256
    worst = max(abs(v) for v in off.values())
    held = all(abs(v) <= args.within for v in off.values())  # NaN is not
    if same and not any(off.values()):
        out.print("weights and metrics are the same, bit for bit")
    else:
        out.print(f"weights {'equal' if same else 'differ'}; the largest difference of a metric is {worst:.3g} points")
    if changed := circumstances(old, new):
        out.print(f"not the same: {'; '.join(changed)}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
