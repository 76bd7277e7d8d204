"""Makes model cards from result files and from nothing else, and checks that a card agrees with its result files.

A published folder holds ``model.safetensors``, ``config.json``, ``README.md`` (the card), and under ``results/`` the
result files of exactly these weights.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idml_zoo.files import sha256_of, write_file
from idml_zoo.metric_names import FREE_SCORES
from idml_zoo.models.files import CARD, CONFIG, WEIGHTS, Spec, WeightsError, local_files, read_config
from idml_zoo.registry import benchmarks
from idml_zoo.reliability.reliability import Reliability
from idml_zoo.reports.leaderboard.rows import in_order, percent, pretraining, title
from idml_zoo.reports.markdown import markdown_table
from idml_zoo.results import Result, read_results

_SCORES = {
    "level": "level ‖u‖",
    "top1_similarity": "minus similarity of the nearest",
    "margin": "minus margin to the next class",
    "semantic_norm": "minus norm before normalisation",
    "posterior": "minus posterior of the class among the neighbours",
    "agreement": "minus agreement of the ten nearest",
    "spread": "minus spread of the similarities",
    "confidence": "minus confidence, labels of the gallery known",
    "confidence_label_free": "minus confidence, without labels",
}


def model_card(spec: Spec, results: Sequence[Result], name: str) -> str:
    """Returns the text of a model's card: its README.md on the Hub.

    Args:
        spec: from its ``config.json``.
        results: of these weights; empty where nothing was measured, which the card then states. The training benchmark
            is that of ``spec.meta``, else that of the first result.
        name: what :func:`idml_zoo.create_model` loads: "hf-hub:user/name" or a name of the zoo.
    """
    shown = Path(name).name if name.startswith("local-dir:") else name.rpartition(":")[2]
    trained_on = str(spec.meta.get("benchmark") or (results[0].benchmark if results else ""))
    record = benchmarks[trained_on] if trained_on in benchmarks else None
    head, backbone = spec.model["head"], spec.model["backbone"]
    parts = [
        _front_matter(shown, head, record.weights_licence if record else "other", results),
        f"# {shown}",
        f"An image embedding with uncertainty ([IDML](https://arxiv.org/abs/2309.09982), by idml_zoo): head `{head}` "
        f"on timm's `{backbone}`, trained for {record.title if record else trained_on or 'an unnamed benchmark'}"
        f"{_size(spec, results)}.",
        "## Use",
        _usage(name),
        "It is meant for retrieval, clustering and duplicate search among images like those that it was trained on, by "
        "the cosine of the semantic embeddings or by the introspective metric. It does not identify or rate people.",
        "## Measured",
        _measured(results),
        "## Does it know when it is wrong?",
        _uncertainty(results),
        *_reliability(spec.reliability),
        "## Training",
        _training(spec, results),
        "## Data and licence",
        f"Training data: {record.title if record else trained_on or 'unknown'}; "
        f"{record.licence if record else 'licence unknown to idml_zoo'}. "
        "The weights are given under what this allows; the code is Apache-2.0.",
        "## Limits",
        _limits(results),
        "## Citation",
        "```bibtex\n@article{wang2023introspective,\n  title   = {Introspective Deep Metric Learning},\n"
        "  author  = {Wang, Chengkun and Zheng, Wenzhao and Zhu, Zheng and Zhou, Jie and Lu, Jiwen},\n"
        "  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},\n  year    = {2023}\n}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(name: str, head: str, licence: str, results: Sequence[Result]) -> str:
    """Returns the YAML that the Hub reads, between its two rules."""
    import yaml

    front: dict[str, Any] = {
        "library_name": "idml-zoo",
        "pipeline_tag": "image-feature-extraction",
        "license": licence,
        "tags": ["metric-learning", "image-retrieval", "uncertainty", "timm", head],
    }
    if licence == "other":
        front["license_name"] = "terms-of-the-training-data"
        front["license_link"] = "https://huggingface.co/docs/hub/repositories-licenses"
    if results:
        front["model-index"] = [{"name": name, "results": [_index(r) for r in results]}]
    return "---\n" + yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000) + "---"


def _size(spec: Spec, results: Sequence[Result]) -> str:
    """Returns the width of the embedding, the size of the images and the number of parameters, as far as known."""
    dim = spec.model["embedding_dim"] or (results[0].model.embedding_dim if results else None)
    width = f", {dim}-d" if dim else ""
    parameters = f", {results[0].model.parameters:,} parameters" if results else ""
    return f"{width}, {spec.transform.image_size} px{parameters}"


def _usage(name: str) -> str:
    return f"""```python
import idml_zoo
from PIL import Image

model = idml_zoo.create_model("{name}", pretrained=True)
_, transform = idml_zoo.create_transforms(model)
image = Image.new("RGB", (320, 240))  # yours: Image.open("photo.jpg").convert("RGB")
e = model(transform(image).unsqueeze(0))
e.semantic  # (1, D), unit norm: compare by cosine, or all of e by idml_zoo.introspective_distance
e.level  # (1,) how uncertain
```"""


def _index(r: Result) -> dict[str, Any]:
    """Returns one entry of the Hub's model-index."""
    values = [(m, v) for m in in_order(r.metrics) if (v := r.metrics[m]) is not None and not m.endswith("_std")]
    record = benchmarks[r.benchmark] if r.benchmark in benchmarks else None
    return {
        "task": {"type": "image-feature-extraction", "name": f"image retrieval by {r.protocol.similarity}"},
        "dataset": {"type": r.benchmark, "name": record.title if record else r.benchmark, "split": r.protocol.split},
        "metrics": [{"type": m, "name": title(m), "value": round(float(v), 4)} for m, v in values],
    }


