"""Uploading to the Hub: what is uploaded, what is not, and nothing unasked; against a small Hub on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.program import compose
from pipeline.sweep import make_plan_with
from pipeline.tools.push import PushRequest
from pipeline.tools.push import push as push_folder
from robustmerge.cli.program import main
from robustmerge.merging import merge_folders
from robustmerge.push.files import UploadedFile, collect_files
from robustmerge.stage.settings import ConfigError, UserError
from tests.merge_cases import QUIET, random_experts, write_expert

SAFE = "adapter_model.safetensors"
COMMIT = "c" * 40


@dataclass
class Hub:
    """A Hub for ann (token `right`), who may write only there; ann/full has a file, and bea/x is somebody else's."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"ann/full": {"old.txt": b"old"}})
    private: dict[str, bool] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    message: str = ""
    broken: bool = False  # answers 403 to the commit


class Answers(BaseHTTPRequestHandler):
    """The part of the protocol that an upload speaks: whoami, model, create, preupload, LFS batch and PUT, commit."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *rest: Any):
        self.hub = hub
        super().__init__(*rest)

    def do_GET(self) -> None:
        self.read()
        if self.headers.get("Authorization") != "Bearer right":
            self.answer(401, {"error": "Invalid credentials"})
        elif self.path.startswith("/api/whoami"):
            self.answer(200, {"name": "ann", "orgs": []})
        elif (name := self.path.partition("?")[0].removeprefix("/api/models/")) in self.hub.repositories:
            files = [{"rfilename": file} for file in [".gitattributes", *self.hub.repositories[name]]]
            private = self.hub.private.get(name, False)
            self.answer(200, {"id": name, "private": private, "sha": COMMIT, "siblings": files})
        else:
            self.answer(404, {}, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        body = self.read()
        if self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self.answer(200, {})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            kinds = {file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular" for file in files}
            told = [{"path": name, "uploadMode": kind, "shouldIgnore": False} for name, kind in kinds.items()]
            self.answer(200, {"files": told})
        elif self.path.endswith("/objects/batch"):
            told = [{**one, "actions": {"upload": {"href": f"{self.hub.address}/put/{one['oid']}"}}} for one in
                    json.loads(body)["objects"]]  # fmt: skip
            self.answer(200, {"transfer": "basic", "objects": told})
        elif "/commit/" in self.path:
            self.commit(self.path.split("/api/models/")[1].partition("/commit/")[0], body)

    def do_PUT(self) -> None:
        data = self.read()
        self.hub.large[hashlib.sha256(data).hexdigest()] = data
        self.answer(200, {})

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization'] or 'ann'}/{wanted['name']}"
        if not name.startswith("ann/"):
            return self.answer(403, {"error": "You don't have the rights"})
        self.hub.repositories[name] = {}
        self.hub.private[name] = wanted.get("private", False) or wanted.get("visibility") == "private"
        return self.answer(200, {"url": f"{self.hub.address}/{name}"})

    def commit(self, name: str, body: bytes) -> None:
        if self.hub.broken:
            return self.answer(403, {"error": "storage"})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.message = value["summary"]
            elif line["key"] == "file":
                self.hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
            else:
                self.hub.repositories[name][value["path"]] = self.hub.large[value["oid"]]
        made = {"success": True, "commitUrl": f"{self.hub.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        return self.answer(200, made)

    def read(self) -> bytes:
        self.hub.asked.append(f"{self.command} {self.path}")
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status: int, told: dict, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(told).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *said: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Answers, made))
    threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
    made.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", made.address)
    monkeypatch.setenv("HF_TOKEN", "right")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge of two experts whose base is a folder of this machine, with some things that are nobody's business."""
    root = tmp_path_factory.mktemp("push")
    base = {"base_model_name_or_path": "/users/ann/secret/base"}
    experts = {name: write_expert(root / name, pairs, **base) for name, pairs in random_experts("ab").items()}
    merge_folders(experts, "task_arithmetic", root / "merged", **QUIET)
    (root / "merged" / "conversion.json").write_text('{"asked": {"base": "/users/ann/secret/base"}, "layers": 2}')
    (root / "merged" / "optimizer.pt").write_bytes(b"state")
    (root / "merged" / "training_args.bin").write_bytes(b"pickle")
    (root / "merged" / ".token").write_bytes(b"token")
    return root / "merged"


@cache
def point() -> dict[str, Any]:
    return compose("push", [])


def push(folder: Path | None, repo: str = "ann/merged", **values: Any) -> None:
    push_folder({**point(), "folder": folder and str(folder), "repo": repo, "yes": True, **values})


