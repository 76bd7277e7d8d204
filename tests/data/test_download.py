"""Downloading against servers that misbehave; all on loopback."""

from __future__ import annotations

import hashlib
import socket

import pytest
from conftest import visible
from support.download_site import BODY, MIDDLE, OTHER, get, leave_part

from idml_zoo.data.errors import DataError
from idml_zoo.data.preparation import download
from idml_zoo.data.preparation.download import Archive


def test_a_file_is_downloaded_once_and_found_the_next_time(site, tmp_path):
    path = get(site.archive(), tmp_path / "new" / "folder", progress=True)
    assert path == tmp_path / "new" / "folder" / "a.tgz" and path.read_bytes() == BODY
    assert visible(path.parent) == ["a.tgz"]
    assert get(site.archive(), path.parent) == path
    assert len(site.requests) == 1
    assert site.requests[0]["User-Agent"].startswith("idml_zoo/")


def test_a_damaged_file_is_replaced(site, tmp_path):
    (tmp_path / "a.tgz").write_bytes(OTHER)
    assert get(site.archive(), tmp_path).read_bytes() == BODY


def test_a_cut_download_is_continued_where_it_was(site, tmp_path):
    site.plan = [{"cut": 100_000}, {"cut": 50_000}]
    assert get(site.archive(), tmp_path).read_bytes() == BODY
    assert site.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert {r.get("If-Range") for r in site.requests[1:]} == {'"1"'}


@pytest.mark.parametrize(
    "step",
    [
        {"status": 500},
        {"status": 503},
        {"status": 429},
        {"cut": 0},
        {"body": b"", "headers": {"Content-Length": len(BODY)}},
        {"status": 200, "headers": {"Content-Length": None, "Transfer-Encoding": "chunked"}, "body": b"10000\r\nshort"},
    ],
    ids=["500", "503", "429", "no body", "short body", "cut chunk"],
)
def test_what_may_pass_is_tried_again(site, tmp_path, step):
    site.plan = [step, step]
    assert get(site.archive(), tmp_path).read_bytes() == BODY
    assert len(site.requests) == 3


def test_a_silent_server_is_given_up_and_tried_again(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", 0.1)
    site.plan = [{"cut": 131_072, "wait": 5}]
    assert get(site.archive(), tmp_path).read_bytes() == BODY
    assert site.ranges == [None, "bytes=131072-"]


def test_pauses_grow_and_progress_starts_them_anew(site, tmp_path, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    site.plan = [{"status": 503}, {"status": 503}, {"cut": MIDDLE}, {"status": 503}, {"status": 503}]
    get(site.archive(), tmp_path, retries=3, pause=1.0)
    assert pauses == [1, 2, 1, 2, 4]


def test_it_gives_up_after_so_many_retries(site, tmp_path):
    site.always = {"status": 503}
    with pytest.raises(DataError, match=r"a\.tgz from http.*answered 503.*--archive"):
        get(site.archive(), tmp_path, retries=2)
    assert len(site.requests) == 3


def test_a_server_that_cuts_and_cannot_continue_does_not_keep_it_for_ever(site, tmp_path):
    site.always = {"cut": MIDDLE, "ranges": False}
    with pytest.raises(DataError, match="ended after 200,000 of 400,000"):
        get(site.archive(), tmp_path, retries=2)
    assert len(site.requests) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410, 416])
def test_a_refusal_is_final(site, tmp_path, status):
    site.always = {"status": status}
    with pytest.raises(DataError, match=f"answered {status}.*by hand"):
        get(site.archive(), tmp_path)
    assert len(site.requests) == 1


@pytest.mark.parametrize("step", [{"ranges": False}, {"body": BODY, "etag": '"2"'}], ids=["no ranges", "new ETag"])
def test_a_server_that_answers_with_all_of_it_makes_it_start_over(site, tmp_path, step):
    leave_part(site, tmp_path, body=BODY)
    site.always = step
    assert get(site.archive(), tmp_path).read_bytes() == BODY
    assert site.ranges == [f"bytes={MIDDLE}-"]


@pytest.mark.parametrize(
    "step",
    [
        {"etag": '"2"', "ignores_if_range": True},
        {"headers": {"Content-Range": f"bytes 0-{len(BODY) - 1}/{len(BODY)}"}},
        {"headers": {"Content-Range": f"bytes {MIDDLE}-{len(BODY)}/{len(BODY) + 1}"}},
        {"headers": {"Content-Range": None}},
        {"status": 416, "headers": {"Content-Range": "bytes */7"}},
    ],
    ids=["new ETag in spite of If-Range", "another start", "another total", "no Content-Range", "416"],
)
def test_a_part_of_another_version_is_not_continued(site, tmp_path, step):
    leave_part(site, tmp_path)
    site.plan = [step]
    assert get(site.archive(), tmp_path).read_bytes() == BODY
    assert site.ranges == [f"bytes={MIDDLE}-", None]


