"""The batch samplers: what a batch holds, evenness over an epoch, ranks, resuming, and accelerate."""

import itertools
import json
import time
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_runs import run_with_processes
from torch.utils.data import DataLoader

from idml_zoo.data.errors import DataError
from idml_zoo.data.loading.sampler import PKSampler, ShuffleSampler

# classes of 1 to 9 images, with labels in no order and not from 0
SIZES = {7: 1, -2: 2, 40: 3, 5: 4, 11: 6, 3: 9}
LABELS = np.random.default_rng(0).permutation([label for label, n in SIZES.items() for _ in range(n)])

MAKERS = {
    "shuffle": lambda **more: ShuffleSampler(50, 12, **more),
    "padded": lambda **more: ShuffleSampler(50, 12, last="pad", **more),
    "classes": lambda **more: PKSampler(LABELS, 4, 2, batches=9, **more),
    "spread": lambda **more: PKSampler(LABELS, 4, 2, batches=9, whole_classes=False, **more),
}


def epoch(sampler, number=0, start=0):
    sampler.set_epoch(number, start)
    return list(sampler)


def spread(counts) -> int:
    return max(counts) - min(counts)


@pytest.mark.parametrize(("last", "lengths"), [("drop", [8, 8]), ("pad", [8, 8, 8]), ("keep", [8, 8, 3])])
def test_a_shuffle_uses_every_image_once_but_for_what_the_last_batch_lacks(last, lengths):
    sampler = ShuffleSampler(19, 8, last=last)
    batches = epoch(sampler)
    assert [len(b) for b in batches] == lengths and len(sampler) == len(lengths)
    flat = [i for b in batches for i in b]
    assert sorted(set(flat[:19])) == sorted(flat[:19]) and set(flat) <= set(range(19))
    assert flat[19:] == flat[: len(flat[19:])]
    if last != "drop":
        assert set(flat) == set(range(19))
    assert flat != sorted(flat)


def test_a_shuffle_that_divides_has_no_last_batch_of_another_kind():
    expected = epoch(ShuffleSampler(24, 8))
    assert len(expected) == 3 and sorted(itertools.chain(*expected)) == list(range(24))
    assert all(epoch(ShuffleSampler(24, 8, last=last)) == expected for last in ("pad", "keep"))


def test_padding_goes_round_as_often_as_a_small_set_needs():
    (batch,) = epoch(ShuffleSampler(3, 8, last="pad"))
    assert sorted(batch[:3]) == [0, 1, 2] and batch == (batch[:3] * 3)[:8]
    (short,) = epoch(ShuffleSampler(3, 8, last="keep"))
    assert short == batch[:3]


def check_epoch(labels, p, k, batches, images):
    """What is promised of every epoch, counted from the indices alone."""
    labels = np.asarray(labels)
    size = Counter(labels.tolist())
    used, times = Counter(), Counter()
    assert len(images) == batches
    for batch in images:
        assert len(batch) == p * k
        classes = Counter(labels[batch].tolist())
        assert len(classes) == p and set(classes.values()) == {k}
        inside = Counter(batch)
        for c in classes:
            of_class = [inside[i] for i in np.flatnonzero(labels == c).tolist()]
            assert spread(of_class) <= 1
            assert (max(of_class) == 1) if size[c] >= k else (min(of_class) >= 1)
        used.update(classes.keys())
        times.update(batch)
    assert spread([used[c] for c in size]) <= 1
    for c in size:
        assert spread([times[i] for i in np.flatnonzero(labels == c).tolist()]) <= 1


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    p=st.integers(1, 8),
    k=st.integers(1, 7),
    batches=st.integers(1, 25),
    seed=st.integers(0, 2**70),
)
def test_every_batch_is_full_and_classes_and_images_are_used_evenly(sizes, p, k, batches, seed):
    p = min(p, len(sizes))
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 3 - 4, sizes))
    sampler = PKSampler(labels, p, k, seed=seed, batches=batches)
    assert len(sampler) == batches
    check_epoch(labels, p, k, batches, epoch(sampler, 3))


