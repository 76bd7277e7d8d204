"""The curves against slow definitions and finite differences, the measured pace against autograd image by image."""

import math

import numpy as np
import pytest
import torch
from conftest import make_folder

import idml_zoo
from idml_zoo.evaluation.gradients import (
    SCENES,
    SampleGradients,
    gradient_curves,
    pair_gradients,
    plot_gradients,
    sample_gradients,
    slope,
)
from idml_zoo.losses import ProxyLoss
from idml_zoo.registry import UnknownNameError
from idml_zoo.types import Embedding

X = np.array([0.0, 0.03, 0.13, 0.5, 1.1, 2.3, 4.0])


def slow_loss(name, alpha, beta, tau=5.0):
    """The definitions of the method's sections 2 and 4, on one positive and one negative pair."""
    p, n = (a * math.exp(-b / (tau * a)) for a, b in zip(alpha, beta, strict=True))
    sp, sn = (1 - a * a / 2 * math.exp(-b / (tau * a)) for a, b in zip(alpha, beta, strict=True))
    if name == "contrastive":
        return p + max(0, 0.5 - n)
    if name == "triplet":
        return max(0, p - n + 0.1)
    if name == "margin":
        return max(0, p - 1.2 + 0.2) + max(0, 1.2 - n + 0.2)
    if name == "multi_similarity":
        return math.log(1 + math.exp(-2 * (sp - 0.5))) / 2 + math.log(1 + math.exp(50 * (sn - 0.5))) / 50
    if name == "proxy_nca":
        return -math.log(math.exp(-32 * p * p) / (math.exp(-32 * p * p) + math.exp(-32 * n * n)))
    if name == "proxy_anchor":  # one of two proxies has a positive; the push is the mean over both
        return math.log(1 + math.exp(-32 * (sp - 0.1))) + math.log(1 + math.exp(32 * (sn + 0.1))) / 2
    bins = [[max(0, 1 - abs(d * d - 0.4 * j) / 0.4) for j in range(11)] for d in (p, n)]
    below = [sum(h[: j + 1]) for j in range(11) for h in bins]
    return 1 - sum(
        bins[0][j] * below[2 * j] / (below[2 * j] + below[2 * j + 1])
        for j in range(11)
        if below[2 * j] + below[2 * j + 1]
    )


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("tau", [1.0, 5.0])
def test_curves_equal_finite_differences_of_the_definitions(name, tau):
    found, alpha, step = pair_gradients(name, X, tau=tau), SCENES[name].alpha, 1e-6

    def difference(x, which):
        beta = [x * tau * a for a in alpha]
        up, down = (tuple(a + sign * step * (i == which) for i, a in enumerate(alpha)) for sign in (1, -1))
        return abs(slow_loss(name, up, beta, tau) - slow_loss(name, down, beta, tau)) / (2 * step)

    for which, curve in enumerate((found.positive, found.negative)):
        expected = [difference(x, which) / difference(0, which) for x in X]
        assert curve == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_slopes_are_the_derivatives_of_distance_square_and_similarity():
    for matrix, value in {
        "distance": lambda a, b: a * np.exp(-b / (5 * a)),
        "squared": lambda a, b: a**2 * np.exp(-2 * b / (5 * a)),
        "similarity": lambda a, b: -(a**2) / 2 * np.exp(-b / (5 * a)),
    }.items():
        a, h = 0.8, 1e-6
        derivative = abs(value(a + h, 5 * a * X) - value(a - h, 5 * a * X)) / (2 * h)
        assert slope(X, matrix) == pytest.approx(derivative / derivative[0], rel=1e-6)
    with pytest.raises(UnknownNameError, match="did you mean 'squared'"):
        slope(X, "square")


