import dataclasses
import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_embedding, make_folder
from PIL import Image
from support.tables import encoded, make_parquet

from idml_zoo.data.benchmark import Benchmark, table_benchmark
from idml_zoo.data.classes import class_range
from idml_zoo.data.errors import BrokenImageError, DataError
from idml_zoo.data.images import ArrayImages, FileImages, ImageDataset, decode
from idml_zoo.data.preparation.prepare import prepare
from idml_zoo.data.split import Split, Subset, class_folds, hold_out_classes
from idml_zoo.data.table import Table, disjoint_splits, read_table
from idml_zoo.data.transforms import TransformConfig, build_transforms
from idml_zoo.evaluation.embed import MeasuredSplit
from idml_zoo.evaluation.protocol import evaluate
from idml_zoo.models.zoo import create_model
from idml_zoo.registry import benchmarks


def test_a_folder_of_class_folders(tmp_path):
    splits = table_benchmark("mine", make_folder(tmp_path / "photos", classes=5)).splits()
    assert splits.train.class_names == ("class_0", "class_1") and splits.test.num_classes == 3
    assert splits.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert splits.test.images[0].mode == "RGB" and "class_2" in splits.test.images.name(0)


def test_what_is_hidden_or_no_file_is_no_image(tmp_path):
    photos = make_folder(tmp_path / "photos", classes=4)
    (photos / "class_0" / ".ipynb_checkpoints").mkdir()
    shutil.copy(photos / "class_0" / "0.png", photos / "class_0" / ".ipynb_checkpoints" / "0-checkpoint.png")
    (photos / "class_0" / "folder.jpg").mkdir()
    assert len(table_benchmark("mine", photos).splits().train) == 8


def test_folders_of_splits_are_not_taken_for_classes(tmp_path):
    make_folder(tmp_path / "photos" / "train", classes=4)
    make_folder(tmp_path / "photos" / "val", classes=4)
    with pytest.raises(DataError, match=r"holds the splits train, val, not class folders; give one of them"):
        table_benchmark("mine", tmp_path / "photos").splits()


def test_an_image_that_is_a_line_is_refused_before_it_is_resized(tmp_path):
    photos = make_folder(tmp_path / "photos", classes=4)
    Image.new("1", (2, 200_000)).save(photos / "class_0" / "0.png")
    with pytest.raises(BrokenImageError, match="more than 100 times as long as wide"):
        _ = table_benchmark("mine", photos).splits().train.images[0]


def test_no_other_program_and_no_rare_parser_sees_an_image(tmp_path, monkeypatch):
    """PIL hands an EPS to Ghostscript, whatever its name; some of its parsers fail in ways of their own."""
    ran = tmp_path / "ran"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n%%EOF\n"
    dds = b"DDS " + (124).to_bytes(4, "little") + bytes(120)
    for content in (eps, dds, b"BLP2" + bytes(200)):
        with pytest.raises(BrokenImageError, match="not an image"):
            decode(io.BytesIO(content), "a.jpg")
    assert not ran.exists()
    assert decode(Image.new("L", (8, 8), 7), "of a stream").getpixel((0, 0)) == (7, 7, 7)


