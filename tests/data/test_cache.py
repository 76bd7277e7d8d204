"""Decode once."""

import pickle
import signal
import subprocess
import sys
import warnings
from collections import namedtuple

import numpy as np
import pytest
import torch
from conftest import ROOT, make_folder
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms.v2 import functional as F

from idml_zoo.data.benchmark import table_benchmark
from idml_zoo.data.errors import DataError
from idml_zoo.data.images import ImageDataset
from idml_zoo.data.loading import cache
from idml_zoo.data.loading.cache import CacheWarning, cache_images
from idml_zoo.data.transforms import TransformConfig, build_transforms


@pytest.fixture
def split(tmp_path):
    return table_benchmark("mine", make_folder(tmp_path / "photos")).splits().train


def photographs(root, size):
    """Two classes of two photographs each, JPEG, shorter side ``size``."""
    for k, name in enumerate(("china.jpg", "flower.jpg")):
        (root / f"class_{k}").mkdir(parents=True)
        photo = Image.fromarray(load_sample_image(name))
        for i, image in enumerate((photo, photo.transpose(Image.Transpose.ROTATE_90))):
            ratio = size / min(image.size)
            image = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.LANCZOS)
            image.save(root / f"class_{k}" / f"{i}.jpg", quality=92)
    for k in (2, 3):
        (root / f"class_{k}").mkdir()
        Image.new("RGB", (9, 9), (k, 0, 0)).save(root / f"class_{k}" / "0.png")
    return table_benchmark("mine", root).splits().train


def crops(split, config, count=40):
    """Training crops at fractions of the image that depend on the seed alone."""
    data = ImageDataset(split, build_transforms(config)[0])
    crop = data.transform.transforms[1]
    out = []
    for seed in range(count):
        torch.manual_seed(seed)
        image = F.pil_to_tensor(image) if isinstance(image := split.images[seed % len(data)], Image.Image) else image
        area, u, v = (float(x) for x in torch.rand(3))
        side = (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * area) ** 0.5
        height, width = (round(side * s) for s in image.shape[1:])
        top, left = (round(f * (1 - side) * s) for f, s in zip((u, v), image.shape[1:], strict=True))
        size = [config.image_size, config.image_size]
        out.append(F.resized_crop(image, top, left, height, width, size, antialias=True).float())
    return torch.stack(out)


def test_small_enough_images_are_kept_exactly(tmp_path, split):
    cached = cache_images(split, 64, tmp_path / "cache", progress=False)
    assert len(cached.images) == len(split)
    for i in range(len(split)):
        assert cached.images[i].dtype == torch.uint8
        assert np.array_equal(cached.images[i].permute(1, 2, 0).numpy(), np.asarray(split.images[i]))
    assert cached.fingerprint() == split.fingerprint() and cached.images.name(3) == split.images.name(3)
    train, _ = build_transforms(TransformConfig(image_size=32))
    for i in range(len(split)):
        torch.manual_seed(i)
        expected = train(split.images[i])
        torch.manual_seed(i)
        assert torch.equal(train(cached.images[i]), expected), "so training goes the same way with it and without it"


@pytest.mark.parametrize(("side", "tolerance"), [(448, 3.0), (256, 6.0)])
def test_crops_match_those_of_the_originals(tmp_path, side, tolerance):
    """Mean absolute difference in levels of 255, from photographs of shorter side 500."""
    split = photographs(tmp_path / "photos", 500)
    cached = cache_images(split, side, tmp_path / "cache", progress=False)
    assert min(cached.images[0].shape[1:]) == side
    config = TransformConfig(image_size=224)
    difference = (crops(split, config) - crops(cached, config)).abs().mean()
    assert 0 < difference < tolerance
    blank = (crops(split, config) - 127).abs().mean()
    assert difference < blank / 10, "and the crops are those of the same places"


