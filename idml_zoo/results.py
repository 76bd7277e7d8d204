"""A result: one row, one seed, one JSON file. Standard library only, so that tables rebuild without torch.

Layout: ``<results>/<benchmark>/<row>/seed<k>.json``, with per-query values beside it in ``seed<k>.queries.npz``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idml_zoo.metric_names import CORRELATIONS, COSTS, ERROR_SCORES, METRICS, OPEN_SET, SEVERITIES

SCHEMA = 3  # 1 had no cost, no corruptions and no trained; 2 no open set
# 1 clustered by faiss or scikit-learn, and left ties to the rounding of a matrix product; 2 cut queries of one
# calibrated probability into bins in the order of the images, and had no margin where one class filled the list; 3 knew
# no posterior, agreement, spread and confidence, and no coverage at a risk
PROTOCOL = 4
_RECALL = re.compile(r"recall@[1-9]\d*")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # of a benchmark or a row: they are folders
CHECKPOINTS = ("none", "last", "validation", "test")


class ResultError(ValueError):
    """A result file that is missing, half-written or against the schema; the message names file, field and fix."""


@dataclass(frozen=True)
class ModelInfo:
    """What was evaluated.

    Attributes:
        backbone: timm name.
        head: name in the head registry.
        embedding_dim: D.
        pooling: of the backbone's features.
        parameters: number of parameters.
        pretrained: where the backbone's weights came from before training ("none", "timm:…", "package:…").
        variant: training variant, "none" for an untrained model.
    """

    backbone: str
    head: str
    embedding_dim: int
    pooling: str
    parameters: int
    pretrained: str
    variant: str


@dataclass(frozen=True)
class Protocol:
    """How it was measured. Tables never mix versions.

    Attributes:
        image_size, crop_fraction, interpolation, mean, std: preprocessing of test images.
        similarity: what search used, "cosine" or "introspective".
        kmeans: implementation and settings.
        checkpoint: the split that chose the checkpoint: "none" (untrained), "last" epoch, "validation" or "test"
            (shown as a warning).
        tau: temperature of the introspective search where it is not the usual 5.
        version: of these rules; ``split`` the split that was measured ("test", or "validation" while developing).
        self_removal, ties: fixed by this version.
    """

    image_size: int
    crop_fraction: float
    interpolation: str
    mean: list[float]
    std: list[float]
    similarity: str
    kmeans: dict[str, Any]
    checkpoint: str
    split: str = "test"
    version: int = PROTOCOL
    self_removal: str = "by index"
    ties: str = "by gallery index, of scores in float64 rounded to float32"
    tau: float | None = None


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from.

    Attributes:
        command: as typed.
        commit: of the code, None outside a checkout; ``dirty``: whether it had uncommitted changes.
        versions: of the packages that matter.
        device, dtype, threads: what computed the embeddings: the GPU's name, or "cpu (PROCESSOR, INSTRUCTIONS)".
        seconds: {"train": ..., "evaluate": ...}.
        created: UTC, ISO 8601.
        data_sha256: fingerprint of the measured split; ``weights_sha256`` of the model file, None where there is none.
        recipe, recipe_sha256: resolved configuration of the training, None for an untrained model.
        trained: ``command``, ``commit`` and ``created`` of the training, where its weights were measured again later.
        upgraded: ``from``, ``commit`` and ``created``, where a later protocol's metrics were computed from the stored
            values of every query.
    """

    command: str
    commit: str | None
    dirty: bool | None
    versions: dict[str, str]
    device: str
    dtype: str
    threads: int
    seconds: dict[str, float]
    created: str
    data_sha256: str
    weights_sha256: str | None = None
    recipe: str | None = None
    recipe_sha256: str | None = None
    trained: dict[str, str] = field(default_factory=dict)
    upgraded: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingRecord:
    """How the weights that are measured came about; recorded in the result, not checked.

    Attributes:
        variant: of the training; "none" for an untrained network, "unknown" where nobody says.
        pretrained: first weights of the backbone: "none", "timm:NAME", "package:NAME" or "unknown".
        checkpoint: the split that chose the checkpoint, one of :data:`CHECKPOINTS`.
        description: what a reader of the row must know ("15 epochs at 128 px"), "" for nothing.
        seconds: of the training; None where they are not known.
        recipe: resolved configuration of the training, as YAML; None without one.
        weights_sha256: of the model file; None where there is none.
        statistics: last logged values of the training.
        trained: ``command``, ``commit`` and ``created`` of the training, where the weights are measured again later.
    """

    variant: str = "unknown"
    pretrained: str = "unknown"
    checkpoint: str = "none"
    description: str = ""
    seconds: float | None = None
    recipe: str | None = None
    weights_sha256: str | None = None
    statistics: dict[str, float] = field(default_factory=dict)
    trained: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, result: Result) -> TrainingRecord:
        """Returns what a result says of the training of its weights, for measuring them again."""
        p = result.provenance
        commit = str(p.commit) + (" (dirty)" if p.dirty else "")
        return cls(
            variant=result.model.variant,
            pretrained=result.model.pretrained,
            checkpoint=result.protocol.checkpoint,
            description=result.training,
            seconds=p.seconds.get("train"),
            recipe=p.recipe,
            weights_sha256=p.weights_sha256,
            statistics=result.statistics,
            trained=p.trained or {"command": p.command, "commit": commit, "created": p.created},
        )


