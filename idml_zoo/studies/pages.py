"""Makes the tables, figures and findings of the result pages, of uncertainty.md and of README.md from result files.

    python -m idml_zoo.studies.pages            # writes the pages and the figures
    python -m idml_zoo.studies.pages --check    # writes nothing; fails where a page differs from the result files

It runs in a clone: the pages lie in docs/, the studies in recipes/studies, the result files in leaderboard/. A study
names its rows and trials. Everything between the markers of a page is generated, the findings too. The words around
it are written by hand.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from idml_zoo.evaluation.uncertainty import auroc
from idml_zoo.metric_names import ERROR_SCORES
from idml_zoo.reports.blocks import outdated, write_blocks
from idml_zoo.reports.bootstrap import Difference
from idml_zoo.reports.leaderboard import Row, percent
from idml_zoo.reports.markdown import markdown_table
from idml_zoo.results import SEVERITIES, Result
from idml_zoo.studies.across import ACROSS, HEADLINE, introspective_pairs
from idml_zoo.studies.figures import (
    draw_across,
    draw_corruptions,
    draw_published,
    draw_risk,
    draw_severity,
    image_attributes,
    level_ratio,
)
from idml_zoo.studies.level_figures import against_strongest, keep, level_figures
from idml_zoo.studies.sets import (
    LEADERBOARD,
    STUDIES,
    Set,
    compared,
    interval,
    matched_controls,
    pairs,
    queries,
    read_sets,
    scores,
    settings_text,
)

HERE = Path(__file__).parents[2] / "docs"
SUMMARY = HERE / "results.md"  # the summary; the figures lie in a folder of its name
SET_PAGES = [HERE / f"results-{name}.md" for name in ("cub2010", "cars196-half", "glyphs", "omniglot")]
PAGES = (SUMMARY, *SET_PAGES, HERE / "results-weights.md", HERE / "uncertainty.md", HERE.parent / "README.md")
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
    """Returns links to the result files of a row, named by their seeds."""
    return " ".join(f"[{r.seed}](../leaderboard/results/{r.path('').as_posix()})" for r in results)


def rows_table(measured: Set) -> str:
    """Returns the table of a set: percent, mean ± standard deviation over seeds."""
    every = [line.row for line in measured.lines.values()] + ([measured.baseline] if measured.baseline else [])
    columns = {title: m for title, m in COLUMNS.items() if any(r.values(m) for r in every)}
    rows = []
    if measured.baseline:
        cells = [percent(measured.baseline.values(m)) for m in columns.values()]
        rows.append(["features, not trained on the set", "–", *cells, "–", link(measured.baseline.results)])
    for line in measured.lines.values():
        cells = [percent(line.row.values(m)) for m in columns.values()]
        other = percent(line.introspective.values("recall@1")) if line.introspective else "–"
        rows.append([f"`{line.variant}`", settings_text(line.settings), *cells, other, link(line.row.results)])
    for control in measured.controls:
        cells = [percent(control.row.values(m)) for m in columns.values()]
        settings = f"{settings_text(control.settings)}: not chosen"
        rows.append([f"`{control.variant}`, a control", settings, *cells, "–", link(control.row.results)])
    return markdown_table(["variant", "chosen", *columns, "R@1, introspective search", "seeds"], rows)


def compare_table(measured: Set) -> str:
    """Returns the table of differences between pairs of rows that differ in one respect."""
    lines, differences = measured.lines, {}
    for name, other in pairs(measured):
        differences[f"`{name}` − `{other}`"] = compared(measured, lines[name].row, lines[other].row)
    for name, control in matched_controls(measured):
        title = f"`{name}` − `{control.variant}` at {settings_text(control.settings)}"
        differences[title] = compared(measured, lines[name].row, control.row)
    for control in measured.controls:
        if line := lines.get(control.variant):
            title = f"`{control.variant}`: {settings_text(control.settings)} − {settings_text(line.settings)}"
            differences[title] = compared(measured, control.row, line.row)
    for name, line in lines.items():
        if line.introspective:
            title = f"`{name}`: introspective − cosine search"
            differences[title] = compared(measured, line.introspective, line.row, same_weights=True)
    if measured.baseline:
        for name in (n for n in ("pa", "idml") if n in lines):
            title = f"`{name}` − features, not trained on the set"
            differences[title] = compared(measured, lines[name].row, measured.baseline)
    rows = [[title, interval(d["R@1"]), interval(d["MAP@R"])] for title, d in differences.items()]
    return markdown_table(["difference, points", "R@1", "MAP@R"], rows)


def ranks(values: dict[str, float]) -> dict[str, int]:
    """Returns the rank of each value: 1 for the highest, the same for equal ones."""
    return {name: 1 + sum(v > values[name] for v in values.values()) for name in values}


def tuning_table(measured: Set) -> str:
    """Returns the table of the trials on held-out training classes, with the variants' ranks."""
    metric = measured.study.choose_by
    on_validation, on_test = scores(measured)
    first, second = ranks(on_validation), ranks(on_test)
    rows = []
    for name in sorted(measured.lines, key=lambda n: first[n]):
        tried = []
        for trial in measured.progress.trials(name):
            assert trial.settled
            value = f"{100 * measured.progress.score(trial.result):.1f}" if trial.result else "failed"
            value = f"**{value}**" if trial.settings == measured.lines[name].settings else value
            tried.append(f"{settings_text(trial.settings)}: {value}")
        best = measured.progress.chosen(name)
        level = best.result.metrics.get("auroc_level") if best and best.result else None
        level_auroc = "–" if level is None else f"{100 * level:.1f}"
        validation_cells = ["; ".join(tried), str(first[name]), level_auroc]
        rows.append([f"`{name}`", *validation_cells, f"{100 * on_test[name]:.1f}", str(second[name])])
    title = {"map@r": "MAP@R", "recall@1": "R@1"}.get(metric, metric)
    header = [
        "variant",
        f"trials: {title} on held-out training classes",
        "rank there",
        "AUROC ‖u‖ there",
        f"{title} on test classes",
        "rank",
    ]
    scouts = [
        f"`{n}` {100 * measured.progress.score(t.result):.1f} ({settings_text(t.settings)})"
        for n, t in measured.progress.scouted()
        if t.result
    ]
    more = f"\n\nScouts: {'; '.join(scouts)}." if scouts else ""
    return markdown_table(header, rows) + more