def test_all_classes_at_once_and_a_seam_in_every_batch():
    """One class more than a batch holds: each batch but the first begins in one order and ends in the next."""
    for classes in (5, 6):
        labels = np.repeat(np.arange(classes), 3)
        check_epoch(labels, 5, 2, 40, epoch(PKSampler(labels, 5, 2, batches=40)))


def test_a_seam_leaves_the_order_uniform():
    """4 classes in batches of 3, over many seeds: all that may come next is equally likely.

    The first batch leaves one class of its order. The second has that one and two of the next order; what remains of
    that is the class left, which had to wait, and another. If it only waited, it would then come first 3 times of 4.
    """
    chosen, left_first = Counter(), 0
    for seed in range(3000):
        first, second, third = epoch(PKSampler(range(4), 3, 1, batches=3, seed=seed))
        (left,) = set(range(4)) - set(first)
        assert second[0] == left and left in third[:2]
        chosen[first.index(second[1]), first.index(second[2])] += 1
        left_first += third[0] == left
    assert len(chosen) == 6 and all(abs(n - 500) < 5 * 20.4 for n in chosen.values())  # 5 standard deviations
    assert abs(left_first - 1500) < 5 * 27.4


def test_small_classes_repeat_their_images_evenly_and_mixed():
    batches = epoch(PKSampler([0, 0, 1, 1, 1], 2, 4, batches=30))
    check_epoch([0, 0, 1, 1, 1], 2, 4, 30, batches)
    pairs = Counter(tuple(sorted(b[j : j + 2])) for b in batches for j in (0, 2, 4, 6) if b[j] < 2)
    assert set(pairs) == {(0, 0), (0, 1), (1, 1)}, "a rank of K / 2 images sees now the same, now different ones"


def test_batches_in_an_epoch_by_default_and_by_choice():
    assert len(PKSampler(LABELS, 3, 2)) == 25 // 6
    assert len(PKSampler(LABELS, 6, 5)) == 1
    assert len(PKSampler(LABELS.tolist(), 3, 2, batches=77)) == 77


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_an_epoch_is_a_function_of_seed_and_epoch(make):
    orders = {(s, e): epoch(make(seed=s), e) for s, e in [(0, 0), (0, 1), (1, 0), (1, 1), (5, 1), (2**32 + 5, 0)]}
    assert len({json.dumps(o) for o in orders.values()}) == len(orders)
    one = make(seed=1)
    epoch(one, 4)
    assert epoch(one, 1) == epoch(make(seed=1), 1) == list(one) == orders[1, 1]
    assert list(make(seed=1)) == orders[1, 0], "epoch 0 until told otherwise"
    running = iter(one)
    one.set_epoch(0)
    assert list(running) == orders[1, 1], "an iteration keeps the epoch it began with"


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("rank", [0, 1, None])
def test_resuming_gives_the_rest_of_the_epoch(make, rank):
    sampler = make(num_replicas=2, rank=rank)
    lists = 2 if rank is None else 1
    whole = epoch(sampler, 3)
    assert len(whole) == sampler.steps * lists == len(sampler)
    for start in range(sampler.steps + 1):
        rest = epoch(sampler, 3, start)
        assert rest == whole[start * lists :] and len(sampler) == len(rest) == len(
            DataLoader([], batch_sampler=sampler)
        )
    assert epoch(sampler, 3) == whole, "start is for one call of set_epoch"