def test_a_table_names_no_file_of_this_machine(tmp_path):
    from idml_zoo.data.images import EncodedImages

    for folder in ("cache", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(encoded(7))
    (tmp_path / "cache" / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    files = [
        str(tmp_path / f) for f in ("cache/a.png", "elsewhere/a.png", "cache/link.png", "cache/../elsewhere/a.png")
    ]
    images = EncodedImages([None] * 4, files, files, (str(tmp_path / "cache"),))
    assert images.encoded(0) == encoded(7)
    for i in (1, 2, 3):
        with pytest.raises(BrokenImageError, match="no file in the cache of the Hub"):
            images.encoded(i)


def test_parquet_files_keep_their_order_and_labels(tmp_path):
    first, second = make_parquet(tmp_path / "a.parquet"), make_parquet(tmp_path / "b.parquet", (4, 5, 5, 9))
    splits = table_benchmark("mine", [first, second], "0-3", [4, 5, 6]).splits("/")
    assert (len(splits.train), len(splits.test)) == (8, 4)
    assert splits.test.labels.tolist() == [0, 1, 1, 2] and splits.test.class_names == ("4", "5", "9")
    assert splits.train.images[3].getpixel((0, 0)) == (30, 0, 0)
    assert len(table_benchmark("mine", tmp_path).splits().train) == 6, "a folder of Parquet files"


def test_a_datasets_data_set_with_class_names(tmp_path, monkeypatch):
    import datasets

    files = [str(p) for p in sorted(make_folder(tmp_path / "photos", classes=4, images=2).rglob("*.png"))]
    made = datasets.Dataset.from_dict({"image": files, "label": [0, 0, 1, 1, 2, 2, 3, 3]})
    made = made.cast_column("image", datasets.Image()).cast_column("label", datasets.ClassLabel(names=list("abcd")))
    made.to_parquet(tmp_path / "hub.parquet")  # embeds the bytes
    monkeypatch.chdir(tmp_path)
    assert table_benchmark("mine", "hub.parquet").splits("data").train.class_names == ("a", "b"), (
        "from here, with names"
    )
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path)  # where the images would lie
    real = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, configuration, split, revision: real(
            "parquet", data_files="hub.parquet", split=split, cache_dir=str(tmp_path / "c")
        ),
    )
    splits = table_benchmark("mine", "user/birds").splits()
    assert splits.train.class_names == ("a", "b") and splits.test.images[0].size == (40, 40)


def tiny_table() -> Table:
    images = ArrayImages(np.zeros((8, 4, 4), np.uint8), [str(i) for i in range(8)])
    return Table(images, np.arange(8) // 2, tuple("abcd"), "here")


def test_splits_share_no_class():
    table = tiny_table()
    with pytest.raises(DataError, match=r"class 'b' \(1\) is in train and test"):
        disjoint_splits(table, "0-1", "1-3")
    with pytest.raises(DataError, match="test 1; each needs at least two"):
        disjoint_splits(table, "0-2")
    with pytest.raises(DataError, match="9 is not"):
        class_range("0-9", 9)
    with pytest.raises(DataError, match="must look like '0-99'"):
        class_range("first half", 9)
    with pytest.raises(DataError, match="at least 4 are needed"):
        disjoint_splits(table._replace(labels=np.zeros(8, np.int64), class_names=("a",)))
    assert class_range("0-2,5", 9).tolist() == [0, 1, 2, 5]


def test_a_model_trained_elsewhere_is_shown_every_class(tmp_path):
    mine = table_benchmark("mine", make_folder(tmp_path / "photos", classes=2), test_classes="all")
    splits = mine.splits()
    assert splits.test.class_names == ("class_0", "class_1") and len(splits.test) == 8
    assert (len(splits.train), splits.train.num_classes) == (0, 0)
    with pytest.raises(DataError, match="mine: every class tests; a prepared copy holds classes to train on too"):
        prepare(mine, splits, tmp_path / "data", progress=False)
    model = create_model("idml", backbone="test_resnet", embedding_dim=8)
    with pytest.raises(DataError, match="labels must run"):
        Split(Subset(splits.test.images, np.arange(2)), np.array([0, 1]), ())
    with pytest.raises(DataError, match="mine: the train split has no images to measure"):
        evaluate(model, mine, split=MeasuredSplit(splits.train, "train"))
    with pytest.raises(DataError, match="leaves no class to train on; leave train_classes out"):
        disjoint_splits(tiny_table(), "0-1", "all")


def test_bad_tables_say_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match="is not a Hub data set id"):
        read_table(tmp_path / "nothing" / "here" / "at" / "all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no class folders"):
        read_table(tmp_path / "empty")
    (tmp_path / "empty" / "class_a").mkdir()
    with pytest.raises(DataError, match="class_a has no images"):
        read_table(tmp_path / "empty")
    (tmp_path / "x.txt").write_text("no")
    with pytest.raises(DataError, match="neither a folder"):
        read_table(tmp_path / "x.txt")
    (tmp_path / "half.parquet").write_bytes(make_parquet(tmp_path / "a.parquet").read_bytes()[:200])
    with pytest.raises(DataError, match="not readable as Parquet"):
        read_table(tmp_path / "half.parquet")
    pq.write_table(pa.table({"picture": [1]}), tmp_path / "columns.parquet")
    with pytest.raises(DataError, match="no column image or label"):
        read_table(tmp_path / "columns.parquet")
    make_parquet(tmp_path / "unlabelled.parquet", labels=(0, 1, -1, 2))
    with pytest.raises(DataError, match="'label' has -1, which marks images without a label"):
        read_table(tmp_path / "unlabelled.parquet")
    make_parquet(tmp_path / "names.parquet", labels=("a", "b", "c", "d"))
    with pytest.raises(DataError, match="'label' must hold integers"):
        read_table(tmp_path / "names.parquet")
    with pytest.raises(DataError, match=r"no file .*cub200_2010.parquet"):
        benchmarks["cub2010"].splits(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "html", "gone"])
