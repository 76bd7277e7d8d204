"""The official layouts, from generated trees and from the real list files."""

import numpy as np
import pytest
import scipy.io
from conftest import SHARED, needs_shared
from PIL import Image

from idml_zoo.data.cars196 import load_cars196
from idml_zoo.data.cub import load_cub
from idml_zoo.data.errors import DataError
from idml_zoo.data.inshop import load_inshop
from idml_zoo.data.sop import load_sop
from idml_zoo.registry import benchmarks

LISTS = SHARED / "data"


def touch_images(root, names):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i % 256, 0, 0)).save(root / name)


def touch_files(root, names):
    """Files that are there, and no more: what counting needs."""
    for folder in {(root / n).parent for n in names}:
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).write_bytes(b"x")


def make_cub(root, folder="CUB_200_2011", classes=(1, 2, 101, 102), images=3):
    base = root / folder
    names = [f"{c:03d}.Bird_{c}/{i}.jpg" for c in classes for i in range(images)]
    touch_images(base / "images", names)
    (base / "images.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate(names, 1)))
    (base / "image_class_labels.txt").write_text("".join(f"{i} {int(n[:3])}\n" for i, n in enumerate(names, 1)))
    return base


def save_annotations(path, **fields):
    rows = list(zip(*fields.values(), strict=True))
    records = np.empty(len(rows), dtype=[(k, "O") for k in fields])
    records[:] = rows
    titles = np.array([f"Car {i}" for i in range(1, 197)], dtype=object)
    scipy.io.savemat(path, {"annotations": records, "class_names": titles})


def make_cars(root):
    names, labels = [f"car_ims/{i:06d}.jpg" for i in range(1, 9)], [1, 1, 2, 2, 99, 99, 196, 196]
    touch_images(root, names)
    save_annotations(root / "cars_annos.mat", relative_im_path=names, **{"class": labels})
    return root


def make_devkit(root, nested=False):
    (root / "devkit").mkdir(parents=True)
    for part, listing, labels in (
        ("cars_train", "devkit/cars_train_annos.mat", [1, 99, 2, 196]),
        ("cars_test", "cars_test_annos_withlabels.mat", [1, 99, 2, 196]),
    ):
        names = [f"{i:05d}.jpg" for i in range(1, 5)]
        touch_images(root / part / part if nested else root / part, names)
        save_annotations(root / listing, fname=names, **{"class": labels})
    save_annotations(root / "devkit" / "cars_meta.mat", fname=["x"])
    return root


def make_sop(root, folder="Stanford_Online_Products"):
    base = root / folder
    for part, classes in (("train", (1, 2)), ("test", (11319, 11320))):
        names = [f"bicycle_final/{c}_{i}.JPG" for c in classes for i in range(2)]
        touch_images(base, names)
        rows = [f"{i} {int(n.split('/')[1].split('_')[0])} 1 {n}" for i, n in enumerate(names, 1)]
        (base / f"Ebay_{part}.txt").write_text("image_id class_id super_class_id path\n" + "\n".join(rows) + "\n")
    return base


def make_inshop(root, listing="Eval", images="Img"):
    rows = [(f"img/WOMEN/Tees/id_{i:08d}/0{k}.jpg", f"id_{i:08d}", "train") for i in (1, 4) for k in range(2)]
    rows += [
        (f"img/MEN/Tees/id_{i:08d}/0{k}.jpg", f"id_{i:08d}", role)
        for i in (2, 7, 8)
        for k, role in enumerate(("query", "gallery", "gallery"))
    ]
    touch_images(root / images, [r[0] for r in rows])
    (root / listing).mkdir(exist_ok=True)
    text = "\n".join([str(len(rows)), "image_name item_id evaluation_status", *("   ".join(r) for r in rows)])
    (root / listing / "list_eval_partition.txt").write_text(text)
    return root


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
