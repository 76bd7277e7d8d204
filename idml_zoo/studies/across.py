"""The tables over all sets: of results.md, results-weights.md, uncertainty.md and README."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator

import numpy as np
from scipy.stats import spearmanr

from idml_zoo.models.zoo import EMBEDDED, PUBLISHED
from idml_zoo.reports.bootstrap import Difference, load_queries
from idml_zoo.reports.leaderboard import percent
from idml_zoo.reports.markdown import markdown_table
from idml_zoo.results import read_results
from idml_zoo.studies.figures import level_ratios, title_of
from idml_zoo.studies.level_figures import against_strongest
from idml_zoo.studies.reliability.page import headline as confidence_in_words
from idml_zoo.studies.sets import LEADERBOARD, Set, compared, interval, matched_controls, pairs, scores, settings_text
from idml_zoo.variants import variants

CONFIDENCE = LEADERBOARD.parent / "docs" / "reliability" / "measured.json"
HEADLINE = "idml_test_resnet_glyphs"  # the model in the picture


def introspective_pairs(sets: list[Set]) -> Iterator[tuple[Set, str, str]]:
    """Yields (set, variant with the introspective metric or the released loss, the same loss without it)."""
    for measured in sets:
        for name, other in pairs(measured):
            if variants[name].similarity != "cosine":
                yield measured, name, other


def across(sets: list[Set]) -> str:
    """Returns the table of what introspection changes, over the sets."""
    rows = []
    for measured, name, other in introspective_pairs(sets):
        row = measured.lines[name].row
        d = compared(measured, row, measured.lines[other].row)
        values = [percent(row.values(m)) for m in ("auroc_level", "auroc_top1_similarity")]
        rows.append([measured.benchmark, f"`{name}` − `{other}`", interval(d["R@1"]), interval(d["MAP@R"]), *values])
        for variant, control in matched_controls(measured):
            if variant == name:
                d = compared(measured, row, control.row)
                title = f"`{name}` − `{other}` at {settings_text(control.settings)}, a control"
                rows.append([measured.benchmark, title, interval(d["R@1"]), interval(d["MAP@R"]), *values])
    return markdown_table(["set", "difference, points", "R@1", "MAP@R", "AUROC ‖u‖", "AUROC −sim"], rows)


def _count_differences(differences: list[Difference]) -> list[str]:
    """Counts differences: distinguishably above 0, distinguishably below 0, neither."""
    better = sum(d.distinguishable and d.mean > 0 for d in differences)
    worse = sum(d.distinguishable and d.mean < 0 for d in differences)
    return [str(better), str(worse), str(len(differences) - better - worse)]


def _count_rows(values: list[list[float]], than: float) -> list[str]:
    """Counts rows: above for every seed, below for every seed, neither."""
    above, below = sum(min(v) > than for v in values), sum(max(v) < than for v in values)
    return [str(above), str(below), str(len(values) - above - below)]


def _count_added(form: str) -> list[str]:
    """Counts the embeddings whose level adds to a confidence fitted on other classes, takes from it, or neither."""
    figures = json.loads(CONFIDENCE.read_text(encoding="utf-8"))["figures"].values()
    added = [f["level_adds"][form] for f in figures if "level_adds" in f]
    return _count_differences([Difference(d["mean"], d["interval"][0], d["interval"][1], float("nan")) for d in added])


def confidence(sets: list[Set]) -> str:
    """Returns what confidence is worth with the embedded weights, in words."""
    return confidence_in_words(json.loads(CONFIDENCE.read_text(encoding="utf-8"))["figures"])


def claims(sets: list[Set]) -> str:
    """Returns the table of statements about IDML, each with the number of rows that agree."""

    def recall(measured: Set, name: str, other: str) -> Difference:
        return compared(measured, measured.lines[name].row, measured.lines[other].row)["R@1"]

    all_pairs = [(measured, name, other) for measured in sets for name, other in pairs(measured)]
    metric = [x for x in all_pairs if variants[x[1]].similarity == "introspective"]
    released = [x for x in all_pairs if variants[x[1]].similarity == "released"]
    mixup = [x for x in all_pairs if variants[x[1]].similarity == "cosine" and variants[x[1]].mixup]
    lines = [(m, line) for m in sets for n, line in m.lines.items() if variants[n].similarity == "introspective"]
    same_weights = [(m, line.introspective, line.row) for m, line in lines if line.introspective]
    with_level = [(m, line.row, line.row.values("auroc_level")) for m, line in lines]
    over_free = [against_strongest(m, row) for m, row, level in with_level if level]
    rows = [
        [
            "Training with the introspective metric retrieves better [R]",
            "the same loss, R@1",
            *_count_differences([recall(*x) for x in metric]),
        ],
        ["So does the released loss [C]", "`pa_mixup`, R@1", *_count_differences([recall(*x) for x in released])],
        [
            "Mixup, a part of the method [C], retrieves better",
            "`pa`, R@1",
            *_count_differences([recall(*x) for x in mixup]),
        ],
        [
            "Searching by the introspective similarity retrieves better (the authors search by the cosine [C])",
            "cosine search of the same weights, R@1",
            *_count_differences([compared(m, a, b, same_weights=True)["R@1"] for m, a, b in same_weights]),
        ],
        [
            "The level tells which images will be retrieved wrongly [R]",
            "chance, AUROC",
            *_count_rows([v for *_, v in with_level if v], 0.5),
        ],
        [
            "… and better than the strongest score that costs nothing",
            "−sim or −margin, whichever has the higher AUROC",
            *_count_differences(over_free),
        ],
        ["… and adds to what the neighbourhood says, with labels", "confidence, AUROC", *_count_added("labelled")],
        ["… and without", "confidence without labels, AUROC", *_count_added("label_free")],
        [
            "The level rises as images degrade [R]",
            "the least degraded images, mean ‖u‖",
            *_count_rows([r for m, row, _ in with_level if (r := level_ratios(m, row))], 1.0),
        ],
    ]
    return markdown_table(["statement", "compared with", "yes", "the opposite", "undecided"], rows)


def levels(sets: list[Set]) -> str:
    """Returns the table of how well each level predicts errors, the best of a set first."""
    rows = []
    for measured in sets:
        with_level = [line for line in measured.lines.values() if line.row.values("auroc_level")]
        for line in sorted(with_level, key=lambda x: -statistics.fmean(x.row.values("auroc_level") or [])):
            metrics = ("auroc_level", "auroc_top1_similarity", "auroc_margin")
            cells = [percent(line.row.values(m)) for m in metrics]
            over = interval(against_strongest(measured, line.row))
            severity = percent(line.row.values("spearman_severity"))
            rows.append([measured.benchmark, f"`{line.variant}`", *cells, over, severity])
    header = [
        "set",
        "variant",
        "AUROC ‖u‖",
        "AUROC −sim",
        "AUROC −margin",
        "‖u‖ over the stronger, points",
        "ρ severity",
    ]
    return markdown_table(header, rows)


def standing(sets: list[Set]) -> str:
    """Returns which studies are complete, and which rows are not measured yet."""
    missing = {title_of(m): [f"`{n}`" for n in m.progress.variants() if n not in m.lines] for m in sets}
    for measured in sets:
        missing[title_of(measured)] += [f"the scout `{n}`" for n, t in measured.progress.scouted() if t.result is None]
        for variant, settings, finals in measured.progress.controls():
            if not all(result for _, result in finals):
                missing[title_of(measured)].append(f"the control `{variant}` ({settings_text(settings)})")
    done = [title for title, names in missing.items() if not names]
    text = [f"Complete: {'; '.join(done)}."] if done else []
    text += [f"Of {title}, not measured yet: {', '.join(names)}." for title, names in missing.items() if names]
    started, folders = {m.study.file.resolve() for m in sets}, {m.study.file.parent for m in sets}
    waiting = sorted(p.stem for folder in folders for p in folder.glob("*.yaml") if p.resolve() not in started)
    text += [f"No row is tuned yet of {', '.join(f'`{name}`' for name in waiting)}."] if waiting else []
    return " ".join(text)


def _best_other_loss(measured: Set) -> str | None:
    """Returns the semantic variant with the best trial, without Proxy-Anchor; None until all are tuned."""
    semantic = [n for n in measured.progress.variants() if variants[n].head == "semantic"]
    others = [n for n in semantic if n not in ("pa", "pa_mixup")]
    tuned = {n: measured.progress.chosen(n) for n in others}
    scores = {n: measured.progress.score(t.result) for n, t in tuned.items() if t and t.result}
    best = max(scores, key=lambda n: scores[n]) if scores and len(scores) == len(others) else None
    return best if best in measured.lines else None


def headline(sets: list[Set]) -> str:
    """Returns the table of README: R@1 of the main variants on each set, and the AUROC of two levels."""

    def recall(measured: Set, name: str | None) -> str:
        return percent(measured.lines[name].row.values("recall@1")) if name in measured.lines else "–"

    rows = []
    for measured in sets:
        other = _best_other_loss(measured)
        cells = [percent(measured.baseline.values("recall@1")) if measured.baseline else "–"]
        cells += [recall(measured, n) for n in ("pa", "pa_mixup", "idml", "idml_no_mixup")]
        cells += [
            f"{recall(measured, other)} (`{other}`)" if other else "–",
            recall(measured, f"idml_{other}_no_mixup"),
        ]
        shown = (("idml", "auroc_level"), ("loss_prediction", "auroc_level"), ("idml", "auroc_top1_similarity"))
        cells += [percent(measured.lines[n].row.values(m)) if n in measured.lines else "–" for n, m in shown]
        rows.append([title_of(measured), *cells])
    header = ["R@1, percent", "features, not trained on the set", "`pa`", "`pa_mixup`", "`idml`", "`idml_no_mixup`"]
    header += ["best other loss", "the same, introspective", "AUROC ‖u‖ of `idml`", "of `loss_prediction`"]
    header.append("AUROC −sim")
    return markdown_table(header, rows)


def published(sets: list[Set]) -> str:
    """Returns the caption of README's picture, from the result files of that model's row."""
    (result,) = read_results(EMBEDDED / HEADLINE / "results")
    stored = read_results(sets[0].leaderboard / "results")
    seeds = sorted((r for r in stored if (r.benchmark, r.row) == (result.benchmark, result.row)), key=lambda r: r.seed)
    shares = []
    for seed in seeds:
        values = load_queries(sets[0].leaderboard / "results", seed)
        assert values is not None, seed.row
        order = np.argsort(values["level"], kind="stable")
        tenth = len(order) // 10
        shares.append([1 - values["top1"][part].mean() for part in (order[:tenth], order[-tenth:], order)])
    surest, most_uncertain, overall = (percent(list(x)) for x in zip(*shares, strict=True))
    return (
        f"Above, `{HEADLINE}` ({result.model.parameters / 1e6:.1f} M parameters, comes with the package; variant "
        f"`{result.model.variant}`). Nobody told it which images are degraded. Over the {len(seeds)} seeds of "
        f"[its row](leaderboard/results/{result.path('').parent.as_posix()}), the nearest neighbour is wrong for "
        f"{overall} % of the images: for {surest} % of the surest tenth by ‖u‖, "
        f"for {most_uncertain} % of the most uncertain tenth."
    )


def packaged_weights(sets: list[Set]) -> str:
    """Returns the table of the models that come with the package, measured as they are stored."""
    stored = read_results(sets[0].leaderboard / "results")
    rows = []
    for name, weights in PUBLISHED.items():
        if weights.repo is not None:
            continue
        (result,) = read_results(EMBEDDED / name / "results")
        size = result.protocol.image_size
        features = (result.benchmark, f"features-{result.model.backbone.split('.')[0]}-{size}px")
        plain = [r.metrics["recall@1"] or 0.0 for r in stored if (r.benchmark, r.row) == features]
        recall, *others = (
            f"{100 * (result.metrics[m] or 0.0):.1f}"
            for m in ("recall@1", "map@r", "auroc_level", "auroc_top1_similarity")
        )
        megabytes = f"{(EMBEDDED / name / 'model.safetensors').stat().st_size / 1e6:.1f}"
        recall = f"[{recall}](../idml_zoo/embedded/{name}/results/{result.path('').as_posix()})"
        how = f"`{result.model.variant}`, {result.training}"
        rows.append([f"`{name}`", how, megabytes, recall, percent(plain) if plain else "–", *others])
    header = ["name", "trained", "MB", "R@1", "R@1 of features, not trained on the set", "MAP@R"]
    return markdown_table([*header, "AUROC ‖u‖", "AUROC −sim"], rows)


def rankings(sets: list[Set]) -> str:
    """Returns the table that compares the variants' order on held-out training classes with that on test classes."""
    rows = []
    for measured in sets:
        metric = measured.study.choose_by
        on_validation, on_test = scores(measured)
        if len(on_validation) < 3 or len(measured.study.seeds) < 2:
            continue
        first, best = max(on_validation, key=on_validation.__getitem__), max(on_test, key=on_test.__getitem__)
        rank = 1 + sum(v > on_test[first] for v in on_test.values())
        spread = statistics.fmean(statistics.stdev(measured.lines[n].row.values(metric) or []) for n in on_validation)
        correlation = spearmanr([on_validation[n] for n in on_test], list(on_test.values())).statistic
        cells = [title_of(measured), str(len(on_test)), f"{correlation:.2f}", f"`{first}`", str(rank), f"`{best}`"]
        rows.append([*cells, f"{100 * (on_test[best] - on_test[first]):.1f}", f"{100 * spread:.1f}"])
    header = ["set", "variants", "rank correlation", "first on held-out classes", "its rank on test classes"]
    header += ["first on test classes", "points between them", "standard deviation over seeds"]
    return markdown_table(header, rows)


ACROSS = {
    "rankings": rankings,
    "weights": packaged_weights,
    "standing": standing,
    "across": across,
    "claims": claims,
    "confidence": confidence,
    "levels": levels,
    "headline": headline,
    "published": published,
}