def test_a_version_that_changes_in_the_middle_is_fetched_anew(site, tmp_path):
    site.plan = [{"body": OTHER, "cut": MIDDLE, "etag": '"0"'}]
    assert get(site.archive(), tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    ("served", "condition"),
    [
        ({"modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, '"1"'),
        ({"etag": None, "modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, "Mon, 01 Jan 2024 00:00:00 GMT"),
        ({"etag": 'W/"1"', "modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, "Mon, 01 Jan 2024 00:00:00 GMT"),
        ({"etag": 'W/"1"'}, None),
        ({"etag": None}, None),  # the checksum will tell
    ],
    ids=["both", "Last-Modified", "weak ETag and Last-Modified", "weak ETag", "nothing"],
)
def test_what_names_the_version(site, tmp_path, served, condition):
    site.always = served
    leave_part(site, tmp_path)
    get(site.archive(), tmp_path)
    assert site.ranges == [f"bytes={MIDDLE}-"]
    assert site.requests[0].get("If-Range") == condition


def test_nothing_is_continued_where_nothing_tells_the_version(site, tmp_path):
    site.always = {"etag": None}
    leave_part(site, tmp_path)
    get(site.archive(sha256=""), tmp_path)
    assert site.ranges == [None]


@pytest.mark.parametrize(
    "note", [None, "", "[]", '{"total": 1}', '{"total": 1, "headers": 2}', '{"total": 1, "headers": [2]}']
)
def test_a_part_that_does_not_say_of_what_it_is_starts_over(site, tmp_path, note):
    (tmp_path / "a.tgz.part").write_bytes(OTHER[:MIDDLE])
    if note is not None:
        (tmp_path / "a.tgz.part.json").write_text(note)
    assert get(site.archive(), tmp_path).read_bytes() == BODY
    assert site.ranges == [None]


def test_a_part_that_is_whole_needs_no_more(site, tmp_path):
    leave_part(site, tmp_path)
    (tmp_path / "a.tgz.part").write_bytes(BODY)
    assert get(site.archive(), tmp_path).read_bytes() == BODY
    assert site.ranges == [f"bytes={len(BODY)}-"]


def test_a_part_that_is_too_long_starts_over(site, tmp_path):
    leave_part(site, tmp_path)
    (tmp_path / "a.tgz.part").write_bytes(BODY + b"x")
    assert get(site.archive(), tmp_path).read_bytes() == BODY


def test_a_server_that_tells_no_length(site, tmp_path):
    site.always = {"headers": {"Content-Length": None}}
    assert get(site.archive(), tmp_path).read_bytes() == BODY
    site.plan = [{"cut": MIDDLE}]
    assert get(site.archive(name="b.tgz"), tmp_path).read_bytes() == BODY
    site.always |= {"body": BODY + b"x"}
    with pytest.raises(DataError, match="sends more than the 400,000 bytes"):
        get(site.archive(name="c.tgz"), tmp_path)


@pytest.mark.parametrize("known", [{"size": len(BODY) + 1}, {"size": 5}])
def test_another_length_is_refused_before_anything_is_written(site, tmp_path, known):
    with pytest.raises(DataError, match=f"server has 400,000 bytes, expected {known['size']:,}"):
        get(site.archive(**known), tmp_path)
    assert visible(tmp_path) == []


@pytest.mark.parametrize(
    "step",
    [
        {"type": "text/html; charset=utf-8", "body": b"hello"},
        {"body": b"<!DOCTYPE html><title>Log in</title>"},
        {"body": b"\xef\xbb\xbf\r\n <HTML>"},
    ],
    ids=["type", "doctype", "html"],
)
def test_a_web_page_is_no_archive_and_harms_no_part(site, tmp_path, step):
    leave_part(site, tmp_path)
    site.plan = [{"ranges": False} | step]
    with pytest.raises(DataError, match="web page"):
        get(site.archive(size=None), tmp_path)
    assert (tmp_path / "a.tgz.part").read_bytes() == BODY[:MIDDLE]
    get(site.archive(), tmp_path)
    assert site.ranges == [f"bytes={MIDDLE}-"] * 2


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_wrong_checksum_removes_the_file_and_names_both(site, tmp_path, kind):
    found, expected = (hashlib.new(kind, b).hexdigest() for b in (BODY, OTHER))
    with pytest.raises(DataError, match=f"{kind} {found}, expected {expected}.*removed.*try again"):
        get(site.archive(**{"sha256": "", kind: expected}), tmp_path)
    assert visible(tmp_path) == []
    assert get(site.archive(**{"sha256": "", kind: found.upper()}), tmp_path).is_file()


def test_redirects_are_followed_but_not_to_files(site, tmp_path):
    site.plan = [{"status": 302, "headers": {"Location": "/b.tgz"}}, {"cut": MIDDLE}]
    assert get(site.archive(), tmp_path).read_bytes() == BODY
    for place in (f"file://{tmp_path}/a.tgz", "/a.tgz"):
        site.always = {"status": 302, "headers": {"Location": place}}
        with pytest.raises(DataError, match="answered 302"):
            get(site.archive(name="c.tgz"), tmp_path)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:,x", "/etc/passwd", ""])
def test_only_http_is_downloaded(tmp_path, url):
    with pytest.raises(DataError, match=r"a\.tgz from .*--archive"):
        get(Archive("a.tgz", url), tmp_path)


def test_a_file_without_a_link(site, tmp_path):
    archive = site.archive(url=None)
    with pytest.raises(DataError, match="no link .* any more; get a copy"):
        get(archive, tmp_path)
    (tmp_path / "a.tgz").write_bytes(OTHER)
    with pytest.raises(DataError, match="expected .*get another copy"):
        get(archive, tmp_path)
    (tmp_path / "a.tgz").write_bytes(BODY)
    assert get(archive, tmp_path).is_file()


def test_nobody_answers(site, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(DataError, match="the connection failed .*refused"):
            get(site.archive(url=f"http://127.0.0.1:{taken.getsockname()[1]}/a.tgz"), tmp_path, retries=1)
