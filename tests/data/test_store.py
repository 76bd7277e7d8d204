"""prepare, verify, and the prepared copy."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, SHARED, make_folder, needs_shared
from support.official import make_inshop

from idml_zoo.data.benchmark import Benchmark, table_benchmark
from idml_zoo.data.errors import DataError
from idml_zoo.data.folders import MANIFEST
from idml_zoo.data.preparation.check import check_splits
from idml_zoo.data.preparation.prepare import prepare
from idml_zoo.data.sets.inshop import load_inshop
from idml_zoo.data.split import Split, Splits
from idml_zoo.data.store import load_prepared
from idml_zoo.registry import benchmarks


@pytest.fixture
def mine(tmp_path) -> Benchmark:
    return table_benchmark("mine", make_folder(tmp_path / "photos"))


def test_a_prepared_copy_is_the_same_benchmark(tmp_path, mine):
    before = mine.splits()
    folder, report = prepare(mine, before, tmp_path, progress=False)
    after = mine.splits(tmp_path)
    assert folder == tmp_path / "prepared" / "mine" and report.ok
    for one, two in ((before.train, after.train), (before.test, after.test)):
        assert one.labels.tolist() == two.labels.tolist() and one.class_names == two.class_names
        assert one.fingerprint() == two.fingerprint(), "the same content, wherever it is kept"
        assert all(one.images.encoded(i) == two.images.encoded(i) for i in range(len(one)))
        assert two.images.name(0) == one.images.name(0)
    assert after.origin == str(tmp_path / "photos")
    assert report.fingerprints == {"train": before.train.fingerprint(), "test": before.test.fingerprint()}
    assert sorted(p.name for p in folder.iterdir()) == [MANIFEST, "test-00000.arrow", "train-00000.arrow"]


def test_datasets_reads_it_and_other_processes_map_it(tmp_path, mine):
    import datasets

    folder, _ = prepare(mine, mine.splits(), tmp_path, progress=False)
    files = {k: str(folder / f"{k}-*.arrow") for k in ("train", "test")}
    loaded = datasets.load_dataset("arrow", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert loaded["train"][0]["image"].size == (40, 40) and set(loaded["test"]["split"]) == {"test"}
    label = loaded["test"].features["label"]
    assert [label.int2str(y) for y in sorted(set(loaded["test"]["label"]))] == ["class_3", "class_4", "class_5"]
    assert loaded["test"][0]["path"].endswith("class_3/0.png")
    images = load_prepared(folder).test.images
    sent = pickle.dumps(images)
    assert len(sent) < 1000, "by name, not by value"
    assert pickle.loads(sent).encoded(3) == images.encoded(3)


def test_shards(tmp_path, mine, monkeypatch):
    from idml_zoo.data.preparation import prepare as writing

    monkeypatch.setattr(writing, "SHARD_BYTES", 5000)
    monkeypatch.setattr(writing, "_ROWS", 2)
    before = mine.splits()
    folder, _ = prepare(mine, before, tmp_path, progress=False)
    assert len(list(folder.glob("train-*.arrow"))) > 2
    assert load_prepared(folder).train.fingerprint() == before.train.fingerprint()


def test_queries_and_extras_are_kept(tmp_path):
    splits = load_inshop(make_inshop(tmp_path / "inshop"))
    test = Split(**{**vars(splits.test), "extras": {"severity": np.linspace(0, 1, 9)}})
    record = Benchmark("shop", "Shop", lambda root: splits)
    folder, _ = prepare(record, Splits(splits.train, test), tmp_path, progress=False)
    after = load_prepared(folder).test
    assert after.queries.tolist() == splits.test.queries.tolist()
    assert after.extras["severity"].tolist() == test.extras["severity"].tolist()


def test_a_prepared_copy_on_the_hub_comes_back_the_same(tmp_path):
    """prepare → datasets → Parquet, as push_to_hub writes it → a table with a column ``split`` → the same splits."""
    import datasets

    splits = load_inshop(make_inshop(tmp_path / "inshop"))
    folder, _ = prepare(Benchmark("shop", "Shop", lambda root: splits), splits, tmp_path, progress=False)
    files = {k: str(folder / f"{k}-*.arrow") for k in ("train", "test")}
    pushed = datasets.load_dataset("arrow", data_files=files, cache_dir=str(tmp_path / "cache"))
    (tmp_path / "pushed").mkdir()
    for key, part in pushed.items():
        part.to_parquet(tmp_path / "pushed" / f"{key}.parquet")
    back = table_benchmark("shop", tmp_path / "pushed").splits()
    assert back.test.queries.tolist() == splits.test.queries.tolist()
    for one, two in ((splits.train, back.train), (splits.test, back.test)):
        assert one.fingerprint() == two.fingerprint()


def test_broken_images_are_all_named_and_nothing_is_written(tmp_path, mine):
    for name, content in (("class_0/1.png", b"<html>404</html>"), ("class_4/3.png", b"")):
        (tmp_path / "photos" / name).write_bytes(content)
    with pytest.raises(
        DataError, match=r"2 of 24 images cannot be read: .*class_0/1.png .*class_4/3.png .*--skip-broken"
    ):
        prepare(mine, mine.splits(), tmp_path, progress=False)
    assert [p.name for p in (tmp_path / "prepared").iterdir()] == [".mine.lock"]
    folder, report = prepare(mine, mine.splits(), tmp_path, skip_broken=True, progress=False)
    assert [b.name.rsplit("/", 2)[1:] for b in report.broken] == [["class_0", "1.png"], ["class_4", "3.png"]]
    splits = load_prepared(folder)
    assert (len(splits.train), len(splits.test)) == (11, 11)
    assert len(json.loads((folder / MANIFEST).read_text())["left_out"]) == 2
    official = Benchmark("mine", "Mine", mine.load, counts=(3, 12, 3, 12), remedy="Get it again.")
    with pytest.raises(DataError, match="found train 3 classes / 11 images"):
        prepare(official, mine.splits(), tmp_path, skip_broken=True, progress=False)
    assert len(load_prepared(folder).train) == 11, "the copy that was there is still there"


def test_a_class_of_broken_images_is_named(tmp_path, mine):
    for i in range(4):
        (tmp_path / "photos" / "class_5" / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match="every image of class 'class_5' is broken"):
        prepare(mine, mine.splits(), tmp_path, skip_broken=True, progress=False)


def test_an_image_in_train_and_test_is_found(tmp_path, mine):
    photos = tmp_path / "photos"
    (photos / "class_5" / "0.png").write_bytes((photos / "class_0" / "2.png").read_bytes())
    (photos / "class_1" / "3.png").write_bytes((photos / "class_1" / "2.png").read_bytes())
    report = check_splits(mine.splits(), progress=False)
    assert report.leaks == ((str(photos / "class_0" / "2.png"), str(photos / "class_5" / "0.png")),)
    assert report.copies == 1 and not report.ok
    with pytest.raises(DataError, match=r"1 images are in train and in test, .*class_0/2.png = .*class_5/0.png"):
        prepare(mine, mine.splits(), tmp_path, progress=False)
    prepare(mine, mine.splits(), tmp_path, allow_leaks=True, progress=False)


def test_a_damaged_copy_is_refused(tmp_path, mine):
    folder, _ = prepare(mine, mine.splits(), tmp_path, progress=False)
    shard, manifest = folder / "train-00000.arrow", folder / MANIFEST
    whole, text = shard.read_bytes(), manifest.read_text()
    shard.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"train-00000.arrow has .* bytes, its manifest says .*; prepare it again"):
        mine.splits(tmp_path)
    shard.write_bytes(b"\0" * len(whole))
    with pytest.raises(DataError, match="not a readable shard"):
        mine.splits(tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match="has 0 bytes"):
        mine.splits(tmp_path)
    shard.write_bytes(whole)
    for content, message in [
        (text[:50], "is not a readable manifest"),
        (text.replace('"format": 1', '"format": 9'), "has format 9, this version reads 1"),
        (text.replace('"splits"', '"parts"'), "lacks 'splits'"),
    ]:
        manifest.write_text(content)
        with pytest.raises(DataError, match=message):
            mine.splits(tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path, mine, monkeypatch):
    import pyarrow as pa

    class Full:
        def __init__(self, *args):
            pass

        def write_batch(self, batch):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    splits = mine.splits()
    with monkeypatch.context() as patched:
        patched.setattr(pa.ipc, "new_stream", Full)
        with pytest.raises(DataError, match=r"cannot write .*prepared/mine \(No space left on device\); free space"):
            prepare(mine, splits, tmp_path, progress=False)
    assert [p.name for p in (tmp_path / "prepared").iterdir()] == [".mine.lock"]
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write .*; free space or choose another --root"):
        prepare(mine, splits, tmp_path / "file", progress=False)


PREPARING = """
import sys, time
from idml_zoo.data.benchmark import table_benchmark
from idml_zoo.data.preparation import prepare as store
root, slow = sys.argv[1], float(sys.argv[2])
write = store._write
def slowly(*arguments):
    print("writing", flush=True)
    time.sleep(slow)
    return write(*arguments)