def test_a_broken_image_is_named(tmp_path, damage):
    root = make_folder(tmp_path / "photos", size=200)
    path = root / "class_1" / "2.png"
    whole = path.read_bytes()
    splits = table_benchmark("mine", root).splits()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "html": b"<html>404</html>"}[damage])
    data = ImageDataset(splits.train, build_transforms(TransformConfig(image_size=32))[1])
    with pytest.raises(DataError, match=r"class_1/2.png cannot be read .*; repair it, or remove it"):
        [data[i] for i in range(len(data))]


def test_odd_images_become_rgb_and_upright(tmp_path):
    for mode in ("CMYK", "L", "P", "RGBA", "I;16", "1", "LA"):
        Image.new(mode, (9, 7)).save(tmp_path / "image.tif")
        assert FileImages([tmp_path / "image.tif"])[0].mode == "RGB"
    turned = Image.new("RGB", (9, 7))
    exif = turned.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees to display
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert FileImages([tmp_path / "turned.jpg"])[0].size == (7, 9)


def test_a_split_refuses_wrong_labels():
    images = ArrayImages(np.zeros((4, 2, 2), np.uint8), list("abcd"))
    for labels, names, message in [
        ([0, 1, 1], ("a", "b"), "4 images but 3 labels"),
        ([0, 0, 0, 0], ("a",), "one class only"),
        ([0, 0, 2, 2], ("a", "b", "c"), "without gaps"),
    ]:
        with pytest.raises(DataError, match=message):
            Split(images, np.array(labels), names)
    with pytest.raises(DataError, match="no images"):
        Split(ArrayImages(np.zeros((0, 2, 2), np.uint8), []), np.array([], dtype=np.int64), ())


def test_fingerprint_changes_with_an_image_or_a_label(tmp_path):
    root = make_folder(tmp_path / "photos")
    before = table_benchmark("mine", root).splits().test.fingerprint()
    assert before == table_benchmark("mine", root).splits().test.fingerprint()
    Image.new("RGB", (99, 99)).save(root / "class_5" / "0.png")
    assert before != table_benchmark("mine", root).splits().test.fingerprint()


def test_wrong_counts_say_found_expected_and_remedy():
    splits = disjoint_splits(tiny_table())
    record = Benchmark("tiny", "Tiny", lambda root: splits, counts=(2, 5, 2, 4), remedy="Download it again.")
    with pytest.raises(
        DataError, match=r"expected train 2 classes / 5 images.*found train 2 classes / 4.*Download it again"
    ):
        record.splits()


def labelled(classes: int, images: int = 3) -> Split:
    count = classes * images
    source = ArrayImages(
        np.arange(count, dtype=np.uint8).repeat(4).reshape(count, 2, 2), [str(i) for i in range(count)]
    )
    queries = np.arange(count) % images == 0
    return Split(source, np.arange(count) % classes, tuple(f"c{i}" for i in range(classes)), queries=queries)


@pytest.mark.parametrize(("classes", "fraction", "held"), [(10, 0.2, 2), (100, 0.2, 20), (4, 0.01, 2), (5, 0.99, 3)])
def test_classes_held_out(classes, fraction, held):
    split = labelled(classes)
    training, validation = hold_out_classes(split, fraction)
    assert (training.num_classes, validation.num_classes) == (classes - held, held)
    assert not set(training.class_names) & set(validation.class_names)
    assert len(training) + len(validation) == len(split)
    for part in (training, validation):
        for i in range(len(part)):  # each image is still of its class, and a query or not as before
            original = int(part.images.name(i))
            assert part.class_names[part.labels[i]] == split.class_names[split.labels[original]]
            assert part.queries[i] == split.queries[original]
    assert hold_out_classes(split, fraction)[1].class_names == validation.class_names
    assert classes < 10 or hold_out_classes(split, fraction, seed=1)[1].class_names != validation.class_names


