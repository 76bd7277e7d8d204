"""Reliability: the estimators of confidence, and what a calibration says of their risk, as one value of numbers."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from idml_zoo.files import write_file
from idml_zoo.reliability.errors import ReliabilityError
from idml_zoo.reliability.logistic import Logistic
from idml_zoo.reliability.names import LABEL_FREE, LABELLED, UNCERTAINTY, VERSION
from idml_zoo.reliability.risk import Limit, RiskTable

LONGEST_NOTE = 200  # characters
_LARGEST = 1 << 17  # bytes of a file


@dataclass(frozen=True)
class Form:
    """The estimators of one form: for galleries with labels, or without.

    Attributes:
        confidence: probability that the nearest neighbour is of the query's class.
        unknown: score in [0, 1] that the query's class is not in the gallery; a probability where half of them are not.
        risk: of a calibration set, for limits; None where there was none.
    """

    confidence: Logistic
    unknown: Logistic
    risk: RiskTable | None = None

    def assess(self, features: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns confidence and unknown, ``(N,)`` float32 in [0, 1] each, of N answers' features."""
        confidence, unknown = (e.probability(features) for e in (self.confidence, self.unknown))
        return confidence.astype(np.float32), unknown.astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        risk = None if self.risk is None else self.risk.to_dict()
        return {"confidence": self.confidence.to_dict(), "unknown": self.unknown.to_dict(), "risk": risk}

    @classmethod
    def from_dict(cls, data: Any) -> Form:
        """Reads what :meth:`to_dict` returned; raises ReliabilityError for anything else."""
        if not isinstance(data, dict) or set(data) != {"confidence", "unknown", "risk"}:
            raise ReliabilityError("a form must be an object with confidence, unknown and risk")
        risk = None if data["risk"] is None else RiskTable.from_dict(data["risk"])
        return cls(Logistic.from_dict(data["confidence"]), Logistic.from_dict(data["unknown"]), risk)


@dataclass(frozen=True)
class Reliability:
    """How far the answers of a search are believed. Made by :func:`idml_zoo.fit_reliability`, or :func:`default`.

    Attributes:
        labelled: for galleries whose labels are known.
        label_free: for those without.
        fitted_on: what the coefficients were fitted on, in words.
        calibrated_on: what the limits hold for, in words; "" where there was no calibration.
    """

    labelled: Form
    label_free: Form
    fitted_on: str = ""
    calibrated_on: str = ""

    def form(self, labelled: bool) -> Form:
        """Returns the form for galleries with labels, or without."""
        return self.labelled if labelled else self.label_free

    def limit(self, max_risk: float, confidence: float = 0.9, labelled: bool = True) -> Limit:
        """Returns from which confidence on queries may be answered, by learn-then-test.

        Args:
            max_risk: share of the answers that may be wrong, in (0, 1).
            confidence: probability that this holds, in (0, 1).
            labelled: whether the gallery's labels are known.

        Raises:
            ReliabilityError: there was no calibration, or a number is out of range.
            RiskNotReachable: no queries can be answered at that risk; the message says what is reachable.
        """
        risk = self.form(labelled).risk
        if risk is None:
            raise ReliabilityError(
                "no limit without a calibration: give a reliability that idml_zoo.fit_reliability made on labelled "
                "images of yours (on the command line: idml-zoo calibrate)"
            )
        return risk.limit(max_risk, confidence)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        forms = {"labelled": self.labelled.to_dict(), "label_free": self.label_free.to_dict()}
        return {"version": VERSION, "fitted_on": self.fitted_on, "calibrated_on": self.calibrated_on, **forms}

    @classmethod
    def from_dict(cls, data: Any) -> Reliability:
        """Reads what :meth:`to_dict` returned; no code, no place and no name in it is followed.

        Raises:
            ReliabilityError: another version, other keys, or numbers that cannot be.
        """
        if not isinstance(data, dict):
            raise ReliabilityError(f"a reliability must be an object, got {type(data).__name__}")
        version = data.get("version")
        if type(version) is not int or version != VERSION:
            told = version if type(version) is int and 0 <= version < 1000 else "another kind"
            raise ReliabilityError(
                f"the reliability is of version {told}, and this package computes the features of version {VERSION}; "
                "fit it again with idml_zoo.fit_reliability, or leave it out for the default"
            )
        if set(data) != {"version", "fitted_on", "calibrated_on", "labelled", "label_free"}:
            raise ReliabilityError("a reliability must have version, fitted_on, calibrated_on, labelled and label_free")
        for name in ("fitted_on", "calibrated_on"):
            if not isinstance(data[name], str) or len(data[name]) > LONGEST_NOTE:
                raise ReliabilityError(f"a reliability's {name} must be a text of at most {LONGEST_NOTE} characters")
        labelled, label_free = (Form.from_dict(data[n]) for n in ("labelled", "label_free"))
        for form, computed in ((labelled, LABEL_FREE + LABELLED), (label_free, LABEL_FREE)):
            for name in (*form.confidence.features, *form.unknown.features):
                if name not in (*computed, *UNCERTAINTY):
                    raise ReliabilityError(f"a reliability needs the feature {name[:40]!r}, which nobody computes")
        return cls(labelled, label_free, data["fitted_on"], data["calibrated_on"])

    def save(self, path: str | Path) -> None:
        """Writes it as JSON, whole or not at all; FileError where the place cannot be written to."""
        write_file(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    @staticmethod
    def load(path: str | Path) -> Reliability:
        """Reads what :meth:`save` wrote.

        Raises:
            ReliabilityError: missing, larger than a reliability can be, or not one; the message names the file.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                content = file.read(_LARGEST + 1)
            if len(content) > _LARGEST:
                raise ReliabilityError(f"more than the {_LARGEST:,} bytes that a reliability can have")
            return Reliability.from_dict(json.loads(content.decode()))
        except (OSError, ValueError, RecursionError) as error:
            raise ReliabilityError(f"{path}: {error}") from error


@functools.cache
def default() -> Reliability:
    """Returns the default: fitted on held-out classes of several sets, for any embedding; without a calibration."""
    text = resources.files("idml_zoo").joinpath("reliability").joinpath("defaults.json").read_text(encoding="utf-8")
    return Reliability.from_dict(json.loads(text))