def test_an_adapter_arrives_with_a_card_that_says_how_it_was_made(
    hub: Hub, merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(merged, base="ann/base")
    there = hub.repositories["ann/merged"]
    assert sorted(there) == ["README.md", "adapter_config.json", SAFE, "conversion.json", "manifest.json"]
    assert there[SAFE] == (merged / SAFE).read_bytes()
    assert hub.private["ann/merged"]
    assert hub.message == "Task Arithmetic of 2 LoRA experts"
    card = there["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "ann/base"
    manifest = json.loads((merged / "manifest.json").read_text())
    (settings,) = re.findall(r"```yaml\n(.*?)```", card, re.S)
    assert yaml.safe_load(settings) == manifest["identity"]["settings"]
    assert all(expert in card for expert in manifest["record"]["experts"])
    assert manifest["record"]["commit"] is None or manifest["record"]["commit"] in card
    assert json.loads(there["adapter_config.json"])["base_model_name_or_path"] == "ann/base"
    told = capsys.readouterr().out
    assert "it says: method, settings, experts, base, commit" in told
    assert "left out: .token, optimizer.pt, training_args.bin" in told
    assert "a new private repository, as ann" in told
    assert f"'experts=[ann/merged@{COMMIT}]'" in told


def test_the_librarys_command_uploads_the_same_and_names_its_own_options(
    hub: Hub, merged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    push(merged, base="ann/base")
    main(["push", str(merged), "ann/other", "--base", "ann/base", "--no-private", "--yes"])
    assert hub.repositories["ann/other"] == hub.repositories["ann/merged"]
    assert (hub.private["ann/merged"], hub.private["ann/other"]) == (True, False)
    assert f"robustmerge merge METHOD ann/other@{COMMIT} EXPERT" in capsys.readouterr().out
    for words, message in {
        ("ann/full", "--yes"): "exists and has files; take another one, or add to it with --update",
        ("ann/new",): "there is no terminal to answer; add --yes",
        ("new",): "a repository of the Hub is written user/name, got new (repo)",
    }.items():
        with pytest.raises(SystemExit) as ended:
            main(["push", str(merged), *words])
        printed = capsys.readouterr()
        assert ended.value.code == 2 and message in printed.err
        assert ("/" not in words[0]) or "give its name on the Hub, --base user/name" in printed.out


def test_nothing_of_this_machine_is_uploaded(hub: Hub, merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push(merged)
    host = json.loads((merged / "manifest.json").read_text())["record"]["host"]
    everything = {name: data.decode() for name, data in hub.repositories["ann/merged"].items() if name != SAFE}
    for text in everything.values():
        assert "/users/ann" not in text and str(merged.parent) not in text
        assert f'"{host}"' not in text
    assert "nobody else can find the base model 'base'; give its name on the Hub" in capsys.readouterr().out


def test_a_cut_upload_goes_on_and_what_has_files_is_added_to_only_if_asked(hub: Hub, merged: Path) -> None:
    hub.broken = True
    with pytest.raises(UserError, match="the token has no right to write to 'ann'; log in with"):
        push(merged)
    assert hub.repositories["ann/merged"] == {}
    hub.broken = False
    push(merged)
    assert SAFE in hub.repositories["ann/merged"]
    before = list(hub.asked)
    with pytest.raises(UserError, match="ann/full exists and has files; take another one, or add to it with update"):
        push(merged, "ann/full")
    assert not [asked for asked in hub.asked[len(before) :] if asked.startswith(("POST", "PUT"))]
    push(merged, "ann/full", update=True, private=False)
    assert {"old.txt", SAFE} <= set(hub.repositories["ann/full"])


def test_what_the_hub_refuses_is_said_in_our_words(
    hub: Hub, merged: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="refused to take 'bea/new': the token has no right to write to 'bea'"):
        push(merged, "bea/new")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(UserError, match="the token is not valid; log in with `hf auth login`, or set HF_TOKEN"):
        push(merged)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        push(merged)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="there is no token for the Hub"):
        push(merged)
    assert set(hub.repositories) == {"ann/full"}
    monkeypatch.setenv("HF_TOKEN", "right")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(UserError, match="'ann/merged' could not be uploaded: .*; nothing is lost"):
        push(merged)


@pytest.mark.parametrize(("typed", "is_uploaded"), [("y", True), ("", False), ("no", False), (None, False)])
def test_it_asks_first(
    typed: str | None, is_uploaded: bool, hub: Hub, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(question: str) -> str:
        assert re.fullmatch(r"upload these 5 files \(\d.*\)\? \[y/N\] ", question)
        if typed is None:
            raise EOFError
        return typed

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", answer)
    push(merged, yes=False)
    assert ("ann/merged" in hub.repositories) == is_uploaded


def test_without_a_terminal_it_does_not_even_ask_the_hub(
    hub: Hub, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(UserError, match="an upload asks first, and there is no terminal to answer; add yes=true"):
        push(merged, yes=False)
    assert not hub.asked


def test_dense_updates_are_called_what_they_are_and_much_is_refused(
    hub: Hub, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "delta_config.json").write_text('{"format": 1, "base_model_name_or_path": "ann/base"}')
    (tmp_path / "delta.safetensors").write_bytes(b"0" * 2000)
    (tmp_path / "README.md").write_text("# Dense\n\nMethod: by hand.\n")
    monkeypatch.setattr("robustmerge.push.upload.LARGE", 1000)
    with pytest.raises(UserError, match=r"2\.\d kB is much to upload: large=true does it; .*merge.out.rank=16"):
        push(tmp_path, "ann/dense")
    assert not hub.asked
    push(tmp_path, "ann/dense", large=True)
    assert "delta.safetensors" in hub.repositories["ann/dense"]
    told = capsys.readouterr().out
    assert "note: the card does not say: settings, experts, base, commit" in told
    assert "note: these are dense updates, 2." in told


def test_what_is_not_to_be_uploaded_is_refused_before_the_hub_is_asked(hub: Hub, merged: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no adapter: it has neither adapter_config.json nor delta_config.json; it"):
        push(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="has no README.md, and an upload needs a card"):
        push(tmp_path)
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(UserError, match="has no weights to upload"):
        push(tmp_path)
    (tmp_path / "manifest.json").write_text((merged / "manifest.json").read_text())
    (tmp_path / SAFE).write_bytes(b"other")
    with pytest.raises(UserError, match="was changed after it was made: manifest.json has another sha256 of it"):
        push(tmp_path)
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(UserError, match="is not finished yet"):
        push(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        push(tmp_path / "none")
    with pytest.raises(UserError, match="give one of source=NAME"):
        push(None)
    with pytest.raises(UserError, match="zero_shot is the base alone"):
        push(None, source="zero_shot")
    with pytest.raises(ConfigError, match=r"a repository of the Hub is written user/name, got x \(repo\)"):
        push(merged, "x")
    assert not hub.asked


def test_an_adapter_for_the_base_beside_it_is_not_uploaded_without_that(hub: Hub, merged: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(merged, tmp_path / "served")
    (folder / "base").mkdir()
    with pytest.raises(UserError, match="is for the base beside it, .*: push .*served/base first"):
        push(folder, base="ann/original")
    assert not hub.asked


def test_no_folder_of_this_machine_is_in_settings_or_in_the_config_of_a_model(merged: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(merged, tmp_path / "merged")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["identity"]["settings"]["out"] = {"base": "/users/ann/secret/base"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.json").write_text('{"_name_or_path": "/users/ann/secret/base"}')
    files, card, _ = collect_files(folder, None)
    assert "base: base" in card.text
    assert not any(b"/users/ann" in (file.content if isinstance(file.content, bytes) else b"") for file in files)


def test_a_trained_expert_gets_a_card_of_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "ann/base"}')
    (tmp_path / SAFE).write_bytes(b"weights")
    identity = {"stage": "train", "settings": {"tasks": ["rec"], "seed": 3}, "inputs": {"base": "0123456789"}}
    (tmp_path / "manifest.json").write_text(json.dumps({"identity": identity, "record": {"commit": "abc"}}))
    _, card, left_out = collect_files(tmp_path, None)
    assert (card.title, card.base, card.lacks, left_out) == ("LoRA expert of rec", "ann/base", (), [])
    assert "Commit: `abc`" in card.text and "seed: 3" in card.text and "base `01234567`" in card.text


def test_what_is_typed_is_what_is_asked() -> None:
    words = ["repo=ann/x", "folder=/x", "base=ann/b", "private=false", "update=true", "large=true", "yes=true"]
    _, request = make_plan_with(PushRequest, compose("push", words))
    assert request == PushRequest("ann/x", "ann/b", False, True, True, True, folder="/x")


def test_an_uploaded_file_knows_its_size(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"123")
    assert UploadedFile("x", tmp_path / "x").size == UploadedFile("x", b"123").size == 3
