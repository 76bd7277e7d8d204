"""Losses that a user registers: they see the matrix that they asked for, and are built by name."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_embedding

from idml_zoo.losses import Criterion, LossSpec, ProxyLoss, create_criterion
from idml_zoo.registry import losses

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3, 3, 0, 4, 1])


@pytest.fixture
def registered():
    """Adds losses, and takes them away again."""
    before = set(losses)
    yield losses.add
    for name in set(losses) - before:
        del losses._entries[name]


def softmax(matrix, labels, scale=4.0):
    return F.cross_entropy(scale * matrix, labels)


@pytest.mark.parametrize("similarity", ["cosine", "introspective"])
@pytest.mark.parametrize("kind", ["similarity", "distance", "squared"])
def test_a_registered_proxy_loss_sees_the_matrix_it_asked_for(registered, kind, similarity):
    registered("softmax", LossSpec("Softmax", kind, proxies=True, function=softmax))
    e = make_embedding(12, 8)
    criterion = create_criterion("softmax", 5, 8, similarity, scale=3.0).double()
    expected = np.zeros((12, 5))
    for i in range(12):
        for j in range(5):
            p = criterion.proxies[j].detach().numpy()
            alpha = np.linalg.norm(e.semantic[i].numpy() - p / np.linalg.norm(p))
            factor = np.exp(-np.linalg.norm(e.uncertainty[i].numpy()) / (5 * alpha)) if similarity != "cosine" else 1.0
            expected[i, j] = {
                "similarity": 1 - alpha**2 * factor / 2,  # the cosine where u = 0
                "distance": alpha * factor,
                "squared": (alpha * factor) ** 2,
            }[kind]
    np.testing.assert_allclose(criterion.matrix(e).detach(), expected, rtol=1e-9)
    own = np.exp(3 * expected)[np.arange(12), LABELS] / np.exp(3 * expected).sum(1)
    assert criterion(e, LABELS).item() == pytest.approx(-np.log(own).mean(), rel=1e-9)
    assert criterion(e, LABELS).isfinite() and criterion(e, LABELS, LABELS.flip(0), 0.3).isfinite()


def test_what_a_registered_loss_cannot_do_is_refused(registered):
    registered("softmax", LossSpec("Softmax", "similarity", proxies=True, function=softmax))
    with pytest.raises(ValueError, match="softmax has no argument `weight`"):
        create_criterion("softmax", 5, 8, samples=2)
    with pytest.raises(ValueError, match="unknown proxy loss 'vmf'"):
        ProxyLoss(5, 8, "cosine", "vmf")
    with pytest.raises(ValueError, match="unknown matrix for Mine 'similarty'; did you mean 'similarity'"):
        LossSpec("Mine", "similarty", proxies=True, function=softmax)
    with pytest.raises(ValueError, match="Mine: give a function of the matrix, or a module"):
        LossSpec("Mine", "similarity", proxies=True)
    with pytest.raises(ValueError, match="unknown setting of vmf"):
        create_criterion("vmf", 5, 8, "cosine", margin=1)


def test_a_registered_module_is_built_by_name(registered):
    class Own(Criterion):
        def __init__(self, num_classes, embedding_dim, power=1.0):
            super().__init__()
            self.shape = (num_classes, embedding_dim, power)

    registered("own", LossSpec("Own", "similarity", proxies=True, similarities=("cosine",), module=Own))
    criterion, e = create_criterion("own", 5, 8, "cosine", power=2.0), make_embedding(12, 8)
    assert criterion.shape == (5, 8, 2.0)
    level = criterion.statistics(e, LABELS)["level"].item()
    assert level == pytest.approx(np.linalg.norm(e.uncertainty.numpy(), axis=1).mean()), "or a run would call it dead"
