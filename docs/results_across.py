"""The tables over all sets: of results.md, uncertainty.md and README."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np
from results_figures import rise, title_of
from results_sets import Set, compared, controlled, pairs, said, scores, shown
from scipy.stats import spearmanr

from idml_zoo.card import markdown_table
from idml_zoo.compare import Difference, load_queries
from idml_zoo.leaderboard import percent
from idml_zoo.results import read_results
from idml_zoo.variants import variants
from idml_zoo.zoo import EMBEDDED, PUBLISHED

HEADLINE = "idml_test_resnet_glyphs"  # the model in the picture


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
        for own, control in controlled(found):
            if own == name:
                d = compared(found, row, control.row)
                title = f"`{name}` − `{other}` at {said(control.settings)}, a control"
                rows.append([found.benchmark, title, shown(d["R@1"]), shown(d["MAP@R"]), *values])
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


def standing(sets: list[Set]) -> str:
    """Which rows of the studies are not measured yet."""
    missing = {title_of(f): [f"`{n}`" for n in f.progress.variants() if n not in f.lines] for f in sets}
    for found in sets:
        missing[title_of(found)] += [f"the scout `{n}`" for n, t in found.progress.scouted() if t.result is None]
        for variant, settings, finals in found.progress.controls():
            if not all(result for _, result in finals):
                missing[title_of(found)].append(f"the control `{variant}` ({said(settings)})")
    done = [title for title, names in missing.items() if not names]
    text = [f"Complete: {'; '.join(done)}."] if done else []
    text += [f"Of {title}, not measured yet: {', '.join(names)}." for title, names in missing.items() if names]
    begun, folders = {f.study.file.resolve() for f in sets}, {f.study.file.parent for f in sets}
    waiting = sorted(p.stem for folder in folders for p in folder.glob("*.yaml") if p.resolve() not in begun)
    text += [f"No row is tuned yet of {', '.join(f'`{name}`' for name in waiting)}."] if waiting else []
    return " ".join(text)


def headline(sets: list[Set]) -> str:
    """One line for each set: R@1 of the variants that matter most, and what the level of ``idml`` knows."""

    def recall(found: Set, name: str | None) -> str:
        return percent(found.lines[name].row.values("recall@1")) if name in found.lines else "–"

    rows = []
    for found in sets:
        plain = [n for n in found.progress.variants() if variants[n].head == "semantic" and n not in ("pa", "pa_mixup")]
        tuned = {n: found.progress.chosen(n) for n in plain}
        scores = {n: found.progress.score(t.result) for n, t in tuned.items() if t and t.result}
        other = max(scores, key=lambda n: scores[n]) if scores and len(scores) == len(plain) else None
        other = other if other in found.lines else None  # the best by its trials, or none yet
        cells = [percent(found.baseline.values("recall@1")) if found.baseline else "–"]
        cells += [recall(found, n) for n in ("pa", "pa_mixup", "idml", "idml_no_mixup")]
        cells += [f"{recall(found, other)} (`{other}`)" if other else "–", recall(found, f"idml_{other}_no_mixup")]
        known = (("idml", "auroc_level"), ("loss_prediction", "auroc_level"), ("idml", "auroc_top1_similarity"))
        cells += [percent(found.lines[n].row.values(m)) if n in found.lines else "–" for n, m in known]
        rows.append([title_of(found), *cells])
    header = ["R@1, percent", "features, not trained on the set", "`pa`", "`pa_mixup`", "`idml`", "`idml_no_mixup`"]
    header += ["best other loss", "the same, introspective", "AUROC ‖u‖ of `idml`", "of `loss_prediction`"]
    header.append("AUROC −sim")
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


def away(sets: list[Set]) -> str:
    """The models that come with the package, measured as they are given away."""
    known = read_results(sets[0].leaderboard / "results")
    rows = []
    for name, weights in PUBLISHED.items():
        if weights.repo is not None:
            continue
        (own,) = read_results(EMBEDDED / name / "results")
        size = own.protocol.image_size
        features = (own.benchmark, f"features-{own.model.backbone.split('.')[0]}-{size}px")
        plain = [r.metrics["recall@1"] for r in known if (r.benchmark, r.row) == features]
        recall, *others = (
            f"{100 * own.metrics[m]:.1f}" for m in ("recall@1", "map@r", "auroc_level", "auroc_top1_similarity")
        )
        megabytes = f"{(EMBEDDED / name / 'model.safetensors').stat().st_size / 1e6:.1f}"
        recall = f"[{recall}](../idml_zoo/embedded/{name}/results/{own.path('').as_posix()})"
        how = f"`{own.model.variant}`, {own.training}"
        rows.append([f"`{name}`", how, megabytes, recall, percent(plain) if plain else "–", *others])
    header = ["name", "trained", "MB", "R@1", "R@1 of features, not trained on the set", "MAP@R"]
    return markdown_table([*header, "AUROC ‖u‖", "AUROC −sim"], rows)


def honest(sets: list[Set]) -> str:
    """Whether the held-out training classes order the variants as the test classes do."""
    rows = []
    for found in sets:
        metric = found.study.choose_by
        there, here = scores(found)
        if len(there) < 3 or len(found.study.seeds) < 2:
            continue
        first, best = max(there, key=lambda n: there[n]), max(here, key=lambda n: here[n])
        place = 1 + sum(v > here[first] for v in here.values())
        spread = statistics.fmean(statistics.stdev(found.lines[n].row.values(metric) or []) for n in there)
        correlation = spearmanr([there[n] for n in there], [here[n] for n in there]).statistic
        cells = [title_of(found), str(len(there)), f"{correlation:.2f}", f"`{first}`", str(place), f"`{best}`"]
        rows.append([*cells, f"{100 * (here[best] - here[first]):.1f}", f"{100 * spread:.1f}"])
    header = ["set", "variants", "rank correlation", "first on held-out classes", "its place on test classes"]
    header += ["first on test classes", "points between them", "standard deviation over seeds"]
    return markdown_table(header, rows)


ACROSS = {
    "honest": honest,
    "away": away,
    "standing": standing,
    "across": across,
    "claims": claims,
    "levels": levels,
    "headline": headline,
    "published": published,
}