def cost_table(measured: Set) -> str:
    """Returns the table of training times, and of what an embedding costs."""
    rows = []
    for name, line in measured.lines.items():
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
    """Returns a sentence that claims no more than the intervals allow."""
    parts = []
    for metric, x in d.items():
        how = "cannot be told apart in" if not x.distinguishable else "is better in" if x.mean > 0 else "is worse in"
        parts.append((how, f"{metric} ({interval(x).replace('**', '')})"))
    grouped = [f"{how} {' and '.join(m for h, m in parts if h == how)}" for how in dict.fromkeys(h for h, _ in parts)]
    return f"`{name}` against `{other}`{at}: {', '.join(grouped)}."


def findings(measured: Set) -> str:
    """Returns the findings of one set, as sentences made of its numbers."""
    lines = [
        f"- {verdict(n, o, compared(measured, measured.lines[n].row, measured.lines[o].row))}"
        for n, o in pairs(measured)
    ]
    for name, control in matched_controls(measured):
        d = compared(measured, measured.lines[name].row, control.row)
        at = f" at the same {settings_text(control.settings)} (a control)"
        lines.append(f"- {verdict(name, control.variant, d, at)}")
    for name, line in measured.lines.items():
        level = line.row.values("auroc_level")
        if not level:
            continue
        over = against_strongest(measured, line.row)
        better = "cannot be told from" if not over.distinguishable else "is above" if over.mean > 0 else "is below"
        free = ERROR_SCORES[level_figures(measured, line.row)["strongest"]]
        text = (
            f"- ‖u‖ of `{name}` predicts wrong nearest neighbours with AUROC {percent(level)} (chance: 50). "
            f"It {better} the strongest free score, {free}, by {interval(over)} points over resampled classes."
        )
        if severity := line.row.values("spearman_severity"):
            text += f" Its rank correlation with the known severity is {percent(severity)} hundredths."
        if steps := rising_steps(line.row):
            text += f" Its mean rises in {steps[0]} of {steps[1]} steps of severity of the corruptions."
        lines.append(text)
    return "\n".join(lines)


