"""Every named model of the zoo, built with random weights: forward, unit norm, save and load, and the page of models.

To share the work between machines: IDML_ZOO_SHARD=1/4 runs every fourth, beginning with the first.
"""

import os

import pytest
import torch

import idml_zoo
from idml_zoo.reports import model_page as page

NETWORKS = sorted(page.networks().items())
SHARD, SHARDS = map(int, os.environ.get("IDML_ZOO_SHARD", "1/1").split("/"))


def test_every_name_is_in_the_sweep():
    assert sorted(n for _, names in NETWORKS for n in names) == idml_zoo.list_models()
    text = page.PAGE.read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ") and "parameters" not in line]
    assert len(lines) == len(NETWORKS)
    assert page.page(lines) == text


@pytest.mark.parametrize(
    ("key", "names"), NETWORKS[SHARD - 1 :: SHARDS], ids=lambda v: "-".join(map(str, v)) if isinstance(v, tuple) else ""
)
def test_a_named_model(key, names, tmp_path):
    head, _, dim = key
    assert page.line(key, names) in page.PAGE.read_text(), "run `python -m idml_zoo.reports.model_page`"
    torch.manual_seed(0)
    model = idml_zoo.create_model(names[0])
    size = model.transform.image_size
    images = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        e = model(images)
        assert e.semantic.shape == e.uncertainty.shape == (1, dim)
        e.check_values()
        assert bool((e.level > 0).all()) == (head == "idml")
        if head == "semantic":  # the same network but for one layer
            return
        again = idml_zoo.create_model(f"local-dir:{model.save_pretrained(tmp_path)}", pretrained=True)
        found = again(images)
    assert torch.equal(found.semantic, e.semantic)
    assert torch.equal(found.uncertainty, e.uncertainty)
    assert again.transform == model.transform
