"""The other uncertainty heads and their losses, against scipy and slow loops."""

import math

import numpy as np
import pytest
import torch
from conftest import make_embedding

import idml_zoo
from idml_zoo.losses import LossPrediction, ProxyLoss, VMFProxyLoss, create_criterion, log_vmf_normalizer
from idml_zoo.models.heads import LossPredictionHead, SemanticHead, VMFHead
from idml_zoo.types import Embedding


@pytest.mark.parametrize("dim", [8, 16, 64, 128])
def test_the_normaliser_equals_scipy(dim):
    from scipy.special import ive

    kappa = np.geomspace(0.5, 2000, 60)
    v = dim / 2 - 1
    scaled = ive(v, kappa)  # I_v(κ)·e^(−κ)
    usable = scaled > 1e-280
    expected = v * np.log(kappa) - dim / 2 * math.log(2 * math.pi) - (np.log(np.where(usable, scaled, 1)) + kappa)
    found = log_vmf_normalizer(torch.from_numpy(kappa), dim).numpy()
    assert usable.sum() > 40
    assert np.abs(found - expected)[usable].max() < (3e-4 if dim < 32 else 1e-6)
    with pytest.raises(ValueError, match="at least 8 dimensions"):
        log_vmf_normalizer(torch.ones(1), 7)


def test_the_density_integrates_to_one():
    """C(κ)·∫ e^{κt} (1−t²)^{(D−3)/2} dt · area of the sphere in D−1 dimensions = 1."""
    for dim, kappa in [(8, 3.0), (16, 40.0), (64, 5.0)]:
        t = np.linspace(-1, 1, 400_001)
        weight = np.exp(kappa * (t - 1)) * (1 - t**2) ** ((dim - 3) / 2)
        area = math.log(2) + (dim - 1) / 2 * math.log(math.pi) - math.lgamma((dim - 1) / 2)
        log_integral = math.log(np.trapezoid(weight, t)) + kappa + area
        assert log_vmf_normalizer(torch.tensor(kappa, dtype=torch.float64), dim).item() == pytest.approx(
            -log_integral, abs=3e-4
        )


def vmf_embedding(count, dim=16):
    e = make_embedding(count, dim)
    level = 1 / torch.linspace(2, 40, count, dtype=torch.float64)
    return Embedding(e.semantic, level[:, None].expand(-1, dim) / math.sqrt(dim))


def test_the_vmf_loss_equals_its_definition():
    e, labels = vmf_embedding(7), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    loss = VMFProxyLoss(4, 16, concentration=9.0).double()
    loss.log_concentration.data += torch.tensor([0.0, 0.5, -0.3, 0.1])
    loss.requires_grad_(False)
    total = 0.0
    for i in range(7):
        kappa = 1 / float(e.level[i])
        scores = []
        for p in range(4):
            unit = loss.proxies[p] / loss.proxies[p].norm()
            own = float(loss.log_concentration[p].exp())
            joint = float((kappa * e.semantic[i] + own * unit).norm())
            log_c = [float(log_vmf_normalizer(torch.tensor(k, dtype=torch.float64), 16)) for k in (kappa, own, joint)]
            scores.append(log_c[0] + log_c[1] - log_c[2])
        total -= scores[labels[i]] - math.log(sum(math.exp(s) for s in scores))
    assert loss(e, labels).item() == pytest.approx(total / 7, rel=1e-9)


def test_an_ambiguous_image_lowers_its_concentration_and_a_clear_one_raises_it():
    """The reason why κ can mean anything: descent moves it the right way."""
    loss = VMFProxyLoss(2, 8).double()
    loss.proxies.data = torch.eye(2, 8, dtype=torch.float64)
    clear, wrong = torch.eye(1, 8, dtype=torch.float64), torch.roll(torch.eye(1, 8, dtype=torch.float64), 1, 1)
    for semantic, sign in ((clear, 1), (wrong, -1)):
        level = torch.full((1,), 0.2, dtype=torch.float64, requires_grad=True)
        u = level[:, None].expand(-1, 8) / math.sqrt(8)
        loss(Embedding(semantic, u), torch.zeros(1, dtype=torch.int64)).backward()
        assert level.grad.item() * sign > 0, "descent lowers the level of the clear image, and raises the other's"


