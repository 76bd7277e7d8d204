"""Which images make up each batch: a plain shuffle, or P classes × K images.

Both are batch samplers, ``DataLoader(dataset, batch_sampler=...)``, and describe the GLOBAL batch over all ranks. They
are pure functions of (seed, epoch, rank) and hold no other state than the epoch and the batch to start it from: call
``set_epoch`` before each epoch, or the same one comes again. Orders repeat exactly under the same version of NumPy.

Ranks get their parts in one of two ways, and never in both, which would share out twice:

- ``rank=r``: iteration gives rank r's part of every batch. The loader must NOT go through ``accelerator.prepare``.
- ``rank=None``: iteration gives every rank's part in turn (batch 0 rank 0, batch 0 rank 1, ..., batch 1 rank 0, ...),
  which ``accelerator.prepare(loader)`` deals out to as many processes as ``num_replicas`` says (``BatchSamplerShard``
  with its default split_batches=False; older versions ask for even_batches=False too). Call ``set_epoch`` on the
  sampler itself: with several processes accelerate does not pass it on. With one process it does, at every iteration,
  from its own count of epochs and without ``start``: there, use rank=0 and an unprepared loader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from torch.utils.data import Sampler

from idml_zoo.data.errors import DataError

Last = Literal["drop", "pad", "keep"]


class _EpochSampler(Sampler[list[int]]):
    """What the samplers share: the epoch, where it starts, and the parts of the ranks.

    There is no attribute ``batch_size`` on purpose: accelerate would take it for the length of the parts that iteration
    gives, and silently discard those of another length. Without it, it deals out what it gets.

    Attributes:
        steps: global batches in a whole epoch.
        epoch, start: what the next iteration gives, see ``set_epoch``.
    """

    def __init__(self, steps: int, seed: int, num_replicas: int, rank: int | None) -> None:
        self.steps = steps
        self.seed = _whole("seed", seed)
        self.num_replicas = num_replicas
        self.rank = rank if rank is None else _whole("rank", rank, 0, num_replicas - 1, "or None for all ranks in turn")
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Makes the next iterations those of an epoch.

        Args:
            epoch: 0 or more.
            start: the global batch to begin with, in [0, steps]. Earlier ones are skipped without being loaded, and
                the others are those of the whole epoch. ``steps`` leaves none.

        Raises:
            DataError: out of range; the sampler stays as it was.
        """
        hint = "the global batches done in this epoch, not those of all epochs or ranks"
        self.epoch, self.start = _whole("epoch", epoch), _whole("start", start, 0, self.steps, hint)

    def __len__(self) -> int:
        """Returns the number of lists in an iteration: steps - start; num_replicas times that with rank=None."""
        return (self.steps - self.start) * (self.num_replicas if self.rank is None else 1)

    def __iter__(self) -> Iterator[list[int]]:
        """Returns an iterator over lists of indices, of the epoch at this call, whatever set_epoch changes later."""
        # spawn_key, not [seed, epoch]: a seed beyond 32 bits would run over into the epoch
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.epoch,)))
        mine = slice(None) if self.rank is None else slice(self.rank, self.rank + 1)
        return (part.tolist() for batch in self._epoch(rng)[self.start :] for part in batch[mine])

    def _epoch(self, rng: np.random.Generator) -> Sequence[np.ndarray] | np.ndarray:
        """Returns ``steps`` global batches, each ``(num_replicas, B / num_replicas)`` indices."""
        raise NotImplementedError