def rising_steps(row: Row) -> tuple[int, int] | None:
    """Returns (steps of severity at which the mean level over seeds rises, all steps); None without corruptions."""
    up = count = 0
    for kind in row.first.corruptions:
        levels = [statistics.fmean(r.corruptions[kind][s]["level"] for r in row.results) for s in SEVERITIES]
        up += sum(b > a for a, b in itertools.pairwise(levels))
        count += len(levels) - 1
    return (up, count) if count else None


def corrupted_table(measured: Set) -> str:
    """Returns the table of corrupted queries: mean R@1 over severities, and the level at the last over the first."""
    kinds = list(dict.fromkeys(k for line in measured.lines.values() for k in line.row.first.corruptions))
    rows = []
    for name, line in measured.lines.items():
        recall, ratio = ["–"] * len(kinds), ["–"] * len(kinds)
        for i, kind in enumerate(kinds):
            curves = [r.corruptions[kind] for r in line.row.results if kind in r.corruptions]
            if len(curves) < max(2, len(line.row.results)):
                continue
            recall[i] = percent([statistics.fmean(c[s]["recall@1"] for s in SEVERITIES) for c in curves])
            if line.row.values("auroc_level"):
                ratios = [level_ratio(c) for c in curves]
                ratio[i] = f"{statistics.fmean(ratios):.2f} ± {statistics.stdev(ratios):.2f}"
        rows.append([f"`{name}`", percent(line.row.values("recall@1")), *recall, *ratio])
    return markdown_table(["variant", "R@1, clean", *kinds, *(f"‖u‖, {k}" for k in kinds)], rows)


def twins_table(measured: Set) -> str:
    """Returns the AUROC of each level for glyphs that share their outline with another class."""
    groups = image_attributes(measured).get("twin_group")
    if groups is None:
        return "Only glyphs records which images share their outline with another class."
    rows = []
    for name, line in measured.lines.items():
        if line.row.values("auroc_level"):
            aurocs = [auroc(level, groups >= 0) for level in queries(measured, line.row, "level")]
            rows.append([f"`{name}`", percent([a for a in aurocs if a is not None])])
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
    """Returns the content of a block.

    Raises:
        ValueError: the block is unknown, or it is of a set without results.
    """
    by_benchmark = {measured.benchmark: measured for measured in sets}
    kind, _, benchmark = name.partition(" ")
    if kind in ACROSS:
        return ACROSS[kind](sets)
    if kind in BLOCKS and benchmark in by_benchmark:
        return BLOCKS[kind](by_benchmark[benchmark])
    raise ValueError(f"no block {name!r}: {', '.join(BLOCKS)} of {', '.join(by_benchmark) or 'no set yet'}")


def report_outdated(pages: Sequence[Path], stale: Sequence[Path]) -> int:
    """Prints whether each page agrees with the result files; returns an exit status, 1 where any differs."""
    for page in pages:
        print(f"{page.name}: {'differs from' if page in stale else 'agrees with'} the result files")
    return int(bool(stale))


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks the pages; returns an exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is out of date")
    parser.add_argument("--page", type=Path, nargs="+", default=PAGES, help="(default: those of the project)")
    parser.add_argument("--studies", type=Path, default=STUDIES)
    parser.add_argument("--leaderboard", type=Path, default=LEADERBOARD)
    args = parser.parse_args(arguments)
    sets = read_sets(args.studies, args.leaderboard)
    make = partial(block, sets=sets)
    if args.check:
        return report_outdated(args.page, outdated(args.page, make))
    write_blocks(args.page, make)
    for measured in sets:
        keep(measured)
    pictures = args.page[0].with_suffix("")
    pictures.mkdir(exist_ok=True)
    for measured in sets:
        draw_risk(measured, pictures / f"{measured.benchmark}-risk.png")
        draw_corruptions(measured, pictures / f"{measured.benchmark}-corruptions.png")
        draw_severity(measured, pictures / f"{measured.benchmark}-severity.png")
    lines = [(m, a, b, compared(m, m.lines[a].row, m.lines[b].row)["R@1"]) for m, a, b in introspective_pairs(sets)]
    if lines:
        draw_across(lines, pictures / "across.png")
    if args.page == PAGES:
        draw_published(HEADLINE, pictures)
    print(f"{args.page[0]}: {', '.join(measured.benchmark for measured in sets) or 'no set yet'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
