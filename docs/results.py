"""Makes the tables, figures and findings of results.md, and those of README and uncertainty.md, from result files.

    python docs/results.py            # writes them
    python docs/results.py --check    # fails where a page differs from the result files

Which rows belong there, and what was tried for each, is what the studies under recipes/studies say. Everything between
the markers of a page is generated, the findings too; the words around it are not.
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
from config import load_config
from results_figures import draw_across, draw_corruptions, draw_published, draw_risk, draw_severity, rise, title_of
from study import Progress, Study, read_study

from idml_zoo.card import markdown_table
from idml_zoo.compare import Difference, difference, load_queries
from idml_zoo.leaderboard import Row, percent
from idml_zoo.results import SEVERITIES, Result, read_results
from idml_zoo.variants import variants
from idml_zoo.zoo import EMBEDDED

HERE = Path(__file__).parent
PAGES = (HERE / "results.md", HERE / "uncertainty.md", HERE.parent / "README.md")
HEADLINE = "idml_test_resnet_glyphs"  # the model in the picture
STUDIES = HERE.parent / "recipes" / "studies"
LEADERBOARD = HERE.parent / "leaderboard"
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
SIMPLER = {"idml": "pa_mixup", "idml_no_mixup": "pa", "idml_released": "pa_mixup", "pa_mixup": "pa", "vmf": "pa"}
SIMPLER["loss_prediction"] = "pa"


@dataclass(frozen=True)
class Line:
    """A variant of a study, as far as it is measured."""

    variant: str
    settings: dict[str, float]
    row: Row
    introspective: Row | None  # the same weights, searched by the introspective similarity


@dataclass(frozen=True)
class Set:
    """One study with its results."""

    study: Study
    progress: Progress
    benchmark: str
    leaderboard: Path
    lines: dict[str, Line]
    baseline: Row | None  # pooled features without training, at the same resolution


def read_sets(studies: Path = STUDIES, leaderboard: Path = LEADERBOARD) -> list[Set]:
    """Every study of which a row is measured on the test classes by all its seeds, in the order of their names."""
    known = read_results(leaderboard / "results")
    sets = []
    for path in sorted(studies.glob("*.yaml")):
        study = read_study(path)
        progress = Progress(study, str(leaderboard))
        config = load_config(str(path.parent / study.recipe), study.words(study.variants[0], {}))
        lines = {}
        for variant in progress.variants():
            finals, best = progress.finals(variant), progress.chosen(variant)
            results = [result for _, result in finals if result]
            if best and results and len(results) == len(finals):
                weights = {r.provenance.weights_sha256 for r in results}
                twins = [
                    r
                    for r in known
                    if (r.benchmark, r.row) == (config.benchmark, f"{results[0].row}-introspective")
                    and r.provenance.weights_sha256 in weights
                ]
                twin = Row(tuple(sorted(twins, key=lambda r: r.seed))) if len(twins) == len(results) else None
                lines[variant] = Line(variant, best.settings, Row(tuple(results)), twin)
        if lines:
            first = next(iter(lines.values())).row.first
            name = f"features-{first.model.backbone.split('.')[0]}-{first.protocol.image_size}px"
            plain = [r for r in known if (r.benchmark, r.row) == (config.benchmark, name)]
            baseline = Row(tuple(plain)) if plain else None
            sets.append(Set(study, progress, config.benchmark, leaderboard, lines, baseline))
    return sets


def said(settings: dict[str, float]) -> str:
    """ "lr 0.002, τ 5"."""
    return ", ".join(f"{'τ' if k == 'tau' else k} {v:g}" for k, v in settings.items())


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
        rows.append(["features, untrained", "–", *cells, "–", link(found.baseline.results)])
    for line in found.lines.values():
        cells = [percent(line.row.values(m)) for m in shown.values()]
        other = percent(line.introspective.values("recall@1")) if line.introspective else "–"
        rows.append([f"`{line.variant}`", said(line.settings), *cells, other, link(line.row.results)])
    return markdown_table(["variant", "chosen", *shown, "R@1, introspective search", "seeds"], rows)


def queries(found: Set, row: Row, metric: str) -> np.ndarray:
    """``(S, N)`` a metric's value of each query for each seed."""
    values = []
    for result in row.results:
        loaded = load_queries(found.leaderboard / "results", result)
        assert loaded is not None, result.row
        values.append(loaded[metric].astype(np.float64)[~np.isnan(loaded["map@r"])])  # NaN: alone in its class
    return np.stack(values)


