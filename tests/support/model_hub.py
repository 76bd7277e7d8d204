"""A Hub of models on loopback, by its HTTP interface: create, preupload, LFS, commit, branches, resolve with redirects,
ETags and range requests; with accidents on demand."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from dataclasses import dataclass, field

from support.hub_server import Replying

WRITE, READ = "hf_write", "hf_read"


@dataclass
class Repo:
    """A repository: ``commits`` (files by commit), ``branches`` (their heads)."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    moved_to: str = ""

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        before = self.commits.get(self.branches.get(branch, ""), {})
        after = before | files
        digest = hashlib.sha1(f"{len(self.commits)}".encode())
        for name, content in sorted(after.items()):
            digest.update(name.encode() + content)
        self.commits[digest.hexdigest()] = after
        self.branches[branch] = digest.hexdigest()
        return digest.hexdigest()

    def find(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


class ModelHub:
    """Use as a context manager; ``url`` goes into HF_ENDPOINT.

    Attributes:
        requests: method and path of each, in order.
        failures: [pattern, status, how many times] that answer with an error.
        cut: path to number of bytes after which one download is cut off.
        corrupt: contents (by sha256) that arrive with a flipped byte.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.failures: list[list] = []
        self.cut: dict[str, int] = {}
        self.corrupt: set[str] = set()

    def __enter__(self) -> ModelHub:
        class Handler(_Handler):
            hub = self

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://localhost:{self.server.server_port}"  # another host, as there
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(Replying):
    hub: ModelHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _error(self, code: int, name: str, message: str = "") -> None:
        body = json.dumps({"error": message or name}).encode()
        self._reply(code, body, X_Error_Code=name, X_Error_Message=message or name, Content_Type="application/json")

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        url = urllib.parse.urlsplit(self.path)
        self.route = urllib.parse.unquote(url.path)
        self.hub.requests.append(f"{self.command} {self.route}")
        for failure in self.hub.failures:
            if failure[2] and re.search(failure[0], f"{self.command} {self.route}"):
                failure[2] -= 1
                return self._error(failure[1], "Injected", f"status {failure[1]} for a test")
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.token not in ("", WRITE, READ):
            return self._error(401, "", "Invalid credentials in Authorization header")
        if self.command in ("GET", "HEAD"):
            return self.read()
        if self.command == "PUT":
            return self.store()
        return self.write()

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def repo(self, name: str) -> Repo | None:
        """The repository that may be seen with this token; else the answer is given."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.token):
            self._error(401 if not self.token else 404, "RepoNotFound", "Repository not found")
            return None
        if repo.moved_to:
            self._reply(307, Location=self.path.replace(name, repo.moved_to, 1))
            return None
        return repo

    def read(self) -> None:
        if match := re.fullmatch(r"/cdn/([0-9a-f]{64})", self.route):
            return self.send_content(self.hub.lfs[match[1]], match[1])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self.route):
            if repo := self.repo(match[1]):
                commit = repo.find(match[2] or "main")
                if commit is None:
                    return self._error(404, "RevisionNotFound", f"Invalid rev id: {match[2]}")
                siblings = [{"rfilename": f} for f in repo.commits[commit]]
                self._json({"id": match[1], "sha": commit, "private": repo.private, "siblings": siblings, "tags": []})
            return None
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.route)
        if match is None:
            return self._error(404, "EntryNotFound")
        repo = self.repo(match[1])
        if repo is None:
            return None
        if repo.gated and not self.token:
            return self._error(403, "GatedRepo", "Access to this model is restricted")
        commit = repo.find(match[2])
        if commit is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {match[2]}")
        content = repo.commits[commit].get(match[3])
        if content is None:
            return self._error(404, "EntryNotFound", "Entry not found")
        sha = hashlib.sha256(content).hexdigest()
        if sha not in self.hub.lfs:
            return self._reply(200, content, X_Repo_Commit=commit, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        headers = {"X_Repo_Commit": commit, "X_Linked_Size": str(len(content)), "X_Linked_Etag": f'"{sha}"'}
        return self._reply(302, Location=f"{self.hub.cdn}/cdn/{sha}", **headers)

    def send_content(self, content: bytes, sha: str) -> None:
        if sha in self.hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = 0
        if match := re.match(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(match[1])
            self.hub.ranges.append(self.headers["Range"])
        part = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{sha}"')
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.hub.cut.pop(sha, None)
        self.wfile.write(part[:limit])
        if limit is not None:
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True

    def store(self) -> None:
        sha = self.route.removeprefix("/lfs/")
        if hashlib.sha256(self.body).hexdigest() != sha:
            return self._error(400, "BadRequest", "content and oid differ")
        self.hub.lfs[sha] = self.body
        return self._reply(200)

    def write(self) -> None:
        if self.route == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.route == "/lfs-verify":
            return self._json({})
        if self.token != WRITE:
            return self._error(403 if self.token else 401, "", "You need write access")
        data = json.loads(self.body) if self.body and not self.route.count("/commit/") else {}
        if self.route == "/api/repos/create":
            name = f"{data['organization']}/{data['name']}" if data.get("organization") else data["name"]
            if name in self.hub.repos:
                return self._json({"url": f"{self.hub.url}/{name}", "error": "You already created this repo"}, 409)
            self.hub.repos[name] = Repo(private=bool(data.get("private")) or data.get("visibility") == "private")
            self.hub.repos[name].commit({".gitattributes": b"*.safetensors filter=lfs"})
            return self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.route):
            return self._json({"transfer": "basic", "objects": [self.lfs_action(o) for o in data["objects"]]})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", self.route)
        repo = self.repo(match[1]) if match else None
        if match is None or repo is None:
            return self._error(404, "RepoNotFound") if match is None else None
        if match[2] == "branch":
            if match[3] in repo.branches:
                return self._error(409, "", "Reference already exists")
            repo.branches[match[3]] = repo.branches["main"]
            return self._json({})
        if match[2] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": self.mode(f["path"]), "shouldIgnore": False} for f in data["files"]
            ]
            return self._json({"files": files})
        files = {}
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            if entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.hub.lfs[entry["value"]["oid"]]
        commit = repo.commit(files, match[3])
        return self._json(
            {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{match[1]}/commit/{commit}"}
        )

    @staticmethod
    def mode(path: str) -> str:
        return "lfs" if path.endswith(".safetensors") else "regular"

    def lfs_action(self, wanted: dict) -> dict:
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in self.hub.lfs:
            return answer
        href = f"{self.hub.url}/lfs/{wanted['oid']}"
        return answer | {"actions": {"upload": {"href": href}, "verify": {"href": f"{self.hub.url}/lfs-verify"}}}
