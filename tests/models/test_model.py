import pytest
import torch

import idml_zoo
from idml_zoo.models.heads import FeaturesHead, IDMLHead, SemanticHead
from idml_zoo.models.model import IDMLModel

TEST_BACKBONES = [
    "test_resnet",
    "test_vit",
    "test_efficientnet",
    "test_byobnet",
    "test_convnext",
    "test_mambaout",
    "test_nfnet",
    "test_vit4",
]


@pytest.mark.parametrize("backbone", TEST_BACKBONES)
def test_any_timm_backbone_gives_an_embedding(backbone):
    model = idml_zoo.create_model("idml", backbone=backbone, embedding_dim=32)
    e = model(torch.randn(2, 3, model.transform.image_size, model.transform.image_size))
    assert e.semantic.shape == e.uncertainty.shape == (2, 32)
    assert torch.allclose(e.semantic.norm(dim=1), torch.ones(2), atol=1e-5)
    assert bool((e.level > 0).all())
    assert model.pooling == ("native" if "vit" in backbone or "mambaout" in backbone else "avg+max"), (
        "tokens and NHWC maps pool themselves"
    )


def test_avg_plus_max_is_the_sum_and_avg_the_mean():
    images = torch.randn(2, 3, 96, 96)
    model = IDMLModel("test_resnet", "features").eval()
    maps = model.backbone.forward_features(images)
    expected = maps.mean((2, 3)) + maps.amax((2, 3))
    assert torch.allclose(model.forward_features(images), expected, atol=1e-5)
    mean = IDMLModel("test_resnet", "features", pooling="avg").eval()
    mean.load_state_dict(model.state_dict())
    assert torch.allclose(mean.forward_features(images), maps.mean((2, 3)), atol=1e-5)


def test_tokens_are_pooled_by_the_network_itself():
    import timm

    images = torch.randn(2, 3, 160, 160)
    model = IDMLModel("test_vit", "features").eval()
    own = timm.create_model("test_vit", num_classes=0).eval()
    own.load_state_dict(model.backbone.state_dict())
    assert torch.allclose(model.forward_features(images), own(images), atol=1e-5)
    with pytest.raises(ValueError, match="pools its own tokens"):
        IDMLModel("test_vit", pooling="avg+max")


def test_a_head_wider_than_the_feature_map_is_asked_for_its_real_width():
    """mobilenetv3 widens its features after pooling (576 -> 1024): the head must take the latter."""
    model = IDMLModel("mobilenetv3_small_050", "features").eval()
    assert model.forward_features(torch.randn(1, 3, 64, 64)).shape == (1, 1024)


def test_bad_input_and_names_are_refused():
    model = IDMLModel("test_resnet")
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(3, 8, 8\)"):
        model(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="unknown backbone 'resnet5O'.*did you mean resnet50"):
        IDMLModel("resnet5O")
    with pytest.raises(ValueError, match="unknown pooling 'max'"):
        IDMLModel("test_resnet", pooling="max")
    with pytest.raises(ValueError, match="unknown head 'idlm'.*'idml'"):
        IDMLModel("test_resnet", "idlm")


def test_what_timm_cannot_do_is_said_with_the_model_s_name():
    with pytest.raises(ValueError, match=r"timm cannot build 'resnet18.tv_in9k'.*Invalid pretrained tag"):
        IDMLModel("resnet18.tv_in9k")
    with pytest.raises(ValueError, match=r"timm cannot build 'resnet18' with options \{'img_size': 64\}"):
        IDMLModel("resnet18", img_size=64)
    with pytest.raises(ValueError, match=r"cannot get timm's weights of 'resnet18.tv_in1k' .*idml-zoo\[weights\]"):
        idml_zoo.create_model("idml", backbone="resnet18.tv_in1k", backbone_pretrained=True)


def test_the_preprocessing_is_that_of_the_size_it_was_built_for():
    import timm

    model = idml_zoo.create_model("idml", backbone="test_vit", embedding_dim=8, img_size=96)
    assert model.transform.image_size == 96
    found = timm.data.resolve_model_data_config(model)
    assert found["input_size"] == (3, 96, 96) and found["mean"] == model.transform.mean
    assert found["interpolation"] == model.transform.interpolation
    model.transform = model.transform.replace(image_size=64, mean=(0.1, 0.2, 0.3))
    found = timm.data.resolve_model_data_config(model)
    assert found["input_size"] == (3, 64, 64) and found["mean"] == (0.1, 0.2, 0.3)


