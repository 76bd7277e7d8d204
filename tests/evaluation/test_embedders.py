"""Models that are not of the zoo: what they may be, what they may return, and that the numbers are theirs."""

import numpy as np
import pytest
import timm
import torch
from conftest import make_folder
from PIL import Image

import idml_zoo
from idml_zoo.data.transforms import TransformConfig, build_transforms
from idml_zoo.evaluation.embed import MeasuredSplit, embed
from idml_zoo.evaluation.embedders import as_embedder, as_embedding
from idml_zoo.reports.leaderboard import build_leaderboard


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return idml_zoo.table_benchmark("mine", str(make_folder(tmp_path_factory.mktemp("own") / "images")))


SMALL = TransformConfig(image_size=32)


def colours(images):
    """The mean colour: retrieves perfectly where each class has a colour of its own."""
    return images.mean((2, 3))


def evaluated(model, benchmark, **options):
    return idml_zoo.evaluate(model, benchmark, device="cpu", progress=False, cluster_seeds=(0,), **options)


def test_any_callable_can_be_measured(benchmark, tmp_path):
    result = evaluated(colours, benchmark, transform=SMALL, row="colours")
    assert result.metrics["recall@1"] == 1 and result.model.head == "own" and result.model.parameters == 0
    assert result.protocol.image_size == 32 and result.cost["bytes_per_image"] == 12
    (tmp_path / "results").mkdir()
    idml_zoo.save_result(result, tmp_path / "results")
    build_leaderboard(tmp_path)
    assert "**colours**" in (tmp_path / "README.md").read_text()


def test_a_pair_brings_its_uncertainty(benchmark):
    def level(images):
        return images.std((1, 2, 3))

    pair = evaluated(lambda x: (colours(x), level(x)), benchmark, transform=SMALL)
    split = benchmark.splits().test
    images = torch.stack([build_transforms(SMALL)[1](split.images[i]) for i in range(len(split))])
    assert np.allclose(pair.per_query["level"], level(images), rtol=1e-5)
    vector = evaluated(lambda x: (colours(x), colours(x)), benchmark, transform=SMALL)
    assert np.allclose(vector.per_query["level"], colours(images).norm(dim=1), rtol=1e-5)


def test_a_timm_network_gives_its_pooled_features(benchmark):
    network = timm.create_model("test_resnet", num_classes=7)
    result = evaluated(network, benchmark, transform=SMALL)
    split = benchmark.splits().test
    features = timm.create_model("test_resnet", num_classes=0).eval()
    state = {k: v for k, v in network.state_dict().items() if k in features.state_dict()}
    features.load_state_dict(state)
    images = torch.stack([build_transforms(SMALL)[1](split.images[i]) for i in range(len(split))])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(features(images))
    found = embed(as_embedder(network, SMALL), split, SMALL, device="cpu", progress=False)
    assert torch.allclose(found.semantic, expected, atol=1e-5)
    assert result.model.backbone == "test_resnet" and result.model.embedding_dim == features.num_features
    assert result.cost["gmacs"] > 0 and result.cost["images_per_second"] > 0
    assert as_embedder(network).transform.image_size == network.pretrained_cfg["input_size"][-1]


def test_measuring_leaves_every_module_in_its_mode(benchmark):
    network = timm.create_model("test_resnet", num_classes=0).eval()
    evaluated(network, benchmark, transform=SMALL)
    assert not any(m.training for m in network.modules())
    network.train().bn1.eval()
    modes = [m.training for m in network.modules()]
    evaluated(network, benchmark, transform=SMALL)
    assert [m.training for m in network.modules()] == modes


def test_no_batch_is_larger_than_was_asked_for(benchmark):
    sizes = []

    def model(images):
        sizes.append(len(images))
        return colours(images)

    evaluated(model, benchmark, transform=SMALL, batch_size=4)
    assert max(sizes) == 4


class Encoder:
    """As sentence-transformers' image models: lists of PIL images in, an array out."""

    def encode(self, images):
        assert all(isinstance(i, Image.Image) for i in images)
        return np.stack([np.asarray(i.resize((4, 4)), dtype=np.float32).ravel() / 255 for i in images])


def test_an_encoder_gets_the_images_themselves(benchmark):
    result = evaluated(Encoder(), benchmark, batch_size=5)
    assert result.metrics["recall@1"] == 1 and result.model.backbone == "Encoder"
    assert result.protocol.interpolation == "the model's own" and "gmacs" not in result.cost
    worse = evaluated(Encoder(), benchmark, corruptions={"noise": [1]})
    assert set(worse.corruptions["noise"]) == {"1"}


def test_a_list_holds_one_vector_for_each_image():
    for vectors in ([torch.ones(4)] * 2, [np.ones(4, np.float32)] * 2):
        e = as_embedding(vectors, 2)
        assert e.semantic.shape == (2, 4) and not e.level.any(), "never a pair, also of a batch of two"


def test_corruption_curves_equal_a_slow_measurement(benchmark):
    from idml_zoo.data.corruptions import corrupt

    result = evaluated(
        lambda x: (colours(x), x.std((1, 2, 3))), benchmark, transform=SMALL, corruptions={"noise": [2, 5]}
    )
    split = benchmark.splits().test
    transform = build_transforms(SMALL)[1]
    clean = torch.stack([transform(split.images[i]) for i in range(len(split))])
    for severity in (2, 5):
        worse = corrupt(split, "noise", severity, side=round(32 / 0.875))
        images = torch.stack([transform(worse.images[i]) for i in range(len(split))])
        scores = torch.nn.functional.normalize(colours(images)) @ torch.nn.functional.normalize(colours(clean)).T
        found = scores.fill_diagonal_(-9).argmax(1).numpy()
        point = result.corruptions["noise"][str(severity)]
        assert point["recall@1"] == pytest.approx((split.labels[found] == split.labels).mean())
        assert point["level"] == pytest.approx(float(images.std((1, 2, 3)).mean()), rel=1e-5)


def test_an_embedding_is_used_again(benchmark, monkeypatch):
    from idml_zoo.evaluation import protocol

    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=8)
    split = benchmark.splits().test
    embedding = embed(model, split, SMALL, device="cpu", progress=False)
    expected = evaluated(model, benchmark, transform=SMALL, metric="introspective")
    monkeypatch.setattr(protocol, "embed_split", None)
    again = evaluated(
        model, benchmark, transform=SMALL, metric="introspective", split=MeasuredSplit(split, embedding=embedding)
    )
    assert again.metrics == expected.metrics and again.cost["bytes_per_image"] == 64


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("no", "must return"),
        (torch.ones(3, 4, dtype=torch.int64), "int64 of shape"),
        (torch.ones(4, 3), r"\(4, 3\) for 3 images"),
        (torch.ones(3), r"shape \(3,\)"),
        ((torch.ones(3, 4), torch.ones(3, 2)), r"uncertainty has shape \(3, 2\)"),
        ((torch.ones(3, 4), -torch.ones(3)), "level is negative"),
        (torch.zeros(3, 4), "unit norm"),
        (torch.full((3, 4), torch.nan), "NaN or inf"),
    ],
)
def test_what_a_model_may_not_return(output, message):
    with pytest.raises(ValueError, match=message):
        as_embedding(output, 3)


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="must be callable or have encode"):
        as_embedder(3)
