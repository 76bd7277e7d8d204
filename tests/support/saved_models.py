"""A small saved model, and ways to load and to damage it."""

import json
import time

import pytest
import torch

import idml_zoo
from idml_zoo.models.files import WeightsError


def small(**options):
    torch.manual_seed(0)
    return idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=16, **options)


def load(folder, **options):
    return idml_zoo.create_model(f"local-dir:{folder}", pretrained=True, **options)


def refused(folder, seconds=2.0):
    """The message with which a folder is refused, which must come quickly."""
    start = time.perf_counter()
    with pytest.raises(WeightsError) as caught:
        load(folder)
    assert time.perf_counter() - start < seconds
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


def edit(folder, **changes):
    """Changes keys of the configuration; a double underscore goes one level down."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *above, last = key.split("__")
        place = content
        for name in above:
            place = place[name]
        place[last] = value
    path.write_text(json.dumps(content))
