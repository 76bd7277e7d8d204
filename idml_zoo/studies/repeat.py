"""Trains a row again from the recipe in its result file, and compares the numbers.

    idml-zoo repeat leaderboard/results/glyphs/idml-test_resnet-64px-tuned/seed0.json
    idml-zoo repeat RESULT.json --root /data --within 0.5     # on a GPU, or with other versions: in points

With the same code, versions, processor and number of threads, a run on a CPU gives the same weights, bit for bit.

A recipe out of a file may come from a stranger. It may train a network that timm knows on a registered benchmark. To
name another place (one's own images, a repository of the Hub, other folders) it needs to be trusted.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml
from rich.table import Table

from idml_zoo.reports.leaderboard import in_order, title
from idml_zoo.results import Result, ResultError, read_result
from idml_zoo.training.recipes import training_loop
from idml_zoo.training.untrusted import check_recipe, read_recipe


def repeat(old: Result, out: Path, root: str | None = None, trust: bool = False) -> Result:
    """Returns the result of the same run, made anew under ``out``.

    Args:
        old: the result; its recipe counts as a stranger's.
        out: folder of the run and of its leaderboard.
        root: folder of the data; None for the recipe's.
        trust: let the recipe name places: images, folders, the Hub.

    Raises:
        ResultError: the result has no recipe, the recipe names what a stranger's may not, or the run failed, whose
            reason is printed.
    """
    p = old.provenance
    if not p.recipe or not p.weights_sha256:
        raise ResultError(
            f"{old.benchmark}/{old.row}: no recipe in its result; only what `idml-zoo train` trained can be repeated"
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
    """Returns new minus old of every metric in either, in points; NaN where one of them lacks it."""
    names = in_order({*old.metrics, *new.metrics})
    pairs = {n: (old.metrics.get(n), new.metrics.get(n)) for n in names}
    return {
        n: 0.0 if a == b else float("nan") if a is None or b is None else 100 * (b - a) for n, (a, b) in pairs.items()
    }


def circumstances(old: Result, new: Result) -> list[str]:
    """Returns the changes of code, device, threads, images and versions, in words."""
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


def comparison(old: Result, new: Result, off: dict[str, float]) -> Table:
    """Returns a table of every metric then and now, with their ``off`` from :func:`differences`."""
    table = Table(title=f"{old.benchmark}/{old.row}, seed {old.seed}, percent")
    for name in ("", "then", "now", "difference"):
        table.add_column(name, justify="right" if name else "left")
    for name, points in off.items():
        values = [r.metrics.get(name) for r in (old, new)]
        cells = ["–" if v is None else f"{100 * v:.2f}" for v in values]
        table.add_row(title(name), *cells, "0" if points == 0 else f"{points:+.3g}")
    return table
