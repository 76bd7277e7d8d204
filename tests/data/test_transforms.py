"""Transforms: on images, in two parts on the device, and as PIL crops."""

import numpy as np
import pytest
import torch
from PIL import Image

from idml_zoo.data.transforms import TransformConfig, build_device_transforms, build_evaluation_parts, build_transforms


def test_transforms():
    config = TransformConfig(image_size=32, crop_fraction=0.5, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[25:75, 25:75] = 255
    train, evaluate = build_transforms(config)
    assert torch.allclose(evaluate(Image.fromarray(picture))[:, 2:-2, 2:-2], torch.ones(3, 28, 28), atol=0.02)
    assert train(Image.fromarray(picture)).shape == (3, 32, 32)
    assert TransformConfig(**config.to_dict()) == config
    with pytest.raises(ValueError, match="interpolation must be one of"):
        TransformConfig(interpolation="cubic")
    with pytest.raises(ValueError, match="image_size must be"):
        TransformConfig(image_size=0)


def test_device_transforms_are_the_same_transform_in_two_parts():
    config = TransformConfig(image_size=32, flip=False)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)) for _ in range(6)]
    whole, (on_worker, on_device) = build_transforms(config)[0], build_device_transforms(config)
    torch.manual_seed(0)
    expected = torch.stack([whole(i) for i in images])
    torch.manual_seed(0)
    parts = torch.stack([on_worker(i) for i in images])
    assert parts.dtype == torch.uint8
    assert torch.equal(on_device(parts), expected)
    _, flipping = build_device_transforms(config.replace(flip=True))
    flipped = [(flipping(parts) - expected).abs().amax((1, 2, 3)) > 0 for _ in range(8)]
    assert 0 < torch.stack(flipped).float().mean() < 1, "some are flipped, some are not"
    for row in range(6):
        found = flipping(parts)[row]
        assert torch.equal(found, expected[row]) or torch.equal(found, expected[row].flip(-1))


@pytest.mark.parametrize("size", [(50, 70), (20, 90), (9, 9)])
def test_evaluation_in_two_parts_has_the_same_numbers(size):
    config = TransformConfig(image_size=32)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(4)]
    on_worker, on_batch = build_evaluation_parts(config)
    pixels = torch.stack([on_worker(i) for i in images])
    assert pixels.dtype == torch.uint8
    assert torch.equal(on_batch(pixels), torch.stack([build_transforms(config)[1](i) for i in images]))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_tensor_crops_are_those_of_pil(interpolation):
    from sklearn.datasets import load_sample_image
    from torchvision.transforms import v2

    photo = Image.fromarray(load_sample_image("flower.jpg"))
    config = TransformConfig(image_size=64, interpolation=interpolation, flip=False, mean=(0, 0, 0), std=(1, 1, 1))
    train, _ = build_transforms(config)
    crop = v2.RandomResizedCrop(64, scale=config.scale, interpolation=v2.InterpolationMode(interpolation))
    for seed in range(10):
        torch.manual_seed(seed)
        found = train(photo) * 255
        torch.manual_seed(seed)
        expected = torch.from_numpy(np.array(crop(photo)).transpose(2, 0, 1)).float()
        off = (found - expected).abs()
        if interpolation == "nearest":  # rounding decides between two pixels now and then
            assert (off > 0.5).float().mean() < 0.2
        else:
            assert off.max() <= 1.01 and off.mean() < 0.5
