"""Corruptions against numbers computed another way, and what may not change: size, seeds, order."""

import colorsys
import io
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm
from sklearn.datasets import load_sample_image
from torchvision.transforms import v2

from idml_zoo.data.corruptions import CORRUPTIONS, CorruptedImages, RememberedImages, corrupt, corrupt_image
from idml_zoo.data.errors import DataError
from idml_zoo.data.images import ArrayImages, ImageDataset
from idml_zoo.data.split import Split, Subset
from idml_zoo.data.transforms import TransformConfig, build_transforms
from idml_zoo.registry import UnknownNameError

SEVERITIES = range(1, 6)
RANDOM = ("noise", "occlusion")


@dataclass(frozen=True)
class Photos:
    """RGB images in memory."""

    photos: list = field(default_factory=list)

    def __len__(self):
        return len(self.photos)

    def __getitem__(self, index):
        return self.photos[index]

    def encoded(self, index):
        return self.photos[index].tobytes()

    def name(self, index):
        return f"photo {index}"

    def fingerprint(self, index):
        return self.photos[index].tobytes()


def rng(seed=0):
    return np.random.default_rng(seed)


def values(image):
    return np.asarray(image).astype(np.float64)


def noise_image(width, height, seed=0):
    return Image.fromarray(rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def china():
    return Image.fromarray(load_sample_image("china.jpg"))


@pytest.fixture(scope="module")
def photo(china):
    """The photograph with a shorter side of 256."""
    return china.resize((384, 256), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("scale", [1, 2])
def test_blur_is_a_gaussian_whose_width_scales_with_the_image(china, severity, scale):
    sigma = [1, 2, 3, 4, 6][severity - 1] * scale
    image = china.resize((300 * scale, 256 * scale), Image.Resampling.BILINEAR)
    margin = 4 * sigma
    kernel = np.exp(-(np.arange(-margin, margin + 1.0) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    expected = values(image)
    for axis in (0, 1):
        expected = np.apply_along_axis(np.convolve, axis, expected, kernel, "valid")  # the inner part alone
    found = values(corrupt_image(image, "blur", severity, rng()))[margin:-margin, margin:-margin]
    assert np.abs(found - expected).mean() < 0.7 and np.abs(found - expected).max() < 6


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_moments_of_clipped_normal_noise(severity):
    sigma = [0.08, 0.12, 0.18, 0.26, 0.38][severity - 1]
    level = 100 / 255
    expected = np.clip(level + sigma * norm.ppf((np.arange(100_000) + 0.5) / 100_000), 0, 1) * 255
    image = Image.new("RGB", (300, 200), (100, 100, 100))
    found = values(corrupt_image(image, "noise", severity, rng())).reshape(-1, 3)
    assert found.mean(axis=0) == pytest.approx([expected.mean()] * 3, abs=5 * expected.std() / 60_000**0.5)
    assert found.std(axis=0) == pytest.approx([expected.std()] * 3, rel=0.015)
    between = np.corrcoef(found.T)[np.triu_indices(3, 1)]
    assert np.abs(between).max() < 0.02, "each channel has its own"


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_is_a_round_trip(photo, severity):
    out = io.BytesIO()
    photo.save(out, "JPEG", quality=[25, 18, 15, 10, 7][severity - 1])
    found = corrupt_image(photo, "jpeg", severity, rng())
    assert np.array_equal(values(found), values(Image.open(out)))


def test_jpeg_of_a_file_with_a_comment_longer_than_jpeg_allows():
    image = noise_image(20, 16)
    image.info["comment"] = b"x" * 70_000
    assert corrupt_image(image, "jpeg", 1, rng()).size == (20, 16)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_adds_to_hsv_value_and_clips(severity):
    image = noise_image(16, 12)
    image.paste((0, 0, 0), (0, 0, 4, 4))
    image.paste((255, 0, 10), (4, 0, 8, 4))
    expected = []
    for pixel in values(image).reshape(-1, 3) / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        expected.append(colorsys.hsv_to_rgb(hue, saturation, min(1, value + severity / 10)))
    found = values(corrupt_image(image, "brightness", severity, rng())).reshape(-1, 3)
    assert np.abs(found - 255 * np.array(expected)).max() < 0.51
    assert (found >= values(image).reshape(-1, 3)).all(), "nothing wraps around"


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_shrinks_around_each_channels_mean(photo, severity):
    factor = [0.4, 0.3, 0.2, 0.1, 0.05][severity - 1]
    pixels = values(photo)
    means = pixels.mean(axis=(0, 1))
    found = values(corrupt_image(photo, "contrast", severity, rng()))
    assert np.abs(found - (means + factor * (pixels - means))).max() < 0.51


@pytest.mark.parametrize("size", [(256, 256), (383, 256), (97, 301)])
def test_occlusion_covers_a_share_of_the_area_with_one_colour_and_grows(size):
    places = set()
    for seed in range(5):
        before = np.zeros(size[::-1], dtype=bool)
        for severity in SEVERITIES:
            image = Image.new("RGB", size, (1, 2, 3))
            found = values(corrupt_image(image, "occlusion", severity, rng(seed)))
            covered = (found != (1, 2, 3)).any(axis=2)
            assert covered.mean() == pytest.approx(severity / 10, abs=0.01)
            rows, columns = covered.any(axis=1), covered.any(axis=0)
            assert covered.sum() == rows.sum() * columns.sum(), "a filled rectangle"
            assert len(np.unique(found[covered], axis=0)) == 1
            assert not (before & ~covered).any(), "it only grows"
            assert values(image).max() == 3, "the clean image is left alone"
            before = covered
        places.add((rows.argmax(), columns.argmax(), *found[covered][0]))
    assert len(places) == 5


def test_occlusion_reaches_every_border_and_corner():
    image = Image.new("RGB", (9, 9), (1, 2, 3))
    often = np.mean([values(corrupt_image(image, "occlusion", 1, rng(i)))[..., 0] != 1 for i in range(600)], axis=0)
    # 3×3 of 9×9 pixels has 7×7 places, all as likely: a corner is under one of them, the centre under nine
    assert often[[0, 0, 8, 8], [0, 8, 0, 8]] == pytest.approx(1 / 49, abs=0.02)
    assert often[4, 4] == pytest.approx(9 / 49, abs=0.06)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_downscale_is_a_box_average_and_back(severity):
    factor = [0.6, 0.5, 0.4, 0.3, 0.25][severity - 1]
    width, height = round(100 * factor), round(60 * factor)

    def blocks(old: int, new: int) -> np.ndarray:  # (old, old): for each pixel, what its block is the average of
        edges = np.arange(new + 1) * old / new
        inside = np.minimum(edges[1:, None], np.arange(1, old + 1)) - np.maximum(edges[:-1, None], np.arange(old))
        return (inside.clip(0) * new / old)[((np.arange(old) + 0.5) * new / old).astype(int)]

    def expected(image):
        return np.einsum("yh,hwc,xw->yxc", blocks(60, height), values(image), blocks(100, width), optimize=True)

    y, x = np.mgrid[:60, :100]
    ramps = Image.fromarray(np.stack([2 * x, 4 * y, 255 - 2 * x], axis=2).astype(np.uint8))
    found = values(corrupt_image(ramps, "downscale", severity, rng()))
    assert len(np.unique(found.reshape(-1, 3), axis=0)) == width * height
    difference = np.abs(found - expected(ramps)).max(axis=(0, 1))
    assert (difference <= [1.5, 2.5, 1.5]).all(), "half a pixel's step: Pillow's box counts whole pixels"
    if factor in (0.5, 0.25):  # blocks of whole pixels: the same on any image
        image = noise_image(100, 60)
        assert np.abs(values(corrupt_image(image, "downscale", severity, rng())) - expected(image)).max() <= 1


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_difference_to_the_clean_photograph_grows_with_severity(photo, kind):
    changes = [np.abs(values(corrupt_image(photo, kind, s, rng(1))) - values(photo)).mean() for s in SEVERITIES]
    assert changes[0] > 1 and (np.diff(changes) > 0).all()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_an_image_depends_on_seed_kind_and_place_alone(kind):
    images = Photos([noise_image(40, 30, seed=3)] * 5)
    corrupted = CorruptedImages(images, kind, 3, side=30)
    once = [values(corrupted[i]) for i in range(5)]
    again = {i: values(CorruptedImages(images, kind, 3, side=30)[i]) for i in (3, 1, 4, 0, 2)}
    assert all(np.array_equal(once[i], again[i]) for i in range(5))
    assert np.array_equal(once[4], values(corrupted[-1]))
    other_seed = values(CorruptedImages(images, kind, 3, side=30, seed=1)[0])
    assert np.array_equal(once[0], once[1]) == np.array_equal(once[0], other_seed) == (kind not in RANDOM)
    assert np.array_equal(values(images[0]), values(noise_image(40, 30, seed=3))), "the clean image is left alone"


@pytest.mark.parametrize("kind", RANDOM)
def test_severities_share_their_random_numbers(kind):
    images = Photos([Image.new("RGB", (60, 50), (128, 128, 128))])
    weak, strong = (values(CorruptedImages(images, kind, s, side=50)[0]) - 128 for s in (1, 2))
    if kind == "noise":  # the same noise, 1.5 times as large; rounding moves each by half a level
        assert np.abs(1.5 * weak - strong)[np.abs(strong) < 127].max() <= 1.25 + 1e-9
    else:
        assert np.array_equal(strong[weak != 0], weak[weak != 0])


def test_data_loader_workers_give_the_same():
    images = Photos([noise_image(40, 32, seed=i) for i in range(8)])
    split = corrupt(Split(images, np.arange(8) % 2, ("a", "b")), "noise", 2, side=32)
    _, evaluate = build_transforms(TransformConfig(image_size=28))
    dataset = ImageDataset(split, evaluate)
    here = torch.stack([dataset[i][0] for i in range(8)])
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, num_workers=2)
    assert torch.equal(torch.cat([batch[0] for batch in loader]), here)


@pytest.mark.parametrize(
    "size", [(333, 257), (257, 333), (31, 47), (47, 31), (50, 50), (1, 3), (3, 2), (29, 31), (64, 37)]
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_size_is_torchvisions_and_its_resize_then_does_nothing(size, interpolation):
    config = TransformConfig(image_size=27, interpolation=interpolation)
    side = round(config.image_size / config.crop_fraction)
    resize = v2.Resize(side, interpolation=v2.InterpolationMode(interpolation))
    image = noise_image(*size)
    corrupted = CorruptedImages(Photos([image]), "downscale", 1, side, interpolation=interpolation)[0]
    clean = resize(image)
    assert corrupted.size == clean.size
    assert np.array_equal(values(resize(corrupted)), values(corrupted))
    assert np.array_equal(values(corrupt_image(clean, "downscale", 1, rng())), values(corrupted))
    _, evaluate = build_transforms(config)
    top, left = (round((extent - 27) / 2) for extent in (corrupted.height, corrupted.width))  # CenterCrop's rounding
    expected = np.asarray(corrupted)[top : top + 27, left : left + 27].transpose(2, 0, 1) / 255
    expected = (expected - np.reshape(config.mean, (3, 1, 1))) / np.reshape(config.std, (3, 1, 1))
    assert np.abs(evaluate(corrupted).numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("severity", [1, 5])
def test_tiny_and_grey_images(kind, severity):
    grey = noise_image(33, 21).convert("L").convert("RGB")
    for image in (noise_image(1, 1), noise_image(1, 40), noise_image(40, 1), noise_image(2, 3), grey):
        found = corrupt_image(image, kind, severity, rng())
        assert found.size == image.size and found.mode == "RGB"
        resized = CorruptedImages(Photos([image]), kind, severity, side=5)[0]
        assert min(resized.size) == 5 and resized.mode == "RGB"
    if kind not in RANDOM:
        channels = values(corrupt_image(grey, kind, severity, rng()))
        assert np.ptp(channels, axis=2).max() == 0, "grey stays grey"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
def test_remembered_images_are_decoded_once_and_corrupted_alike(interpolation):
    asked = []

    class Counted(Photos):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    photos = Counted([noise_image(*size) for size in ((60, 41), (33, 90), (24, 24), (7, 70))])
    pixels = sum(3 * 24 * int(24 * max(p.size) / min(p.size)) for p in photos.photos[:2])
    once, some = (RememberedImages(photos, 24, interpolation, memory) for memory in (2 << 30, pixels))
    for images, decoded in ((once, [0, 1, 2, 3]), (some, [0, 1, 2, 3] + [2, 3] * (len(CORRUPTIONS) - 1))):
        asked.clear()
        found = [[values(CorruptedImages(images, kind, 3, 24)[i]) for i in range(4)] for kind in CORRUPTIONS]
        assert asked == decoded
        for kind, four in zip(CORRUPTIONS, found, strict=True):
            expected = CorruptedImages(photos, kind, 3, 24, interpolation=interpolation)
            assert all(np.array_equal(values(expected[i]), four[i]) for i in range(4)), kind
    assert (len(once), once.name(1), once.fingerprint(1)) == (4, "photo 1", photos.fingerprint(1))
    assert once.encoded(1) == photos.encoded(1)


def test_fingerprints_and_names_tell_everything_apart():
    images = Photos([noise_image(8, 6)] * 2)
    made = [CorruptedImages(images, kind, s, side=6) for kind in CORRUPTIONS for s in SEVERITIES]
    made += [CorruptedImages(images, "blur", 1, side=7), CorruptedImages(images, "blur", 1, side=6, seed=1)]
    made += [CorruptedImages(images, "blur", 1, side=6, interpolation="bicubic")]
    made += [CorruptedImages(Photos([noise_image(8, 6, seed=1)] * 2), "blur", 1, side=6)]
    prints = [m.fingerprint(i) for m in made for i in range(2)] + [images.fingerprint(0)]
    assert len(set(prints)) == len(prints)
    assert made[0].fingerprint(0) == CorruptedImages(images, "blur", 1, side=6).fingerprint(0)
    assert made[0].fingerprint(-1) == made[0].fingerprint(1)
    assert made[0].name(1) == "photo 1 (blur, severity 1, at 6 pixels)"


def test_encoded_is_the_corrupted_image():
    corrupted = CorruptedImages(Photos([noise_image(20, 10)]), "jpeg", 5, side=10)
    assert np.array_equal(values(Image.open(io.BytesIO(corrupted.encoded(0)))), values(corrupted[0]))


def test_corrupting_a_split_keeps_all_but_the_images():
    grey = ArrayImages(rng().integers(0, 256, (6, 12, 10), dtype=np.uint8), [f"{i}" for i in range(6)])
    extras = {"severity": np.arange(6)}
    split = Split(grey, np.array([0, 0, 1, 1, 2, 2]), ("a", "b", "c"), extras)
    corrupted = corrupt(split, "contrast", 4, side=20, seed=3, interpolation="nearest")
    assert corrupted.labels is split.labels and corrupted.class_names == ("a", "b", "c")
    assert corrupted.extras is extras and len(corrupted) == 6
    assert corrupted.images == CorruptedImages(grey, "contrast", 4, 20, 3, "nearest")
    assert corrupted.images[0].size == (20, 24) and corrupted.fingerprint() != split.fingerprint()


def test_the_place_in_a_subset_is_the_row_in_it():
    images = Photos([noise_image(12, 10, seed=i) for i in range(4)])
    rows = CorruptedImages(Subset(images, np.array([2, 3])), "noise", 1, side=10)
    alone = CorruptedImages(Photos([images[2]]), "noise", 1, side=10)
    whole = CorruptedImages(images, "noise", 1, side=10)
    assert np.array_equal(values(rows[0]), values(alone[0])) and rows.name(0).startswith("photo 2")
    assert not np.array_equal(values(rows[0]), values(whole[2]))


def test_errors_say_what_is_possible():
    images = Photos([noise_image(5, 5)])
    with pytest.raises(UnknownNameError, match=r"unknown corruption 'blurr'; did you mean 'blur'\?"):
        CorruptedImages(images, "blurr", 1, side=5)
    with pytest.raises(UnknownNameError, match="unknown corruption 'snow'"):
        corrupt_image(images[0], "snow", 1, rng())
    for severity in (0, 6, -1):
        with pytest.raises(DataError, match=f"severity must be 1, 2, 3, 4 or 5, got {severity}; for clean"):
            CorruptedImages(images, "blur", severity, side=5)
        with pytest.raises(DataError, match="severity must be"):
            corrupt_image(images[0], "blur", severity, rng())
    with pytest.raises(DataError, match=r"side must be ≥ 1 pixel, got 0; use round\("):
        CorruptedImages(images, "blur", 1, side=0)
    with pytest.raises(DataError, match="seed must be ≥ 0, got -1"):
        CorruptedImages(images, "blur", 1, side=5, seed=-1)
    with pytest.raises(UnknownNameError, match="did you mean 'bilinear'"):
        CorruptedImages(images, "blur", 1, side=5, interpolation="bilinea")
    with pytest.raises(IndexError):
        CorruptedImages(images, "blur", 1, side=5)[1]


def test_importing_brings_neither_torch_nor_scipy():
    code = "import sys, idml_zoo.data.corruptions; print({'torch', 'torchvision', 'scipy'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
