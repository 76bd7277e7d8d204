"""A Hub data set, through the Hub's own protocol on loopback, in a process that is not offline."""

import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from PIL import Image
from support.hub_server import COMMIT, Hub

READING = """
import itertools, json, sys
from idml_zoo.cli.main import main
from idml_zoo.data.benchmark import table_benchmark
from idml_zoo.data.loading.streaming import StreamDataset

commit, root = sys.argv[1], sys.argv[2]
out = {}
for split in ("train", "train+test", "all"):
    splits = table_benchmark("birds", "user/birds", hub_split=split).splits()
    out[split] = [splits.origin, len(splits.train), len(splits.test), splits.test.images[0].size]
pinned = table_benchmark("birds", "user/birds", revision=commit, image_column="image", label_column="label").splits()
out["pinned"] = pinned.origin
many = table_benchmark("birds", "user/birds:small").splits()
out["small"] = [many.origin, len(many.train) + len(many.test), many.test.images[0].getpixel((0, 0))[0]]
streamed = StreamDataset("user/birds:small", lambda image: image.getpixel((0, 0))[0], "0-3")
out["small stream"] = sorted(red for red, _, _ in itertools.islice(streamed, 4))
stream = StreamDataset("user/birds", lambda image: 0, "0-3")
out["stream"] = sorted(label for _, label, _ in itertools.islice(stream, 4))
out["prepare"] = main(["data", "prepare", "birds", "--source", "user/birds", "--root", root])
out["absent"] = main(["data", "prepare", "other", "--source", "user/nothing", "--root", root])
out["column"] = main(["data", "verify", "birds", "--source", "user/birds", "--label-column", "species"])
print(json.dumps(out))
"""


CARD = b"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
- config_name: small
  data_files: small/*
---
"""


def table(first: int) -> bytes:
    rows = []
    for i in range(4):
        picture = io.BytesIO()
        Image.new("RGB", (8, 8), (first + i, 0, 0)).save(picture, "PNG")
        rows.append({"bytes": picture.getvalue(), "path": f"{i}.png"})
    out = io.BytesIO()
    pq.write_table(pa.table({"image": rows, "label": [0, 1, 2, 3]}), out)
    return out.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    files = {"data/train-00000-of-00001.parquet": table(0), "data/test-00000-of-00001.parquet": table(100)}
    files |= {"small/train-00000-of-00001.parquet": table(200), "README.md": CARD}
    with Hub(files) as hub:
        env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(root / "home"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", READING, COMMIT, str(root)]
        ran = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1]), ran.stderr, hub.requests, root


def test_the_commit_is_looked_up_and_recorded(done):
    out, _, requests, _ = done
    assert out["train"] == [f"hub:user/birds@{COMMIT}", 2, 2, [8, 8]]
    assert out["train+test"][1:3] == out["all"][1:3] == [4, 4]
    assert out["pinned"] == f"hub:user/birds@{COMMIT}"
    fetched = [r for r in requests if "/resolve/" in r and r.startswith("GET")]
    assert fetched and all(COMMIT in r for r in fetched), "never a branch"


def test_it_streams_and_prepares(done):
    out, _, _, root = done
    assert out["stream"] == [0, 1, 2, 3] and out["prepare"] == 0
    manifest = json.loads((root / "prepared" / "birds" / "benchmark.json").read_text())
    assert manifest["origin"] == f"hub:user/birds@{COMMIT}"


def test_a_configuration_is_named_after_a_colon(done):
    out, *_ = done
    assert out["small"] == [f"hub:user/birds:small@{COMMIT}", 4, 202]
    assert out["small stream"] == [200, 201, 202, 203]


def test_what_is_not_there_is_one_line(done):
    out, err, _, _ = done
    assert out["absent"] == out["column"] == 1
    lines = err.splitlines()
    assert any("Error: " in line and "'user/nothing'" in line for line in lines), err
    assert "DataError: user/birds: no column species; it has image, label" in lines
    assert "Traceback" not in err
