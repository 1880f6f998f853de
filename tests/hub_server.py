"""The part of the Hugging Face hub that pushing and fetching ask, on this machine: repositories, commits, files."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_ann"
"""The token of Ann, who may write to `ann/…` only and may read what is private there."""

Files = dict[str, bytes]


@dataclass
class Repo:
    """One repository: its branches, each the name of a commit, and the files of each commit."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: Files, message: str = "first") -> str:
        """Add the files to a branch; returns the commit."""
        whole = self.commits.get(self.branches.get(branch, ""), {}) | files
        name = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[name], self.branches[branch] = whole, name
        self.messages.append(message)
        return name


class HubServer:
    """Answers as the hub does, as far as `HfApi` and `snapshot_download` look.

    Attributes:
        repos: by `models/owner/name` or `datasets/owner/name`; a test may put some there.
        requests: method and path of each request so far.
        url: where it listens.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", text: str = "refused", **told: str):
        self.status, self.code, self.text, self.told = status, code, text, told


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self._answer()

        do_GET = do_HEAD = do_PUT = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _answer(self) -> None:
            path, body = unquote(urlsplit(self.path).path), self._body()
            hub.requests.append(f"{self.command} {path}")
            headers: dict[str, str] = {}
            try:
                if self.command in ("POST", "PUT"):
                    status, content = 200, json.dumps(self._write(path, body)).encode()
                elif path.startswith("/api/"):
                    status, content = 200, json.dumps(self._look(path)).encode()
                else:
                    status, (content, headers) = 200, self._file(path)
            except _Refused as refused:
                status, content = refused.status, json.dumps({"error": refused.text, **refused.told}).encode()
                headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.text}
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _write(self, path: str, body: bytes) -> Any:
            if path.startswith("/blobs/"):  # where the address is the permission
                hub.blobs[path.removeprefix("/blobs/")] = body
                return {}
            if path == "/api/validate-yaml":
                _, head, _ = json.loads(body)["content"].split("---\n", 2)
                yaml.safe_load(head)
                return {"errors": [], "warnings": []}
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise _Refused(401, text="Invalid credentials")
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if found := re.fullmatch(r"/(datasets/)?(ann/[^/]+)\.git/info/lfs/objects/batch", path):
                wanted = [(o["oid"], o["size"]) for o in json.loads(body)["objects"]]
                there = [
                    {"oid": o, "size": n, "actions": {"upload": {"href": f"{hub.url}/blobs/{o}"}}} for o, n in wanted
                ]
                return {"transfer": "basic", "objects": there}
            found = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path)
            assert found, path
            name, what, branch = found.groups()
            repo = self._repo(name, write=True)
            if what == "branch":
                if branch in repo.branches:
                    raise _Refused(409)
                repo.branches[branch] = repo.branches["main"]
                return {}
            if branch not in repo.branches:
                raise _Refused(404, "RevisionNotFound")
            if what == "preupload":
                large = (".safetensors", ".sqlite")
                modes = {
                    f["path"]: "lfs" if f["path"].endswith(large) else "regular" for f in json.loads(body)["files"]
                }
                return {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
            return self._commit(name, repo, branch, [json.loads(line) for line in body.splitlines()])

        def _create(self, wanted: dict[str, Any]) -> Any:
            name = f"{wanted.get('type') or 'model'}s/{wanted['organization']}/{wanted['name']}"
            if wanted["organization"] != "ann":
                raise _Refused(403, text="You don't have the rights to create a model under this namespace")
            url = f"{hub.url}/{name.removeprefix('models/')}"
            if name in hub.repos:
                raise _Refused(409, url=url)
            hub.repos[name] = Repo(private=wanted.get("visibility") == "private" or wanted.get("private") is True)
            hub.repos[name].commit("main", {".gitattributes": b""})
            return {"url": url}

        def _commit(self, name: str, repo: Repo, branch: str, lines: list[dict[str, Any]]) -> Any:
            files: Files = {}
            for line in lines[1:]:
                value = line["value"]
                large = line["key"] == "lfsFile"
                files[value["path"]] = hub.blobs[value["oid"]] if large else base64.b64decode(value["content"])
            commit = repo.commit(branch, files, lines[0]["value"]["summary"])
            return {"commitUrl": f"{hub.url}/{name.removeprefix('models/')}/commit/{commit}", "commitOid": commit}

        def _repo(self, name: str, *, write: bool = False) -> Repo:
            ann, repo = self.headers.get("Authorization") == f"Bearer {TOKEN}", hub.repos.get(name)
            if repo is None or (repo.private and not ann):
                raise _Refused(404 if ann else 401, "RepoNotFound", "Repository not found")
            if write and name.split("/")[1] != "ann":
                raise _Refused(403, text="no write permission")
            return repo

        def _at(self, name: str, revision: str) -> tuple[str, Files]:
            repo = self._repo(name)
            commit = repo.branches.get(revision, revision)
            if commit not in repo.commits:
                raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return commit, repo.commits[commit]

        def _look(self, path: str) -> Any:
            found = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
            assert found, path
            name, what, revision = found.groups()
            commit, files = self._at(name, revision or "main")
            if what == "tree":
                sizes = {p: (len(b), hashlib.sha1(b).hexdigest()) for p, b in files.items()}
                return [{"type": "file", "path": p, "size": n, "oid": oid} for p, (n, oid) in sizes.items()]
            return {"id": name.split("/", 1)[1], "sha": commit, "private": hub.repos[name].private, "siblings": []}

        def _file(self, path: str) -> tuple[bytes, dict[str, str]]:
            found = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            assert found, path
            dataset, repo, revision, file = found.groups()
            commit, files = self._at(f"{dataset or 'models/'}{repo}", revision)
            if file not in files:
                raise _Refused(404, "EntryNotFound")
            etag = hashlib.sha256(files[file]).hexdigest()
            return files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": commit}

    return Handler