class ShuffleSampler(_EpochSampler):
    """Every image once in an epoch, in a shuffled order.

    Args:
        size: N images.
        batch_size: B, over all ranks; a multiple of num_replicas.
        seed: 0 or more.
        last: what becomes of the N modulo B images at the end: "drop" leaves them out, "pad" fills their batch up with
            the first images of the same epoch, "keep" gives a shorter batch (one rank only).
        num_replicas: R ranks.
        rank: in [0, R), or None for all of them in turn; see the module.

    Yields:
        B / R indices in [0, N).

    Raises:
        DataError: an argument out of range, or fewer images than one batch with last="drop".
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        last: Last = "drop",
        num_replicas: int = 1,
        rank: int | None = 0,
    ) -> None:
        self.size = _whole("size", size, 1)
        self.last = last
        self._batch = _shared_out("batch_size", batch_size, num_replicas)
        if last not in get_args(Last):
            raise DataError(f"last must be one of {', '.join(get_args(Last))}, got {last!r}")
        if last == "keep" and num_replicas > 1:
            raise DataError(
                f"last='keep' gives {num_replicas} ranks parts of different lengths; choose 'drop' or 'pad'"
            )
        if last == "drop" and size < batch_size:
            raise DataError(
                f"{size} images do not fill one batch of {batch_size}; lower batch_size, or choose last='pad'"
            )
        steps = size // batch_size if last == "drop" else -(-size // batch_size)
        super().__init__(steps, seed, num_replicas, rank)

    def _epoch(self, rng: np.random.Generator) -> list[np.ndarray]:
        order = rng.permutation(self.size)
        if self.last == "pad":
            order = np.resize(order, self.steps * self._batch)  # begins again at its end, as often as it takes
        starts = range(0, self.steps * self._batch, self._batch)
        return [order[i : i + self._batch].reshape(self.num_replicas, -1) for i in starts]


class PKSampler(_EpochSampler):
    """P different classes × K images of each in every batch (Hermans et al., arXiv:1703.07737).

    An epoch walks through a shuffled order of the classes, again and again, and so it does through the images of each:
    how often two classes are used differs by at most one, and so it does for two images of a class. No image is twice
    in a batch, but for classes of n < K images: those give every image ⌊K / n⌋ times, and the rest from their walk.

    Args:
        labels: ``(N,)`` whole numbers, in any range.
        classes_per_batch: P, over all ranks; at most the number of classes.
        images_per_class: K, over all ranks.
        seed: 0 or more.
        batches: per epoch; None for max(1, N // (P·K)), about as many images as there are.
        whole_classes: share a batch out by classes, P / R of them with all their K images to each of the R ranks, or
            else by images, K / R of each of the P classes. The global batch is the same.
        num_replicas: R ranks.
        rank: in [0, R), or None for all of them in turn; see the module.

    Yields:
        P·K / R indices in [0, N), class by class.

    Raises:
        DataError: an argument out of range, more classes in a batch than there are, or a count that R does not divide.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        classes_per_batch: int,
        images_per_class: int,
        *,
        seed: int = 0,
        batches: int | None = None,
        whole_classes: bool = True,
        num_replicas: int = 1,
        rank: int | None = 0,
    ) -> None:
        values = np.asarray(labels)
        if values.ndim != 1 or not len(values) or not np.issubdtype(values.dtype, np.integer):
            raise DataError(f"labels must be (N,) whole numbers, N > 0, got {values.shape} of {values.dtype}")
        self.whole_classes = whole_classes
        self.classes_per_batch = _shared_out(
            "classes_per_batch", classes_per_batch, num_replicas if whole_classes else 1
        )
        self.images_per_class = _shared_out("images_per_class", images_per_class, 1 if whole_classes else num_replicas)
        counts = np.unique(values, return_counts=True)[1]
        _whole("classes_per_batch", classes_per_batch, 1, len(counts), "the number of classes in labels")
        self._images = np.split(np.argsort(values, kind="stable"), np.cumsum(counts)[:-1])  # by class
        if batches is None:
            batches = max(1, len(values) // (classes_per_batch * images_per_class))
        super().__init__(_whole("batches", batches, 1), seed, num_replicas, rank)

    def _epoch(self, rng: np.random.Generator) -> np.ndarray:
        p, k, ranks = self.classes_per_batch, self.images_per_class, self.num_replicas
        classes = _walk(rng, len(self._images), p, self.steps).ravel()
        plan = np.empty((len(classes), k), dtype=np.int64)
        uses = np.bincount(classes, minlength=len(self._images))
        rows = [
            images[_draws(rng, len(images), k, n)] for images, n in zip(self._images, uses.tolist(), strict=True) if n
        ]
        plan[np.argsort(classes, kind="stable")] = np.concatenate(rows)
        if self.whole_classes:
            return plan.reshape(self.steps, ranks, -1)
        return plan.reshape(self.steps, p, ranks, -1).swapaxes(1, 2).reshape(self.steps, ranks, -1)


class Numbered(Sampler[list[tuple[int, int]]]):
    """The batches of a sampler with the number of each draw, for :class:`~idml_zoo.data.images.DrawnImages`.

    Draws are numbered through all epochs and over all ranks. A draw's number gives its global batch and its row there,
    whichever process loads it.

    Args:
        sampler: made for one rank.
        batch_size: B, over all ranks.

    Yields:
        (index, number of the draw).
    """

    def __init__(self, sampler: _EpochSampler, batch_size: int) -> None:
        if sampler.rank is None:
            raise DataError("numbering needs a sampler of one rank: rank=r, not rank=None")
        self.sampler, self.batch_size = sampler, batch_size

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """See the sampler's."""
        self.sampler.set_epoch(epoch, start)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        sampler = self.sampler
        part = self.batch_size // sampler.num_replicas
        first = (sampler.epoch * sampler.steps + sampler.start) * self.batch_size + (sampler.rank or 0) * part
        batches = iter(sampler)  # now, not lazily: set_epoch may be called before the first batch
        return ([(i, first + n * self.batch_size + j) for j, i in enumerate(b)] for n, b in enumerate(batches))


def _walk(rng: np.random.Generator, count: int, width: int, rows: int) -> np.ndarray:
    """Returns ``(rows, width)``: shuffled orders of 0 .. count - 1 one after another, with no number twice in a row.

    Where one order ends within a row, the next is drawn from those that complete the row without a repeat.
    """
    orders = [rng.permutation(count)]
    for total in range(count, rows * width, count):
        order, begun = rng.permutation(count), total % width
        if begun:
            free = np.ones(count, dtype=bool)
            free[orders[-1][-begun:]] = False
            head = order[free[order]][: width - begun]
            free[:] = True
            free[head] = False
            # drawn again: what was not free would otherwise come early more often than late
            order = np.concatenate([head, rng.permutation(order[free[order]])])
        orders.append(order)
    return np.concatenate(orders)[: rows * width].reshape(rows, width)


def _draws(rng: np.random.Generator, count: int, k: int, rows: int) -> np.ndarray:
    """Returns ``(rows, k)`` numbers below ``count``: each ⌊k / count⌋ times in every row, the rest from a walk."""
    whole, rest = divmod(k, count)
    walk = _walk(rng, count, rest, rows)
    if not whole:
        return walk
    # shuffled within the row, since ranks may share its columns out
    return rng.permuted(np.hstack([np.tile(np.arange(count), (rows, whole)), walk]), axis=1)


def _whole(name: str, value: int, least: int = 0, most: int | None = None, hint: str = "") -> int:
    if isinstance(value, (int, np.integer)) and least <= value and (most is None or value <= most):
        return int(value)
    limits = f"{least} or more" if most is None else f"from {least} to {most}"
    raise DataError(f"{name} must be a whole number, {limits}{hint and f' ({hint})'}, got {value!r}")


def _shared_out(name: str, value: int, ranks: int) -> int:
    if _whole(name, value, 1) % _whole("num_replicas", ranks, 1):
        raise DataError(f"{name}={value} must be a multiple of the {ranks} ranks; take {-(-value // ranks) * ranks}")
    return int(value)