@pytest.mark.parametrize(
    ("name", "ranks"), [("shuffle", 4), ("padded", 3), ("classes", 2), ("classes", 4), ("spread", 2)]
)
def test_the_ranks_share_out_the_batch_of_one_process(name, ranks):
    make = MAKERS[name]
    whole = epoch(make(), 2)
    parts = [epoch(make(num_replicas=ranks, rank=r), 2) for r in range(ranks)]
    for batch, of_ranks in zip(whole, zip(*parts, strict=True), strict=True):
        assert {len(p) for p in of_ranks} == {len(batch) // ranks}
        assert Counter(batch) == Counter(itertools.chain(*of_ranks))
    dealt = epoch(make(num_replicas=ranks, rank=None), 2)
    assert [dealt[r::ranks] for r in range(ranks)] == parts


def test_ranks_get_whole_classes_or_some_images_of_every_class():
    both = {}
    for whole in (True, False):
        parts = [epoch(PKSampler(LABELS, 4, 2, whole_classes=whole, num_replicas=2, rank=r)) for r in (0, 1)]
        for one, two in zip(*parts, strict=True):
            classes = [Counter(LABELS[p].tolist()) for p in (one, two)]
            if whole:
                assert not set(classes[0]) & set(classes[1]) and {*classes[0].values(), *classes[1].values()} == {2}
            else:
                assert classes[0] == classes[1] and set(classes[0].values()) == {1} and len(classes[0]) == 4
        both[whole] = [sorted(a + b) for a, b in zip(*parts, strict=True)]
    assert both[True] == both[False]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_loader_gives_the_same_batches_with_and_without_workers(make):
    sampler = make()
    sampler.set_epoch(1, 2)
    expected = list(sampler)
    for workers in (0, 2) if make is MAKERS["classes"] else (0,):
        loader = DataLoader(range(50), batch_sampler=sampler, num_workers=workers)
        assert [b.tolist() for b in loader] == expected and len(loader) == len(expected)


def test_a_large_epoch_is_planned_in_well_under_a_second():
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(11318), rng.integers(0, 11318, 60000 - 11318)])
    sampler = PKSampler(labels, 60, 2)
    begun = time.process_time()
    batches = list(sampler)
    assert time.process_time() - begun < 1
    used = Counter(itertools.chain.from_iterable(batches))
    assert len(batches) == 500 and set(Counter(used.values())) <= {1, 2, 3, 4, 5, 6}
    assert all(len(set(b)) == 120 for b in batches if min(np.bincount(labels)[labels[b]]) > 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShuffleSampler(7, 8), "7 images do not fill one batch of 8; lower batch_size, or choose last='pad'"),
        (lambda: ShuffleSampler(0, 8), "size must be a whole number, 1 or more, got 0"),
        (lambda: ShuffleSampler(9, 0), "batch_size must be a whole number, 1 or more, got 0"),
        (lambda: ShuffleSampler(9, 2.5), "batch_size must be a whole number"),
        (lambda: ShuffleSampler(99, 7, num_replicas=3), "batch_size=7 must be a multiple of the 3 ranks; take 9"),
        (lambda: ShuffleSampler(9, 2, num_replicas=0), "num_replicas must be a whole number, 1 or more"),
        (lambda: ShuffleSampler(9, 2, last="cut"), "last must be one of drop, pad, keep, got 'cut'"),
        (lambda: ShuffleSampler(9, 2, last="keep", num_replicas=2), "parts of different lengths; choose 'drop'"),
        (lambda: ShuffleSampler(9, 2, seed=-1), "seed must be a whole number, 0 or more, got -1"),
        (lambda: ShuffleSampler(9, 2, rank=1), "rank must be a whole number, from 0 to 0 (or None for all ranks"),
        (lambda: PKSampler(LABELS, 4, 2, num_replicas=2, rank=2), "rank must be a whole number, from 0 to 1"),
        (lambda: PKSampler(LABELS, 4, 2, num_replicas=2, rank=-1), "rank must be"),
        (lambda: PKSampler([], 1, 2), "labels must be (N,) whole numbers, N > 0, got (0,)"),
        (lambda: PKSampler([[1, 2]], 1, 2), "labels must be (N,) whole numbers, N > 0, got (1, 2)"),
        (lambda: PKSampler([0.5, 1.0], 1, 2), "labels must be (N,) whole numbers, N > 0, got (2,) of float64"),
        (
            lambda: PKSampler(LABELS, 7, 2),
            "classes_per_batch must be a whole number, from 1 to 6 (the number of classes",
        ),
        (lambda: PKSampler(LABELS, 0, 2), "classes_per_batch must be a whole number, 1 or more"),
        (lambda: PKSampler(LABELS, 2, 0), "images_per_class must be a whole number, 1 or more"),
        (lambda: PKSampler(LABELS, 2, 2, batches=0), "batches must be a whole number, 1 or more"),
        (
            lambda: PKSampler(LABELS, 5, 2, num_replicas=2),
            "classes_per_batch=5 must be a multiple of the 2 ranks; take 6",
        ),
        (
            lambda: PKSampler(LABELS, 4, 3, num_replicas=2, whole_classes=False),
            "images_per_class=3 must be a multiple of the 2 ranks; take 4",
        ),
        (lambda: ShuffleSampler(9, 2).set_epoch(-1), "epoch must be a whole number, 0 or more, got -1"),
        (lambda: ShuffleSampler(9, 2).set_epoch(0, 5), "start must be a whole number, from 0 to 4 (the global batches"),
        (lambda: ShuffleSampler(9, 2).set_epoch(0, -1), "start must be"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(DataError) as caught:
        make()
    assert message in str(caught.value)


def test_a_refused_epoch_changes_nothing():
    sampler = ShuffleSampler(9, 2)
    sampler.set_epoch(3, 1)
    with pytest.raises(DataError):
        sampler.set_epoch(4, 9)
    assert (sampler.epoch, sampler.start, len(sampler)) == (3, 1, 3)


TWO_PROCESSES = """
import json, os, pathlib, sys
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader
from idml_zoo.data.loading.sampler import PKSampler, ShuffleSampler

even = DataLoaderConfiguration(even_batches=False)  # older versions of accelerate ask for it, without a batch_size
accelerator = Accelerator(cpu=True, dataloader_config=even)
ranks, rank = accelerator.num_processes, accelerator.process_index
made = {
    "shuffle": lambda **r: ShuffleSampler(50, 12, num_replicas=ranks, **r),
    "padded": lambda **r: ShuffleSampler(50, 12, last="pad", num_replicas=ranks, **r),
    "classes": lambda **r: PKSampler([i % 7 for i in range(50)], 4, 2, num_replicas=ranks, **r),
    "spread": lambda **r: PKSampler([i % 7 for i in range(50)], 4, 2, whole_classes=False, num_replicas=ranks, **r),
}
found = {}
for name, make in made.items():
    for way in ("own", "prepared"):
        sampler = make(rank=rank if way == "own" else None)
        loader = DataLoader(range(50), batch_sampler=sampler)
        if way == "prepared":
            loader = accelerator.prepare(loader)
        for epoch, start in [(0, 0), (1, 0), (4, 2)]:
            sampler.set_epoch(epoch, start)
            batches = [b.tolist() for b in loader]
            assert len(loader) == len(batches)
            found[f"{name} {way} {epoch} {start}"] = batches
pathlib.Path(sys.argv[1], f"{rank}.json").write_text(json.dumps([ranks, found]))
accelerator.wait_for_everyone()
os._exit(0)  # as recipes/train.py does, and for its reason
"""


def test_two_processes_share_out_the_batches_under_accelerate(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    done = run_with_processes(2, [str(script), str(tmp_path)], PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    (ranks, one), (_, two) = (json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1))
    assert ranks == 2 and set(one) == set(two) and len(one) == 24
    labels = [i % 7 for i in range(50)]
    alone = {
        "shuffle": ShuffleSampler(50, 12),
        "padded": ShuffleSampler(50, 12, last="pad"),
        "classes": PKSampler(labels, 4, 2),
        "spread": PKSampler(labels, 4, 2),
    }
    for key in one:
        name, _, number, start = key.split()
        expected = epoch(alone[name], int(number), int(start))
        for a, b, batch in zip(one[key], two[key], expected, strict=True):
            assert not set(a) & set(b) and len(a) == len(b) and sorted(a + b) == sorted(batch), key
    for name in alone:
        assert one[f"{name} own 0 0"] == one[f"{name} prepared 0 0"] != one[f"{name} prepared 1 0"]
        assert two[f"{name} own 4 2"] == two[f"{name} prepared 4 2"]