def _measured(results: Sequence[Result]) -> str:
    if not results:
        return "Nothing yet: no result file of these weights was given."
    text = []
    for r in results:
        record = benchmarks[r.benchmark] if r.benchmark in benchmarks else None
        shown = [
            m for m in in_order(r.metrics) if m.startswith("recall@") or m in ("r_precision", "map@r", "nmi", "f1")
        ]
        head = (
            f"**{record.title if record else r.benchmark}**, {r.queries:,} {r.protocol.split} images of classes that "
        )
        head += f"training has not seen, search by {r.protocol.similarity}, protocol {r.protocol.version}, percent:"
        note = f"\n\n{record.note[0].upper()}{record.note[1:]}." if record and record.note else ""
        cells = [percent(None if (v := r.metrics[m]) is None else [v]) for m in shown]
        text.append(f"{head}\n\n{markdown_table([title(m) for m in shown], [cells])}{note}")
    return "\n\n".join(text) + "\n\nOne seed, these very weights; the files are under `results/`."


def _uncertainty(results: Sequence[Result]) -> str:
    rows, level, baseline = [], None, None
    for r in results:
        for score, words in _SCORES.items():
            auroc, aurc, ece = (r.metrics.get(f"{m}_{score}") for m in ("auroc", "aurc", "ece"))
            if auroc is None:
                continue
            rows.append([f"{r.benchmark}, {words}", *(percent(None if v is None else [v]) for v in (auroc, aurc, ece))])
            if r is results[0] and score == "level":
                level = auroc
            elif r is results[0] and score in FREE_SCORES:
                baseline = max(baseline or 0.0, auroc)
    if not rows:
        return "Not measured, or the head has no uncertainty."
    text = markdown_table(["score", "AUROC of a wrong nearest neighbour", "AURC", "ECE"], rows)
    if level is not None and baseline is not None:
        verdict = "tells mistakes better than" if level > baseline else "does not tell mistakes as well as"
        text += (
            f"\n\nPercent; AUROC 50 is chance. On {results[0].benchmark} the level {verdict} the best free baseline "
        )
        text += f"({100 * level:.1f} against {100 * baseline:.1f})."
    rho = results[0].metrics.get("spearman_severity")
    return text + (f" Rank correlation of the level with the known severity: {rho:.2f}." if rho is not None else "")


def _reliability(reliability: Reliability | None) -> list[str]:
    """Returns the paragraph on the confidence of answers; none where there is no reliability."""
    if reliability is None:
        return []
    text = (
        "**Confidence of every answer** comes with the weights (`search(..., reliability=model.reliability)`); "
        f"coefficients: {_words(reliability.fitted_on) or 'of unknown origin'}. "
    )
    risk = reliability.labelled.risk
    if risk is None:
        return [text + "It was not calibrated, so it has no limits on the risk."]
    return [
        f"{text}Limits on the risk (`max_risk=`): calibrated on "
        f"{_words(reliability.calibrated_on) or 'unnamed images'}, {risk.queries:,} queries of {risk.classes:,} "
        f"classes. They hold for later {risk.unit} that are drawn as these were, searched by the same model "
        "in a gallery of the same kind and size, and for no others."
    ]


