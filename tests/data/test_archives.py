"""Extracting archives, and what hostile or damaged ones must not do."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import visible, wait_for

from idml_zoo.data.errors import DataError
from idml_zoo.data.preparation import archives
from idml_zoo.data.preparation.archives import extract

GOOD = {"A/": None, "A/b/1.jpg": b"one", "A/2.jpg": b"two" * 1000, "notes.txt": b"three"}


NOISE = random.Random(2).randbytes(30_000) + b"CONTENT"


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def make_tar(path: Path, entries: dict[str, bytes | None], *more: tarfile.TarInfo, **options: Any) -> Path:
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz", **options) as archive:
        for name, data in entries.items():
            kind = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            archive.addfile(member(name, type=kind, size=len(data or b""), mode=0o4777), io.BytesIO(data or b""))
        for info in more:
            archive.addfile(info)
    return path


def make_zip(path: Path, entries: dict[str, bytes | None], **modes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = modes.get("mode", stat.S_IFREG | 0o4777 if data is not None else 0) << 16
            archive.writestr(info, data or b"")
    return path


def make(path: Path, entries: dict[str, bytes | None]) -> Path:
    return make_zip(path, entries) if path.suffix == ".zip" else make_tar(path, entries)


def unpack(path: Path, target: Path, **options: Any) -> Path:
    return extract(path, target, **({"progress": False} | options))


def refused(path: Path, target: Path, match: str, **options: Any) -> None:
    """Extraction fails with that message and leaves nothing, inside or outside the target."""
    outside = sorted(p for p in target.parent.iterdir() if p != target)
    with pytest.raises(DataError, match=match) as caught:
        unpack(path, target, **options)
    assert path.name in str(caught.value)
    assert [p.name for p in target.iterdir() if p.name != ".extracting.lock"] == []
    assert sorted(p for p in target.parent.iterdir() if p != target) == outside


@pytest.mark.parametrize("name", ["a.tgz", "a.tar.gz", "a.tar", "a.zip"])
def test_extracting(tmp_path, name):
    junk = {
        "__MACOSX/A/._1.jpg": b"x",
        "A/._2.jpg": b"x",
        "__MACOSX/3.jpg": b"x",
        "A/.DS_Store": b"x",
        "._A": b"x",
        "./A//c/3.jpg": b"3",
    }
    umask = os.umask(0o077)
    try:
        target = unpack(make(tmp_path / name, GOOD | junk), tmp_path / "data", progress=True)
    finally:
        os.umask(umask)
    assert target == tmp_path / "data"
    found = {p.relative_to(target).as_posix(): p for p in target.rglob("*") if p.name != ".extracting.lock"}
    assert sorted(found) == ["A", "A/2.jpg", "A/b", "A/b/1.jpg", "A/c", "A/c/3.jpg", "notes.txt"]
    assert all(found[k].read_bytes() == v for k, v in GOOD.items() if v is not None)
    assert {stat.S_IMODE(p.stat().st_mode) for p in found.values() if p.is_file()} == {0o644}
    assert {stat.S_IMODE(p.stat().st_mode) for p in found.values() if p.is_dir()} == {0o755}


def test_the_content_decides_not_the_name(tmp_path):
    path = make(tmp_path / "a.zip", GOOD).rename(tmp_path / "a.tgz")
    assert visible(unpack(path, tmp_path / "data")) == ["A", "notes.txt"]


OUTSIDE = ["/etc/x", "//x", "../x", "A/../../x", "A/..", "..", "A\\..\\..\\x", "C:/x", "c:x", "A/C:/x", "\\\\host\\x"]


@pytest.mark.parametrize("kind", ["a.tgz", "a.zip"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside_are_refused(tmp_path, kind, name):
    refused(make(tmp_path / kind, GOOD | {name: b"x"}), tmp_path / "data", "would lie outside")


@pytest.mark.parametrize(
    ("type_", "what"),
    [
        (tarfile.SYMTYPE, "link"),
        (tarfile.LNKTYPE, "link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "pipe"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path, type_, what):
    bad = member("A/bad", type=type_, linkname="/etc/passwd")
    refused(make_tar(tmp_path / "a.tgz", GOOD, bad), tmp_path / "data", f"'A/bad' is a .*{what}")


@pytest.mark.parametrize(
    ("mode", "what"), [(stat.S_IFLNK, "link"), (stat.S_IFCHR, "device"), (stat.S_IFIFO, "pipe"), (stat.S_IFSOCK, "")]
)
def test_what_is_no_file_in_a_zip_is_refused(tmp_path, mode, what):
    path = make_zip(tmp_path / "a.zip", {"A/bad": b"/etc/passwd"}, mode=mode | 0o777)
    refused(path, tmp_path / "data", f"'A/bad' is a .*{what}")


def test_an_encrypted_zip_is_refused(tmp_path):
    path = make(tmp_path / "a.zip", {"A/secret": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    data[6] |= 1
    path.write_bytes(data)
    refused(path, tmp_path / "data", "'A/secret' is an encrypted file")


@pytest.mark.parametrize("kind", ["a.tgz", "a.tar", "a.zip"])
def test_the_same_name_twice_is_refused(tmp_path, kind):
    for name, entry in (
        ("A//2.jpg", b"x"),
        ("notes.txt/x", b"x"),
        ("notes.txt/x/y", b"x"),
        ("notes.txt/", None),
        ("A", b"x"),
    ):
        refused(make(tmp_path / kind, GOOD | {name: entry}), tmp_path / "data", "name of another member")


@pytest.mark.parametrize("kind", ["a.tgz", "a.zip"])
def test_bombs_are_stopped(tmp_path, kind, monkeypatch):
    path = make(tmp_path / kind, GOOD | {"A/zeros": bytes(5_000_000)})
    refused(path, tmp_path / "data", "'A/zeros' .*bomb", max_bytes=4_000_000)
    refused(path, tmp_path / "data", "'A/2.jpg' is one more than 2 files", max_files=2)
    monkeypatch.setattr(archives, "_FLOOR", 1000)
    refused(path, tmp_path / "data", "'A/zeros' .*bomb")
    small = make(tmp_path / kind, GOOD | {"__MACOSX/zeros": bytes(5_000_000)})
    refused(small, tmp_path / "data", "zeros' .*bomb")


def test_a_bomb_that_declares_little_is_stopped_by_what_is_written(tmp_path):
    liar = archives._Member("zeros", "file", 10, lambda: io.BytesIO(bytes(5_000_000)))
    with pytest.raises(DataError, match="bomb"):
        archives._write(tmp_path / "a.zip", liar, tmp_path / "zeros", 2_000_000)
    zeros = tmp_path / "zeros"
    assert not zeros.exists() or zeros.stat().st_size <= 2_000_000
    path = make(tmp_path / "a.zip", {"zeros": bytes(5_000_000)})
    forged = path.read_bytes().replace((5_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(forged)
    (tmp_path / "zeros").unlink()
    refused(path, tmp_path / "data", "not a whole")


def test_a_huge_tar_header_is_not_read_into_memory(tmp_path):
    path = make_tar(tmp_path / "a.tgz", {"x" * 2_000_000: b""}, format=tarfile.PAX_FORMAT)
    refused(path, tmp_path / "data", "header of 2,0..,... bytes")


def test_endless_zeros_after_the_end_are_not_read(tmp_path, monkeypatch):
    path = make_tar(tmp_path / "a.tar", GOOD)
    path.write_bytes(path.read_bytes() + bytes(5_000_000))
    unpack(path, tmp_path / "data")
    monkeypatch.setattr(archives, "_PADDING", 2)
    (tmp_path / "more").mkdir()
    refused(path, tmp_path / "more" / "data", "more follows")


@pytest.mark.parametrize("kind", ["a.tgz", "a.tar", "a.zip"])
@pytest.mark.parametrize(
    "harm",
    [
        lambda d: d[: len(d) * 2 // 3],
        lambda d: d[: d.index(b"CONTENT") + 7 - len(d)] if b"A/1" in d[:512] else d[:-9],
        lambda d: b"",
        lambda d: b"PK",
        lambda d: b"\x1f\x8b",
        lambda d: b"<html>no</html>" * 50,
        lambda d: bytes(20_000),
    ],
    ids=["truncated", "end missing", "empty", "PK", "gzip", "page", "zeros"],
)
def test_damaged_archives_are_refused(tmp_path, kind, harm):
    path = make(tmp_path / kind, {"A/1.jpg": NOISE, "A/2.jpg": NOISE + b"CONTENT"})
    path.write_bytes(harm(path.read_bytes()))
    refused(path, tmp_path / "data", r"not a whole \.tgz, \.tar\.gz, \.tar or \.zip archive .*get it again")


def test_a_tar_cut_between_two_members_is_refused(tmp_path):
    path = make(tmp_path / "a.tar", {"1.jpg": bytes(512), "2.jpg": bytes(512)})
    for length in (1024, 1025, 1536, 2048):
        path.write_bytes(path.read_bytes()[:length])
        refused(path, tmp_path / "data", "not a whole")


@pytest.mark.parametrize("place", [0, 3, 100, 124, 130, 148, 156])
def test_a_damaged_tar_header_is_not_taken_for_the_end(tmp_path, place):
    path = make(tmp_path / "a.tar", {"1.jpg": bytes(512), "2.jpg": bytes(512)})
    data = bytearray(path.read_bytes())
    data[1024 + place] ^= 0x81
    path.write_bytes(data)
    refused(path, tmp_path / "data", "not a whole")


@pytest.mark.parametrize("kind", ["a.tgz", "a.zip"])
def test_a_wrong_crc_is_refused(tmp_path, kind):
    path = make(tmp_path / kind, {"A/1.jpg": NOISE})
    data = bytearray(path.read_bytes())
    data[-6 if kind == "a.tgz" else data.index(b"CONTENT")] ^= 1  # noise lies in a zip as it is
    path.write_bytes(data)
    refused(path, tmp_path / "data", "not a whole .*CRC")


@pytest.mark.parametrize("kind", ["a.tgz", "a.tar", "a.zip"])
def test_no_damage_escapes_as_another_error_or_hangs(tmp_path, kind):
    random_ = random.Random(0)
    good = make(tmp_path / kind, GOOD).read_bytes()
    for i in range(150):
        data = bytearray(good)
        for _ in range(random_.choice((1, 3, 30))):
            data[random_.randrange(len(data))] = random_.randrange(256)
        (tmp_path / kind).write_bytes(data)
        with contextlib.suppress(DataError):
            unpack(tmp_path / kind, tmp_path / "out" / str(i))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted((kind, "out"))


@pytest.mark.parametrize("kind", ["a.tgz", "a.zip"])
def test_what_is_there_is_not_touched(tmp_path, kind):
    path, target = make(tmp_path / kind, GOOD), tmp_path / "data"
    (target / "A").mkdir(parents=True)
    with pytest.raises(DataError, match=r"would change .*data/A; remove that, or choose another --root"):
        unpack(path, target)
    assert visible(target) == ["A"] and visible(target / "A") == []
    (target / "A").rmdir()
    (target / "notes.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"would change .*notes\.txt"):
        unpack(path, target)
    assert visible(target) == ["notes.txt"] and not (tmp_path / "nowhere").exists()
    (target / "notes.txt").unlink()
    (target / "B").mkdir()
    assert visible(unpack(path, target)) == ["A", "B", "notes.txt"]


@pytest.mark.parametrize("where", ["write", "move"])
def test_a_full_disk_while_extracting(tmp_path, monkeypatch, where):
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archives, "_write" if where == "write" else "_publish", full)
    refused(make(tmp_path / "a.zip", GOOD), tmp_path / "data", "cannot extract .*No space left.*free space")


@pytest.mark.skipif(os.name != "posix", reason="resource limits")
def test_a_file_too_large_for_the_disk(tmp_path):
    path = make(tmp_path / "a.tgz", GOOD | {"A/big": bytes(300_000)})
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (131072, -1))"
    code = (
        f"{limit}\nfrom idml_zoo.data.preparation.archives import *\nextract({str(path)!r}, {str(tmp_path / 'data')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "DataError: cannot extract" in done.stderr and "free space" in done.stderr
    assert visible(tmp_path / "data") == [] and not (tmp_path / "data" / ".extracting").exists()


def test_files_that_are_not_there_or_in_the_way(tmp_path):
    with pytest.raises(DataError, match=r"cannot extract .*none\.zip"):
        unpack(tmp_path / "none.zip", tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot extract .*another --root"):
        unpack(make(tmp_path / "a.zip", GOOD), tmp_path / "file")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_extraction_leaves_nothing_that_looks_whole_and_the_next_cleans_up(tmp_path):
    path, target = make(tmp_path / "a.tgz", GOOD), tmp_path / "data"
    code = (
        "import time\nfrom idml_zoo.data.preparation import archives\n"
        "archives._publish = lambda *a: time.sleep(60)\n"  # everything is written, nothing is moved
        f"archives.extract({str(path)!r}, {str(target)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: list(target.glob(".extracting/*/*/notes.txt")))
    process.kill()
    process.wait()
    assert visible(target) == []
    assert not [p for level in ("*", "*/*", "*/*/*") for p in target.glob(level) if p.name in ("1.jpg", "notes.txt")]
    assert visible(unpack(path, target)) == ["A", "notes.txt"]
    assert not (target / ".extracting").exists()
