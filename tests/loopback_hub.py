"""A Hub on loopback, for the real clients of huggingface_hub and transformers: repositories, branches, commits, large
files through git LFS's basic transfer, Spaces (kept, not run) as `spaces/org/name`, and faults on demand.

Run by itself (`python tests/loopback_hub.py FOLDER`) it prints its address and serves until it is killed.
"""

import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


LARGE = (".safetensors", ".npz", ".png", ".bin")  # what goes through LFS whatever its size
LARGE_BYTES = 10_000_000
CHUNK = 1 << 20
ALWAYS = 10**9


@dataclass(frozen=True)
class File:
    sha256: str
    size: int
    git_sha1: str  # of small files; of large ones git knows a pointer alone
    large: bool

    @property
    def oid(self) -> str:
        return self.sha256 if self.large else self.git_sha1


@dataclass
class Commit:
    files: dict[str, File]
    message: str
    parent: str | None


@dataclass
class Repository:
    private: bool = False
    sdk: str | None = None  # of a Space
    branches: dict[str, str] = field(default_factory=dict)  # name -> commit
    commits: dict[str, Commit] = field(default_factory=dict)

    def add(self, branch: str, files: dict[str, File], message: str) -> str:
        parent = self.branches.get(branch)
        sha = hashlib.sha1(f"{len(self.commits)} {branch} {parent} {message}".encode()).hexdigest()
        self.commits[sha] = Commit(files, message, parent)
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def history(self, branch: str) -> list[Commit]:
        """The branch's commits, newest first, with those it began with."""
        commits, sha = [], self.branches[branch]
        while sha:
            commits.append(self.commits[sha])
            sha = self.commits[sha].parent
        return commits


@dataclass
class Fault:
    kind: int | str
    method: str
    path: str
    times: int
    after: int
    headers: dict[str, str]


class Gone(Exception):
    """The connection is closed without another byte."""


class Sent(Exception):
    """The answer is out already."""


class Answer(Exception):
    def __init__(self, status: int, content=None, **headers: str):
        self.status, self.content, self.headers = status, content, headers


class LoopbackHub:
    """Use as a context manager. `folder` keeps the content of files; all else is in memory.

    Attributes:
        url: for `HF_ENDPOINT`.
        repositories: by `org/name`, or `spaces/org/name`.
        requests: (method, path, whether it carried a token) of all requests so far.
        token: without it, writing is refused with 401; `None` lets everyone write.
        part_size: bytes; larger files are uploaded in parts.
    """

    def __init__(self, folder: str | Path, token: str | None = None, part_size: int | None = None):
        self.folder, self.token, self.part_size = Path(folder), token, part_size
        self.folder.mkdir(parents=True, exist_ok=True)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, bool]] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.address = ("127.0.0.1", 0)
        self.released = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    def start(self):
        """Also after `stop`, at the same address."""
        self.released.clear()
        self.connections = set()
        self.server = ThreadingHTTPServer(self.address, type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.address = self.server.server_address
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self):
        """Down: new connections are refused, those that are open are closed."""
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.connections):
            connection.close_now()

    def fail(self, kind: int | str, method: str = ".*", path: str = ".*", times: int = 1, after: int = 0, **headers):
        """Makes the next `times` requests fail whose method and path match, the first `after` of them excepted.

        Args:
            kind: an HTTP status; `closed` (without an answer), `hang`, `cut` (in the middle of the file that is sent
                or fetched), `done` (the request is carried out, the answer never comes), `html` (503 with a web page).
            headers: of the answer, such as `retry_after="2"`.
        """
        self.faults.append(Fault(kind, method, path, times, after, headers))

    def recover(self):
        """Forgets all faults and lets go what hangs."""
        self.faults.clear()
        self.released.set()
        self.released = threading.Event()

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if re.fullmatch(fault.method, method) and re.search(fault.path, path):
                    if fault.after:
                        fault.after -= 1
                    elif fault.times:
                        fault.times -= 1
                        return fault
        return None

    def store(self, content: bytes, large: bool = False) -> File:
        sha256 = hashlib.sha256(content).hexdigest()
        (self.folder / sha256).write_bytes(content)
        git_sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return File(sha256, len(content), git_sha1, large)

    def content(self, repo_id: str, revision: str) -> dict[str, str]:
        """path -> sha256 of what a revision holds."""
        repository = self.repositories[repo_id]
        files = repository.commits[repository.resolve(revision)].files
        return {path: file.sha256 for path, file in sorted(files.items())}

    def read(self, repo_id: str, revision: str, path: str) -> bytes:
        return (self.folder / self.content(repo_id, revision)[path]).read_bytes()


class Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.hub.connections.add(self)

    def finish(self):
        self.hub.connections.discard(self)
        with contextlib.suppress(OSError):
            super().finish()

    def close_now(self):
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(OSError):  # the client has gone
            super().handle()

    def serve(self):
        method, address = self.command, urlsplit(self.path)
        path, self.query = address.path, parse_qs(address.query, keep_blank_values=True)
        self.unread = int(self.headers.get("Content-Length") or 0)
        self.fault = self.hub.fault(method, path)
        with self.hub.lock:
            self.hub.requests.append((method, path, "authorization" in self.headers))
        try:
            if self.fault:
                self.fail_now(self.fault)
            for pattern, methods, act in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and method in methods:
                    act(self, *(unquote(part) for part in match.groups()))
            raise Answer(404, {"error": f"no such page: {path}"})
        except Answer as answer:
            if self.fault and self.fault.kind == "done":
                self.close()
            else:
                self.answer(answer)
        except Gone:
            self.close()
        except Sent:
            pass

    do_GET = do_HEAD = do_POST = do_PUT = serve

    def close(self):
        self.close_connection = True
        self.close_now()

    def fail_now(self, fault: Fault):
        if isinstance(fault.kind, int):
            headers = {name.replace("_", "-"): value for name, value in fault.headers.items()}
            # Repeats the token, as no server should: what the client says of it must not.
            raise Answer(fault.kind, {"error": f"as the test wants it {self.headers['authorization']}"}, **headers)
        if fault.kind == "html":
            raise Answer(503, b"<html><body>Service unavailable</body></html>")
        if fault.kind == "closed":
            raise Gone
        if fault.kind == "hang":
            self.hub.released.wait()
            raise Gone

    def body(self) -> bytes:
        content, self.unread = self.rfile.read(self.unread), 0
        return content

    def json(self):
        return json.loads(self.body())

    def answer(self, answer: Answer):
        while self.unread:
            self.unread -= len(self.rfile.read(min(CHUNK, self.unread)) or bytes(self.unread))
        content = answer.content
        if not isinstance(content, bytes):
            content = b"" if content is None else json.dumps(content).encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in answer.headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # ------------------------------------------------------------------------------------------------ what is asked

    def must_write(self):
        if self.hub.token and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            raise Answer(401, {"error": "Invalid username or password."})

    def repository(self, repo_id: str) -> Repository:
        if repo_id not in self.hub.repositories:
            raise Answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return self.hub.repositories[repo_id]

    def revision(self, repo_id: str, revision: str) -> tuple[Repository, str]:
        repository = self.repository(repo_id)
        sha = repository.resolve(revision)
        if sha is None:
            raise Answer(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        return repository, sha

    def create(self):
        self.must_write()
        asked = self.json()
        repo_id = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"user/{asked['name']}"
        files = {".gitattributes": self.hub.store(b"*.safetensors filter=lfs\n")}
        if asked.get("type") == "space":
            repo_id = f"spaces/{repo_id}"
            if asked.get("sdk") not in ("gradio", "docker", "static"):
                raise Answer(400, {"error": "a Space needs an sdk"})
            files["README.md"] = self.hub.store(f"---\nsdk: {asked['sdk']}\n---\n".encode())
        with self.hub.lock:
            if repo_id in self.hub.repositories:
                raise Answer(409, {"error": "exists", "url": f"{self.hub.url}/{repo_id}"})
            # `private`: huggingface_hub before it sent `visibility`.
            private = asked.get("private", False) or asked.get("visibility") == "private"
            repository = Repository(private=private, sdk=asked.get("sdk"))
            repository.add("main", files, "initial commit")
            self.hub.repositories[repo_id] = repository
        raise Answer(200, {"url": f"{self.hub.url}/{repo_id}"})

    def create_branch(self, repo_id: str, branch: str):
        self.must_write()
        start = (self.json() or {}).get("startingPoint", "main")
        with self.hub.lock:
            repository, sha = self.revision(repo_id, start)
            if branch in repository.branches:
                raise Answer(409, {"error": f"Reference already exists: refs/heads/{branch}"})
            repository.branches[branch] = sha
        raise Answer(200)

    def validate(self):
        head = re.match(r"---\n(.*?)\n---", self.json()["content"], re.DOTALL)
        if not head or "emotion_of_the_day" in head[1]:
            raise Answer(400, {"errors": [{"message": "bad metadata"}], "warnings": []})
        raise Answer(200, {"errors": [], "warnings": []})

    def preupload(self, repo_id: str, revision: str):
        self.must_write()
        repository, sha = self.revision(repo_id, revision)
        files = []
        for asked in self.json()["files"]:
            large = asked["path"].endswith(LARGE) or asked["size"] > LARGE_BYTES
            present = repository.commits[sha].files.get(asked["path"])
            mode = {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            files.append({**mode, "oid": present.oid} if present else mode)
        raise Answer(200, {"files": files})

    def batch(self, repo_id: str):
        self.must_write()
        objects = []
        for asked in self.json()["objects"]:
            answer, oid, size = {"oid": asked["oid"], "size": asked["size"]}, asked["oid"], asked["size"]
            if not (self.hub.folder / oid).is_file():
                upload = {"href": f"{self.hub.url}/lfs/{oid}"}
                if self.hub.part_size:
                    parts = range(1, -(-size // self.hub.part_size) + 1)
                    header = {f"{part:05}": f"{self.hub.url}/lfs/{oid}/{part}" for part in parts}
                    upload = {
                        "href": f"{self.hub.url}/lfs/{oid}/complete",
                        "header": {"chunk_size": str(self.hub.part_size), **header},
                    }
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/{oid}/verify"}}
            objects.append(answer)
        raise Answer(200, {"objects": objects})

    def put(self, oid: str, part: str | None = None):
        """Whole or absent, whatever happens to the connection: git LFS keeps an object by its hash alone."""
        temporary = self.hub.folder / f".{oid}.{part or 'whole'}.{threading.get_ident()}"
        sha256, stop_at = hashlib.sha256(), self.unread // 2 if self.fault and self.fault.kind == "cut" else -1
        with open(temporary, "wb") as file:
            while self.unread > max(stop_at, 0):
                content = self.rfile.read(min(CHUNK, self.unread - max(stop_at, 0)))
                if not content:
                    raise Gone
                self.unread -= len(content)
                sha256.update(content)
                file.write(content)
        if stop_at >= 0:
            raise Gone
        if part is None and sha256.hexdigest() != oid:
            raise Answer(400, {"error": "the content is not what its hash says"})
        temporary.rename(self.hub.folder / (oid if part is None else f"{oid}.part-{part}"))
        raise Answer(200, ETag=f'"{sha256.hexdigest()}"')

    def complete(self, oid: str):
        parts = [self.hub.folder / f"{oid}.part-{part['partNumber']}" for part in self.json()["parts"]]
        temporary, sha256 = self.hub.folder / f".{oid}.joined", hashlib.sha256()
        with open(temporary, "wb") as joined:
            for part in parts:
                content = part.read_bytes()
                sha256.update(content)
                joined.write(content)
                part.unlink()
        if sha256.hexdigest() != oid:
            raise Answer(400, {"error": "the parts are not what the hash says"})
        temporary.rename(self.hub.folder / oid)
        raise Answer(200, {})

    def verify(self, oid: str):
        asked = self.json()
        if not (self.hub.folder / oid).is_file() or (self.hub.folder / oid).stat().st_size != asked["size"]:
            raise Answer(404, {"error": f"no object {oid}"})
        raise Answer(200, {})

    def commit(self, repo_id: str, revision: str):
        self.must_write()
        lines = [json.loads(line) for line in self.body().splitlines()]
        with self.hub.lock:
            repository, sha = self.revision(repo_id, revision)
            header, files = {}, dict(repository.commits[sha].files)
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    header = value
                elif line["key"] == "file":
                    files[value["path"]] = self.hub.store(base64.b64decode(value["content"]))
                elif line["key"] == "lfsFile":
                    if not (self.hub.folder / value["oid"]).is_file():
                        raise Answer(400, {"error": f"no object {value['oid']}"})
                    files[value["path"]] = File(value["oid"], value["size"], "0" * 40, large=True)
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            if header.get("parentCommit") not in (None, sha):
                raise Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
            new = repository.add(revision, files, header["summary"])
        raise Answer(200, {"commitOid": new, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{new}"})

    def info(self, repo_id: str, revision: str = "main"):
        repository, sha = self.revision(repo_id, revision)
        siblings = [
            {"rfilename": path, "size": file.size, "blobId": file.git_sha1}
            | ({"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": 130}} if file.large else {})
            for path, file in repository.commits[sha].files.items()
        ]
        card = repository.commits[repository.branches["main"]].files.get("README.md")
        text = (self.hub.folder / card.sha256).read_text(encoding="utf-8") if card else ""
        task = re.search(r"^pipeline_tag: (\S+)$", text, re.MULTILINE)
        name = repo_id.removeprefix("spaces/")
        answer = {"id": name, "sha": sha, "siblings": siblings, "tags": [], "private": repository.private}
        raise Answer(200, {**answer, "pipeline_tag": task[1]} if task else answer)

    def refs(self, repo_id: str):
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
            for name, sha in self.repository(repo_id).branches.items()
        ]
        raise Answer(200, {"branches": branches, "tags": [], "converts": []})

    def tree(self, repo_id: str, revision: str, folder: str = ""):
        repository, sha = self.revision(repo_id, revision)
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries, folders = [], set()
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        for path, file in sorted(repository.commits[sha].files.items()):
            if path.startswith(prefix):
                rest = path.removeprefix(prefix)
                if "/" in rest and not recursive:
                    folders.add(prefix + rest.split("/")[0])
                    continue
                entry = {"type": "file", "path": path, "size": file.size, "oid": file.git_sha1}
                if file.large:
                    entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
                entries.append(entry)
        entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        if prefix and not entries:
            raise Answer(404, {"error": f"no folder {folder}"}, X_Error_Code="EntryNotFound")
        raise Answer(200, entries)

    def resolve(self, repo_id: str, revision: str, path: str):
        repository, sha = self.revision(repo_id, revision)
        file = repository.commits[sha].files.get(path)
        if file is None:
            raise Answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        begin = re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range") or "")
        begin = int(begin[1]) if begin else 0
        end = file.size if not self.fault or self.fault.kind != "cut" else (begin + file.size) // 2
        self.send_response(206 if begin else 200)
        self.send_header("X-Repo-Commit", sha)
        self.send_header("ETag", f'"{file.oid}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(file.size - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{file.size - 1}/{file.size}")
        self.end_headers()
        if self.command == "GET":
            with open(self.hub.folder / file.sha256, "rb") as content:
                content.seek(begin)
                while begin < end:
                    chunk = content.read(min(CHUNK, end - begin))
                    self.wfile.write(chunk)
                    begin += len(chunk)
        if end < file.size:
            raise Gone
        raise Sent


REPO, ONE = "((?:spaces/)?[^/]+/[^/]+)", "([^/]+)"
ROUTES = [
    ("/api/repos/create", ("POST",), Handler.create),
    (f"/api/(?:models/)?{REPO}/branch/{ONE}", ("POST",), Handler.create_branch),
    ("/api/validate-yaml", ("POST",), Handler.validate),
    (f"/api/(?:models/)?{REPO}/preupload/{ONE}", ("POST",), Handler.preupload),
    (rf"/{REPO}\.git/info/lfs/objects/batch", ("POST",), Handler.batch),
    (f"/lfs/{ONE}", ("PUT",), Handler.put),
    (rf"/lfs/{ONE}/(\d+)", ("PUT",), Handler.put),
    (f"/lfs/{ONE}/complete", ("POST",), Handler.complete),
    (f"/lfs/{ONE}/verify", ("POST",), Handler.verify),
    (f"/api/(?:models/)?{REPO}/commit/{ONE}", ("POST",), Handler.commit),
    (f"/api/(?:models/)?{REPO}", ("GET",), Handler.info),
    (f"/api/(?:models/)?{REPO}/revision/{ONE}", ("GET",), Handler.info),
    (f"/api/(?:models/)?{REPO}/refs", ("GET",), Handler.refs),
    (f"/api/(?:models/)?{REPO}/tree/{ONE}", ("GET",), Handler.tree),
    (f"/api/(?:models/)?{REPO}/tree/{ONE}/(.*)", ("GET",), Handler.tree),
    (f"/{REPO}/resolve/{ONE}/(.*)", ("GET", "HEAD"), Handler.resolve),
]


if __name__ == "__main__":
    with LoopbackHub(sys.argv[1]) as hub:
        print(hub.url, flush=True)
        while True:
            time.sleep(3600)