def test_hinges_and_equally_ranked_pairs_show_the_metric_unchanged():
    for name in ("contrastive", "triplet", "fastap", "proxy_nca"):
        found = pair_gradients(name, X)
        assert found.positive == pytest.approx(found.slope) and found.negative == pytest.approx(found.slope)
    found = pair_gradients("margin", X)
    open_hinge = 1.2 * np.exp(-X) > 1.0
    assert 0 < open_hinge.sum() < len(X)
    assert found.positive == pytest.approx(np.where(open_hinge, found.slope, 0))
    assert found.negative == pytest.approx(found.slope)


def test_where_the_pace_slows_and_where_it_does_not():
    for curve in gradient_curves():
        assert curve.positive[0] == curve.negative[0] == 1
        assert (np.diff(curve.slope) < 0).all() and (np.diff(curve.positive) <= 1e-12).all()
        assert (curve.positive <= curve.slope + 1e-12).all()
        # the weight that these two give to a negative grows as uncertainty brings its S closer to 1
        weighing = curve.loss in ("multi_similarity", "proxy_anchor")
        assert (curve.negative.max() > 1) == weighing
        assert weighing or (np.diff(curve.negative) < 0).all()
        assert curve.negative[-1] < 0.15


def test_settled_pairs_are_taken_up_again():
    """No slower pace there: an image that is right is weighed near zero, until uncertainty blurs the difference."""
    for name, alpha, factor in (("proxy_nca", (0.9, 1.1), 1000), ("multi_similarity", (0.97, 1.03), 3)):
        assert pair_gradients(name, np.array([0.0, 0.5]), alpha=alpha).negative[1] > factor


