"""idml-zoo data list | prepare | verify | show."""

import functools
import hashlib
import http.server
import io
import shutil
import tarfile
import threading
from dataclasses import replace

import pytest
from conftest import SHARED, make_folder, needs_shared
from PIL import Image
from support.official import make_cub

from idml_zoo.cli.main import main
from idml_zoo.data.benchmark import Benchmark
from idml_zoo.data.preparation.download import Archive
from idml_zoo.data.sets import cub
from idml_zoo.registry import benchmarks


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def small_cub(monkeypatch):
    """cub, with the counts of a generated tree."""
    record = Benchmark(
        "cub", "CUB", cub.load_cub, counts=(2, 6, 2, 6), remedy="Get it.", archives=(Archive("CUB_200_2011.tgz", None),)
    )
    assert "cub" in benchmarks, "and so they are all registered"
    monkeypatch.setitem(benchmarks._entries, "cub", record)
    return record


def test_list_says_what_is_here(tmp_path, capsys, small_cub):
    make_cub(tmp_path)
    assert main(["data", "list", "--root", str(tmp_path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["cub"].split()[1] == "found" and "6 / 2" in lines["cub"]
    assert " not found " in lines["sop"] and "59,551 / 11,318" in lines["sop"]
    assert " embedded " in lines["glyphs"]
    assert main(["data", "prepare", "cub", "--root", str(tmp_path)]) == 0
    capsys.readouterr()
    main(["data", "list", "--root", str(tmp_path)])
    assert "prepared" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("cub "))


def test_from_archive_to_verified_copy(tmp_path, capsys, small_cub):
    make_cub(tmp_path / "made")
    with tarfile.open(tmp_path / "CUB_200_2011.tgz", "w:gz") as tar:
        tar.add(tmp_path / "made" / "CUB_200_2011", "CUB_200_2011")
    root = tmp_path / "root"
    arguments = ["cub", "--root", str(root)]
    assert main(["data", "prepare", *arguments, "--archive", str(tmp_path / "CUB_200_2011.tgz")]) == 0
    out = capsys.readouterr().out
    assert "train        6 images      2 classes  sha256" in out and f"prepared {root}/prepared/cub" in out
    shutil.rmtree(root / "prepared")
    assert main(["data", "prepare", *arguments, "--archive", str(tmp_path / "CUB_200_2011.tgz")]) == 0
    assert "extracted under" in capsys.readouterr().out, "after a later step had failed"
    shutil.rmtree(root / "CUB_200_2011")
    assert main(["data", "verify", *arguments]) == 0, "the prepared copy is enough"
    assert "cub: ok" in capsys.readouterr().out
    assert main(["data", "prepare", *arguments]) == 0
    assert "prepared already" in capsys.readouterr().out
    assert main(["data", "prepare", *arguments, "--download"]) == 0, "nothing to do"
    assert main(["data", "prepare", *arguments, "--download", "--force"]) == 1
    assert "cub cannot be downloaded any more. Get it." in capsys.readouterr().err


def test_downloaded_checked_extracted_and_prepared(tmp_path, capsys, small_cub, monkeypatch):
    make_cub(tmp_path / "made")
    with tarfile.open(tmp_path / "CUB_200_2011.tgz", "w:gz") as tar:
        tar.add(tmp_path / "made" / "CUB_200_2011", "CUB_200_2011")
    md5 = hashlib.md5((tmp_path / "CUB_200_2011.tgz").read_bytes()).hexdigest()
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/CUB_200_2011.tgz"
        for checksum, status in (("0" * 32, 1), (md5, 0)):
            record = replace(small_cub, archives=(Archive("CUB_200_2011.tgz", url, md5=checksum),))
            monkeypatch.setitem(benchmarks._entries, "cub", record)
            root = tmp_path / f"root{status}"
            assert main(["data", "prepare", "cub", "--root", str(root), "--download"]) == status
            assert (root / "prepared" / "cub").exists() == (status == 0)
        server.shutdown()
    assert f"md5 {md5}, expected {'0' * 32}" in capsys.readouterr().err
    assert len(record.splits(tmp_path / "root0").test) == 6


def test_a_damaged_copy_is_listed_as_one(tmp_path, capsys, small_cub):
    base = make_cub(tmp_path)
    (base / "images" / "001.Bird_1" / "0.jpg").unlink()
    assert main(["data", "list", "--root", str(tmp_path)]) == 0
    assert next(x for x in capsys.readouterr().out.splitlines() if x.startswith("cub ")).split()[1] == "damaged"


def test_verify_names_every_broken_file(tmp_path, capsys, small_cub):
    base = make_cub(tmp_path)
    for name in ("001.Bird_1/0.jpg", "102.Bird_102/2.jpg"):
        (base / "images" / name).write_bytes(b"<html>404</html>")
    shutil.copyfile(base / "images" / "001.Bird_1/1.jpg", base / "images" / "101.Bird_101/1.jpg")
    assert main(["data", "verify", "cub", "--root", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "broken: " in out and "001.Bird_1/0.jpg: not an image" in out and "102.Bird_102/2.jpg" in out
    assert "in train and test: " in out and "cub: NOT ok" in out
    assert main(["data", "prepare", "cub", "--root", str(tmp_path)]) == 1
    assert "2 of 12 images cannot be read" in capsys.readouterr().err


def test_verify_sees_a_prepared_copy_that_changed(tmp_path, capsys, small_cub):
    make_cub(tmp_path)
    assert main(["data", "prepare", "cub", "--root", str(tmp_path)]) == 0
    shard = tmp_path / "prepared" / "cub" / "test-00000.arrow"
    content = shard.read_bytes()
    at = content.index(b"JFIF") + 200  # inside a JPEG: it still decodes, to something else
    shard.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert main(["data", "verify", "cub", "--root", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "test: the fingerprint is not that of the manifest" in captured.err and "NOT ok" in captured.out


def test_ones_own_images(tmp_path, capsys):
    photos = make_folder(tmp_path / "photos")
    where = ["--source", str(photos), "--root", str(tmp_path)]
    assert main(["data", "verify", "mine", *where]) == 0
    assert main(["data", "prepare", "mine", *where, "--train-classes", "0-3", "--test-classes", "4-5"]) == 0
    assert "test         8 images      2 classes" in capsys.readouterr().out
    prepared = str(tmp_path / "prepared" / "mine")
    assert main(["data", "verify", "mine", "--source", prepared]) == 0
    assert "mine: ok" in capsys.readouterr().out
    assert main(["data", "prepare", "glyphs", *where]) == 1
    assert "glyphs is a registered benchmark: its images or classes are fixed" in capsys.readouterr().err
    assert main(["data", "verify", str(photos)]) == 1
    assert "is a path: give a name, and the path with --source" in capsys.readouterr().err


def test_show_draws_a_contact_sheet(tmp_path, capsys):
    photos = make_folder(tmp_path / "photos")
    sheets = []
    for more in ([], ["--split", "test"], ["--corruption", "noise:5"]):
        out = tmp_path / f"{len(sheets)}.png"
        arguments = ["mine", "--source", str(photos), "--out", str(out), "--classes", "2", "--images", "3", *more]
        assert main(["data", "show", *arguments]) == 0
        sheets.append(Image.open(out))
    assert sheets[0].size == (4 + 3 * 116, 4 + 2 * 132)
    assert len({s.tobytes() for s in sheets}) == 3
    colour = (
        Image.open(photos / "class_0" / "0.png").convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    )
    shown = sheets[0].getpixel((60, 76))
    assert max(abs(a - b) for a, b in zip(colour, shown, strict=True)) < 60
    for wrong, message in [
        (["--corruption", "noise"], "must look like blur:3"),
        (["--corruption", "blurr:3"], "did you mean 'blur'"),
        (["--out", "sheet.txt"], "--out must end in .png"),
        (["--classes", "0"], "must be at least 1"),
    ]:
        assert main(["data", "show", "mine", "--source", str(photos), *wrong]) == 1
        assert message in capsys.readouterr().err


def test_embedded_needs_no_preparation(capsys, tmp_path):
    assert main(["data", "prepare", "glyphs_subset", "--root", str(tmp_path)]) == 0
    assert "embedded" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "cub200"], "unknown benchmark 'cub200'; did you mean 'cub"),
        (["prepare", "sop"], "no Ebay_train.txt under"),
        (["prepare", "sop", "--archive", "nothing.zip"], "no archive nothing.zip"),
        (["prepare", "inshop", "--download"], "inshop cannot be downloaded any more. Ask for access"),
        (["prepare", "mine", "--source", "/nowhere/at/all"], "is not a Hub data set id"),
        (["verify", "cub", "--source", ".", "--train-classes", "0-9"], "its images or classes are fixed"),
        (["verify", "glyphs_subset", "--revision", "abc"], "go with --source"),
        (["verify", "glyphs_subset", "--image-column", "nope"], "go with --source"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *arguments]) == 1
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) == 1


def test_a_wrong_archive_is_refused(tmp_path, capsys):
    with tarfile.open(tmp_path / "CUB_200_2011.tgz", "w:gz") as tar:
        member = tarfile.TarInfo("x")
        tar.addfile(member, io.BytesIO())
    where = ["--root", str(tmp_path / "root"), "--archive", str(tmp_path / "CUB_200_2011.tgz")]
    assert main(["data", "prepare", "cub", *where]) == 1
    assert "97eceeb196236b17998738112f37df78" in capsys.readouterr().err


@needs_shared
def test_a_registered_benchmark_from_a_table_elsewhere(tmp_path, capsys):
    """A Parquet copy of another set in the place of cub is refused by its counts, with its real name."""
    source = str(SHARED / "data" / "cub200_2010.parquet")
    assert main(["data", "verify", "cub", "--source", source]) == 1
    assert "found train 100 classes / 2990 images" in capsys.readouterr().err