store._write = slowly
mine = table_benchmark("mine", root + "/photos")
store.prepare(mine, mine.splits(), root, progress=False)
print("done", flush=True)
"""


def start(tmp_path, slow):
    command = [sys.executable, "-c", PREPARING, str(tmp_path), str(slow)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_killed_in_the_middle_and_two_at_once(tmp_path, mine):
    fingerprint = mine.splits().train.fingerprint()
    killed = start(tmp_path, 60)
    assert killed.stdout.readline() == "writing\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert not (tmp_path / "prepared" / "mine").exists(), "nothing half-written looks whole"
    both = [start(tmp_path, 0.3) for _ in range(2)]
    for process in both:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and out.endswith("done\n")
    assert load_prepared(tmp_path / "prepared" / "mine").train.fingerprint() == fingerprint
    assert sorted(p.name for p in (tmp_path / "prepared").iterdir()) == [".mine.lock", "mine"]


def test_a_prepared_folder_is_a_source_of_ones_own(tmp_path, mine):
    folder, _ = prepare(mine, mine.splits(), tmp_path, progress=False)
    assert len(table_benchmark("other", folder).splits().test) == 12
    with pytest.raises(DataError, match="is prepared, its splits are fixed"):
        table_benchmark("other", folder, "0-1").splits()


def test_a_prepared_copy_of_other_images_is_not_taken_for_them(tmp_path, mine):
    prepare(mine, mine.splits(), tmp_path / "data", progress=False)
    other = table_benchmark("mine", make_folder(tmp_path / "others", classes=4))
    with pytest.raises(DataError, match=r"was prepared from .*photos, not from .*others; choose another name"):
        other.splits(tmp_path / "data")
    assert mine.splits(tmp_path / "data").test.num_classes == 3


def test_a_prepared_copy_with_other_splits_is_not_taken_for_those_asked_for(tmp_path):
    photos, data = make_folder(tmp_path / "photos", classes=8, images=2), tmp_path / "data"
    plain = table_benchmark("mine", photos)
    folder, _ = prepare(plain, plain.splits(), data, progress=False)
    assert plain.splits(data).origin == str(photos)
    swapped = table_benchmark("mine", photos, "4-7", "0-3")
    with pytest.raises(DataError, match=r"prepared with train_classes = the default, but \[4, 5, 6, 7\] is asked for"):
        swapped.splits(data)
    prepare(swapped, swapped.originals(data), data, progress=False)
    assert table_benchmark("mine", photos, [4, 5, 6, 7], "0-2,3").splits(data).train.class_names[0] == "class_4"
    with pytest.raises(DataError, match=r"= \[4, 5, 6, 7\], but the default is asked for; give it as the source"):
        plain.splits(data)
    assert table_benchmark("mine", folder).splits(data).train.class_names[0] == "class_4", "its own splits"


def test_a_prepared_copy_is_known_by_any_way_to_its_source(tmp_path, monkeypatch):
    from support.tables import make_parquet

    monkeypatch.chdir(tmp_path)
    shutil.copytree(make_folder(tmp_path / "photos", classes=4), tmp_path / "data" / "within")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    make_parquet(tmp_path / "one" / "x.parquet")
    make_parquet(tmp_path / "two" / "a.parquet", (0, 0, 1, 1))
    make_parquet(tmp_path / "two" / "b.parquet", (2, 2, 3, 3))
    for i, source in enumerate(("one", "two", tmp_path / "two", "one/x.parquet", "photos", "within")):
        record = table_benchmark(f"mine{i}", source)
        prepare(record, record.originals("data"), "data", progress=False, allow_leaks=True)  # the rows are alike
        assert len(record.splits("data").train) in (4, 8), source


@needs_shared
@pytest.mark.parametrize("name", ["cub2010", "cars196_half", "omniglot"])
def test_the_real_tables_are_what_their_records_say(name):
    splits = benchmarks[name].splits(SHARED / "data")
    assert splits.train.images[0].mode == "RGB" and not set(splits.train.class_names) & set(splits.test.class_names)


@needs_shared
def test_omniglot_is_whole(tmp_path):
    started = time.perf_counter()
    record = benchmarks["omniglot"]
    _, report = prepare(record, record.splits(SHARED / "data"), tmp_path, allow_leaks=True, progress=False)
    assert not report.broken and report.sides == (105, 105, 105)
    assert record.splits(tmp_path).test.fingerprint() == report.fingerprints["test"]
    assert time.perf_counter() - started < 120
