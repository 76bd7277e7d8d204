"""Official archives over HTTP: a cut download continues where it stopped, and only a checked file gets its name.

``<name>.part`` holds the bytes that have arrived, ``<name>.part.json`` the server's headers of that version.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from idml_zoo.data.benchmark import Archive
from idml_zoo.data.errors import DataError
from idml_zoo.files import write_file
from idml_zoo.version import __version__

_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 16  # bytes; at most what a kill loses
_BY_HAND = "try again, or download it by hand and pass it with --archive"
_FREE = "free space or choose another folder, and run it again: what has arrived is kept"


class _Cut(Exception):
    """This attempt failed; another one may not."""


def verify_archive(path: str | Path, archive: Archive) -> None:
    """Checks a file's size, then its checksum, as far as the record has them.

    Raises:
        DataError: the file cannot be read or is another one; the message has the actual and the expected value.
    """
    try:
        problem = _mismatch(Path(path), archive)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give the path of {archive.name}") from error
    if problem:
        source = f"download it again from {archive.url}" if archive.url else "get another copy"
        raise DataError(f"{path} has {problem}: damaged, or not the official file; delete it and {source}")


def _mismatch(path: Path, archive: Archive) -> str:
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        return f"{size:,} bytes, expected {archive.size:,}"
    kind = "sha256" if archive.sha256 else "md5"
    expected = getattr(archive, kind).lower()
    if not expected:
        return ""
    digest = hashlib.new(kind, usedforsecurity=False)  # MD5 is all that some authors publish
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return "" if digest.hexdigest() == expected else f"{kind} {digest.hexdigest()}, expected {expected}"


def fetch(archive: Archive, folder: str | Path, progress: bool = True, retries: int = 5, pause: float = 1.0) -> Path:
    """Returns the archive's path in ``folder``; downloads it unless a whole copy is there.

    Interrupted downloads (Ctrl-C, kill, full disk, no connection) are continued by the next call. Of processes that
    call at once, one downloads and the others wait for it. Proxies are those of the environment.

    Args:
        archive: what to get.
        folder: where to; made if missing.
        progress: show a bar.
        retries: how many attempts in a row, after the first, may bring no new bytes, ≥ 0.
        pause: seconds before the first retry; doubled for each further one.

    Returns:
        ``folder/name``, size and checksum checked.

    Raises:
        DataError: naming file, URL, what happened and what to do.
    """
    from filelock import FileLock

    folder = Path(folder)
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    try:
        if path.is_file() and not _mismatch(path, archive):
            return path  # before the lock, for the folder may be read-only
        if archive.url is None and path.is_file():
            verify_archive(path, archive)
        if not re.match("https?://", archive.url or "", re.IGNORECASE):
            kind = "only http and https are downloaded" if archive.url else "no link to it lives any more"
            raise _failure(archive, kind, "get a copy of it and pass it with --archive")
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{archive.name}.lock"):
            if path.is_file() and not _mismatch(path, archive):
                return path  # another process was at it
            _download(archive, part, progress, retries, pause)
            if problem := _mismatch(part, archive):
                _discard(part)
                raise _failure(archive, f"what came has {problem}, and was removed")
            os.replace(part, path)
            _discard(part)
            return path
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise _failure(archive, f"cannot write in {folder} ({reason})", _FREE) from error


def _failure(archive: Archive, what: str, remedy: str = _BY_HAND) -> DataError:
    return DataError(f"{archive.name} from {archive.url}: {what}; {remedy}")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _download(archive: Archive, part: Path, progress: bool, retries: int, pause: float) -> None:
    """Attempts until the part is whole."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress) as bar:
        task = bar.add_task(archive.name, total=archive.size)
        most, failures = _state(part)[0], 0
        while True:
            try:
                return _attempt(archive, part, lambda done, total: bar.update(task, completed=done, total=total))
            except _Cut as error:
                size = part.stat().st_size if part.exists() else 0
                failures = 1 if size > most else failures + 1
                most = max(most, size)
                if failures > retries:
                    raise _failure(archive, f"{error}; the {size:,} bytes that came will be continued") from error
            time.sleep(pause * 2 ** (failures - 1))


