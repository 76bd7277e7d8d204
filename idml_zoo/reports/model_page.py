"""Makes docs/models.md: every named model of the zoo, with its size.

    python -m idml_zoo.reports.model_page           # builds each network once, with random weights: a minute
    python -m idml_zoo.reports.model_page --text    # only the text above the table; its rows stay as they are

tests/models/test_zoo_builds.py builds each network again, and fails where the page is out of date.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from idml_zoo.files import write_file
from idml_zoo.reports.markdown import markdown_table

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
HEADER = ["head", "backbone", "D", "parameters", "GMACs", "pixels", "timm's weights have seen", "benchmarks"]
EXAMPLE = "idml_resnet50_cub"
TEXT = """# Models

The zoo has {count} named models. A name is `HEAD_BACKBONE_BENCHMARK`, for example `{example}`. Each row of the table is
one network; its last column lists the benchmarks of its names.

A star marks trained weights: `create_model(name, pretrained=True)` loads them. `D` is the width of the embedding.
GMACs are billions of multiply-adds for one image of the given size in pixels.

Every other timm backbone works without a name: `create_model("idml", backbone="…")`.
"""


def networks() -> dict[tuple[str, str, int], list[str]]:
    """Returns the names of each network: (head, backbone, D) to the names that build it."""
    from idml_zoo.models.zoo import models

    names: dict[tuple[str, str, int], list[str]] = {}
    for name in models:
        record = models[name]
        names.setdefault((record.head, record.backbone, record.embedding_dim), []).append(name)
    return names


def table_row(network: tuple[str, str, int], names: Sequence[str]) -> list[str]:
    """Returns the cells of one network; builds it."""
    import torch

    import idml_zoo
    from idml_zoo.evaluation.cost import gmacs
    from idml_zoo.models.zoo import BACKBONES, models

    model = idml_zoo.create_model(names[0])
    head, backbone, dim = network
    starred = " ".join(f"`{models[n].benchmark}`" + ("*" if models[n].weights else "") for n in names)
    size = model.transform.image_size
    cost = f"{gmacs(model, torch.randn(1, 3, size, size)):.3g}"
    parameters = f"{sum(p.numel() for p in model.parameters()):,}"
    return [head, f"`{backbone}`", str(dim), parameters, cost, str(size), BACKBONES[backbone].pretraining, starred]


def stored_rows() -> list[list[str]]:
    """Returns the cells of every network as the page has them now; builds nothing."""
    table = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def page(rows: Sequence[Sequence[str]]) -> str:
    """Returns the whole page with these rows."""
    count = sum(len(names) for names in networks().values())
    text = TEXT.format(count=count, example=EXAMPLE)
    return text + "\n" + markdown_table(HEADER, rows, "llrrrrll", tight=True) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", action="store_true", help="build no network; keep the rows of the page")
    args = parser.parse_args(arguments)
    rows = stored_rows() if args.text else [table_row(*entry) for entry in sorted(networks().items())]
    write_file(PAGE, page(rows))


if __name__ == "__main__":
    main()
