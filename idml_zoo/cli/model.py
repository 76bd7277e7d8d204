"""What the commands share that begin with a model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idml_zoo.models.model import IDMLModel


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a model."""
    parser.add_argument(
        "model", help="a name of `idml-zoo list`, 'local-dir:FOLDER', 'hf-hub:user/name', or a head with --backbone"
    )
    parser.add_argument(
        "--pretrained",
        action=argparse.BooleanOptionalAction,
        help="trained weights (default: where the name has any)",
    )
    parser.add_argument("--revision", help="commit, branch or tag, of an 'hf-hub:' name")
    parser.add_argument(
        "--backbone", help="timm model, for a head ('idml', 'semantic', 'features' = plain pooled features)"
    )
    parser.add_argument(
        "--backbone-weights", choices=("none", "timm", "package"), default="none", help="for an untrained model"
    )
    parser.add_argument("--pooling", choices=("avg+max", "avg", "native"))


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def add_tau(parser: argparse.ArgumentParser) -> None:
    """The temperature of the introspective search; None where it is not given."""
    parser.add_argument(
        "--tau", type=_tau, help="of the introspective search (default: what the model was trained with, else 5)"
    )


def _tau(text: str) -> float:
    """A temperature, for argparse."""
    from idml_zoo.similarity import check_tau

    value = float(text)
    try:
        check_tau(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return value


def chosen_tau(args: argparse.Namespace, model: IDMLModel) -> float:
    """What ``--tau`` says, else what belongs to the model."""
    return model.tau if args.tau is None else float(args.tau)


def open_model(args: argparse.Namespace) -> IDMLModel:
    """The model that the arguments name; its ``origin`` is None where it is untrained."""
    from idml_zoo.models.hub import local_folder
    from idml_zoo.models.zoo import HUB, LOCAL, create_model, models

    trained = args.pretrained
    if trained is None:
        known = args.model in models and (
            models[args.model].weights is not None or local_folder(args.model) is not None
        )
        trained = args.model.startswith((LOCAL, HUB)) or (known and args.backbone_weights == "none")
    if not trained:
        import torch

        torch.manual_seed(getattr(args, "seed", None) or 0)
    model = create_model(
        args.model,
        trained,
        backbone=args.backbone,
        pooling=args.pooling,
        backbone_pretrained=args.backbone_weights,
        revision=args.revision,
    )
    if not trained and (args.model != "features" or args.backbone_weights == "none"):
        what = "its head's weights are" if args.backbone_weights != "none" else "its weights are"
        print(f"note: this model is untrained: {what} random", file=sys.stderr)
    return model
