"""Makes models.md: every named model of the zoo, with its size. Each network is built once, with random weights.

    python docs/models.py            # writes it (a minute)

tests/test_sweep.py builds each of them again, and fails where the page is out of date.
"""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
HEADER = ["head", "backbone", "D", "parameters", "GMACs", "pixels", "timm's weights have seen", "benchmarks"]


def networks() -> dict[tuple[str, str, int], list[str]]:
    """(head, backbone, D) to the names that are that network."""
    from idml_zoo.models.zoo import models

    found: dict[tuple[str, str, int], list[str]] = {}
    for name in models:
        record = models[name]
        found.setdefault((record.head, record.backbone, record.embedding_dim), []).append(name)
    return found


def line(key: tuple[str, str, int], names: list[str]) -> str:
    """One row of the table; builds the network."""
    import torch

    import idml_zoo
    from idml_zoo.evaluation.cost import gmacs
    from idml_zoo.models.zoo import BACKBONES, models

    model = idml_zoo.create_model(names[0])
    head, backbone, dim = key
    sets = " ".join(f"`{models[n].benchmark}`" + ("*" if models[n].weights else "") for n in names)
    cells = [head, f"`{backbone}`", str(dim), f"{sum(p.numel() for p in model.parameters()):,}"]
    size = model.transform.image_size
    cells += [f"{gmacs(model, torch.randn(1, 3, size, size)):.3g}", str(size)]
    return "| " + " | ".join([*cells, BACKBONES[backbone].pretraining, sets]) + " |"


def page(lines: list[str]) -> str:
    """The whole text."""
    names = sum(len(n) for n in networks().values())
    return (
        f"# Models\n\n{names} names, `HEAD_BACKBONE_BENCHMARK`. Multiply-adds are of one image of the given size. A "
        "star marks trained weights: `create_model(name, pretrained=True)`. Any other timm backbone: "
        '`create_model("idml", backbone="…")`.\n\n'
        + "\n".join([f"| {' | '.join(HEADER)} |", "|---|---|" + "---:|" * 4 + "---|---|", *lines])
        + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page([line(key, names) for key, names in sorted(networks().items())]))
    print(PAGE)