def test_alpha_can_be_chosen_and_bad_arguments_are_refused():
    assert pair_gradients("contrastive", X, alpha=0.3).negative == pytest.approx(slope(X))
    with pytest.raises(ValueError, match="contrastive does not act on pairs at α = "):
        pair_gradients("contrastive", X, alpha=0.6)
    with pytest.raises(ValueError, match="ratio must be"):
        pair_gradients("triplet", np.array([-1.0]))
    with pytest.raises(UnknownNameError, match="did you mean 'triplet'"):
        pair_gradients("triplets", X)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny model whose uncertainty differs between images, and a split."""
    torch.manual_seed(0)
    folder = make_folder(tmp_path_factory.mktemp("gradients") / "images")
    split = idml_zoo.table_benchmark("gradients", str(folder)).splits().test
    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=8)
    torch.nn.init.normal_(model.head.uncertainty.weight, std=2.0)
    return model, split, model.transform.replace(image_size=32)


def measured(trained, **options):
    return sample_gradients(*trained, device="cpu", progress=False, **options)


@pytest.mark.parametrize("batch_size", [5, 120])
def test_sample_gradients_equal_autograd_image_by_image(trained, batch_size):
    """With the zoo's own loss module, through a normalisation, and one image's gradient at a time."""
    model, split, transform = trained
    found = measured(trained, batch_size=batch_size, seed=3, tau=2.0)
    e = idml_zoo.evaluation.embed.embed(model, split, transform, device="cpu", progress=False)
    assert found.level == pytest.approx(e.level.numpy(), rel=1e-6) and found.level.std() > 1e-3
    s, u, labels = e.semantic.double(), e.uncertainty.double(), torch.from_numpy(split.labels)
    means = torch.stack([s[labels == c].mean(0) for c in range(split.num_classes)])
    batches = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3)).split(batch_size)
    for similarity, norms in (("introspective", found.introspective), ("cosine", found.plain)):
        loss = ProxyLoss(split.num_classes, 8, similarity, tau=2.0, proxy_uncertainty="zero").double()
        loss.proxies.data.copy_(means)
        for rows in batches:
            for i, row in enumerate(rows.tolist()):
                one = s[row].clone().requires_grad_()
                batch = torch.cat([s[rows[:i]], torch.nn.functional.normalize(one, dim=0)[None], s[rows[i + 1 :]]])
                unit = torch.nn.functional.normalize(batch)
                loss(Embedding(unit, u[rows]), labels[rows]).backward()
                assert norms[row] == pytest.approx(one.grad.norm().item(), rel=1e-5)


def test_the_metrics_own_pace_equals_its_closed_form(trained):
    """∂S/∂c = (1 + x/2)·e^(−x), summed with the weights of plain Proxy Anchor."""
    model, split, transform = trained
    found = measured(trained, tau=2.0)
    e = idml_zoo.evaluation.embed.embed(model, split, transform, device="cpu", progress=False)
    s, u, labels = e.semantic.double(), e.uncertainty.double(), torch.from_numpy(split.labels)
    proxies = torch.nn.functional.normalize(
        torch.stack([s[labels == c].mean(0) for c in range(split.num_classes)]), dim=1
    )
    s = torch.nn.functional.normalize(s)  # in float64, as there
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))  # one batch
    cosine = (s[rows] @ proxies.T).requires_grad_()
    own = torch.nn.functional.one_hot(labels[rows], split.num_classes).bool()
    pull = torch.where(own, torch.exp(-32 * (cosine - 0.1)), 0).sum(0).log1p().sum() / own.any(0).sum()
    push = torch.where(own, 0, torch.exp(32 * (cosine + 0.1))).sum(0).log1p().sum() / split.num_classes
    (weights,) = torch.autograd.grad(pull + push, cosine)
    for i, row in enumerate(rows.tolist()):
        x = u[row].norm() / (2.0 * (2 - 2 * cosine[i].detach()).sqrt())
        full = (weights[i] * (1 + x / 2) * torch.exp(-x)) @ proxies
        along = full @ s[row]
        assert found.metric[row] == pytest.approx((full - along * s[row]).norm().item(), rel=1e-6)


def test_without_uncertainty_the_pace_is_one_and_with_it_it_is_not(trained, monkeypatch):
    from idml_zoo.evaluation import gradients

    assert np.abs(measured(trained).pace - 1).max() > 0.01
    real = gradients.embed

    def certain(*args, **options):
        e = real(*args, **options)
        return Embedding(e.semantic, torch.zeros_like(e.uncertainty))

    monkeypatch.setattr(gradients, "embed", certain)
    found = measured(trained)
    assert found.pace == pytest.approx(1, abs=1e-6) == found.metric_pace and (found.level == 0).all()


def test_the_models_own_transform_is_the_default(trained):
    model, split, transform = trained
    model.transform, before = transform, model.transform
    same = sample_gradients(model, split, device="cpu", progress=False)
    model.transform = before
    assert np.array_equal(same.pace, measured(trained).pace)
    with pytest.raises(ValueError, match="give transform="):
        sample_gradients(torch.nn.Identity(), split)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_figure_is_written_with_and_without_samples(tmp_path, ending):
    from PIL import Image

    rng = np.random.default_rng(0)
    plain = np.append(rng.random(300), [0.0, 0.0])  # a settled image has no pace; it must not spoil the figure
    samples = SampleGradients(rng.gamma(3, 1, 302), plain * rng.random(302), plain, plain / 2)
    curves = gradient_curves(np.linspace(0, 4, 9))
    alone = plot_gradients(tmp_path / "new" / f"alone.{ending}", curves)
    both = plot_gradients(str(tmp_path / f"both.{ending}"), curves, samples)
    assert alone.is_file() and both.stat().st_size > alone.stat().st_size > 10_000
    if ending == "png":
        with Image.open(both) as image, Image.open(alone) as smaller:
            assert 1000 <= image.width <= 1300 and image.height > smaller.height
            assert len(image.convert("RGB").getcolors(1 << 20)) > 100
    else:
        assert "<svg" in both.read_text()
    with pytest.raises(ValueError, match="none of 2 images has a gradient"):
        plot_gradients(tmp_path / f"none.{ending}", curves, SampleGradients(*[plain[-2:]] * 4))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_images_can_be_drawn_and_the_file_is_the_same_each_time(tmp_path, count):
    values = np.arange(1.0, count + 1)
    files = [
        plot_gradients(
            tmp_path / f"{i}.png", [pair_gradients("triplet", X)], SampleGradients(values, values, 2 * values, values)
        )
        for i in range(2)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
