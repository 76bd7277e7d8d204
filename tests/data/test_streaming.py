"""Training from shards that are read in passing."""

import io
import itertools
import logging
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_folder
from PIL import Image

from idml_zoo.data.benchmark import table_benchmark
from idml_zoo.data.errors import BrokenImageError, DataError
from idml_zoo.data.loading.streaming import StreamDataset
from idml_zoo.data.preparation.prepare import prepare


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    """datasets sleeps 5 s after each pass over Parquet, against a crash of pyarrow's threads at exit."""
    import datasets

    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


SHARDS, ROWS, CLASSES = 4, 6, 3


def picture(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(out, "PNG")
    return out.getvalue()


def rows():
    """(shard, number, label): the pixel value is the number, the label the number modulo 3."""
    return [(n // ROWS, n, n % CLASSES) for n in range(SHARDS * ROWS)]


def write_parquet(root, broken=()):
    for shard in range(SHARDS):
        mine = [(n, y) for s, n, y in rows() if s == shard]
        images = [{"bytes": b"<html>" if n in broken else picture(n), "path": f"{n}.png"} for n, _ in mine]
        pq.write_table(pa.table({"image": images, "label": [y for _, y in mine]}), root / f"{shard}.parquet")
    return str(root / "*.parquet")


def write_tars(root):
    for shard in range(SHARDS):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for s, n, y in rows():
                for suffix, content in (("png", picture(n)), ("cls", str(y).encode())):
                    if s == shard:
                        member = tarfile.TarInfo(f"{n:03d}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
    return str(root / "*.tar")


def value(image) -> torch.Tensor:
    return torch.tensor(image.getpixel((0, 0))[0])


def take(stream, count):
    return [(int(v), label) for v, label, _ in itertools.islice(stream, count)]


@pytest.mark.parametrize("write", [write_parquet, write_tars])
def test_every_row_once_in_a_pass_and_shuffled(tmp_path, write):
    stream = StreamDataset(write(tmp_path), value, "0-2", seed=1, shuffle_buffer=10)
    one, two = take(stream, 24), take(stream, 48)[24:]
    assert sorted(one) == sorted(two) == [(n, y) for _, n, y in rows()]
    assert one != two, "passes differ"
    assert one != sorted(one)
    again = StreamDataset(write(tmp_path), value, "0-2", seed=1, shuffle_buffer=10)
    other = StreamDataset(write(tmp_path), value, "0-2", seed=2, shuffle_buffer=10)
    assert take(again, 48) == one + two and take(other, 24) != one
    assert stream.num_classes == 3


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_and_workers_share_nothing(tmp_path, world):
    """4 shards divide among 2 ranks, not among 3: either way each row comes once."""
    pattern = write_parquet(tmp_path)
    parts = [StreamDataset(pattern, value, "0-2", rank=r, num_replicas=world) for r in range(world)]
    seen = [take(p, 24 // world) for p in parts]
    assert sorted(itertools.chain(*seen)) == [(n, y) for _, n, y in rows()]
    loader = torch.utils.data.DataLoader(parts[0], 3, num_workers=2)
    batches = list(itertools.islice(loader, 4))
    with_workers = [int(v) for b in batches for v in b[0]]
    assert set(with_workers) <= {v for v, _ in seen[0]} or world == 3
    del loader


def test_only_the_chosen_classes(tmp_path):
    stream = StreamDataset(write_parquet(tmp_path), value, "1-2")
    seen = take(stream, 16)
    assert {v % 3 for v, _ in seen} == {1, 2} and {label for _, label in seen} == {0, 1} and stream.num_classes == 2
    with pytest.raises(DataError, match="rank 0 finds no usable image of the 2 classes"):
        take(StreamDataset(write_parquet(tmp_path), value, "7-8"), 1)


def test_a_prepared_benchmark_streams_its_training_split(tmp_path):
    mine = table_benchmark("mine", make_folder(tmp_path / "photos"))
    folder, _ = prepare(mine, mine.splits(), tmp_path, progress=False)
    stream = StreamDataset(folder, lambda image: torch.tensor(image.size), shuffle_buffer=5)
    assert stream.num_classes == 3
    assert sorted(label for _, label, _ in itertools.islice(stream, 12)) == [0] * 4 + [1] * 4 + [2] * 4


def test_broken_images_are_passed_over_and_named(tmp_path, caplog):
    stream = StreamDataset(write_parquet(tmp_path, broken=[5]), value, "0-2")
    with caplog.at_level(logging.WARNING):
        assert sorted(v for v, _ in take(stream, 23)) == [n for n in range(24) if n != 5]
    assert "passed over: image 5.png of" in caplog.text
    stream = StreamDataset(write_parquet(tmp_path, broken=range(20)), value, "0-2")
    with pytest.raises(DataError, match=r"11 of \d+ images are broken"):
        take(stream, 20)


def test_a_row_may_hold_an_image_but_no_path(tmp_path):
    """Rows of a folder of images on the Hub hold PIL's images; a path would be a stranger's word for a file of ours."""
    stream = StreamDataset(write_parquet(tmp_path), value, "0-2")
    assert stream._image({"image": Image.new("L", (9, 8), 7)}).size == (9, 8)
    (tmp_path / "mine.png").write_bytes(picture(1))
    with pytest.raises(BrokenImageError, match="no bytes"):
        stream._image({"image": {"bytes": None, "path": str(tmp_path / "mine.png")}})


def test_what_cannot_be_streamed(tmp_path):
    with pytest.raises(DataError, match=r"no shards .*nothing-\*.parquet; give a pattern"):
        StreamDataset(tmp_path / "nothing-*.parquet", value)
    pattern = write_parquet(tmp_path)
    with pytest.raises(DataError, match="its labels have no names, so their number is unknown; give the classes"):
        StreamDataset(pattern, value)
    (tmp_path / "other.txt").touch()
    with pytest.raises(DataError, match=r"\.parquet, \.txt files; a stream reads shards of one kind"):
        StreamDataset(tmp_path / "*", value)
    pq.write_table(pa.table({"image": [b"x"], "species": [1]}), tmp_path / "columns.parquet")
    with pytest.raises(DataError, match=r"no label column \(label, cls\); it has image, species"):
        StreamDataset(tmp_path / "columns.parquet", value, "0-1")
