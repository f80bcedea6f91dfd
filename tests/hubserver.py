"""A Hub on this machine: the part of its protocol that downloads use, with faults to order and a log.

Large files (weights) are sent, as the Hub does it, by a redirect to another address, where no token belongs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import NamedTuple
from urllib.parse import unquote

import yaml

Files = dict[str, bytes]
LARGE = (".safetensors", ".bin", ".gguf", ".pth")


def commit_of(files: Files) -> str:
    """A commit's name, made from what it holds."""
    hashes = {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}
    return hashlib.sha1(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def blob(data: bytes) -> str:
    """A file's name in git."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@dataclass
class Repo:
    files: Files
    branches: dict[str, Files] = field(default_factory=dict)
    """Further revisions."""
    gated: bool = False
    token: str | None = None
    """Who does not show it is told that there is no such repo."""

    def __post_init__(self) -> None:
        named = {"main": self.files, **self.branches}
        self.commits = {name: commit_of(files) for name, files in named.items()}
        self.revisions = named | {self.commits[name]: files for name, files in named.items()}


class Asked(NamedTuple):
    method: str
    path: str
    range: str
    token: str

    @property
    def file(self) -> str:
        """The file that was asked for; '' where it was something else."""
        found = re.search(r"/(?:resolve|at)/[0-9a-f]{40}/(.+)", self.path)
        return found[1] if found else ""


class HubServer(ThreadingHTTPServer):
    """Listens on a free port from its creation until `stop`.

    repos: id -> what it holds.
    cuts: file -> after how many bytes of an answer the line goes dead, for each of the coming answers.
    held: file -> an event that its answer waits for, half-way; `reached` is set when it does.
    answers: file -> the status that is answered in place of the file, for each of the coming answers.
    altered, longer: files whose bytes are not what is listed, or more than that.
    page: what is answered in place of a listing.
    ranges: whether a part of a file can be asked for.
    """

    daemon_threads = True

    def __init__(self, repos: Mapping[str, Repo]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos = dict(repos)
        self.asked: list[Asked] = []
        self.cuts: dict[str, list[int]] = {}
        self.held: dict[str, Event] = {}
        self.answers: dict[str, list[int]] = {}
        self.altered: set[str] = set()
        self.longer: set[str] = set()
        self.page: bytes | None = None
        self.ranges = True
        self.reached = Event()
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.cdn = f"http://localhost:{self.server_port}"
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        for event in self.held.values():
            event.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that went away


class Answer(BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        path = unquote(path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.server.asked.append(Asked(self.command, path, self.headers.get("Range", ""), token))
        kind = r"(?:/api/models|/api/datasets|/datasets)"
        name = re.fullmatch(rf"{kind}?/([^/]+/[^/]+)(/.*)?", path.removeprefix("/cdn"))
        repo = self.server.repos.get(name[1]) if name else None
        rest = (name[2] or "/revision/main") if name else ""
        if token.startswith("unknown"):
            message = "Invalid credentials in Authorization header"
            self.answer(401, b"", {"X-Error-Message": message})
        elif repo is None or (repo.token and repo.token != token and not path.startswith("/cdn")):
            self.answer(401, b"Invalid username or password.")
        elif rest == "/refs":
            refs = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": "0" * 40} for n in ("main", *repo.branches)]
            self.answer(200, json.dumps({"branches": refs, "converts": [], "tags": []}).encode())
        elif rest.startswith("/revision/"):
            self.list(name[1], repo.revisions.get(rest.removeprefix("/revision/")), "blobs" in query)
        elif path.startswith("/cdn"):
            _, _, commit, file = rest.split("/", 3)
            self.send(file, repo.revisions[commit][file])
        elif repo.gated and token != "hf_member":
            self.answer(403, b"Access is restricted", {"X-Error-Code": "GatedRepo"})
        else:
            _, _, commit, file = rest.split("/", 3)
            data = repo.revisions.get(commit, {}).get(file)
            if data is None:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            elif file.endswith(LARGE):
                place = f"{self.server.cdn}/cdn/{name[1]}/at/{commit}/{file}"
                told = {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
                self.answer(302, b"", {"Location": place, "X-Repo-Commit": commit_of(repo.revisions[commit]), **told})
            else:
                self.send(file, data, {"X-Repo-Commit": commit_of(repo.revisions[commit]), "ETag": f'"{blob(data)}"'})

    def list(self, repo: str, files: Files | None, sized: bool) -> None:
        if self.server.page is not None:
            self.answer(200, self.server.page)
            return
        if files is None:
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings: list[dict[str, object]] = [{"rfilename": name} for name in files]
        for entry, (name, data) in zip(siblings, files.items(), strict=True):
            if sized:
                entry |= {"size": len(data), "blobId": blob(data)}
                if name.endswith(LARGE):
                    sha256 = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 130}
        card = yaml.safe_load(files.get("README.md", b"").decode().partition("---")[2].partition("---")[0] or "{}")
        answer = {"id": repo, "sha": commit_of(files), "siblings": siblings, "tags": [], "cardData": card}
        self.answer(200, json.dumps(answer).encode())

    def send(self, file: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A file, or what of it was asked for, with the faults that were ordered."""
        server = self.server
        if server.answers.get(file):
            self.answer(server.answers[file].pop(0), b"")
            return
        if file in server.altered:
            data = bytes(byte ^ 1 for byte in data)
        if file in server.longer:
            data += b"more"
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if server.ranges else None
        first = int(begin[1]) if begin else 0
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        for key, value in {**(headers or {}), "Content-Length": str(len(data) - first)}.items():
            self.send_header(key, value)
        self.end_headers()
        body = data[first:]
        if self.command == "HEAD":
            return
        if server.cuts.get(file):
            self.wfile.write(body[: server.cuts[file].pop(0)])
            self.close_connection = True
        elif file in server.held:
            self.wfile.write(body[: len(body) // 2])
            server.reached.set()
            server.held[file].wait(30)
            self.wfile.write(body[len(body) // 2 :])
        else:
            self.wfile.write(body)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
