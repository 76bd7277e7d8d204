"""Makes the tables, figures and findings of results.md, and those of README and uncertainty.md, from result files.

    python docs/results.py            # writes them
    python docs/results.py --check    # fails where a page differs from the result files

Which rows belong there, and what was tried for each, is what the studies under recipes/studies say. Everything between
the markers of a page is generated, the findings too; the words around it are not.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from blocks import write
from results_across import ACROSS, HEADLINE, introspective_pairs
from results_figures import draw_across, draw_corruptions, draw_published, draw_risk, draw_severity, known_of, risen
from results_sets import LEADERBOARD, STUDIES, Set, compared, controlled, pairs, queries, read_sets, said, scores, shown

from idml_zoo.card import markdown_table
from idml_zoo.compare import Difference
from idml_zoo.evaluation.uncertainty import auroc
from idml_zoo.leaderboard import Row, percent
from idml_zoo.results import SEVERITIES, Result

HERE = Path(__file__).parent
PAGES = (HERE / "results.md", HERE / "uncertainty.md", HERE.parent / "README.md")
COLUMNS = {
    "R@1": "recall@1",
    "MAP@R": "map@r",
    "NMI": "nmi",
    "AUROC ‖u‖": "auroc_level",
    "AUROC −sim": "auroc_top1_similarity",
    "AUROC −margin": "auroc_margin",
    "AURC ‖u‖": "aurc_level",
    "AURC −sim": "aurc_top1_similarity",
    "ECE ‖u‖": "ece_level",
    "ρ severity": "spearman_severity",
}


def link(results: Sequence[Result]) -> str:
    """The result files of a row, a number each."""
    return " ".join(f"[{r.seed}](../leaderboard/results/{r.path('').as_posix()})" for r in results)


def rows_table(found: Set) -> str:
    """One row for each variant: percent, mean ± standard deviation over seeds."""
    every = [line.row for line in found.lines.values()] + ([found.baseline] if found.baseline else [])
    shown = {title: m for title, m in COLUMNS.items() if any(r.values(m) for r in every)}
    rows = []
    if found.baseline:
        cells = [percent(found.baseline.values(m)) for m in shown.values()]
        rows.append(["features, not trained on the set", "–", *cells, "–", link(found.baseline.results)])
    for line in found.lines.values():
        cells = [percent(line.row.values(m)) for m in shown.values()]
        other = percent(line.introspective.values("recall@1")) if line.introspective else "–"
        rows.append([f"`{line.variant}`", said(line.settings), *cells, other, link(line.row.results)])
    for control in found.controls:
        cells = [percent(control.row.values(m)) for m in shown.values()]
        settings = f"{said(control.settings)}: not chosen"
        rows.append([f"`{control.variant}`, a control", settings, *cells, "–", link(control.row.results)])
    return markdown_table(["variant", "chosen", *shown, "R@1, introspective search", "seeds"], rows)


def compare_table(found: Set) -> str:
    """Paired bootstraps of the pairs that differ in one thing."""
    rows = []
    for name, other in pairs(found):
        d = compared(found, found.lines[name].row, found.lines[other].row)
        rows.append([f"`{name}` − `{other}`", shown(d["R@1"]), shown(d["MAP@R"])])
    for name, control in controlled(found):
        d = compared(found, found.lines[name].row, control.row)
        rows.append([f"`{name}` − `{control.variant}` at {said(control.settings)}", shown(d["R@1"]), shown(d["MAP@R"])])
    for control in found.controls:
        if line := found.lines.get(control.variant):
            d = compared(found, control.row, line.row)
            name = f"`{control.variant}`: {said(control.settings)} − {said(line.settings)}"
            rows.append([name, shown(d["R@1"]), shown(d["MAP@R"])])
    for name, line in found.lines.items():
        if line.introspective:
            d = compared(found, line.introspective, line.row, same_weights=True)
            rows.append([f"`{name}`: introspective − cosine search", shown(d["R@1"]), shown(d["MAP@R"])])
    if found.baseline:
        for name in ("pa", "idml"):
            if name in found.lines:
                d = compared(found, found.lines[name].row, found.baseline)
                rows.append([f"`{name}` − features, not trained on the set", shown(d["R@1"]), shown(d["MAP@R"])])
    return markdown_table(["difference, points", "R@1", "MAP@R"], rows)


def places(values: dict[str, float]) -> dict[str, int]:
    """1 for the highest."""
    return {name: 1 + sum(v > values[name] for v in values.values()) for name in values}


def tuning_table(found: Set) -> str:
    """What was tried on held-out training classes, and whether the order there is the order on the test classes."""
    metric = found.study.choose_by
    on_validation, on_test = scores(found)
    first, second = places(on_validation), places(on_test)
    rows = []
    for name in sorted(found.lines, key=lambda n: first[n]):
        tried = []
        for trial in found.progress.trials(name):
            assert trial.settled
            value = f"{100 * found.progress.score(trial.result):.1f}" if trial.result else "lost"
            tried.append(
                f"{said(trial.settings)}: {f'**{value}**' if trial.settings == found.lines[name].settings else value}"
            )
        place = (str(first[name]), str(second[name]))
        best = found.progress.chosen(name)
        level = best.result.metrics.get("auroc_level") if best and best.result else None
        known = "–" if level is None else f"{100 * level:.1f}"
        rows.append([f"`{name}`", "; ".join(tried), place[0], known, f"{100 * on_test[name]:.1f}", place[1]])
    title = {"map@r": "MAP@R", "recall@1": "R@1"}.get(metric, metric)
    header = [
        "variant",
        f"trials: {title} on held-out training classes",
        "place there",
        "AUROC ‖u‖ there",
        f"{title} on test classes",
        "place",
    ]
    scouts = [
        f"`{n}` {100 * found.progress.score(t.result):.1f} ({said(t.settings)})"
        for n, t in found.progress.scouted()
        if t.result
    ]
    more = f"\n\nScouts: {'; '.join(scouts)}." if scouts else ""
    return markdown_table(header, rows) + more


def cost_table(found: Set) -> str:
    """Training time and what an embedding costs."""
    rows = []
    for name, line in found.lines.items():
        r = line.row.first
        seconds = [x.provenance.seconds["train"] for x in line.row.results]
        rows.append(
            [
                f"`{name}`",
                r.training,
                f"{statistics.fmean(seconds) / 60:.1f}",
                f"{r.model.parameters / 1e6:.2f}",
                f"{r.cost['gmacs']:.3f}",
                f"{r.cost['bytes_per_image']:,.0f}",
                r.provenance.device + (f", {r.provenance.threads} threads" if "cpu" in r.provenance.device else ""),
            ]
        )
    header = ["variant", "training", "minutes", "M parameters", "GMACs", "bytes per image", "trained on"]
    return markdown_table(header, rows)


def verdict(name: str, other: str, d: dict[str, Difference], at: str = "") -> str:
    """A sentence that the intervals allow, and no more."""
    said = []
    for metric, x in d.items():
        how = "cannot be told apart in" if not x.distinguishable else "is better in" if x.mean > 0 else "is worse in"
        said.append((how, f"{metric} ({shown(x).replace('**', '')})"))
    grouped = [f"{how} {' and '.join(m for h, m in said if h == how)}" for how in dict.fromkeys(h for h, _ in said)]
    return f"`{name}` against `{other}`{at}: {', '.join(grouped)}."


def findings(found: Set) -> str:
    """What the numbers of one set say, as sentences made of them."""
    lines = [f"- {verdict(n, o, compared(found, found.lines[n].row, found.lines[o].row))}" for n, o in pairs(found)]
    for name, control in controlled(found):
        d, at = compared(found, found.lines[name].row, control.row), f" at its own {said(control.settings)} (a control)"
        lines.append(f"- {verdict(name, control.variant, d, at)}")
    for name, line in found.lines.items():
        level, free = line.row.values("auroc_level"), line.row.values("auroc_top1_similarity")
        if not level or not free:
            continue
        pairwise = [a - b for a, b in zip(level, free, strict=True)]
        better = "above" if min(pairwise) > 0 else "below" if max(pairwise) < 0 else "not consistently above or below"
        text = (
            f"- ‖u‖ of `{name}` tells wrong nearest neighbours with AUROC {percent(level)} (chance: 50), {better} the "
        )
        text += f"similarity of that neighbour, which is free ({percent(free)}), over the {len(level)} seeds."
        if severity := line.row.values("spearman_severity"):
            text += f" Its rank correlation with the known severity is {percent(severity)} hundredths."
        if steps := rises(line.row):
            text += f" Its mean rises in {steps[0]} of {steps[1]} steps of severity of the corruptions."
        lines.append(text)
    return "\n".join(lines)


def rises(row: Row) -> tuple[int, int] | None:
    """In how many of the steps from one severity to the next the mean level over seeds rises; None without curves."""
    up = count = 0
    for kind in row.first.corruptions:
        levels = [statistics.fmean(r.corruptions[kind][s]["level"] for r in row.results) for s in SEVERITIES]
        up += sum(b > a for a, b in itertools.pairwise(levels))
        count += len(levels) - 1
    return (up, count) if count else None


def corrupted_table(found: Set) -> str:
    """R@1 of corrupted queries, the mean over severities, and how the level rises from the first to the last."""
    kinds = list(dict.fromkeys(k for line in found.lines.values() for k in line.row.first.corruptions))
    rows = []
    for name, line in found.lines.items():
        recall, rise = ["–"] * len(kinds), ["–"] * len(kinds)
        for i, kind in enumerate(kinds):
            curves = [r.corruptions[kind] for r in line.row.results if kind in r.corruptions]
            if len(curves) < max(2, len(line.row.results)):
                continue
            recall[i] = percent([statistics.fmean(c[s]["recall@1"] for s in SEVERITIES) for c in curves])
            if line.row.values("auroc_level"):
                ratios = [risen(c) for c in curves]
                rise[i] = f"{statistics.fmean(ratios):.2f} ± {statistics.stdev(ratios):.2f}"
        rows.append([f"`{name}`", percent(line.row.values("recall@1")), *recall, *rise])
    return markdown_table(["variant", "R@1, clean", *kinds, *(f"‖u‖, {k}" for k in kinds)], rows)


def twins_table(found: Set) -> str:
    """How well each level tells glyphs whose outline is another class's too, and whose class nobody can know."""
    groups = known_of(found).get("twin_group")
    if groups is None:
        return "Which images another class has too is known of glyphs alone."
    rows = []
    for name, line in found.lines.items():
        if line.row.values("auroc_level"):
            told = [auroc(level, groups >= 0) for level in queries(found, line.row, "level")]
            rows.append([f"`{name}`", percent([t for t in told if t is not None])])
    return markdown_table(["variant", "AUROC twins"], rows)