def test_it_is_built_once_and_found_again(tmp_path, split, monkeypatch):
    one = cache_images(split, 20, tmp_path / "cache", progress=False)
    assert one.images[0].shape == (3, 20, 20)
    monkeypatch.setattr(cache, "_build", lambda *a: pytest.fail("built again"))
    two = cache_images(split, 20, tmp_path / "cache", progress=False)
    assert torch.equal(one.images[5], two.images[5])
    copy = pickle.loads(pickle.dumps(two.images))
    assert torch.equal(copy[5], two.images[5]) and len(pickle.dumps(two.images)) < 5000
    monkeypatch.undo()
    other = cache_images(split, 21, tmp_path / "cache", progress=False)
    assert other.images[0].shape == (3, 21, 21), "another bound is another cache"
    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "class_0" / "0.png")
    assert not cache_images(split, 20, tmp_path / "cache", progress=False).images[0].any(), "so are other images"


def test_loader_workers_share_it(tmp_path, split):
    cached = cache_images(split, 64, tmp_path / "cache", progress=False)
    _, evaluate = build_transforms(TransformConfig(image_size=32))

    def batches(data, workers):
        return torch.cat([b[0] for b in torch.utils.data.DataLoader(data, 5, num_workers=workers)])

    def crop(image):
        return torch.as_tensor(np.asarray(image).transpose(2, 0, 1).copy() if isinstance(image, Image.Image) else image)

    assert torch.equal(batches(ImageDataset(cached, crop), 2), batches(ImageDataset(split, crop), 0))
    assert evaluate(split.images[0]).shape == (3, 32, 32)


@pytest.mark.parametrize("damage", ["pixels", "index", "both"])
def test_a_damaged_cache_is_built_again(tmp_path, split, damage):
    folder = tmp_path / "cache"
    before = cache_images(split, 64, folder, progress=False).images[7].clone()
    (home,) = folder.glob("images-*")
    if damage != "index":
        (home / "pixels.u8").write_bytes(b"123")
    if damage != "pixels":
        (home / "index.npy").write_bytes(b"")
    assert torch.equal(cache_images(split, 64, folder, progress=False).images[7], before)


def test_without_space_images_are_decoded_as_before(tmp_path, split, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 50_000, 50_000))
    with pytest.warns(CacheWarning, match=r"decoded anew in every epoch.*about 0.0 GB needed.*free space, bound"):
        same = cache_images(split, 64, tmp_path / "cache", progress=False)
    assert same is split
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"], "nothing half-written"
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.warns(CacheWarning, match="choose another folder with IDML_ZOO_CACHE"):
        assert cache_images(split, 64, tmp_path / "file", progress=False) is split


def test_a_broken_image_is_named_and_nothing_is_left(tmp_path, split):
    (tmp_path / "photos" / "class_1" / "2.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"class_1/2.png cannot be read"):
        cache_images(split, 64, tmp_path / "cache", progress=False)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


BUILDING = """
import sys, time
from idml_zoo.data.loading import cache
from idml_zoo.data.benchmark import table_benchmark
root, slow = sys.argv[1], float(sys.argv[2])
build = cache._build
def slowly(*arguments):
    print("building", flush=True)
    time.sleep(slow)
    build(*arguments)
cache._build = slowly
split = table_benchmark("mine", root + "/photos").splits().train
images = cache.cache_images(split, 64, root + "/cache", progress=False).images
print("sum", sum(int(images[i].sum()) for i in range(len(images))), flush=True)
"""


def test_two_processes_at_once_and_one_killed(tmp_path, split):
    def start(slow):
        command = [sys.executable, "-c", BUILDING, str(tmp_path), str(slow)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    killed = start(60)
    assert killed.stdout.readline() == "building\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    outs = [p.communicate(timeout=60)[0] for p in (start(0.3), start(0.3))]
    assert "".join(outs).count("building") == 1, "one builds, the other waits"
    expected = sum(int(np.asarray(split.images[i], int).sum()) for i in range(len(split)))
    assert all(f"sum {expected}\n" in o for o in outs)


def test_no_warning_when_all_is_well(tmp_path, split):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached = cache_images(split, 64, tmp_path / "cache", progress=False)
        build_transforms(TransformConfig(image_size=32))[0](cached.images[0])
