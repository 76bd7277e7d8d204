"""The official layouts, from generated trees and from the real list files."""

import numpy as np
import pytest
import scipy.io
from conftest import SHARED, needs_shared
from support.official import make_cars, make_cub, make_devkit, make_inshop, make_sop, touch_files

from idml_zoo.data.errors import DataError
from idml_zoo.data.sets.cars196 import load_cars196
from idml_zoo.data.sets.cub import load_cub
from idml_zoo.data.sets.inshop import load_inshop
from idml_zoo.data.sets.sop import load_sop
from idml_zoo.registry import benchmarks

LISTS = SHARED / "data"


@pytest.mark.parametrize("folder", ["CUB_200_2011", "CUB-200-2011", "cub/CUB_200_2011", "."])
def test_cub_wherever_the_lists_are(tmp_path, folder):
    make_cub(tmp_path, folder)
    splits = load_cub(tmp_path)
    assert splits.train.class_names == ("Bird_1", "Bird_2") and splits.test.class_names == ("Bird_101", "Bird_102")
    assert splits.test.images[5].size == (8, 8) and splits.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(DataError, match=r"cub: expected train 100 classes / 5864 images.*caltech"):
        benchmarks["cub"].splits(tmp_path)


def test_list_files_with_a_byte_order_mark_and_windows_line_ends(tmp_path):
    base = make_cub(tmp_path)
    for name in ("images.txt", "image_class_labels.txt"):
        text = (base / name).read_text()
        (base / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert len(load_cub(tmp_path).train) == 6


def test_a_damaged_cub_says_what_is_wrong(tmp_path):
    base = make_cub(tmp_path)
    (base / "images" / "002.Bird_2" / "1.jpg").unlink()
    (base / "images" / "001.Bird_1" / "2.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 6 listed images are missing or empty .* first is 001.Bird_1/2.jpg"):
        load_cub(tmp_path)
    (base / "image_class_labels.txt").write_text("1 1\n")
    with pytest.raises(DataError, match="damaged copy"):
        load_cub(tmp_path)
    (base / "images.txt").write_text("1 a b\n")
    with pytest.raises(DataError, match="line 1: expected 2 columns, found 3"):
        load_cub(tmp_path)
    (base / "images.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"images.txt cannot be read"):
        load_cub(tmp_path)
    (base / "images.txt").unlink()
    with pytest.raises(DataError, match=r"images.txt cannot be read .*extract the official archive again"):
        load_cub(tmp_path)
    with pytest.raises(DataError, match="extract the official archive there"):
        load_cub(tmp_path / "CUB_200_2011" / "images")


def test_two_copies_are_not_chosen_between(tmp_path):
    make_cub(tmp_path, "one")
    make_cub(tmp_path, "two")
    with pytest.raises(DataError, match=r"several image_class_labels.txt .*give one's folder"):
        load_cub(tmp_path)


def test_lists_cannot_point_elsewhere(tmp_path):
    base = make_cub(tmp_path)
    text = (base / "images.txt").read_text()
    (base / "images.txt").write_text(text.replace("001.Bird_1/0.jpg", "../../../etc/passwd"))
    with pytest.raises(DataError, match=r"names ../../../etc/passwd, outside of its folder"):
        load_cub(tmp_path)
    (base / "images.txt").write_text(text.replace("001.Bird_1/0.jpg", "001.Bird_1/1.jpg"))
    with pytest.raises(DataError, match=r"001.Bird_1/1.jpg is listed twice"):
        load_cub(tmp_path)
    (base / "images.txt").write_text(text)
    (base / "image_class_labels.txt").write_text("".join(f"{i} one\n" for i in range(1, 13)))
    with pytest.raises(DataError, match="is not an integer"):
        load_cub(tmp_path)


@pytest.mark.parametrize("folder", [".", "cars196", "Stanford/cars"])
def test_cars196_union(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    make_cars(tmp_path / folder)
    splits = load_cars196(tmp_path)
    assert splits.train.class_names == ("Car 1", "Car 2") and splits.test.class_names == ("Car 99", "Car 196")
    assert splits.test.images[3].size == (8, 8)


@pytest.mark.parametrize("nested", [False, True])
def test_cars196_devkit(tmp_path, nested):
    make_devkit(tmp_path, nested)
    splits = load_cars196(tmp_path)
    assert splits.train.class_names == ("Car 1", "Car 2") and splits.test.class_names == ("Car 99", "Car 196")
    assert splits.train.labels.tolist() == [0, 1, 0, 1], "both halves together"
    assert "cars_train" in splits.train.images.name(0) and "cars_test" in splits.train.images.name(2)


def test_damaged_cars(tmp_path):
    with pytest.raises(DataError, match=r"no cars_annos.mat .* or put the devkit's"):
        load_cars196(tmp_path)
    make_devkit(tmp_path)
    (tmp_path / "cars_test_annos_withlabels.mat").rename(tmp_path / "cars_test_annos.mat")
    with pytest.raises(DataError, match="has no labels: the file with labels was published apart"):
        load_cars196(tmp_path)
    (tmp_path / "cars_annos.mat").write_bytes(b"<html>not found</html>" * 20)
    with pytest.raises(DataError, match=r"cars_annos.mat is not a readable annotation file"):
        load_cars196(tmp_path)
    scipy.io.savemat(tmp_path / "cars_annos.mat", {"other": np.arange(3)})
    with pytest.raises(DataError, match="is not the Cars196 annotation file"):
        load_cars196(tmp_path)


@pytest.mark.parametrize("folder", ["Stanford_Online_Products", "Standford_Online_Products", "online_products"])
def test_sop(tmp_path, folder):
    base = make_sop(tmp_path, folder)
    splits = load_sop(tmp_path)
    assert splits.train.num_classes == splits.test.num_classes == 2 and splits.test.images[0].size == (8, 8)
    assert splits.test.class_names == ("11319", "11320") and benchmarks["sop"].ks == (1, 10, 100, 1000)
    text = (base / "Ebay_test.txt").read_text()
    (base / "Ebay_test.txt").write_text(text.replace(" 11319 ", " 1 "))
    with pytest.raises(DataError, match=r"class 1 is in Ebay_train.txt and Ebay_test.txt"):
        load_sop(tmp_path)
    (base / "Ebay_test.txt").write_text("\n".join(text.splitlines()[1:]))
    with pytest.raises(DataError, match="the first line must be 'image_id class_id"):
        load_sop(tmp_path)


@pytest.mark.parametrize(("listing", "images"), [("Eval", "Img"), ("Eval", "."), (".", ".")])
def test_inshop_queries_and_gallery(tmp_path, listing, images):
    make_inshop(tmp_path, listing, images)
    splits = load_inshop(tmp_path)
    assert splits.train.class_names == ("id_00000001", "id_00000004") and splits.train.queries is None
    assert splits.test.queries.tolist() == [True, False, False] * 3
    assert splits.test.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_damaged_inshop(tmp_path):
    make_inshop(tmp_path)
    path = tmp_path / "Eval" / "list_eval_partition.txt"
    text = path.read_text()
    for old, new, message in [
        ("13\n", "14\n", "announces 14 images and lists 13"),
        ("query", "probe", "status 'probe'; expected train, query or gallery"),
        ("id_00000002   query", "id_00000001   query", "an item is in train and test"),
        ("   query", "", "line 7: expected 3 columns"),
    ]:
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(DataError, match=message):
            load_inshop(tmp_path)
    path.write_text("202599\nimage_id partition\n1 0\n")  # CelebA's file of the same name
    with pytest.raises(DataError, match=r"no list_eval_partition.txt"):
        load_inshop(tmp_path)
    path.write_text(text)
    (tmp_path / "Img").rename(tmp_path / "Elsewhere")
    with pytest.raises(DataError, match="no folder img"):
        load_inshop(tmp_path)


def test_inshop_counts_are_checked(tmp_path):
    make_inshop(tmp_path)
    with pytest.raises(DataError, match=r"14218 of them queries; found .* 9 images, 3 of them queries"):
        benchmarks["inshop"].splits(tmp_path)


# the real list files


@needs_shared
def test_the_real_cub_lists_have_the_retrieval_counts(tmp_path):
    base = tmp_path / "CUB_200_2011"
    base.mkdir()
    for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt"):
        (base / name).write_bytes((LISTS / "cub_200_2011_lists" / name).read_bytes())
    names = [line.split()[1] for line in (base / "images.txt").read_text().splitlines()]
    touch_files(base / "images", names)
    splits = benchmarks["cub"].splits(tmp_path)
    assert (len(splits.train), len(splits.test)) == (5864, 5924)
    assert (
        splits.train.class_names[0] == "Black_footed_Albatross" and splits.test.class_names[-1] == "Common_Yellowthroat"
    )
    official = np.loadtxt(base / "train_test_split.txt", dtype=int)[:, 1]
    assert (official.sum(), (1 - official).sum()) == (5994, 5794), "the other split, which the error message names"


@needs_shared
def test_the_real_cars196_devkit_has_the_retrieval_counts(tmp_path):
    for name in ("cars_train_annos.mat", "cars_test_annos_withlabels.mat", "cars_meta.mat"):
        (tmp_path / name).write_bytes((LISTS / "cars196_lists" / name).read_bytes())
    for part, count in (("cars_train", 8144), ("cars_test", 8041)):
        touch_files(tmp_path / part, [f"{i:05d}.jpg" for i in range(1, count + 1)])
    splits = benchmarks["cars196"].splits(tmp_path)
    assert (len(splits.train), len(splits.test)) == (8054, 8131)
    assert (
        splits.train.class_names[0] == "AM General Hummer SUV 2000"
        and splits.test.class_names[-1] == "smart fortwo Convertible 2012"
    )


@needs_shared
def test_the_labelless_devkit_alone_is_refused(tmp_path):
    for name in ("cars_train_annos.mat", "cars_test_annos.mat", "cars_meta.mat"):
        (tmp_path / name).write_bytes((LISTS / "cars196_lists" / name).read_bytes())
    touch_files(tmp_path / "cars_train", ["00001.jpg"])
    with pytest.raises(DataError, match="has no labels"):
        benchmarks["cars196"].splits(tmp_path)
