"""A sample of the proxies stands for all of them."""

import pytest
import torch
from conftest import make_embedding

from idml_zoo.losses import create_criterion
from idml_zoo.losses.proxies import proxy_anchor, proxy_nca


@pytest.mark.parametrize("function", [proxy_anchor, proxy_nca])
def test_weights_are_copies(function):
    """A column of weight 3 is the same as the column three times; one of weight 0 is none."""
    generator = torch.Generator().manual_seed(0)
    matrix, labels = torch.randn(6, 4, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    weight = torch.tensor([1.0, 1.0, 3.0, 0.0], dtype=torch.float64)
    copies = matrix[:, [0, 1, 2, 2, 2]]
    assert function(matrix, labels, scale=2.0, weight=weight).item() == pytest.approx(
        function(copies, labels, scale=2.0).item()
    )


@pytest.mark.parametrize("loss", ["proxy_anchor", "proxy_nca"])
@pytest.mark.parametrize("similarity", ["cosine", "introspective"])
def test_the_mean_over_many_samples_is_the_whole(loss, similarity):
    embedding, labels = make_embedding(8, 6, seed=1), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    torch.manual_seed(0)
    whole = create_criterion(loss, 60, 6, similarity, scale=4.0).double()
    sampled = create_criterion(loss, 60, 6, similarity, scale=4.0, samples=30).double()
    sampled.load_state_dict(whole.state_dict())
    full = whole(embedding, labels).item()
    draws = torch.tensor([sampled(embedding, labels).item() for _ in range(400)])
    assert draws.std() > 1e-4, "they differ"
    error = 4 * draws.std().item() / 20
    # Proxy Anchor's is a mean; the log of Proxy NCA's sum is on average a little less than that of the whole
    least = full - error - (0.02 * full if loss == "proxy_nca" else 0)
    assert least <= draws.mean().item() <= full + error
    assert sampled.eval()(embedding, labels).item() == pytest.approx(full)


def test_only_what_was_drawn_gets_a_gradient_and_mixed_labels_are_known():
    criterion = create_criterion("proxy_anchor", 5000, 6, samples=20).double()
    embedding, labels = make_embedding(4, 6), torch.tensor([4999, 3, 3, 17])
    criterion(embedding, labels, labels.flip(0), 0.3).backward()
    touched = criterion.proxies.grad.abs().sum(1).nonzero().flatten()
    assert {3, 17, 4999} <= set(touched.tolist())
    assert len(touched) <= 23
    found = criterion.statistics(embedding, labels)
    assert 0 < found["factor_positive"] <= 1 and torch.isfinite(found["factor_negative"])


def test_draws_go_on_where_they_were():
    embedding, labels = make_embedding(4, 6), torch.tensor([0, 1, 2, 3])
    one, two = (create_criterion("proxy_anchor", 100, 6, samples=5).double() for _ in range(2))
    first = [one(embedding, labels).item() for _ in range(3)]
    assert len(set(first)) == 3
    two.load_state_dict(one.state_dict())
    assert two(embedding, labels).item() == one(embedding, labels).item()


def test_bad_counts_are_named():
    with pytest.raises(ValueError, match="samples must lie in 1–9"):
        create_criterion("proxy_anchor", 10, 6, samples=10)
