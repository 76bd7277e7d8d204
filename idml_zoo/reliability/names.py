"""The names of the features of an answer; :mod:`idml_zoo.retrieval.answer_features` says what each is."""

from __future__ import annotations

VERSION = 1  # of what the names mean; estimators of another version would mean something else
LABEL_FREE = ("distance", "log_range", "distance_ratio", "gap_10", "overlap", "kinship", "log_rank")
LABELLED = (
    "margin",
    "relative_margin",
    "log_first_other",
    "posterior_40",
    "posterior_3",
    "class_agreement",
    "agreement_10",
    "purity",
)
UNCERTAINTY = ("query_level", "nearest_level")
# What the default coefficients use, for confidence and for unknown. Chosen by leave-one-set-out on held-out training
# classes: more features, and ‖u‖, made them worse on the sets that were left out (docs/reliability.md).
DEFAULT_LABELLED = (
    "kinship",
    "log_rank",
    "relative_margin",
    "log_first_other",
    "posterior_3",
    "class_agreement",
    "purity",
)
DEFAULT_LABEL_FREE = ("log_range", "distance_ratio", "gap_10", "overlap", "kinship")
DEFAULT_UNKNOWN = ((*DEFAULT_LABELLED, "distance"), ("distance", "distance_ratio"))
