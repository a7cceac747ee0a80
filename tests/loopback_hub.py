"""A small Hugging Face Hub on the loopback interface: enough of it to create, branch, upload, validate and download.

Everything in memory, one process. Set `LoopbackHub.environment()` in the environment of a subprocess: huggingface_hub
reads the endpoint when it is imported. For uploads `LoopbackHub.adopt()` will do in the process that runs.

    with LoopbackHub() as hub:
        subprocess.run([sys.executable, "push.py"], env={**os.environ, **hub.environment(home=tmp_path)})
        hub.repos["tester/cap"].files["README.md"]
        hub.repos["datasets/tester/mined"].branches
        hub.meddle("PUT /large/", cut)   # the next upload of a large file breaks off in its middle
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants, file_download

USER = "tester"
TOKEN = "hf_loopbackwrite"
LARGE = (".safetensors", ".bin", ".pt", ".pth", ".png", ".npy", ".parquet")  # what goes by way of LFS


class Repo:
    """A repository of a model or a data set: what each commit holds, and which commit each branch is at."""

    def __init__(self, name: str, private: bool, files: dict[str, bytes] | None = None) -> None:
        self.name = name
        self.private = private
        self.history: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.sent: list[set[str]] = []  # by each commit
        self.commit("main", files or {})

    @property
    def files(self) -> dict[str, bytes]:
        """What `main` holds."""
        return self.history[self.branches["main"]]

    @property
    def commits(self) -> int:
        """How many there were after the first."""
        return len(self.history) - 1

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Let a branch hold these files from now on."""
        sha = hashlib.sha1(f"{self.name}@{len(self.history)}".encode()).hexdigest()
        self.history[sha] = files
        self.branches[branch] = sha
        return sha

    def info(self, sha: str) -> dict[str, Any]:
        return {
            "_id": "0" * 24,
            "id": self.name,
            "modelId": self.name,
            "sha": sha,
            "private": self.private,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": path} for path in sorted(self.history[sha])],
        }


def etag(path: str, content: bytes) -> str:
    """The name the Hub gives to a content: sha256 for large files, git's blob id for the others."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": etag(path, content)}
    if path.endswith(LARGE):
        found["lfs"] = {"oid": etag(path, content), "size": len(content), "pointerSize": 128}
    return found


def directory(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": "0" * 40}


class LoopbackHub:
    """The server; a context manager. `requests` lists what it was asked, as `"METHOD path"`.

    Models are in `repos` by their name, data sets by `datasets/` and theirs.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.meddlers: list[tuple[str, Callable[[_Handler], None]]] = []
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

    def adopt(self, patch: pytest.MonkeyPatch, token: str | None = TOKEN) -> None:
        """Lead this process here, too."""
        patch.setattr(constants, "ENDPOINT", self.endpoint)
        for module in (constants, file_download):  # the addresses of downloads are made at import
            address = f"{self.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", address, raising=False)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_TOKEN_PATH", os.devnull)  # nobody's login
        patch.setenv("HF_TOKEN", token or "")

    def meddle(self, request: str, action: Callable[[_Handler], None], times: int = 1) -> None:
        """Do something at the next requests that begin so (`"PUT /large/"`), before their body is read."""
        self.meddlers += [(request, action)] * times

    def asked(self, request: str) -> int:
        """How many requests began so."""
        return sum(each.startswith(request) for each in self.requests)


class Refused(Exception):
    """An answer that is an error: HTTP status, the Hub's error code, message."""


class Cut(Exception):
    """The connection breaks off, without an answer."""