def _state(part: Path) -> tuple[int, dict[str, Any]]:
    """Returns the number of bytes that have arrived and the note on them; 0 without a readable note."""
    try:
        note = json.loads(_note(part).read_text(encoding="utf-8"))
        return part.stat().st_size, {"total": note["total"], "headers": {k: str(v) for k, v in note["headers"].items()}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0, {"total": None, "headers": {}}


@contextmanager
def _network() -> Iterator[None]:
    """Turns errors of the network into :class:`_Cut`, so that they differ from those of the disk."""
    from http.client import HTTPException

    try:
        yield
    except (OSError, HTTPException, ValueError) as error:  # ValueError: an invalid address
        reason = getattr(error, "reason", None) or error
        raise _Cut(f"the connection failed ({reason or type(error).__name__})") from error


def _ask(archive: Archive, have: int, headers: dict[str, str]) -> Any:
    """Returns the answer to a request for the missing bytes, also if it is an HTTP error."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    request = {"User-Agent": f"idml_zoo/{__version__}"}
    if have:
        request["Range"] = f"bytes={have}-"
        etag, modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
        same = modified if etag.startswith("W/") else etag or modified  # a weak ETag does not promise equal bytes
        if same:
            request["If-Range"] = same
    with _network():
        try:
            return urlopen(Request(str(archive.url), headers=request), timeout=_TIMEOUT)
        except HTTPError as error:
            return error


def _attempt(archive: Archive, part: Path, report: Callable[[int, int | None], Any]) -> None:
    """Makes a request for the rest of the part or for all of it; raises _Cut where another attempt may succeed."""
    have, note = _state(part)
    if not (note["headers"] or archive.sha256 or archive.md5):
        have = 0  # nothing would tell that the rest is of the same version
    with _ask(archive, have, note["headers"]) as response:
        status, answer = response.status, response.headers
        if status not in (200, 206) and not (status == 416 and have):
            what = f"the server answered {status} {response.reason}"
            raise _Cut(what) if status in (408, 429) or (status or 0) >= 500 else _failure(archive, what)
        if status == 200:
            start, total = 0, response.length
        else:
            span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.get("Content-Range", ""))
            total = int(span[2]) if span and span[2] != "*" else note["total"]
            start = int(span[1]) if span and span[1] else have if status == 416 else -1
            other = any(answer.get(k, v) != v for k, v in note["headers"].items())
            if other or start != have or note["total"] not in (None, total) or (status == 416 and total != have):
                _discard(part)
                raise _Cut("the server has another version than the part")
            if status == 416:
                return  # nothing is missing
        goal = archive.size if total is None else total
        if archive.size not in (None, goal):
            raise _failure(archive, f"the server has {goal:,} bytes, expected {archive.size:,}")
        with _network():
            chunk = response.read(_CHUNK)
        page = start == 0 and re.match(rb"(\xef\xbb\xbf)?\s*<(html|!doctype)", chunk, re.IGNORECASE)
        if page or answer.get_content_type() == "text/html":
            raise _failure(archive, "the server sent a web page (a login or an error), not the file")
        missing = (goal or 0) - (part.stat().st_size if part.exists() else 0)
        free = shutil.disk_usage(part.parent).free
        if missing > free:
            needs = f"{missing:,} more bytes are needed in {part.parent}, {free:,} are free"
            raise _failure(archive, needs, _FREE)
        with part.open("ab" if start else "wb") as file:
            if start == 0:  # after the part was emptied, so that a note never stands beside bytes of another version
                headers = {k: answer[k] for k in ("ETag", "Last-Modified") if answer[k]}
                write_file(_note(part), json.dumps({"total": total, "headers": headers}))
            while chunk:
                start += len(chunk)
                if goal is not None and start > goal:
                    raise _failure(archive, f"the server sends more than the {goal:,} bytes expected")
                file.write(chunk)
                report(start, goal)
                with _network():
                    chunk = response.read(_CHUNK)
    if goal is not None and start < goal:
        raise _Cut(f"the connection ended after {start:,} of {goal:,} bytes")
