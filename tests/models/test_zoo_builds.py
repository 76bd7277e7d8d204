"""Every named model of the zoo, built with random weights: forward, unit norm, save and load, and the page of models.

To share the work between machines: IDML_ZOO_SHARD=1/4 runs every fourth, beginning with the first.
"""

import os

import pytest
import torch

import idml_zoo
from idml_zoo.reports import model_page

NETWORKS = sorted(model_page.networks().items())
SHARD, SHARDS = map(int, os.environ.get("IDML_ZOO_SHARD", "1/1").split("/"))


def test_every_name_is_in_the_sweep():
    assert sorted(n for _, names in NETWORKS for n in names) == idml_zoo.list_models()
    rows = model_page.stored_rows()
    assert len(rows) == len(NETWORKS)
    assert model_page.page(rows) == model_page.PAGE.read_text()
    assert model_page.EXAMPLE in idml_zoo.list_models()


@pytest.mark.parametrize(
    ("key", "names"), NETWORKS[SHARD - 1 :: SHARDS], ids=lambda v: "-".join(map(str, v)) if isinstance(v, tuple) else ""
)
def test_a_named_model(key, names, tmp_path):
    head, _, dim = key
    assert model_page.table_row(key, names) in model_page.stored_rows(), "run `python -m idml_zoo.reports.model_page`"
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
