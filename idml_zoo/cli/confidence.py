"""Arguments about the confidence of answers, and what they mean: ``--max-risk`` and ``--reliability``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idml_zoo.models.model import IDMLModel
    from idml_zoo.reliability.reliability import Reliability
    from idml_zoo.reliability.risk import Limit


def add_confidence(parser: argparse.ArgumentParser) -> None:
    """Adds ``--max-risk`` and ``--reliability``."""
    parser.add_argument(
        "--max-risk",
        type=_share,
        metavar="SHARE",
        help="decline the least sure queries, so that at most this share of the answers is wrong: 0.1 for 10 %% (with "
        "90 %% confidence, for queries like those of the calibration; needs a calibrated reliability)",
    )
    parser.add_argument(
        "--reliability",
        type=Path,
        metavar="FILE",
        help="where confidence and limits come from, as Reliability.save writes it (default: the model's own, or the "
        "package's, which has no limits)",
    )


def _share(text: str) -> float:
    """Returns a number in (0, 1), for argparse."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1 (10 % is 0.1), got {text}")
    return value


def stored_reliability(args: argparse.Namespace) -> Reliability | None:
    """Returns what the file of ``--reliability`` holds, before anything is computed; None where none was named.

    Raises:
        ReliabilityError: a file that is no reliability, or of another version.
    """
    from idml_zoo.reliability.reliability import Reliability

    return Reliability.load(args.reliability) if args.reliability else None


def chosen_confidence(
    args: argparse.Namespace, stored: Reliability | None, model: IDMLModel, labelled: bool
) -> tuple[Reliability | None, Limit | None]:
    """Returns the reliability (the file's, else the model's own, else None for the default), and the limit that
    ``--max-risk`` asks of it.

    Raises:
        ReliabilityError: ``--max-risk`` without a calibration.
        RiskNotReachable: no query can be answered at that risk; the message says what is reachable.
    """
    from idml_zoo.reliability.reliability import default

    reliability = stored or getattr(model, "reliability", None)
    if args.max_risk is None:
        return reliability, None
    return reliability, (reliability or default()).limit(args.max_risk, labelled=labelled)