def pairs(found: Set) -> Iterator[tuple[str, str]]:
    """(variant, what it must be compared with): the same but for one thing."""
    for name in found.lines:
        variant = variants[name]
        other = SIMPLER.get(name)
        if other is None and variant.similarity == "introspective":
            other = name.removeprefix("idml_").removesuffix("_no_mixup") + ("_mixup" if variant.mixup else "")
        if other in found.lines:
            yield name, other


def compared(found: Set, first: Row, second: Row, same_weights: bool = False) -> dict[str, Difference]:
    """The difference of two rows in R@1 and MAP@R; of the same weights, a seed is compared with itself."""
    made = {}
    for title, metric in {"R@1": "top1", "MAP@R": "map@r"}.items():
        a, b = queries(found, first, metric), queries(found, second, metric)
        made[title] = difference(a - b, np.zeros_like(a)) if same_weights else difference(a, b)
    return made


def shown(d: Difference) -> str:
    """ "+1.20 [+0.31, +2.04]" in points; bold where the interval leaves 0 out."""
    text = f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
    return f"**{text}**" if d.distinguishable else text


def compare_table(found: Set) -> str:
    """Paired bootstraps of the pairs that differ in one thing."""
    rows = []
    for name, other in pairs(found):
        d = compared(found, found.lines[name].row, found.lines[other].row)
        rows.append([f"`{name}` − `{other}`", shown(d["R@1"]), shown(d["MAP@R"])])
    for name, line in found.lines.items():
        if line.introspective:
            d = compared(found, line.introspective, line.row, same_weights=True)
            rows.append([f"`{name}`: introspective − cosine search", shown(d["R@1"]), shown(d["MAP@R"])])
    if found.baseline:
        for name in ("pa", "idml"):
            if name in found.lines:
                d = compared(found, found.lines[name].row, found.baseline)
                rows.append([f"`{name}` − features, untrained", shown(d["R@1"]), shown(d["MAP@R"])])
    return markdown_table(["difference, points", "R@1", "MAP@R"], rows)


def places(values: dict[str, float]) -> dict[str, int]:
    """1 for the highest."""
    return {name: 1 + sum(v > values[name] for v in values.values()) for name in values}


