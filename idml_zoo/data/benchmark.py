"""What a benchmark is: a record that loads and checks its splits. No numpy here: result tables need only the titles."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idml_zoo.data.classes import class_numbers
from idml_zoo.data.errors import DataError
from idml_zoo.data.folders import MANIFEST, PREPARED

if TYPE_CHECKING:
    from idml_zoo.data.split import Splits


@dataclass(frozen=True)
class Archive:
    """One official file of a benchmark.

    Attributes:
        name: of the file, without folders.
        url: http or https; None where every known link is dead.
        sha256, md5: hexadecimal, "" where unknown; sha256 is checked if both are known.
        size: bytes; None where unknown.
    """

    name: str
    url: str | None
    sha256: str = ""
    md5: str = ""
    size: int | None = None


@dataclass(frozen=True)
class Benchmark:
    """A record of one benchmark.

    Attributes:
        name: its key.
        title: its name for people.
        load: ``load(root) -> Splits``; ``root`` is the folder that holds the data, which embedded ones do not use.
        ks: the K of Recall@K.
        counts: expected (train classes, train images, test classes, test images); None where all are accepted.
        queries: expected number of test images that are queries, where the benchmark fixes them; None elsewhere.
        transform: fields of :class:`~idml_zoo.data.transforms.TransformConfig` that this data needs to be different
            from the backbone's own, for example no horizontal flip of letters.
        note: what a reader of its table must know.
        remedy: where to get it, for the error message.
        archives: the official archives.
        classes: (train, test) class numbers, from 0, in a table of the whole data set in the official order of classes
            (a copy on the Hub, a Parquet file); None where only a column ``split`` can tell.
        lookalikes: number of images in a split to the data set that has it instead, for the error message.
        embedded: needs no files.
        source: of a user's images: what a prepared copy of this name must have been made from; "" where not checked.
        choices: with ``source``: how it must have been made (classes, columns, part and revision of a Hub data set).
        licence: of the data, in words, for the cards of models that were trained on it.
        weights_licence: what such models' weights are given under: an identifier of the Hub, "other" for those words.
    """

    name: str
    title: str
    load: Callable[[Path], Splits]
    ks: tuple[int, ...] = (1, 2, 4, 8)
    counts: tuple[int, int, int, int] | None = None
    queries: int | None = None
    transform: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    remedy: str = ""
    archives: tuple[Archive, ...] = ()
    classes: tuple[str, str] | None = None
    lookalikes: Mapping[int, str] = field(default_factory=dict)
    embedded: bool = False
    source: str = ""
    choices: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "unknown to idml_zoo; ask whoever gave you the images"
    weights_licence: str = "other"

    def prepared_folder(self, root: str | Path) -> Path:
        """Returns the folder where ``idml-zoo data prepare`` puts its checked copy."""
        return Path(root) / PREPARED / self.name

    def splits(self, root: str | Path = "data") -> Splits:
        """Loads and checks the benchmark: its prepared copy if it exists, else the official layout.

        Raises:
            DataError: the data is missing, has other counts than expected, or the prepared copy of this name holds
                other images; the message says which, and what to do.
        """
        folder = self.prepared_folder(root)
        if not (folder / MANIFEST).is_file():
            return self.check(self.originals(root))
        from idml_zoo.data.store import load_prepared, read_manifest

        loaded = load_prepared(folder)
        if self.source:
            remedy = "choose another name, or make it anew: idml-zoo data prepare --force"
            if _is_other(loaded.origin, str(_located(Path(root), self.source))):
                raise DataError(f"{folder} was prepared from {loaded.origin}, not from {self.source}; {remedy}")
            self._check_choices(folder, loaded.origin, read_manifest(folder).get("choices") or {}, remedy)
        return self.check(loaded)

    def _check_choices(self, folder: Path, origin: str, made: Mapping[str, Any], remedy: str) -> None:
        """Raises DataError where a prepared copy was made with other choices, so that its splits differ."""
        for key, expected in self.choices.items():
            stored = made.get(key, expected)
            same = expected == stored
            if key == "revision":  # None accepts every revision: the origin has the commit
                same = same or expected is None or origin.endswith(f"@{expected}")
            if not same:
                raise DataError(
                    f"{folder} was prepared with {key} = {_short(stored)}, but {_short(expected)} is asked for; "
                    f"give it as the source for its own splits ({folder}), {remedy}"
                )

    def originals(self, root: str | Path = "data") -> Splits:
        """Loads the benchmark from its official layout without checking counts; raises DataError where it cannot."""
        try:
            return self.load(Path(root))
        except DataError as error:
            if not self.remedy:
                raise
            raise type(error)(f"{self.name}: {error}. {self.remedy}") from error

    def check(self, loaded: Splits) -> Splits:
        """Returns the splits themselves.

        Raises:
            DataError: counts differ from the record's; the message has both, and the likely cause.
        """
        counts = (loaded.train.num_classes, len(loaded.train), loaded.test.num_classes, len(loaded.test))
        queries = None if loaded.test.queries is None else int(loaded.test.queries.sum())
        if (self.counts is not None and counts != self.counts) or (self.counts and queries != self.queries):
            causes = [cause for count, cause in self.lookalikes.items() if count in (counts[1], counts[3])]
            hint = f"This looks like {causes[0]}. " if causes else ""
            raise DataError(
                f"{self.name}: expected {_counts(self.counts, self.queries)}; found {_counts(counts, queries)}. "
                f"{hint}{self.remedy}".rstrip()
            )
        return loaded


def _located(root: Path, source: str | Path) -> Path | str:
    """Returns a source's path under the data root if it exists there, else the source itself."""
    if (root / source).exists() or (Path(source).suffix == ".parquet" and not Path(source).exists()):
        return root / source
    return source


