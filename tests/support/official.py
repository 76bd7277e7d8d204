"""The official layouts of the benchmarks, generated small."""

import numpy as np
import scipy.io
from PIL import Image


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