def tuning_table(found: Set) -> str:
    """What was tried on held-out training classes, and whether the order there is the order on the test classes."""
    metric = found.study.choose_by
    on_validation, on_test = {}, {}
    for name, line in found.lines.items():
        best = found.progress.chosen(name)
        assert best and best.result
        on_validation[name] = found.progress.score(best.result)
        on_test[name] = statistics.fmean(line.row.values(metric) or [])
    first, second = places(on_validation), places(on_test)
    rows = []
    for name in sorted(found.lines, key=lambda n: first[n]):
        tried = []
        for trial in found.progress.trials(name):
            assert trial.result
            value = f"{100 * found.progress.score(trial.result):.1f}"
            tried.append(
                f"{said(trial.settings)}: {f'**{value}**' if trial.settings == found.lines[name].settings else value}"
            )
        place = (str(first[name]), str(second[name]))
        rows.append([f"`{name}`", "; ".join(tried), place[0], f"{100 * on_test[name]:.1f}", place[1]])
    title = {"map@r": "MAP@R", "recall@1": "R@1"}.get(metric, metric)
    header = [
        "variant",
        f"trials: {title} on held-out training classes",
        "place there",
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


def verdict(name: str, other: str, d: dict[str, Difference]) -> str:
    """A sentence that the intervals allow, and no more."""
    said = []
    for metric, x in d.items():
        how = "cannot be told apart in" if not x.distinguishable else "is better in" if x.mean > 0 else "is worse in"
        said.append((how, f"{metric} ({shown(x).replace('**', '')})"))
    grouped = [f"{how} {' and '.join(m for h, m in said if h == how)}" for how in dict.fromkeys(h for h, _ in said)]
    return f"`{name}` against `{other}`: {', '.join(grouped)}."


def findings(found: Set) -> str:
    """What the numbers of one set say, as sentences made of them."""
    lines = [f"- {verdict(n, o, compared(found, found.lines[n].row, found.lines[o].row))}" for n, o in pairs(found)]
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


def introspective_pairs(sets: list[Set]) -> Iterator[tuple[Set, str, str]]:
    """(set, variant with the introspective metric or the released form, the same loss without it), over the sets."""
    for found in sets:
        for name, other in pairs(found):
            if variants[name].similarity != "cosine":
                yield found, name, other


def across(sets: list[Set]) -> str:
    """Where introspection helps, over the sets."""
    rows = []
    for found, name, other in introspective_pairs(sets):
        row = found.lines[name].row
        d = compared(found, row, found.lines[other].row)
        values = [percent(row.values(m)) for m in ("auroc_level", "auroc_top1_similarity")]
        rows.append([found.benchmark, f"`{name}` − `{other}`", shown(d["R@1"]), shown(d["MAP@R"]), *values])
    return markdown_table(["set", "difference, points", "R@1", "MAP@R", "AUROC ‖u‖", "AUROC −sim"], rows)


def claims(sets: list[Set]) -> str:
    """The statements that are made of IDML, each with how often our rows agree."""

    def told(differences: list[Difference]) -> list[str]:
        better = sum(d.distinguishable and d.mean > 0 for d in differences)
        worse = sum(d.distinguishable and d.mean < 0 for d in differences)
        return [str(better), str(worse), str(len(differences) - better - worse)]

    def seeds(values: list[list[float]], than: float) -> list[str]:
        """Of rows: above for every seed, below for every seed, neither."""
        above, below = (sum(f(v) for v in values) for f in (lambda v: min(v) > than, lambda v: max(v) < than))
        return [str(above), str(below), str(len(values) - above - below)]

    def recall(found: Set, name: str, other: str) -> Difference:
        return compared(found, found.lines[name].row, found.lines[other].row)["R@1"]

    every = [(found, name, other) for found in sets for name, other in pairs(found)]
    metric = [x for x in every if variants[x[1]].similarity == "introspective"]
    released = [x for x in every if variants[x[1]].similarity == "released"]
    mixup = [x for x in every if variants[x[1]].similarity == "cosine" and variants[x[1]].mixup]
    ours = [(f, line) for f in sets for n, line in f.lines.items() if variants[n].similarity == "introspective"]
    twins = [(f, line.introspective, line.row) for f, line in ours if line.introspective]
    knows = [(f, line.row, line.row.values("auroc_level")) for f, line in ours]
    free = [
        [a - b for a, b in zip(level, row.values("auroc_top1_similarity") or [], strict=True)]
        for _, row, level in knows
        if level
    ]
    rows = [
        [
            "Training with the introspective metric retrieves better [R]",
            "the same loss, R@1",
            *told([recall(*x) for x in metric]),
        ],
        ["So does the released loss [C]", "`pa_mixup`, R@1", *told([recall(*x) for x in released])],
        ["Mixup, a part of the method [C], retrieves better", "`pa`, R@1", *told([recall(*x) for x in mixup])],
        [
            "Searching by the introspective similarity retrieves better (the authors search by the cosine [C])",
            "cosine search of the same weights, R@1",
            *told([compared(f, a, b, same_weights=True)["R@1"] for f, a, b in twins]),
        ],
        [
            "The level tells which images will be retrieved wrongly [R]",
            "chance, AUROC",
            *seeds([v for *_, v in knows if v], 0.5),
        ],
        ["… and better than what is free", "−sim, AUROC", *seeds(free, 0.0)],
        [
            "The level rises as images degrade [R]",
            "the least degraded images, mean ‖u‖",
            *seeds([r for f, row, _ in knows if (r := rise(f, row))], 1.0),
        ],
    ]
    return markdown_table(["statement", "compared with", "yes", "the contrary", "cannot be told"], rows)


def levels(sets: list[Set]) -> str:
    """What each row's level knows, the best first."""
    rows = []
    for found in sets:
        with_level = [line for line in found.lines.values() if line.row.values("auroc_level")]
        for line in sorted(with_level, key=lambda x: -statistics.fmean(x.row.values("auroc_level") or [])):
            metrics = ("auroc_level", "auroc_top1_similarity", "spearman_severity")
            rows.append([found.benchmark, f"`{line.variant}`", *(percent(line.row.values(m)) for m in metrics)])
    return markdown_table(["set", "variant", "AUROC ‖u‖", "AUROC −sim", "ρ severity"], rows)


def headline(sets: list[Set]) -> str:
    """One line for each set: R@1 of the variants that matter most, and what the level of ``idml`` knows."""

    def recall(found: Set, name: str | None) -> str:
        return percent(found.lines[name].row.values("recall@1")) if name in found.lines else "–"

    rows = []
    for found in sets:
        plain = {n: found.progress.chosen(n) for n in found.lines if variants[n].head == "semantic"}
        scores = {n: found.progress.score(t.result) for n, t in plain.items() if t and t.result}
        other = max((n for n in scores if n not in ("pa", "pa_mixup")), key=lambda n: scores[n], default=None)
        cells = [percent(found.baseline.values("recall@1")) if found.baseline else "–"]
        cells += [recall(found, n) for n in ("pa", "pa_mixup", "idml", "idml_no_mixup")]
        cells += [f"{recall(found, other)} (`{other}`)" if other else "–", recall(found, f"idml_{other}_no_mixup")]
        ours = found.lines.get("idml")
        cells += [percent(ours.row.values(m)) if ours else "–" for m in ("auroc_level", "auroc_top1_similarity")]
        rows.append([title_of(found), *cells])
    header = ["R@1, percent", "features, untrained", "`pa`", "`pa_mixup`", "`idml`", "`idml_no_mixup`"]
    header += ["best other loss", "the same, introspective", "AUROC ‖u‖ of `idml`", "AUROC −sim"]
    return markdown_table(header, rows)


def published(sets: list[Set]) -> str:
    """What the level of the model that comes with the package tells, by the result files of its row."""
    (own,) = read_results(EMBEDDED / HEADLINE / "results")
    every = read_results(sets[0].leaderboard / "results")
    seeds = sorted((r for r in every if (r.benchmark, r.row) == (own.benchmark, own.row)), key=lambda r: r.seed)
    shares = []
    for result in seeds:
        values = load_queries(sets[0].leaderboard / "results", result)
        assert values is not None, result.row
        order = np.argsort(values["level"], kind="stable")
        tenth = len(order) // 10
        shares.append([1 - values["top1"][part].mean() for part in (order[:tenth], order[-tenth:], order)])
    surest, last, all_ = (percent(list(x)) for x in zip(*shares, strict=True))
    return (
        f"Above, `{HEADLINE}` ({own.model.parameters / 1e6:.1f} M parameters, comes with the package; variant "
        f"`{own.model.variant}`). Nobody told it which images are degraded. Over the {len(seeds)} seeds of "
        f"[its row](leaderboard/results/{own.path('').parent.as_posix()}), the nearest neighbour is wrong for {all_} % "
        f"of the images: for {surest} % of the surest tenth by ‖u‖, for {last} % of the most uncertain tenth."
    )


BLOCKS = {
    "rows": rows_table,
    "compare": compare_table,
    "tuning": tuning_table,
    "cost": cost_table,
    "findings": findings,
}
ACROSS = {"across": across, "claims": claims, "levels": levels, "headline": headline, "published": published}


def page(text: str, sets: list[Set]) -> str:
    """The page with every generated block replaced; ValueError for a block of a set that has no results."""
    known = {found.benchmark: found for found in sets}

    def block(match: re.Match[str]) -> str:
        what, _, name = match[1].partition(" ")
        if what in ACROSS:
            content = ACROSS[what](sets)
        elif what in BLOCKS and name in known:
            content = BLOCKS[what](known[name])
        else:
            raise ValueError(f"no block {match[1]!r}: {', '.join(BLOCKS)} of {', '.join(known) or 'no set yet'}")
        return f"<!-- made: {match[1]} -->\n{content}\n<!-- end -->"

    return re.sub(r"<!-- made: ([\w ]+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is out of date")
    parser.add_argument("--page", type=Path, nargs="+", default=PAGES, help="(default: those of the project)")
    parser.add_argument("--studies", type=Path, default=STUDIES)
    parser.add_argument("--leaderboard", type=Path, default=LEADERBOARD)
    args = parser.parse_args(arguments)
    sets = read_sets(args.studies, args.leaderboard)
    differ = 0
    for path in args.page:
        old = path.read_text(encoding="utf-8")
        new = page(old, sets)
        if args.check:
            print(f"{path.name}: {'agrees with' if new == old else 'differs from'} the result files")
            differ += new != old
        else:
            path.write_text(new, encoding="utf-8")
    if args.check:
        return int(differ > 0)
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
