import pytest
import torch
from conftest import make_embedding

from idml_zoo.types import Embedding, Neighbours


def test_shapes_are_checked_and_named():
    good = make_embedding(3)
    with pytest.raises(ValueError, match=r"floating \(B, D\)"):
        Embedding(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"uncertainty must have the shape.*\(3, 8\).*\(3, 7\)"):
        Embedding(good.semantic, good.uncertainty[:, :7])
    with pytest.raises(ValueError, match=r"semantic_norm must have shape \(3,\)"):
        Embedding(good.semantic, good.uncertainty, torch.ones(2))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_are_checked(bad):
    good = make_embedding(3)
    broken = good.uncertainty.clone()
    broken[1, 2] = bad
    with pytest.raises(ValueError, match=r"uncertainty has NaN or inf in 1 of 3 rows \(first: row 1\)"):
        Embedding(good.semantic, broken)
    with pytest.raises(ValueError, match=r"unit norm.*row 0: norm 2"):
        Embedding(2 * good.semantic, good.uncertainty)


def test_a_graph_postpones_the_value_check_to_check_values():
    vector = torch.full((2, 3), 5.0, requires_grad=True)
    e = Embedding(vector, vector)
    with pytest.raises(ValueError, match="unit norm"):
        e.check_values()


def test_level_slicing_and_concatenation():
    e = make_embedding(5)
    assert torch.allclose(e.level, e.uncertainty.square().sum(1).sqrt())
    assert len(e[1:3]) == 2 and len(e[torch.tensor([True, False, True, False, False])]) == 2
    again = Embedding.cat([e[:2], e[2:]])
    assert torch.equal(again.semantic, e.semantic) and torch.equal(again.semantic_norm, e.semantic_norm)
    with pytest.raises(TypeError, match=r"e\[2:3\]"):
        e[2]
    assert e.to(torch.float32).dtype == torch.float32


def test_half_precision_embeddings_pass_the_check():
    for dtype in (torch.float16, torch.bfloat16):
        make_embedding(4, 64, dtype=dtype).check_values()


def test_neighbours_are_checked():
    with pytest.raises(ValueError, match="int64"):
        Neighbours(torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="shape of indices"):
        Neighbours(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 3))