def _words(text: str) -> str:
    """Returns words of a file as plain text of one line, with nothing in them that Markdown or HTML would follow."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _training(spec: Spec, results: Sequence[Result]) -> str:
    if not results:
        return f"Variant `{spec.meta.get('variant', 'unknown')}`."
    p = results[0].provenance
    command, commit = p.trained.get("command", p.command), p.trained.get("commit", p.commit)
    text = f"Variant `{results[0].model.variant}`, {results[0].training or 'see the recipe'}; seed {results[0].seed}; "
    first = results[0].model.pretrained
    start = "from scratch" if first == "none" else f"from a backbone that has seen {pretraining(first)}"
    text += f"{start}; commit {commit}.\n\n```bash\n{command}\n```"
    if p.recipe:
        text += f"\n\n<details><summary>Resolved recipe</summary>\n\n```yaml\n{p.recipe}```\n\n</details>"
    return text


def _limits(results: Sequence[Result]) -> str:
    lines = [
        "- Measured on one data set and one seed; other images may do worse, and the uncertainty may not carry over."
    ]
    if results and results[0].corruptions:
        worst = min(
            ((c, s, v["recall@1"]) for c, points in results[0].corruptions.items() for s, v in points.items()),
            key=lambda t: t[2],
        )
        lines.append(f"- R@1 falls to {100 * worst[2]:.1f} under {worst[0]} of severity {worst[1]}.")
    if results and results[0].protocol.checkpoint == "test":
        lines.append("- **The checkpoint was chosen on the test classes**, so its numbers are too good.")
    lines.append("- Whatever the backbone was pretrained on may overlap the test classes.")
    return "\n".join(lines)


def results_of_weights(folder: Path, results: Path) -> list[Result]:
    """Returns the results that were measured with exactly the weights in ``folder``, cosine search first.

    Args:
        folder: with ``config.json`` and ``model.safetensors``.
        results: a leaderboard's results folder.

    Raises:
        ResultError: a result file is damaged.
        WeightsError: ``folder`` holds no model.
    """
    _, weights = local_files(folder)
    assert weights is not None
    sha = sha256_of(weights)
    same_weights = [r for r in read_results(results) if r.provenance.weights_sha256 == sha]
    return sorted(same_weights, key=lambda r: (r.protocol.similarity != "cosine", r.benchmark, r.row))


own_results = results_of_weights  # the name of version 0.1


def build_card(folder: str | Path, results: str | Path, name: str) -> list[Path]:
    """Writes the card of a model's folder, and copies the result files of its weights there.

    Args:
        folder: with ``config.json`` and ``model.safetensors``.
        results: a leaderboard's results folder; results of other weights are left out.
        name: what :func:`idml_zoo.create_model` will load.

    Returns:
        The paths of the files that were written.

    Raises:
        ResultError: a result file is damaged.
        WeightsError: ``folder`` holds no model.
        FileError: ``folder`` cannot be written to.
    """
    folder = Path(folder)
    measured = results_of_weights(folder, Path(results))
    for r in measured:
        write_file(r.path(folder / "results"), r.to_json())
    write_file(folder / CARD, model_card(read_config(folder / CONFIG), measured, name))
    return [*(r.path(folder / "results") for r in measured), folder / CARD]


def check_card(folder: str | Path) -> list[str]:
    """Returns what is wrong with a published folder; empty where all is well.

    Wrong are the lines of the card that differ from its result files, and results of other weights.

    Raises:
        ResultError: a result file is damaged.
        WeightsError: ``folder`` holds no model or no card.
    """
    folder = Path(folder)
    config, _ = local_files(folder)
    path = folder / CARD
    if not path.is_file():
        raise WeightsError(f"no {path}; `idml-zoo card build {folder}` makes one")
    text = path.read_text(encoding="utf-8")
    measured = results_of_weights(folder, folder / "results")
    other_weights = [r for r in read_results(folder / "results") if r not in measured]
    name = next((line.split('"')[1] for line in text.splitlines() if "idml_zoo.create_model(" in line), "")
    expected = model_card(read_config(config), measured, name)
    lines = difflib.unified_diff(expected.splitlines(), text.splitlines(), lineterm="", n=0)
    return [
        *(f"{r.path('results')} is of other weights than {WEIGHTS}" for r in other_weights),
        *(line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")),
    ]
