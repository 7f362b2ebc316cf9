"""A Hub of one process: what huggingface_hub asks for to make, fill and read model repositories, in memory.

Large files take the way of Git LFS (batch, upload, verify) and are downloaded from another host, as from the Hub's CDN.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".pt", ".pth")
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass(frozen=True)
class File:
    content: bytes
    large: bool = False

    @property
    def oid(self) -> str:
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    summary: str
    files: dict[str, File]
    parent: str | None

    @property
    def sha(self) -> str:
        tree = sorted((path, file.oid) for path, file in self.files.items())
        return hashlib.sha1(repr((self.summary, tree, self.parent)).encode()).hexdigest()


@dataclass
class Repo:
    private: bool
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def add(self, commit: Commit, *refs: str) -> str:
        self.commits[commit.sha] = commit
        self.refs.update(dict.fromkeys(refs, commit.sha))
        return commit.sha

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision, revision))

    def history(self, revision: str = "main") -> list[str]:
        """Summaries, the newest first, without that of the commit which made the repository."""
        commit, summaries = self.find(revision), []
        while commit is not None and commit.parent is not None:
            summaries.append(commit.summary)
            commit = self.commits[commit.parent]
        return summaries


@dataclass
class Fault:
    """What goes wrong with the next requests.

    Attributes:
        what: an HTTP status; "cut": the connection ends in the middle of the request's body, or of the answer's if
            it has none, or before it (HEAD); "lost": the request is carried out, and its answer never comes.
    """

    method: str
    path: str
    what: int | str
    times: int


@dataclass
class Hub:
    """The server's state, for tests to set up and look at."""

    tokens: dict[str, str]
    repos: dict[str, Repo] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def elsewhere(self) -> str:
        """The same server under a name of its own: where the Hub sends for large files."""
        return f"http://localhost:{self.port}"

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        commit = self.repos[repo].find(revision)
        assert commit is not None, f"{repo} has no {revision}"
        return {path: file.content for path, file in commit.files.items() if path != ".gitattributes"}

    @contextlib.contextmanager
    def broken(self, method: str, path: str, what: int | str, times: int = 1_000) -> Iterator[Fault]:
        """Within it so many requests whose path matches go wrong."""
        fault = Fault(method, path, what, times)
        self.faults.append(fault)
        try:
            yield fault
        finally:
            self.faults.remove(fault)

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[str]]:
        """The requests that arrive within it, as "METHOD /path"."""
        seen: list[str] = []
        start = len(self.requests)
        yield seen
        seen += self.requests[start:]