def test_gradients_of_the_vmf_loss():
    loss, labels = VMFProxyLoss(3, 8).double(), torch.tensor([0, 1, 1, 2])

    def value(vector, raw):
        level = torch.exp(raw)
        return loss(
            Embedding(torch.nn.functional.normalize(vector), level[:, None].expand(-1, 8) / math.sqrt(8)), labels
        )

    vector = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (vector, torch.randn(4, dtype=torch.float64, requires_grad=True)))
    e = make_embedding(4, dtype=torch.float32)
    for level in (1e-8, 1e4):
        u = torch.full((4, 8), level / math.sqrt(8), requires_grad=True)
        s = e.semantic.clone().requires_grad_()
        total = VMFProxyLoss(3, 8)(Embedding(s, u), labels)
        total.backward()
        assert torch.isfinite(total) and torch.isfinite(u.grad).all() and torch.isfinite(s.grad).all()


def test_the_vmf_head_starts_at_its_concentration_and_stays_within_bounds():
    head = VMFHead(12, 16)
    e = head(torch.randn(5, 12))
    assert torch.allclose(e.level, torch.full((5,), 1 / 8), rtol=1e-5)
    head.uncertainty.bias.data.fill_(1e6)
    assert torch.allclose(head(torch.randn(5, 12)).level, torch.full((5,), math.exp(-4) / 8), rtol=1e-4)
    both = Embedding.cat([e[:1], e[1:2]]).uncertainty
    assert both.sum(0).norm().item() == pytest.approx(e.level[:2].sum().item(), rel=1e-5), "β of a pair adds levels"


def test_loss_prediction_regresses_each_images_own_loss_and_leaves_retrieval_alone():
    criterion = LossPrediction(5, 16, weight=2.0).double()
    e, labels = make_embedding(9, 16), torch.randint(0, 5, (9,))
    logits = 32 * e.semantic.detach() @ torch.nn.functional.normalize(criterion.proxies.detach()).T
    own = [math.log1p(float(torch.logsumexp(r, 0) - r[y])) for r, y in zip(logits, labels, strict=True)]
    assert criterion.own_loss(e, labels).tolist() == pytest.approx(own)
    plain = ProxyLoss(5, 16, "cosine").double()
    plain.proxies.data.copy_(criterion.proxies.data)
    regression = np.mean((e.level.numpy() - own) ** 2)
    assert criterion(e, labels).item() == pytest.approx(plain(e, labels).item() + 2 * regression)
    # the features get no gradient from it
    torch.manual_seed(0)
    head, base = LossPredictionHead(12, 16), SemanticHead(12, 16)
    base.load_state_dict(head.semantic.state_dict(), strict=False)
    base.semantic.load_state_dict(head.semantic.state_dict())
    criterion, plain = criterion.float(), plain.float()
    gradients = []
    for h, c in ((head, criterion), (base, plain)):
        features = torch.randn(9, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
        c(h(features), labels).backward()
        gradients.append(features.grad)
    assert torch.allclose(*gradients, atol=1e-6)
    assert head.uncertainty[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize("head", ["vmf", "loss_prediction"])
def test_they_are_heads_like_any_other(head, tmp_path):
    model = idml_zoo.create_model(head, backbone="test_resnet", embedding_dim=16)
    e = model(torch.randn(2, 3, 32, 32))
    assert e.semantic.shape == e.uncertainty.shape == (2, 16) and bool((e.level > 0).all())
    folder = model.save_pretrained(tmp_path / "m")
    again = idml_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images).uncertainty, again(images).uncertainty)


def test_what_cannot_be_combined_is_refused():
    with pytest.raises(ValueError, match="unknown similarity for vmf 'introspective'"):
        create_criterion("vmf", 4, 16, "introspective")
    with pytest.raises(ValueError, match=r"unknown loss 'vfm'; did you mean 'vmf'"):
        create_criterion("vfm", 4, 16)
    with pytest.raises(ValueError, match=r"unknown setting of proxy_anchor 'margn'; did you mean 'margin'"):
        create_criterion("proxy_anchor", 4, 16, margn=1)
    with pytest.raises(ValueError, match="only Proxy Anchor was released|unknown similarity for proxy_nca"):
        create_criterion("proxy_nca", 4, 16, "released")
    with pytest.raises(ValueError, match="concentration must be positive"):
        VMFHead(4, 8, concentration=0)