def test_which_classes_are_held_out_stays_the_same_for_ever():
    """Validation numbers are comparable only while the choice is; sha256 decides it, as hashlib gives it here too."""
    import hashlib

    order = sorted(range(10), key=lambda c: hashlib.sha256(f"idml_zoo/classes/0/{c}".encode()).hexdigest())
    assert hold_out_classes(labelled(10), 0.3)[1].class_names == tuple(f"c{c}" for c in sorted(order[:3]))


def test_folds():
    split = labelled(11)
    folds = class_folds(split, 3)
    assert sorted(name for _, validation in folds for name in validation.class_names) == sorted(split.class_names)
    for training, validation in folds:
        assert set(training.class_names) | set(validation.class_names) == set(split.class_names)
        assert len(training) + len(validation) == len(split) and validation.num_classes in (3, 4)
    for bad in (1, 6):
        with pytest.raises(DataError, match=f"{bad} folds of 11 classes"):
            class_folds(split, bad)
    for bad in (0, 1, -0.5):
        with pytest.raises(DataError, match="must lie between 0 and 1"):
            hold_out_classes(split, bad)
    with pytest.raises(DataError, match="needs at least 4"):
        hold_out_classes(labelled(3), 0.5)


def test_the_task_of_a_split_is_every_image_in_all_others_or_the_queries_in_the_gallery():
    split, embedding = labelled(4), make_embedding(12)
    queries, every = split.queries, dataclasses.replace(split, queries=None)
    task = every.task(embedding)
    assert task.queries is task.gallery is embedding and task.same_images
    assert task.query_labels.tolist() == task.gallery_labels.tolist() == split.labels.tolist()
    task = split.task(embedding)
    assert torch.equal(task.queries.semantic, embedding.semantic[queries]) and not task.same_images
    assert torch.equal(task.gallery.uncertainty, embedding.uncertainty[~queries])
    assert task.query_labels.tolist() == split.labels[queries].tolist() and task.query_labels.dtype == torch.int64
    assert task.gallery_labels.tolist() == split.labels[~queries].tolist()
    with pytest.raises(ValueError, match="11 embeddings but 12 labels"):
        split.task(embedding[:11])


def test_queries_must_be_some_of_the_images():
    split = labelled(4)
    for queries in (np.ones(12, bool), np.zeros(12, bool), np.ones(5, bool), np.arange(12)):
        with pytest.raises(DataError, match="queries must be 12 booleans, some true and some false"):
            Split(split.images, split.labels, split.class_names, queries=queries)


def test_a_split_column_is_followed_where_it_shares_no_class(tmp_path):
    labels = (0, 0, 1, 1, 2, 2, 3, 3)
    path = make_parquet(tmp_path / "a.parquet", labels, split=["test"] * 4 + ["train"] * 4)
    splits = table_benchmark("mine", path).splits()
    assert splits.train.class_names == ("2", "3") and splits.test.queries is None
    assert table_benchmark("mine", path, "0-1").splits().train.class_names == ("0", "1"), "what one asks for goes first"
    roles = ["query", "gallery", "gallery", "query"] + ["train"] * 4
    splits = table_benchmark("mine", make_parquet(tmp_path / "b.parquet", labels, split=roles)).splits()
    assert splits.test.queries.tolist() == [True, False, False, True] and splits.test.class_names == ("0", "1")
    six = [*labels, 4, 4, 5, 5]
    more = make_parquet(tmp_path / "d.parquet", six, split=["test"] * 4 + ["train"] * 4 + ["validation"] * 4)
    splits = table_benchmark("mine", more).splits()
    assert splits.train.class_names == ("2", "3") and splits.test.class_names == ("0", "1")
    part = make_parquet(tmp_path / "e.parquet", labels, split=["test"] * 4 + ["train"] * 3 + ["validation"])
    with pytest.raises(DataError, match="says validation are of classes that train or test"):
        table_benchmark("mine", part).splits()
    assert len(table_benchmark("mine", part, "2-3").splits().train) == 4
    for other in (["train", "test"] * 4, ["train"] * 8, ["valid"] * 4 + ["train"] * 4):  # as for classification
        splits = table_benchmark("mine", make_parquet(tmp_path / "c.parquet", labels, split=other)).splits()
        assert splits.train.class_names == ("0", "1")
