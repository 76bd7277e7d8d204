"""A Hub on loopback, as far as reading a data set needs one: repository info, tree, paths-info, resolve."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import urllib.parse

COMMIT = "a" * 40


class Hub:
    """Serves ``files`` (path to bytes) as the data set ``user/birds`` at one commit; ``requests`` lists what was asked.

    Use as a context manager; ``url`` is what goes into HF_ENDPOINT.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.requests = files, []

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def entry(self, path: str) -> dict:
        if path in self.files:
            content = self.files[path]
            return {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": path}
        return {"type": "directory", "oid": COMMIT, "size": 0, "path": path}

    def children(self, folder: str) -> list[dict]:
        prefix = f"{folder}/" if folder else ""
        names = {f[len(prefix) :].split("/")[0] for f in self.files if f.startswith(prefix)}
        return [self.entry(prefix + n) for n in sorted(names)]


class Replying(http.server.BaseHTTPRequestHandler):
    """What the servers on loopback share."""

    def _reply(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object, code: int = 200) -> None:
        self._reply(code, json.dumps(value).encode(), Content_Type="application/json")


class _Handler(Replying):
    hub: Hub

    def log_message(self, *_: object) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path.split("?")[0])
        api, resolve = "/api/datasets/user/birds", "/datasets/user/birds/resolve/"
        if path in (api, f"{api}/revision/{COMMIT}"):
            files = [{"rfilename": f} for f in self.hub.files]
            self._json({"id": "user/birds", "sha": COMMIT, "private": False, "siblings": files, "tags": []})
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            self._json(self.hub.children(path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")))
        elif path.startswith(resolve) and path.removeprefix(f"{resolve}{COMMIT}/") in self.hub.files:
            content = self.hub.files[path.removeprefix(f"{resolve}{COMMIT}/")]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._reply(200, content, X_Repo_Commit=COMMIT, ETag=etag)
        else:
            known = "user/birds" in path
            self._reply(404, b'{"error": "not found"}', X_Error_Code="EntryNotFound" if known else "RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if "/paths-info/" not in self.path:
            return self._reply(404, b"{}")
        try:
            paths = json.loads(body)["paths"]
        except ValueError:
            paths = urllib.parse.parse_qs(body)["paths"]
        known = [p for p in paths if p in self.hub.files or any(f.startswith(f"{p}/") for f in self.hub.files)]
        return self._json([self.hub.entry(p) for p in known])