def cut(handler: _Handler) -> None:
    """Break the connection in the middle of what is being sent."""
    handler.rfile.read(int(handler.headers.get("Content-Length") or 0) // 2)
    raise Cut


def deaf(handler: _Handler) -> None:
    """Do what is asked, and break the connection before the answer."""
    handler.answers = False


def refuse(status: int) -> Callable[[_Handler], None]:
    """Answer with an error, as a proxy or a Hub in trouble does."""

    def action(handler: _Handler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        raise Refused(status, "Trouble", "not now")

    return action


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub
    answers = True

    def handle_request(self) -> None:
        path = urlsplit(self.path).path
        request = f"{self.command} {unquote(path)}"
        self.hub.requests.append(request)
        try:
            try:
                for meddler in self.hub.meddlers:
                    if request.startswith(meddler[0]):
                        self.hub.meddlers.remove(meddler)
                        meddler[1](self)
                        break
                self._answer(*self._route(path))
            except Refused as refused:
                status, code, message = refused.args
                self._answer({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})
        except Cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def log_message(self, *arguments: object) -> None:
        """Silence; `LoopbackHub.requests` keeps what is worth knowing."""

    def _route(self, path: str) -> tuple[Any, ...]:
        body = self._body()
        for method, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                return action(self, body, **{k: v and unquote(v) for k, v in match.groupdict().items()})
        raise Refused(404, "EntryNotFound", f"no such page: {self.command} {path}")

    # --- the pages: each returns the content of its answer; maybe a status; maybe headers

    def whoami(self, body: bytes) -> tuple[Any, ...]:
        self._authorise()
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        return ({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": token},)

    def validate_yaml(self, body: bytes) -> tuple[Any, ...]:
        front = re.match(r"---\n(.+?)\n---\n", json.loads(body)["content"], re.DOTALL)
        if front is None:
            return {"errors": [{"message": "no metadata in front"}], "warnings": []}, 400
        return ({"errors": [], "warnings": []},)

    def create(self, body: bytes) -> tuple[Any, ...]:
        self._authorise()
        wish = json.loads(body)
        account = wish.get("organization") or USER
        if account != USER:
            raise Refused(403, "Forbidden", f"no rights in the namespace {account}")
        name = f"{account}/{wish['name']}"
        key = name if wish.get("type", "model") == "model" else f"{wish['type']}s/{name}"
        status = 409 if key in self.hub.repos else 200
        private = (
            wish.get("private") is True or wish.get("visibility") == "private"
        )  # up to huggingface_hub 1; from 2 on
        self.hub.repos.setdefault(key, Repo(name, private=private))
        return {"url": f"{self.hub.endpoint}/{key}", "name": name, "id": name}, status

    def branch(self, body: bytes, kind: str, name: str, branch: str) -> tuple[Any, ...]:
        self._authorise()
        repo, sha = self._at(kind, name, None)
        if branch in repo.branches:
            raise Refused(409, "Conflict", f"there is a branch {branch}")
        repo.branches[branch] = sha
        return ({},)

    def info(self, body: bytes, kind: str, name: str, revision: str | None = None) -> tuple[Any, ...]:
        repo, sha = self._at(kind, name, revision)
        return (repo.info(sha),)

    def preupload(self, body: bytes, kind: str, name: str, revision: str) -> tuple[Any, ...]:
        self._authorise()
        repo, sha = self._at(kind, name, revision)
        there = {path: etag(path, content) for path, content in repo.history[sha].items()}
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": there.get(file["path"]),
            }
            for file in json.loads(body)["files"]
        ]
        return ({"files": files},)

    def lfs_batch(self, body: bytes, kind: str, name: str) -> tuple[Any, ...]:
        self._authorise()
        objects = [
            wanted
            if wanted["oid"] in self.hub.large  # a content that is there is not asked for again
            else {
                **wanted,
                "actions": {"upload": {"href": f"{self.hub.endpoint}/large/{wanted['oid']}", "header": {}}},
            }
            for wanted in json.loads(body)["objects"]
        ]
        return {"transfer": "basic", "objects": objects}, 200, {"Content-Type": "application/vnd.git-lfs+json"}

    def lfs_upload(self, body: bytes, oid: str) -> tuple[Any, ...]:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(422, "BadHash", "the content is not what its name says")
        self.hub.large[oid] = body
        return ({},)

    def commit(self, body: bytes, kind: str, name: str, revision: str) -> tuple[Any, ...]:
        self._authorise()
        repo, sha = self._at(kind, name, revision)
        if revision not in repo.branches:
            raise Refused(404, "RevisionNotFound", f"no branch {revision}")
        files, steps = dict(repo.history[sha]), [json.loads(line) for line in body.splitlines()]
        for step in steps:
            value = step["value"]
            if step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif step["key"] == "deletedFile":
                del files[value["path"]]
            elif step["key"] != "header":
                raise Refused(400, "BadRequest", f"this Hub knows no {step['key']!r}")
        repo.sent.append({step["value"]["path"] for step in steps if step["key"] != "header"})
        sha = repo.commit(revision, files)
        return ({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}"},)

    def tree(self, body: bytes, kind: str, name: str, revision: str, folder: str | None = None) -> tuple[Any, ...]:
        (repo, sha), above = self._at(kind, name, revision), f"{folder}/" if folder else ""
        files = repo.history[sha]
        inside = [path.removeprefix(above) for path in sorted(files) if path.startswith(above)]
        if folder and not inside:
            raise Refused(404, "EntryNotFound", f"no folder {folder}")
        if parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() in ("true", "1"):
            folders = {str(parent) for path in inside for parent in PurePosixPath(path).parents} - {"."}
        else:
            folders = {path.split("/")[0] for path in inside if "/" in path}
            inside = [path for path in inside if "/" not in path]
        found = [entry(above + path, files[above + path]) for path in inside]
        return ([*map(directory, (above + path for path in sorted(folders))), *found],)

    def paths_info(self, body: bytes, kind: str, name: str, revision: str) -> tuple[Any, ...]:
        repo, sha = self._at(kind, name, revision)
        files, asked = repo.history[sha], parse_qs(body.decode()).get("paths", [])
        folders = [path for path in asked if any(file.startswith(path + "/") for file in files)]
        found = [entry(path, files[path]) for path in asked if path in files]
        return ([*found, *map(directory, folders)],)

    def resolve(self, body: bytes, name: str, revision: str, path: str, kind: str | None = None) -> tuple[Any, ...]:
        repo, sha = self._at(kind or "models", name, revision)
        if path not in repo.history[sha]:
            raise Refused(404, "EntryNotFound", f"no file {path}")
        content = repo.history[sha][path]
        headers = {
            "ETag": f'"{etag(path, content)}"',
            "X-Repo-Commit": sha,
            "Content-Type": "application/octet-stream",
        }
        if path.endswith(LARGE):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        return content, 200, headers

    # --- what they share

    def _authorise(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Unauthorized", "Invalid credentials in Authorization header")

    def _at(self, kind: str, name: str, revision: str | None) -> tuple[Repo, str]:
        """The repository, and the commit that a branch or the name of a commit means."""
        repo = self.hub.repos.get(name if kind == "models" else f"{kind}/{name}")
        if repo is None:
            raise Refused(404, "RepoNotFound", f"no repository {name}")
        if repo.private:
            self._authorise()
        sha = repo.branches.get(revision or "main", revision)
        if sha not in repo.history:
            raise Refused(404, "RevisionNotFound", f"no revision {revision}")
        return repo, sha

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
        if not self.answers:
            raise Cut
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


_NAME = r"(?P<name>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_NAME}"
_REVISION = r"(?P<revision>[^/]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", r"/api/repos/create", _Handler.create),
    ("GET", _API, _Handler.info),
    ("GET", rf"{_API}/revision/{_REVISION}", _Handler.info),
    ("POST", rf"{_API}/branch/(?P<branch>[^/]+)", _Handler.branch),
    ("POST", rf"{_API}/preupload/{_REVISION}", _Handler.preupload),
    ("POST", rf"{_API}/commit/{_REVISION}", _Handler.commit),
    ("POST", rf"{_API}/paths-info/{_REVISION}", _Handler.paths_info),
    ("GET", rf"{_API}/tree/{_REVISION}(?:/(?P<folder>.+))?", _Handler.tree),
    ("POST", rf"/(?:(?P<kind>datasets)/)?{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/large/(?P<oid>[0-9a-f]{64})", _Handler.lfs_upload),
    ("GET HEAD", rf"/(?:(?P<kind>datasets)/)?{_NAME}/resolve/{_REVISION}/(?P<path>.+)", _Handler.resolve),
]