def test_heads():
    features = torch.randn(4, 24)
    semantic = SemanticHead(24, 16)(features)
    assert bool((semantic.level == 0).all())
    idml = IDMLHead(24, 4096, initial_level=0.1)(features)
    assert idml.level.mean().item() == pytest.approx(0.1, rel=0.1), "initial_level is the expected level"
    head = IDMLHead(24, 8)
    assert torch.allclose(head(features).level, head(7 * features).level, atol=1e-5), "blind to the features' norm"
    plain = IDMLHead(24, 8, uncertainty_input="features")
    assert torch.allclose(7 * plain(features).level, plain(7 * features).level, atol=1e-5)
    assert FeaturesHead(24)(features).semantic_norm.allclose(features.norm(dim=1))
    with pytest.raises(ValueError, match="cannot project"):
        FeaturesHead(24, 8)
    with pytest.raises(ValueError, match="initial_level must be positive"):
        IDMLHead(24, 8, initial_level=0)
    with pytest.raises(ValueError, match="'normalized' or 'features'"):
        IDMLHead(24, 8, uncertainty_input="raw")


def test_a_frozen_backbone_gets_no_gradient():
    model = IDMLModel("test_resnet", "idml", 16)
    model.backbone_frozen = True
    model(torch.randn(2, 3, 64, 64)).semantic.sum().backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.head.semantic.parameters())


def test_the_model_works_in_half_precision():
    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=64).to(torch.bfloat16)
    e = model(torch.randn(2, 3, 64, 64, dtype=torch.bfloat16))
    assert e.dtype == torch.bfloat16
    e.check_values()


@pytest.mark.parametrize("head", ["idml", "semantic"])
def test_embeddings_are_full_precision_inside_autocast(head):
    model = idml_zoo.create_model(head, backbone="test_resnet", embedding_dim=64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        e = model(torch.randn(2, 3, 64, 64))
    assert e.dtype == torch.float32
    assert torch.allclose(e.semantic.norm(dim=1), torch.ones(2), atol=1e-6)


# habits of timm's users


def test_a_frozen_backbone_stays_as_it_is_while_the_head_learns():
    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=8).freeze_backbone().train()
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    e = model(torch.randn(4, 3, 64, 64))
    (e.semantic[:, 0] + e.uncertainty[:, 0]).sum().backward()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items()), "running statistics too"
    assert all(p.grad is not None for p in model.head.parameters())
    model.freeze_backbone(False)
    assert model.backbone.training and all(p.requires_grad for p in model.parameters())


def test_reset_head_keeps_the_backbone_and_is_saved(tmp_path):
    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=8).train()
    features = model.forward_features(torch.ones(1, 3, 64, 64))
    assert model.reset_head(embedding_dim=24) is model
    e = model(torch.ones(2, 3, 64, 64))
    assert (e.dim, model.training) == (24, True) and (e.level > 0).all()
    model.reset_head("vmf", concentration=3.0)
    assert model(torch.ones(2, 3, 64, 64)).dim == 24
    again = idml_zoo.create_model(f"local-dir:{model.save_pretrained(tmp_path / 'm')}", pretrained=True)
    assert again.config["head"] == "vmf" and again.config["head_options"] == {"concentration": 3.0}
    assert torch.allclose(
        again.forward_features(torch.ones(1, 3, 64, 64)), model.eval().forward_features(torch.ones(1, 3, 64, 64))
    )
    assert features.shape == (1, 96)
    with pytest.raises(ValueError, match="unknown head 'vfm'; did you mean 'vmf'"):
        model.reset_head("vfm")
    model.reset_head("features")
    assert model(torch.ones(1, 3, 64, 64)).dim == 96


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_feature_maps_and_checkpointing(backbone):
    model = idml_zoo.create_model("idml", backbone=backbone, embedding_dim=8)
    images = torch.randn(2, 3, model.transform.image_size, model.transform.image_size)
    maps = model.forward_intermediates(images, indices=2)
    assert len(maps) == 2 and all(m.ndim == 4 and len(m) == 2 for m in maps)
    assert len(model.forward_intermediates(images)) > 2
    plain = model.train()(images).semantic
    model.set_grad_checkpointing()
    again = model(images).semantic
    assert torch.allclose(plain, again, atol=1e-5)
    again.sum().backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_compiled_and_half_precision_models_agree_with_plain_ones():
    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=8)
    images = torch.randn(2, 3, 64, 64)
    plain = model(images)
    compiled = torch.compile(model, backend="aot_eager")(images)
    assert torch.allclose(compiled.semantic, plain.semantic, atol=1e-5)
    assert torch.allclose(compiled.level, plain.level, atol=1e-5)
    half = model.bfloat16()(images.bfloat16())
    assert half.dtype == torch.bfloat16
    assert ((half.semantic.float() * plain.semantic).sum(1) > 0.99).all()
