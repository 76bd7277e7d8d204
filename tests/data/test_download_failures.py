"""Downloads that are killed, run in two processes at once, or meet a full disk or a wrong place."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import visible, wait_for
from support.download_site import BODY, MIDDLE, get, leave_part, size_of, start

from idml_zoo.data.errors import DataError
from idml_zoo.data.preparation import download
from idml_zoo.data.preparation.download import Archive, verify_archive


def test_proxies_of_the_environment_are_used(site, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", site.url.removesuffix("/a.tgz"))
    process = start(site.archive(url="http://archives.invalid/a.tgz"), tmp_path)  # urllib reads them once in a process
    assert process.communicate()[1] == ""
    assert site.requests[0]["Host"] == "archives.invalid"


def test_too_little_space_is_known_before_and_keeps_the_part(site, tmp_path, monkeypatch):
    leave_part(site, tmp_path)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=MIDDLE - 1))
        with pytest.raises(DataError, match="200,000 more bytes are needed in .*, 199,999 are free; free space"):
            get(site.archive(), tmp_path)
    assert get(site.archive(), tmp_path).read_bytes() == BODY
    assert site.ranges == [f"bytes={MIDDLE}-"] * 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_a_disk_that_fills_up(site, tmp_path):
    (tmp_path / "a.tgz.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"a\.tgz from .*No space left.*is kept"):
        get(site.archive(), tmp_path)
    assert len(site.requests) == 1, "not tried again"


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://", "http://127.0.0.1:x/a", "http://127.0.0.1/ a", "http://é\u2024.."]
)
def test_an_address_that_is_none(tmp_path, url):
    with pytest.raises(DataError, match="the connection failed"):
        get(Archive("a.tgz", url), tmp_path, retries=0)


@pytest.mark.skipif(os.name != "posix", reason="resource limits")
def test_a_write_that_fails_keeps_what_has_arrived(site, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (131072, -1))"
    done = start(site.archive(), tmp_path, limit)
    assert "cannot write in" in done.communicate()[1] and done.returncode == 1
    assert (tmp_path / "a.tgz.part").read_bytes() == BODY[:131_072]
    get(site.archive(), tmp_path)
    assert site.ranges == [None, "bytes=131072-"]


def test_a_folder_that_cannot_be_made(site, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write in .*another folder"):
        get(site.archive(), tmp_path / "file" / "folder")


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "Ctrl-C"])
def test_a_killed_download_is_continued(site, tmp_path, how):
    site.plan = [{"cut": 131_072, "wait": 30}]
    process = start(site.archive(), tmp_path)
    wait_for(lambda: size_of(tmp_path / "a.tgz.part") == 131_072)
    process.send_signal(how)
    process.communicate()
    assert visible(tmp_path) == ["a.tgz.part", "a.tgz.part.json"]
    assert get(site.archive(), tmp_path).read_bytes() == BODY
    assert site.ranges == [None, "bytes=131072-"]


def test_of_two_processes_one_downloads(site, tmp_path):
    site.plan = [{"cut": 131_072, "wait": 30}]
    first = start(site.archive(), tmp_path)
    wait_for(lambda: size_of(tmp_path / "a.tgz.part") == 131_072)
    second = start(site.archive(), tmp_path, "print('here', flush=True)")
    assert second.stdout is not None and second.stdout.readline() == "here\n"
    time.sleep(0.5)  # it is waiting for the lock now
    site.release.set()
    assert [p.communicate()[1] for p in (first, second)] == ["", ""]
    assert first.returncode == second.returncode == 0
    assert site.ranges == [None] and (tmp_path / "a.tgz").read_bytes() == BODY


def test_verifying_names_found_and_expected(site, tmp_path):
    path = tmp_path / "mine.tgz"
    path.write_bytes(BODY)
    verify_archive(path, site.archive())
    verify_archive(path, Archive("a.tgz", None))
    with pytest.raises(DataError, match=r"mine\.tgz has 400,000 bytes, expected 7"):
        verify_archive(path, site.archive(size=7))
    with pytest.raises(DataError, match=r"mine\.tgz has md5 [0-9a-f]{32}, expected 0+: .*download it again from http"):
        verify_archive(path, site.archive(sha256="", md5="0" * 32))
    with pytest.raises(DataError, match="cannot be read"):
        verify_archive(tmp_path / "none", site.archive())


def test_importing_is_cheap():
    heavy = "('torch', 'numpy', 'rich', 'filelock', 'urllib.request')"
    modules = "idml_zoo.data.preparation.archives, idml_zoo.data.preparation.download"
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