def _short(choice: Any) -> str:
    """Returns a choice as text for an error message."""
    if isinstance(choice, list) and len(choice) > 4:
        return f"{choice[0]}, {choice[1]}, …, {choice[-1]}"
    return "the default" if choice is None else str(choice)


def _is_other(origin: str, source: str) -> bool:
    """Returns whether a copy's origin is certainly another one than ``source``."""
    if origin.startswith("hub:"):
        return origin.removeprefix("hub:").partition("@")[0] != source
    return os.path.isabs(origin) and os.path.realpath(origin) != os.path.realpath(source)


def _counts(c: tuple[int, int, int, int] | None, queries: int | None) -> str:
    if c is None:
        return "any counts"
    text = f"train {c[0]} classes / {c[1]} images and test {c[2]} classes / {c[3]} images"
    return text if queries is None else f"{text}, {queries} of them queries"


def table_benchmark(
    name: str,
    source: str | Path | Sequence[str | Path],
    train_classes: str | Sequence[int] | None = None,
    test_classes: str | Sequence[int] | None = None,
    hub_split: str = "train",
    revision: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    **fields: Any,
) -> Benchmark:
    """Returns a benchmark over a user's images.

    Args:
        name: what result files and tables call it.
        source: a folder with one folder per class, Parquet file(s) with columns ``image`` and ``label``, a folder of
            such files, a folder that ``idml-zoo data prepare`` made, or a Hub data set id. Relative paths of the
            declared benchmarks are under the data root.
        train_classes, test_classes: class numbers, "0-99" or a list; by default what a column ``split`` says, if its
            splits share no class, else the first half trains, the rest tests. ``test_classes="all"``: every class
            tests, for a model trained elsewhere.
        hub_split: for a Hub data set: "train", "train+test", or "all" for every split that it has.
        revision: for a Hub data set: a commit, tag or branch; None for the latest commit, which is recorded.
        image_column, label_column: for tables that call these otherwise.
        fields: further fields of :class:`Benchmark`.
    """

    def load(root: Path) -> Splits:
        from idml_zoo.data.store import load_prepared
        from idml_zoo.data.table import disjoint_splits, read_table

        files: Any
        files = _located(root, source) if isinstance(source, (str, Path)) else [root / s for s in source]
        if isinstance(files, (str, Path)) and (Path(files) / MANIFEST).is_file():
            if train_classes is not None or test_classes is not None:
                raise DataError(f"{files} is prepared, its splits are fixed; leave train_classes and test_classes out")
            return load_prepared(Path(files))
        table = read_table(files, hub_split, revision, image_column, label_column)
        return disjoint_splits(table, train_classes, test_classes)

    checked_otherwise = "counts" in fields or not isinstance(source, (str, Path)) or (Path(source) / MANIFEST).is_file()
    if not checked_otherwise:
        classes = {"train_classes": train_classes, "test_classes": test_classes}
        choices = {k: c if c in (None, "all") else class_numbers(c) for k, c in classes.items()}
        columns = {"image_column": image_column, "label_column": label_column}
        fields |= {
            "source": str(source),
            "choices": {**choices, **columns, "hub_split": hub_split, "revision": revision},
        }
    return Benchmark(name=name, title=fields.pop("title", name), load=load, **fields)