@dataclass(frozen=True)
class Result:
    """One row of a benchmark for one seed.

    Attributes:
        benchmark, row: keys; they are the folder names.
        seed: of the training (or of the initialisation, for an untrained model).
        model, protocol, provenance: see there.
        metrics: fractions in [0, 1] (``spearman_severity`` in [-1, 1]); None where a metric is not defined, for
            example the AUROC of a level that is constant.
        queries: number of test images; ``queries_without_positive``: those left out, alone in their class.
        training: what a reader of the row must know of it ("15 epochs at 128 px"), "" for none.
        statistics: last logged values of the training (mean level, mean factors, ...).
        cost: ``gmacs``, ``images_per_second``, ``bytes_per_image``, as far as known (of the parameters see the model).
        corruptions: by corruption, then severity "1" to "5": ``recall@1`` and mean ``level`` of corrupted queries that
            are searched in the clean gallery.
        open_set: of queries half of whose classes are not in the gallery, by score: AUROC for "class unknown"
            (``unknown``) and for "any wrong answer" (``wrong``), mean and standard deviation over five splits.
        per_query: arrays of length ``queries``, kept beside the JSON, never inside.
        queries_sha256: of that file.
    """

    benchmark: str
    row: str
    seed: int
    model: ModelInfo
    protocol: Protocol
    metrics: dict[str, float | None]
    queries: int
    queries_without_positive: int
    provenance: Provenance
    training: str = ""
    statistics: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    corruptions: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    open_set: dict[str, dict[str, float]] = field(default_factory=dict)
    queries_sha256: str | None = None
    schema: int = SCHEMA
    per_query: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check(self)

    def path(self, root: str | Path) -> Path:
        """Returns where the file belongs under a results folder."""
        return Path(root) / self.benchmark / self.row / f"seed{self.seed}.json"

    def to_json(self) -> str:
        """Returns the file's text, the same for equal results."""
        plain = dataclasses.asdict(dataclasses.replace(self, per_query={}))
        del plain["per_query"]
        if not self.open_set:
            del plain["open_set"]
        if self.protocol.tau is None:  # as files before it was recorded are, byte for byte
            del plain["protocol"]["tau"]
        if not self.provenance.upgraded:
            del plain["provenance"]["upgraded"]
        return json.dumps(plain, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def _require(ok: bool, what: str) -> None:
    if not ok:
        raise ResultError(what)


def check_name(kind: str, name: Any) -> None:
    """Raises ResultError for a name that cannot become a folder and markup: of a benchmark, a row or a split."""
    ok = isinstance(name, str) and bool(NAME.fullmatch(name))
    _require(ok, f"{kind} must be letters, digits, '.', '_', '+' or '-', got {name!r}")


def _check(r: Result) -> None:
    readable = f"this version reads 1–{SCHEMA}; update idml_zoo, or evaluate again with this version"
    _require(type(r.schema) is int and 1 <= r.schema <= SCHEMA, f"schema is {r.schema!r}, {readable}")
    check_name("benchmark", r.benchmark)
    check_name("row", r.row)
    _require(r.benchmark != "reported", "no benchmark can be called 'reported': reported.csv holds others' numbers")
    _require(type(r.seed) is int and r.seed >= 0, f"seed must be an integer ≥ 0, got {r.seed!r}")
    version = r.protocol.version
    _require(
        type(version) is int and 1 <= version <= PROTOCOL,
        f"protocol version is {version!r}, this version knows 1–{PROTOCOL}; update idml_zoo",
    )
    _require(
        r.protocol.checkpoint in CHECKPOINTS, f"checkpoint must be one of {CHECKPOINTS}, got {r.protocol.checkpoint!r}"
    )
    _require(type(r.queries) is int and r.queries > 0, f"queries must be a positive integer, got {r.queries!r}")
    left_out = r.queries_without_positive
    _require(
        type(left_out) is int and 0 <= left_out < r.queries, f"queries_without_positive is {left_out!r} of {r.queries}"
    )
    for name, spent in r.cost.items():
        ok = name in COSTS and type(spent) in (int, float) and math.isfinite(spent) and spent >= 0
        _require(ok, f"cost must hold {', '.join(COSTS)} ≥ 0, got {name} = {spent!r}")
    check_name("protocol.split", r.protocol.split)
    for name, curve in r.corruptions.items():
        check_name("a corruption's name", name)
        for severity, point in curve.items():
            ok = severity in SEVERITIES and set(point) == {"recall@1", "level"}
            ok = ok and all(math.isfinite(v) and v >= 0 for v in point.values()) and point["recall@1"] <= 1
            _require(ok, f"corruptions.{name}.{severity} must hold recall@1 in [0, 1] and a level, got {point!r}")
    for name, point in r.open_set.items():
        ok = name in ERROR_SCORES and set(point) == set(OPEN_SET)
        ok = ok and all(type(v) in (int, float) and 0 <= v <= 1 for v in point.values())
        _require(ok, f"open_set.{name} must hold {', '.join(OPEN_SET)} in [0, 1] of a score, got {point!r}")
    for name in ("versions", "seconds", "trained", "upgraded"):
        _require(isinstance(getattr(r.provenance, name), dict), f"provenance.{name} must be an object")
    _require(r.metrics.get("recall@1") is not None, "metrics has no recall@1")
    for name, value in r.metrics.items():
        _require(name in METRICS or bool(_RECALL.fullmatch(name)), f"unknown metric {name!r}")
        if value is not None:
            low = -1.0 if name in CORRELATIONS else 0.0
            ok = type(value) in (int, float) and math.isfinite(value) and low <= value <= 1
            _require(ok, f"metric {name} must be a fraction in [{low:g}, 1] or null, got {value!r}")


def _build(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ResultError(f"{where} must be an object, got {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name != "per_query"}
    unknown = sorted(set(data) - set(fields))
    missing = sorted(
        n
        for n, f in fields.items()
        if n not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    if unknown or missing:
        parts = [f"{label} {', '.join(v)}" for label, v in (("missing", missing), ("unknown", unknown)) if v]
        raise ResultError(f"{where}: {'; '.join(parts)}")
    return kind(**data)


def read_result(path: str | Path) -> Result:
    """Reads and validates one file.

    Raises:
        ResultError: naming the file and what is wrong with it.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ResultError(f"no result file {path}") from error
    except (ValueError, OSError) as error:
        raise ResultError(f"{path} is not whole JSON ({error}); delete it and evaluate again") from error
    try:
        if isinstance(data, dict):
            for name, kind in (("model", ModelInfo), ("protocol", Protocol), ("provenance", Provenance)):
                if name in data:
                    data[name] = _build(kind, data[name], name)
        result: Result = _build(Result, data, "result")
    except (ResultError, TypeError, AttributeError) as error:
        raise ResultError(f"{path}: {error}") from error
    if Path(*path.parts[-3:]) != Path(result.benchmark, result.row, f"seed{result.seed}.json"):
        raise ResultError(
            f"{path} holds {result.path('')}; a result file must lie under its own benchmark, row and seed"
        )
    return result


def read_results(root: str | Path) -> list[Result]:
    """Returns every result under a folder, sorted by path; raises ResultError for the first bad file."""
    return [read_result(p) for p in sorted(Path(root).glob("*/*/seed*.json"))]


_MOVED = {"write_text": "write_file", "check_writable": "check_writable"}  # to idml_zoo.files, since 0.2


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        import warnings

        from idml_zoo import files

        warnings.warn(
            f"idml_zoo.results.{name} is idml_zoo.files.{_MOVED[name]} since version 0.2; the old name goes in 0.4",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(files, _MOVED[name])
    raise AttributeError(f"module 'idml_zoo.results' has no attribute {name!r}")
