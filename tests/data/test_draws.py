"""Augmentation depends on the seed and the number of the draw alone: not on workers, ranks or interruptions."""

import numpy as np
import pytest
import torch
from PIL import Image

from idml_zoo.data.errors import DataError
from idml_zoo.data.images import ArrayImages, DrawnImages, _mixed
from idml_zoo.data.loading.sampler import Numbered, PKSampler, ShuffleSampler
from idml_zoo.data.split import Split
from idml_zoo.data.transforms import TransformConfig, build_transforms

RNG = np.random.default_rng(0)
SPLIT = Split(
    ArrayImages(RNG.integers(0, 255, (12, 20, 20), dtype=np.uint8), [f"{i}.png" for i in range(12)]),
    np.repeat(np.arange(4), 3),
    ["a", "b", "c", "d"],
)
TRAIN = build_transforms(TransformConfig(image_size=16))[0]


def epoch(sampler, batch, number=0, start=0, workers=0, seed=0):
    numbered = Numbered(sampler, batch)
    loader = torch.utils.data.DataLoader(DrawnImages(SPLIT, TRAIN, seed), batch_sampler=numbered, num_workers=workers)
    numbered.set_epoch(number, start)
    return list(loader)


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_workers_and_what_else_draws_make_no_difference():
    plain = epoch(ShuffleSampler(12, 4), 4)
    assert same(plain, epoch(ShuffleSampler(12, 4), 4, workers=2))
    torch.manual_seed(77)
    assert same(plain, epoch(ShuffleSampler(12, 4), 4))
    assert not same(plain, epoch(ShuffleSampler(12, 4), 4, number=1))
    assert not torch.equal(plain[0][0], epoch(ShuffleSampler(12, 4), 4, seed=1)[0][0])


def test_the_global_generator_is_left_as_it_was():
    data = DrawnImages(SPLIT, TRAIN, 0)
    before = torch.get_rng_state()
    data[(0, 5)]
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interrupted_epoch_goes_on_with_the_same_pictures():
    plain = epoch(ShuffleSampler(12, 4), 4, number=3)
    assert same(plain[1:], epoch(ShuffleSampler(12, 4), 4, number=3, start=1))


@pytest.mark.parametrize("kind", ["shuffle", "pk"])
def test_ranks_together_see_what_one_process_sees(kind):
    def make(**ranks):
        if kind == "shuffle":
            return ShuffleSampler(12, 4, **ranks)
        return PKSampler(SPLIT.labels, 2, 2, **ranks)

    plain = epoch(make(), 4, number=2)
    first, second = (epoch(make(num_replicas=2, rank=r), 4, number=2) for r in (0, 1))
    joined = [[torch.cat(parts) for parts in zip(a, b, strict=True)] for a, b in zip(first, second, strict=True)]
    assert same(plain, joined)


def test_an_image_that_is_drawn_twice_is_augmented_twice():
    ((images, _, indices), *_) = epoch(PKSampler(SPLIT.labels, 1, 6), 6)
    twice = next(i for i in indices.tolist() if (indices == i).sum() > 1)
    first, second = (indices == twice).nonzero().squeeze(1).tolist()[:2]
    assert not torch.equal(images[first], images[second])


def test_numbers_of_draws_never_repeat():
    sampler = ShuffleSampler(12, 4, num_replicas=2, rank=1)
    numbered, seen = Numbered(sampler, 4), []
    for number in range(3):
        numbered.set_epoch(number)
        seen += [draw for batch in numbered for _, draw in batch]
    assert seen == [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31, 34, 35]
    with pytest.raises(DataError, match="rank=r, not rank=None"):
        Numbered(ShuffleSampler(12, 4, rank=None), 4)


def test_seeds_are_spread():
    """Flips of consecutive draws and seeds are as independent as coins."""
    flips = []
    for seed in (0, 1):
        for draw in range(1000):
            torch.default_generator.manual_seed(_mixed(seed, draw))
            flips.append(float(torch.rand(()) < 0.5))
    flips = np.array(flips)
    assert abs(flips.mean() - 0.5) < 0.04
    assert abs(np.corrcoef(flips[:-1], flips[1:])[0, 1]) < 0.07
    assert abs(np.corrcoef(flips[:1000], flips[1000:])[0, 1]) < 0.1
    assert len({_mixed(s, d) for s in range(50) for d in range(50)}) == 2500


def test_a_picture_is_what_the_transform_makes_of_it():
    data = DrawnImages(SPLIT, TRAIN, 3)
    torch.default_generator.manual_seed(_mixed(3, 9))
    expected = TRAIN(SPLIT.images[4])
    image, label, index = data[(4, 9)]
    assert torch.equal(image, expected)
    assert (label, index) == (1, 4)
    assert isinstance(SPLIT.images[4], Image.Image)
