"""A small Hub on this machine: the part of its protocol that downloads need, with cuts and damage on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

COMMIT, OLD = "a" * 40, "b" * 40
LARGE = 1000  # bytes from which a file is kept apart, under its sha256, and served from another address


@dataclass
class TinyHub:
    """What the server has, what it shall do wrong, and what it was asked.

    files: repository -> file -> content at COMMIT, the tip of `main`; at OLD, the tag `old`, contents end in " old".
    cuts: file -> after how many bytes the next answers break off; spoilt: file -> how many of the next answers are
    damaged; gated: repositories whose files nobody may have; asked: (path, Range header) of every GET; tokens: (first
    part of a path, Authorization header) of all requests.
    """

    files: dict[str, dict[str, bytes]]
    cuts: dict[str, list[int]] = field(default_factory=dict)
    spoilt: dict[str, int] = field(default_factory=dict)
    gated: tuple[str, ...] = ("ann/gated",)
    refs: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "old": OLD})
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    tokens: set[tuple[str, str | None]] = field(default_factory=set)
    address: str = ""

    def content(self, repository: str, commit: str) -> dict[str, bytes]:
        old = b" old" if commit == OLD else b""
        return {name: data + old for name, data in self.files[repository].items()}

    def of_file(self, name: str) -> list[str | None]:
        """The Range headers with which a file's content was asked for."""
        return [span for path, span in self.asked if path.startswith("/cdn/") and path.endswith(f"/{name}")]


class _Handler(BaseHTTPRequestHandler):
    hub: TinyHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.command == "GET":
            self.hub.asked.append((path, self.headers["Range"]))
        self.hub.tokens.add((path.split("/")[1], self.headers["Authorization"]))
        first, *parts = path.removeprefix("/datasets").strip("/").split("/")
        if first == "api" and len(parts) < 4:
            self._answer(404, b"{}")
        elif first == "api":
            self._tell("/".join(parts[1:3]), parts[3], parts[4] if len(parts) > 4 else "main")
        elif first == "cdn":
            self._send("/".join(parts[:2]), parts[2], "/".join(parts[3:]))
        else:
            self._resolve(f"{first}/{parts[0]}", parts[2], "/".join(parts[3:]))

    def _tell(self, repository: str, what: str, revision: str) -> None:
        """The commit of a revision, or the list of a commit's files."""
        commit = self.hub.refs.get(revision, revision)
        if repository not in self.hub.files:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif commit not in (COMMIT, OLD):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif what == "revision":
            self._answer(200, json.dumps({"id": repository, "sha": commit, "siblings": []}).encode())
        else:
            entries = [_entry(name, data) for name, data in self.hub.content(repository, commit).items()]
            self._answer(200, json.dumps(entries).encode())

    def _resolve(self, repository: str, commit: str, name: str) -> None:
        """Where a file's content is, and its digest."""
        if repository in self.hub.gated:
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            return
        data = self.hub.content(repository, commit)[name]
        known = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{digest_of(data)}"', "X-Linked-Size": str(len(data))}
        other_host = self.hub.address.replace("127.0.0.1", "localhost")  # no token goes there
        place = f"{other_host}/cdn/{repository}/{commit}/{name}"
        self._answer(302, b"", {"Location": place, "ETag": '"of the pointer"', **known})

    def _send(self, repository: str, commit: str, name: str) -> None:
        data = self.hub.content(repository, commit)[name]
        if self.hub.spoilt.get(name, 0) and self.command == "GET":
            self.hub.spoilt[name] -= 1
            data = bytes(len(data))
        span = self.headers["Range"]
        start = int(span.removeprefix("bytes=").removesuffix("-")) if span else 0
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if span else {}
        cuts = self.hub.cuts.get(name) if self.command == "GET" else None
        self._answer(206 if span else 200, data[start:], headers, cuts.pop(0) if cuts else None)

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:cut])
        self.close_connection = cut is not None

    def log_message(self, *said: object) -> None:
        pass


def digest_of(data: bytes) -> str:
    """What the Hub knows a file by: the sha256 of a large one, git's sha1 of a small one."""
    if len(data) >= LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(name: str, data: bytes) -> dict:
    digest = digest_of(data)
    lfs = {"lfs": {"oid": digest, "size": len(data), "pointerSize": 130}} if len(data) >= LARGE else {}
    oid = "c" * 40 if lfs else digest
    return {"type": "file", "path": name, "size": len(data), "oid": oid, **lfs}


@contextmanager
def serve(files: dict[str, dict[str, bytes]]) -> Iterator[TinyHub]:
    """A Hub with these repositories, until the block ends."""
    hub = TinyHub(files)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use(patch: pytest.MonkeyPatch, address: str, cache: Path, offline: bool = False) -> None:
    """Point the Hub's library in this process to an address and a cache."""
    patch.setenv("NO_PROXY", "127.0.0.1,localhost")
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", offline)
    close_session()  # its next connections take the settings
