"""What a benchmark is: the record that finds and checks its splits. No numpy here, for tables need the titles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idml_zoo.data.errors import DataError

if TYPE_CHECKING:
    from idml_zoo.data.split import Splits


@dataclass(frozen=True)
class Benchmark:
    """A record of one benchmark.

    Attributes:
        name: its key.
        title: its name for people.
        load: ``load(root) -> Splits``; ``root`` is the folder that holds the data (unused by embedded ones).
        ks: the K of Recall@K.
        counts: expected (train classes, train images, test classes, test images), or None where any will do.
        transform: fields of :class:`~idml_zoo.data.transforms.TransformConfig` that this data needs to be different
            from the backbone's own, for example no horizontal flip of letters.
        note: what a reader of its table must know.
        remedy: where to get it, for the error message.
    """

    name: str
    title: str
    load: Callable[[Path], Splits]
    ks: tuple[int, ...] = (1, 2, 4, 8)
    counts: tuple[int, int, int, int] | None = None
    transform: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    remedy: str = ""

    def splits(self, root: str | Path = "data") -> Splits:
        """Loads and checks the benchmark.

        Raises:
            DataError: data not found, or other counts than expected; says which, and what to do.
        """
        loaded = self.load(Path(root))
        found = (loaded.train.num_classes, len(loaded.train), loaded.test.num_classes, len(loaded.test))
        if self.counts is not None and found != self.counts:
            hint = ""
            if {found[1], found[3]} & {5994, 5794}:
                hint = "This looks like CUB's official train/test split, which shares classes: another split. "
            raise DataError(
                f"{self.name}: expected {_counts(self.counts)}; found {_counts(found)}. {hint}{self.remedy}".rstrip()
            )
        return loaded


def _counts(c: tuple[int, int, int, int]) -> str:
    return f"train {c[0]} classes / {c[1]} images and test {c[2]} classes / {c[3]} images"


def table_benchmark(
    name: str,
    source: str | Path | Sequence[str | Path],
    train_classes: str | Sequence[int] | None = None,
    test_classes: str | Sequence[int] | None = None,
    hub_split: str = "train",
    revision: str | None = None,
    **fields: Any,
) -> Benchmark:
    """A benchmark over one's own images.

    Args:
        name: what result files and tables call it.
        source: a folder with one folder per class, Parquet file(s) with columns ``image`` and ``label``, a folder of
            such files, or a Hub data set id. Relative paths of the declared benchmarks are under the data root.
        train_classes, test_classes: class numbers, "0-99" or a list; by default the first half trains, the rest tests.
        hub_split, revision: for a Hub data set.
        fields: further fields of :class:`Benchmark`.
    """

    def load(root: Path) -> Splits:
        from idml_zoo.data.table import disjoint_splits, read_table

        place: Any = source
        if not isinstance(source, (str, Path)):
            place = [root / s for s in source]
        elif (root / source).exists() or Path(source).suffix == ".parquet":
            place = root / source
        return disjoint_splits(*read_table(place, hub_split, revision), train_classes, test_classes)

    return Benchmark(name=name, title=fields.pop("title", name), load=load, **fields)
