"""A server on loopback that misbehaves as it is told, and ways to download from it."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from idml_zoo.data.errors import DataError
from idml_zoo.data.preparation.download import Archive, fetch

BODY = random.Random(0).randbytes(400_000)
OTHER = random.Random(1).randbytes(len(BODY))
MIDDLE = 200_000


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.site``, each request with the next step of its plan."""

    def do_GET(self) -> None:
        site: Site = self.server.site  # type: ignore[attr-defined]
        site.requests.append(dict(self.headers))
        step = {"body": BODY, "etag": '"1"', "modified": None, "ranges": True, "status": 200, "headers": {}}
        step |= {"cut": None, "wait": 0, "type": "application/gzip"} | site.always
        step |= site.plan.pop(0) if site.plan else {}
        body, status, headers = step["body"], step["status"], dict(step["headers"])
        asked, condition = self.headers["Range"], self.headers["If-Range"]
        same = step.get("ignores_if_range") or condition in (None, step["etag"], step["modified"])
        if status == 200 and asked and step["ranges"] and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(body) else 416
            span = f"{start}-{len(body) - 1}" if status == 206 else "*"
            headers = {"Content-Range": f"bytes {span}/{len(body)}"} | headers
            body = body[start:] if status == 206 else b""
        self.send_response(status)
        headers = {"Content-Type": step["type"], "Content-Length": len(body)} | headers
        headers |= {"ETag": step["etag"], "Last-Modified": step["modified"]}
        for key, value in headers.items():
            if value is not None:
                self.send_header(key, str(value))
        self.end_headers()
        cut = len(body) if step["cut"] is None else step["cut"]
        try:
            self.wfile.write(body[:cut])
            self.wfile.flush()
            if step["wait"]:
                site.release.wait(step["wait"])
                self.wfile.write(body[cut:])
        except OSError:
            pass  # the client is gone

    def log_message(self, *args: Any) -> None:
        pass


class Site:
    """A server: ``plan`` says what each request meets, ``always`` what those after them do."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/a.tgz"
        self.plan: list[dict[str, Any]] = []
        self.always: dict[str, Any] = {}
        self.requests: list[dict[str, str]] = []
        self.release = threading.Event()

    def archive(self, **changes: Any) -> Archive:
        known = {"sha256": hashlib.sha256(BODY).hexdigest(), "size": len(BODY)}
        return Archive(**({"name": "a.tgz", "url": self.url} | known | changes))

    @property
    def ranges(self) -> list[str | None]:
        return [r.get("Range") for r in self.requests]


@contextmanager
def serving(monkeypatch):
    """A :class:`Site` that answers on loopback, and no proxy of the environment before it."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = Site(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.site  # type: ignore[attr-defined]
    server.site.release.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


def get(archive: Archive, folder: Path, **options: Any) -> Path:
    return fetch(archive, folder, **({"progress": False, "pause": 0.001} | options))


def leave_part(site: Site, folder: Path, **step: Any) -> None:
    """The first MIDDLE bytes of a download that was cut."""
    site.plan = [{"cut": MIDDLE, **step}]
    with pytest.raises(DataError, match=f"{MIDDLE:,} bytes that came will be continued"):
        get(site.archive(), folder, retries=0)
    assert (folder / "a.tgz.part").read_bytes() == BODY[:MIDDLE]
    site.requests.clear()


def start(archive: Archive, folder: Path, before: str = "") -> subprocess.Popen[str]:
    """Another process that fetches."""
    # a process started in the background of a shell has Ctrl-C switched off, and its children inherit that
    before = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{before}"
    call = f"fetch({archive!r}, {str(folder)!r}, progress=False)"
    code = f"{before}\nfrom idml_zoo.data.preparation.download import *\n{call}"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
