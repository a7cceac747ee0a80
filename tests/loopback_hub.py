"""A small Hugging Face Hub on the loopback interface: enough of it to create, upload, validate and download.

Only the standard library, everything in memory, one process. Set `LoopbackHub.environment()` in the environment of a
subprocess: huggingface_hub reads the endpoint when it is imported.

    with LoopbackHub() as hub:
        subprocess.run([sys.executable, "push.py"], env={**os.environ, **hub.environment(home=tmp_path)})
        hub.repos["tester/cap"].files["README.md"]
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

USER = "tester"
TOKEN = "hf_loopbackwrite"
LARGE = (".safetensors", ".bin", ".png", ".parquet")  # what goes by way of LFS


@dataclass
class Repo:
    """A repository of a model or a data set, with a single branch."""

    name: str
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{self.name}@{self.commits}".encode()).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        content = self.files[path]
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": etag(path, content)}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": etag(path, content), "size": len(content), "pointerSize": 128}
        return entry

    def info(self) -> dict[str, Any]:
        return {
            "_id": "0" * 24,
            "id": self.name,
            "modelId": self.name,
            "sha": self.sha,
            "private": self.private,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": path} for path in sorted(self.files)],
        }


def etag(path: str, content: bytes) -> str:
    """The name the Hub gives to a content: sha256 for large files, git's blob id for the others."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def directory(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": "0" * 40}


class LoopbackHub:
    """The server; a context manager. `requests` lists what it was asked, as `"METHOD path"`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Variables that lead a fresh process here: endpoint, token, and a home of its own for caches and logins."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": token or "",
            "HF_HUB_DISABLE_XET": "1",  # no Xet store here
            "HF_HUB_OFFLINE": "0",
        }


class Refused(Exception):
    """An answer that is an error: HTTP status, the Hub's error code, message."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self._body()
        try:
            for method, pattern, action in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split():
                    action(self, body, **match.groupdict())
                    return
            raise Refused(404, "EntryNotFound", f"no such page: {self.command} {path}")
        except Refused as refused:
            status, code, message = refused.args
            self._answer({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def log_message(self, *arguments: object) -> None:
        """Silence; `LoopbackHub.requests` keeps what is worth knowing."""

    # --- the pages

    def whoami(self, body: bytes) -> None:
        self._authorise()
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        self._answer({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": token})

    def validate_yaml(self, body: bytes) -> None:
        front = re.match(r"---\n(.+?)\n---\n", json.loads(body)["content"], re.DOTALL)
        if front is None:
            self._answer({"errors": [{"message": "no metadata in front"}], "warnings": []}, 400)
            return
        self._answer({"errors": [], "warnings": []})

    def create(self, body: bytes) -> None:
        self._authorise()
        wish = json.loads(body)
        account = wish.get("organization") or USER
        if account != USER:
            raise Refused(403, "Forbidden", f"no rights in the namespace {account}")
        name = f"{account}/{wish['name']}"
        status = 409 if name in self.hub.repos else 200
        self.hub.repos.setdefault(
            name, Repo(name, private=wish.get("private") is True or wish.get("visibility") == "private")
        )
        self._answer({"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name}, status)

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        self._answer(self._repo(name, revision).info())

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        self._authorise()
        self._repo(name, revision)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self._answer({"files": files})

    def lfs_batch(self, body: bytes, name: str) -> None:
        self._authorise()
        objects = [
            {
                **wanted,
                "actions": {"upload": {"href": f"{self.hub.endpoint}/large/{wanted['oid']}", "header": {}}},
            }
            for wanted in json.loads(body)["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects}, 200, {"Content-Type": "application/vnd.git-lfs+json"})

    def lfs_upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(422, "BadHash", "the content is not what its name says")
        self.hub.large[oid] = body
        self._answer({})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        self._authorise()
        repo = self._repo(name, revision)
        for line in body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.large[value["oid"]]
            elif step["key"] != "header":
                raise Refused(400, "BadRequest", f"this Hub knows no {step['key']!r}")
        repo.commits += 1
        url = f"{self.hub.endpoint}/{name}/commit/{repo.sha}"
        self._answer({"success": True, "commitOid": repo.sha, "commitUrl": url})

    def tree(self, body: bytes, name: str, revision: str, folder: str | None = None) -> None:
        repo, above = self._repo(name, revision), f"{folder}/" if folder else ""
        inside = [path.removeprefix(above) for path in sorted(repo.files) if path.startswith(above)]
        if folder and not inside:
            raise Refused(404, "EntryNotFound", f"no folder {folder}")
        if parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() in ("true", "1"):
            folders = {str(parent) for path in inside for parent in PurePosixPath(path).parents} - {"."}
        else:
            folders = {path.split("/")[0] for path in inside if "/" in path}
            inside = [path for path in inside if "/" not in path]
        self._answer(
            [
                *map(directory, (above + path for path in sorted(folders))),
                *(repo.entry(above + path) for path in inside),
            ]
        )

    def paths_info(self, body: bytes, name: str, revision: str) -> None:
        repo, asked = self._repo(name, revision), parse_qs(body.decode()).get("paths", [])
        folders = [path for path in asked if any(file.startswith(path + "/") for file in repo.files)]
        found = [repo.entry(path) for path in asked if path in repo.files]
        self._answer([*found, *map(directory, folders)])

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        repo = self._repo(name, revision)
        if path not in repo.files:
            raise Refused(404, "EntryNotFound", f"no file {path}")
        content = repo.files[path]
        headers = {
            "ETag": f'"{etag(path, content)}"',
            "X-Repo-Commit": repo.sha,
            "Content-Type": "application/octet-stream",
        }
        if path.endswith(LARGE):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        self._answer(content, 200, headers)

    # --- what they share

    def _authorise(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Unauthorized", "Invalid credentials in Authorization header")

    def _repo(self, name: str, revision: str | None) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None:
            raise Refused(404, "RepoNotFound", f"no repository {name}")
        if repo.private:
            self._authorise()
        if revision not in (None, "main", repo.sha):
            raise Refused(404, "RevisionNotFound", f"no revision {revision}")
        return repo

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


_NAME = r"(?P<name>[^/]+/[^/]+)"
_API = rf"/api/(?:models|datasets)/{_NAME}"
_REVISION = r"(?P<revision>[^/]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", r"/api/repos/create", _Handler.create),
    ("GET", _API, _Handler.info),
    ("GET", rf"{_API}/revision/{_REVISION}", _Handler.info),
    ("POST", rf"{_API}/preupload/{_REVISION}", _Handler.preupload),
    ("POST", rf"{_API}/commit/{_REVISION}", _Handler.commit),
    ("POST", rf"{_API}/paths-info/{_REVISION}", _Handler.paths_info),
    ("GET", rf"{_API}/tree/{_REVISION}(?:/(?P<folder>.+))?", _Handler.tree),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/large/(?P<oid>[0-9a-f]{64})", _Handler.lfs_upload),
    ("GET HEAD", rf"/(?:datasets/)?{_NAME}/resolve/{_REVISION}/(?P<path>.+)", _Handler.resolve),
]
