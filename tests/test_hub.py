"""Adapters on the Hub: found, fetched or refused, against a small Hub on this machine. `pytest tests/test_hub.py`"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from robustmerge.hub import find_folder, name_of
from robustmerge.runs import REPOSITORY
from robustmerge.settings import ConfigError, UserError
from scripts.read_config import _read_experts

COMMIT, OLD = "a" * 40, "b" * 40
SAFE, BIN, CONFIG = "adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"
REPOSITORIES = {
    "ann/both": {CONFIG: b"{}", SAFE: b"safe", BIN: b"bin", "README.md": b"card", "optimizer.pt": b"large"},
    "ann/bin": {CONFIG: b"{}", BIN: b"bin", "non_lora_trainables.bin": b"projector"},
    "ann/model": {"config.json": b"{}", "model.safetensors": b"large"},
}


class TinyHub(BaseHTTPRequestHandler):
    """The part of the Hub's protocol that a snapshot needs. Commit OLD is the revision `old` of ann/both."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api":
            self._tell("/".join(parts[2:4]), parts[4], parts[5] if len(parts) > 5 else "main")
        else:
            data = REPOSITORIES["/".join(parts[:2])][parts[4]] + (b" old" if parts[3] == OLD else b"")
            etag = f'"{hash(data) % 2**64:x}"'
            self._answer(200, data, {"X-Repo-Commit": parts[3], "ETag": etag})

    def _tell(self, repository: str, what: str, revision: str) -> None:
        if repository == "ann/gated":
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif repository not in REPOSITORIES:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "old", COMMIT, OLD):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif what == "revision":
            sha = OLD if revision == "old" else COMMIT
            self._answer(200, json.dumps({"id": repository, "sha": sha, "siblings": []}).encode())
        else:
            files = REPOSITORIES[repository]
            tree = [{"type": "file", "path": n, "size": len(x), "oid": f"{n}{revision}"} for n, x in files.items()]
            self._answer(200, json.dumps(tree).encode())

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *said: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), TinyHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def look_up(texts: list[str], endpoint: str, home: Path, **more: str) -> dict[str, dict[str, str] | str]:
    """What find_folder gives in a process of its own: the files with their contents, or the message."""
    code = (
        "import json, sys\n"
        "from robustmerge.hub import find_folder\n"
        "from robustmerge.settings import UserError\n"
        "def look(text):\n"
        "    try:\n"
        "        return {file.name: file.read_text() for file in find_folder(text).iterdir()}\n"
        "    except UserError as error:\n"
        "        return str(error)\n"
        "print(json.dumps({text: look(text) for text in sys.argv[1:]}))\n"
        "assert 'torch' not in sys.modules\n"
    )
    hidden = ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    env = {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **more}
    ran = subprocess.run([sys.executable, "-c", code, *texts], cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_the_hub_gives_an_adapters_files_and_says_why_not(hub: str, tmp_path: Path) -> None:
    texts = ["ann/both", "ann/both@old", "ann/bin", "ann/model", "ann/none", "ann/gated", "ann/both@new"]
    found = look_up(texts, hub, tmp_path)
    assert found["ann/both"] == {CONFIG: "{}", SAFE: "safe", "README.md": "card"}
    assert found["ann/both@old"][SAFE] == "safe old"
    assert found["ann/bin"] == {CONFIG: "{}", BIN: "bin", "non_lora_trainables.bin": "projector"}
    assert found["ann/model"] == (
        "the repository 'ann/model' of the Hugging Face Hub is no adapter: no adapter_config.json in it"
    )
    for text, reason in {
        "ann/none": "there is no repository ann/none (if it is private: log in with",
        "ann/gated": "it is gated; ask for access on its page",
        "ann/both@new": "ann/both has no revision new",
    }.items():
        start = f"'{text}' is no folder here, and cannot be had from the Hugging Face Hub: {reason}"
        assert found[text].startswith(start)
    nowhere = "http://127.0.0.1:9"  # nobody listens there
    offline = look_up(["ann/both", "ann/bin", "ann/none"], nowhere, tmp_path, HF_HUB_OFFLINE="1")
    assert offline["ann/both"] == found["ann/both"]
    assert offline["ann/bin"] == found["ann/bin"]
    assert "not whole in the cache" in offline["ann/none"]


def test_a_folder_here_comes_before_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ann" / "both").mkdir(parents=True)
    (tmp_path / "ann" / SAFE).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert find_folder("ann/both") == find_folder("./ann/both/") == tmp_path / "ann" / "both"
    assert [name_of(text) for text in ("ann/both", "ann/other@v1.0", "some/deep/path")] == ["both", "other", "path"]
    with pytest.raises(UserError, match="ann/adapter_model.safetensors is a file; give the adapter folder"):
        find_folder(f"ann/{SAFE}")
    for text in ("some/deep/path", "/ann/none", "./none", "nowhere"):
        with pytest.raises(UserError, match="there is no folder .*, and a repository of the Hugging Face Hub is"):
            find_folder(text)


def test_experts_on_the_command_line_may_be_named_and_all_their_problems_are_told(tmp_path: Path) -> None:
    for name in ("one", "two", "bare"):
        (tmp_path / name).mkdir()
    for name in ("one", "two"):
        (tmp_path / name / CONFIG).write_text("{}")
    read = _read_experts([f"{tmp_path}/one", f"second:{tmp_path}/two"])
    assert read == (("one", tmp_path / "one"), ("second", tmp_path / "two"))
    with pytest.raises(ConfigError) as refused:
        _read_experts([f"{tmp_path}/one", f"one:{tmp_path}/two", f"{tmp_path}/bare", "b:no/such/folder"])
    told = refused.value.problems
    assert told[0] == "two experts are called 'one'; name them as name:folder (experts)"
    assert told[1] == f"expert 'bare': {tmp_path}/bare has no adapter_config.json (experts)"
    assert told[2].startswith("expert 'b': there is no folder no/such/folder, and a repository")
    assert len(told) == 3
