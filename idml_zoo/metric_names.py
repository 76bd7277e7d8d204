"""The names of what a result file holds, and their titles in tables. Standard library only."""

from __future__ import annotations

# What may tell a wrong answer; larger = less sure. The titles are those of tables.
ERROR_SCORES = {
    "level": "‖u‖",
    "top1_similarity": "−sim",
    "margin": "−margin",
    "semantic_norm": "−norm",
    "posterior": "−posterior",
    "agreement": "−agreement",
    "spread": "−spread",
    "confidence": "−confidence",
    "confidence_label_free": "−confidence without labels",
    "unknown": "unknown",
    "unknown_label_free": "unknown without labels",
}
FREE_SCORES = ("top1_similarity", "margin", "semantic_norm", "posterior", "agreement", "spread")  # nothing was fitted
COVERAGES = {"coverage5": 0.05, "coverage10": 0.10}  # share of queries answered at most at this risk
_ERROR_METRICS = {"auroc": "AUROC", "aurc": "AURC", "eaurc": "E-AURC", "ece": "ECE"}
_ERROR_METRICS |= {"coverage5": "answered at 5 % risk,", "coverage10": "answered at 10 % risk,"}
_CLUSTERING = ("nmi", "ami", "f1")
# In [-1, 1]; every other metric is a fraction in [0, 1].
CORRELATIONS = frozenset({"spearman_severity"})
TITLES = {
    "r_precision": "RP",
    "map@r": "MAP@R",
    **{f"{m}{end}": f"{m.upper()}{title}" for m in _CLUSTERING for end, title in (("", ""), ("_std", " std"))},
    **{f"{m}_{s}": f"{name} {sign}" for m, name in _ERROR_METRICS.items() for s, sign in ERROR_SCORES.items()},
    "spearman_severity": "ρ severity",
}
METRICS = tuple(TITLES)
OPEN_SET = ("unknown", "unknown_std", "wrong", "wrong_std")
COSTS = ("gmacs", "images_per_second", "bytes_per_image")
SEVERITIES = ("1", "2", "3", "4", "5")