BLOCKS = {
    "corrupted": corrupted_table,
    "twins": twins_table,
    "rows": rows_table,
    "compare": compare_table,
    "tuning": tuning_table,
    "cost": cost_table,
    "findings": findings,
}


def block(name: str, sets: list[Set]) -> str:
    """The content of a block; ValueError for an unknown one and for one of a set that has no results."""
    known = {found.benchmark: found for found in sets}
    what, _, benchmark = name.partition(" ")
    if what in ACROSS:
        return ACROSS[what](sets)
    if what in BLOCKS and benchmark in known:
        return BLOCKS[what](known[benchmark])
    raise ValueError(f"no block {name!r}: {', '.join(BLOCKS)} of {', '.join(known) or 'no set yet'}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is out of date")
    parser.add_argument("--page", type=Path, nargs="+", default=PAGES, help="(default: those of the project)")
    parser.add_argument("--studies", type=Path, default=STUDIES)
    parser.add_argument("--leaderboard", type=Path, default=LEADERBOARD)
    args = parser.parse_args(arguments)
    sets = read_sets(args.studies, args.leaderboard)
    status = write(args.page, partial(block, sets=sets), args.check)
    if args.check:
        return status
    pictures = args.page[0].with_suffix("")
    pictures.mkdir(exist_ok=True)
    for found in sets:
        draw_risk(found, pictures / f"{found.benchmark}-risk.png")
        draw_corruptions(found, pictures / f"{found.benchmark}-corruptions.png")
        draw_severity(found, pictures / f"{found.benchmark}-severity.png")
    lines = [(f, a, b, compared(f, f.lines[a].row, f.lines[b].row)["R@1"]) for f, a, b in introspective_pairs(sets)]
    if lines:
        draw_across(lines, pictures / "across.png")
    if args.page == PAGES:
        draw_published(HEADLINE, pictures)
    print(f"{args.page[0]}: {', '.join(found.benchmark for found in sets) or 'no set yet'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