@contextlib.contextmanager
def serve(tokens: dict[str, str]) -> Iterator[Hub]:
    """Runs a hub on a free port of this machine.

    Args:
        tokens: users by their tokens.
    """
    hub = Hub(tokens)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Refused(Exception):
    """An answer that is an error: status, code and message, as the Hub sends them in headers."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.hub.requests.append(f"{self.command} {url.path}")
        fault = self._fault(url.path)
        self.cut_answer = False
        if fault == "cut" and (self._length() or self.command == "HEAD"):
            self.rfile.read(self._length() // 2)
            return self._hang_up()
        self.cut_answer, self.lost = fault == "cut", fault == "lost"
        self.body = self.rfile.read(self._length())
        if isinstance(fault, int):
            return self._answer(fault, {"error": "something went wrong"})
        try:
            return self._route(url.path)
        except _Refused as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            return self._answer(error.status, {"error": error.message}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _fault(self, path: str) -> int | str | None:
        for fault in self.hub.faults:
            if fault.times > 0 and re.search(fault.method, self.command) and re.search(fault.path, path):
                fault.times -= 1
                return fault.what
        return None

    def _route(self, path: str) -> None:
        for methods, pattern, name in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in methods:
                arguments = {key: unquote(value) for key, value in found.groupdict(default="main").items()}
                return getattr(self, name)(**arguments)
        raise _Refused(404, "", f"no such page: {path}")

    # accounts and repositories

    def create(self) -> None:
        wish = json.loads(self.body)
        user = self._user()
        if user is None:
            raise _Refused(401, "", "Invalid username or password.")
        name = f"{wish.get('organization') or user}/{wish['name']}"
        self._must_own(name)
        answer = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        if name in self.hub.repos:
            return self._answer(409, {"error": "You already created this model repo", **answer})
        repo = Repo(private=wish.get("visibility") == "private" or wish.get("private") is True)
        repo.add(Commit("initial commit", {".gitattributes": File(b"*.safetensors filter=lfs\n")}, None), "main")
        self.hub.repos[name] = repo
        return self._answer(200, answer)

    def info(self, repo: str, revision: str) -> None:
        found, commit = self._commit(repo, revision)
        siblings = [{"rfilename": path} for path in commit.files]
        answer = {"id": repo, "sha": commit.sha, "private": found.private, "siblings": siblings, "tags": []}
        self._answer(200, answer)

    def branch(self, repo: str, branch: str) -> None:
        self._must_own(repo)
        found = self._repo(repo)
        if branch in found.refs:
            return self._answer(409, {"error": "Reference already exists"})
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        found.refs[branch] = self._commit(repo, start)[1].sha
        return self._answer(200, {})

    # uploads

    def validate(self) -> None:
        self._answer(200, {"warnings": [], "errors": []})

    def preupload(self, repo: str, revision: str) -> None:
        self._must_own(repo)
        commit = self._commit(repo, revision)[1]
        files = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith(LARGE) or file["size"] > 10 * 2**20 else "regular"
            known = commit.files.get(file["path"])
            oid = known.oid if known else None
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer(200, {"files": files, "commitOid": commit.sha})

    def lfs_batch(self, repo: str) -> None:
        self._must_own(repo)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            if wanted["oid"] not in self.hub.large:
                upload = {"href": f"{self.hub.elsewhere}/storage/{wanted['oid']}"}
                verify = {"href": f"{self.hub.endpoint}/{repo}.git/info/lfs/verify"}
                wanted = {**wanted, "actions": {"upload": upload, "verify": verify}}
            objects.append(wanted)
        self._answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        assert "Authorization" not in self.headers, "the storage must not see the token"
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "", "BadDigest")
        self.hub.large[oid] = self.body
        self._answer(200, {}, {"ETag": f'"{oid}"'})

    def lfs_verify(self, repo: str) -> None:
        self._must_own(repo)
        wanted = json.loads(self.body)
        stored = self.hub.large.get(wanted["oid"])
        if stored is None or len(stored) != wanted["size"]:
            raise _Refused(404, "", "the object was not stored")
        self._answer(200, {})

    def commit(self, repo: str, revision: str) -> None:
        self._must_own(repo)
        found, parent = self._commit(repo, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, *changes = (line["value"] for line in lines)
        if header.get("parentCommit", parent.sha) != parent.sha:
            raise _Refused(412, "", "A commit has happened since.")
        files = dict(parent.files)
        for line, value in zip(lines[1:], changes, strict=True):
            files[value["path"]] = self._file(line["key"], value)
        commit = Commit(header["summary"], files, parent.sha)
        answer = {
            "success": True,
            "commitOid": commit.sha,
            "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{commit.sha}",
        }
        if self.query.get("create_pr"):
            number = 1 + sum(ref.startswith("refs/pr/") for ref in found.refs)
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo}/discussions/{number}"
            revision = f"refs/pr/{number}"
        found.add(commit, revision)
        self._answer(200, answer)

    def _file(self, key: str, value: dict[str, Any]) -> File:
        if key == "file":
            return File(base64.b64decode(value["content"]))
        if key == "lfsFile" and value["oid"] in self.hub.large:
            return File(self.hub.large[value["oid"]], large=True)
        raise _Refused(400, "", f"cannot commit {key} {value.get('path')}")

    # downloads

    def resolve(self, repo: str, revision: str, path: str) -> None:
        if repo in self.hub.moved:
            target = f"/{self.hub.moved[repo]}/resolve/{revision}/{path}"
            return self._answer(307, {}, {"Location": target})
        found, commit = self._commit(repo, revision)
        if found.gated and self._user() != repo.partition("/")[0]:
            raise _Refused(401, "GatedRepo", f"Access to model {repo} is restricted.")
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            return self._answer(404, {}, {**headers, "X-Error-Code": "EntryNotFound"})
        file = commit.files[path]
        if not file.large:
            return self._answer(200, file.content, {**headers, "ETag": f'"{file.oid}"'})
        linked = {"X-Linked-ETag": f'"{file.oid}"', "X-Linked-Size": str(len(file.content))}
        location = f"{self.hub.elsewhere}/cdn/{file.oid}"
        return self._answer(302, {}, {**headers, **linked, "Location": location})

    def cdn(self, oid: str) -> None:
        assert "Authorization" not in self.headers, "the CDN must not see the token"
        self._answer(200, self.hub.large[oid], {"ETag": f'"{oid}"'})

    # who may do what

    def _user(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if not token:
            return None
        if scheme != "Bearer" or token not in self.hub.tokens:
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def _must_own(self, repo: str) -> None:
        user = self._user()
        if user is None:
            raise _Refused(401, "RepoNotFound", "Invalid username or password.")
        if user != repo.partition("/")[0]:
            raise _Refused(403, "", "You don't have the rights to create or change a model under this namespace")

    def _repo(self, name: str) -> Repo:
        user, repo = self._user(), self.hub.repos.get(name)
        if repo is None or (repo.private and user != name.partition("/")[0]):
            # The Hub does not tell strangers which private repositories there are.
            raise _Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        return repo

    def _commit(self, repo: str, revision: str) -> tuple[Repo, Commit]:
        found = self._repo(repo)
        commit = found.find(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found, commit

    # the wire

    def _length(self) -> int:
        return int(self.headers.get("Content-Length") or 0)

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        if getattr(self, "lost", False):
            return self._hang_up()
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.cut_answer else body)
        return self._hang_up() if self.cut_answer else None

    def _hang_up(self) -> None:
        """Resets the connection, as a cable that is pulled out would."""
        self.wfile.flush()
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        pass


API = rf"/api/models/{REPO}"
ROUTES = (
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"{API}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"{API}/branch/(?P<branch>[^/]+)", "branch"),
    ("GET", rf"{API}(/revision/(?P<revision>[^/]+))?", "info"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", rf"/{REPO}\.git/info/lfs/verify", "lfs_verify"),
    ("PUT", r"/storage/(?P<oid>\w+)", "store"),
    (("GET", "HEAD"), rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ("GET", r"/cdn/(?P<oid>\w+)", "cdn"),
)
