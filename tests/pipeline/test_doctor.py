"""The doctor: it runs without any package, says what is missing and what to type. Needs no network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline import program
from pipeline.tools.doctor import machine, screen
from robustmerge.stage.address import REPOSITORY

WORKS = ["Mini benchmark", "Merging at 7B", "Evaluating at 7B", "Training at 7B"]


def device(memory: float = 80e9) -> dict[str, Any]:
    return {"name": "A GPU", "memory": memory, "free": memory, "bf16": True}


def facts(*devices: dict[str, Any], memory: float = 64e9, disk: float = 500e9) -> dict[str, Any]:
    """A machine that has everything, and these GPUs."""
    folder = {"path": "/runs", "free": disk, "device": 1}
    hub = {"endpoint": "https://hub", "offline": False, "reached": True, "token": True, "base": True, "experts": 8}
    return {
        "python": {"version": "3.11.7", "path": "/usr/bin/python3", "system": "Linux"},
        "torch": {"version": "2.13.0", "cuda": "13.0", "devices": list(devices), "unused": []},
        "cpu": {"name": "A CPU", "cores": 8, "memory": memory, "available": memory},
        "java": {"path": "/usr/bin/java", "version": 'openjdk version "17"'},
        "disk": {"runs": folder, "hub": {**folder, "path": "/hub"}},
        "hub": hub,
        "packages": {"same": 90, "other": {}, "missing": []},
    }


def test_it_runs_without_any_package_and_says_so(tmp_path: Path) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "ROBUSTMERGE_RUNS": str(tmp_path / "runs")}
    command = [sys.executable, "-S", "-I", str(REPOSITORY / "scripts" / "doctor.py"), "--json"]
    ran = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    printed = json.loads(ran.stdout)
    assert [name for name, part in printed["facts"].items() if "error" in part] == ["torch"]
    assert printed["facts"]["packages"]["same"] == 0
    machine_states = {finding["name"]: finding["state"] for finding in printed["machine"]}
    assert machine_states["PyTorch"] == machine_states["Packages"] == "bad"
    assert {finding["name"]: finding["state"] for finding in printed["paper"]} == dict.fromkeys(WORKS, "no")
    assert not list(tmp_path.iterdir())  # nothing is written


def test_here_every_part_can_be_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    here = machine.gather_facts()
    assert not [name for name, part in here.items() if "error" in part]
    assert here["hub"]["token"] and "hf_secret" not in json.dumps(here)
    assert here["cpu"]["available"] <= here["cpu"]["memory"]
    assert {"Python", "PyTorch", "GPU", "Packages"} <= {finding.name for finding in screen.describe_machine(here)}
    assert [screen.judge_work(work, here).name for work in screen.WORKS] == WORKS


@pytest.mark.parametrize("folder", [None, "elsewhere", "/absolute", "~/results"])
def test_the_folder_of_results_is_that_of_the_configs(folder: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROBUSTMERGE_RUNS", raising=False)
    if folder:
        monkeypatch.setenv("ROBUSTMERGE_RUNS", folder)
    assert str(program.runs_folder()) == program.compose("train_all", [])["paths"]["runs"]


def test_the_cache_is_that_of_the_hubs_library() -> None:
    code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    for more in ({}, {"HF_HOME": "/a"}, {"HF_HUB_CACHE": "/b", "HF_HOME": "/a"}, {"XDG_CACHE_HOME": "/c"}):
        env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))} | more
        ours = f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
        ours += "from pipeline.tools.doctor.machine import hub_cache\n"
        ours += f"{code}\nassert str(hub_cache()) == HF_HUB_CACHE, hub_cache()"
        ran = subprocess.run([sys.executable, "-c", ours], env=env, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr


def test_a_partial_download_is_not_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--ann--model"
    assert not machine.is_cached("ann/model")
    (folder / "snapshots" / "a" / "x").mkdir(parents=True)
    assert machine.is_cached("ann/model")
    (folder / "blobs").mkdir()
    (folder / "blobs" / "b.incomplete").touch()
    assert not machine.is_cached("ann/model")


class EmptyHub(BaseHTTPRequestHandler):
    """A Hub without any model, too slow below /slow."""

    def do_GET(self) -> None:
        if self.path.startswith("/slow"):
            time.sleep(1.5)
        self.send_error(404)

    def log_message(self, *words: object) -> None:
        pass


def test_the_hub_is_reached_if_anything_answers_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), EmptyHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    assert machine.reach_hub(here)
    assert not machine.reach_hub(f"{here}/slow", seconds=0.2)
    server.shutdown()
    server.server_close()
    assert not machine.reach_hub(here)
    assert not machine.reach_hub("no address at all")


def states(machine_facts: dict[str, Any]) -> list[str]:
    return [screen.judge_work(work, machine_facts).state for work in screen.WORKS]


def test_what_can_be_run_follows_from_memory_disk_and_gpu() -> None:
    assert states(facts(device())) == ["yes", "yes", "yes", "yes"]
    assert states(facts(device(16e9))) == ["yes", "yes", "yes", "no"]
    assert states(facts(device(8e9))) == states(facts()) == ["yes", "yes", "no", "no"]
    assert states(facts(device(), memory=1e9)) == ["no", "yes", "yes", "yes"]
    full = facts(device(), disk=1e9)
    assert states(full) == ["no", "yes", "yes", "yes"]  # base and experts are in the cache
    full["hub"]["base"] = False
    assert states(full) == ["no", "yes", "no", "no"]
    for part in ("cpu", "disk", "torch"):
        assert "no" in states({**facts(), part: {"error": "OSError: gone"}})


def test_work_says_what_is_too_little_or_what_to_type() -> None:
    no_room = screen.judge_work(screen.WORKS[3], facts(device(16e9)))
    assert no_room.text == "needs 24.0 GB of memory on one GPU; too little here: memory on one GPU (16.0 GB)"
    assert not no_room.remedy
    assert screen.judge_work(screen.WORKS[0], facts()).remedy == "bash scripts/quickstart.sh"


def test_what_is_missing_is_shown_with_what_to_do() -> None:
    bare = facts()
    bare["python"]["version"] = "3.9.1"
    bare["torch"] |= {"version": None, "error": "ModuleNotFoundError: No module named 'torch'", "unused": ["T4, 15 GB"]}
    bare["java"] = {"path": None, "version": None}
    bare["hub"] |= {"reached": False, "token": False}
    bare["packages"] = {"same": 1, "other": {"numpy": ["1", "2"]}, "missing": list("abcdef")}
    bare["disk"]["runs"] = {**bare["disk"]["runs"], "free": 1e9, "device": 2}
    findings = {finding.name: finding for finding in screen.describe_machine(bare)}
    assert all(findings[name].remedy for name in ("Python", "PyTorch", "GPU", "Java", "Disk", "Hub", "Packages"))
    assert findings["Packages"].text.endswith("6 missing: a, b, c, d and 2 more")
    printed = screen.format_findings("Here", list(findings.values()))
    assert max(map(len, printed.splitlines())) <= screen.WIDTH
    broken = screen.describe_machine({**facts(), "java": {"error": "TimeoutExpired: java"}})
    assert [one.text for one in broken if one.state == "bad"] == ["could not be examined: TimeoutExpired: java"]


def test_the_lock_is_read_for_this_system() -> None:
    versions = machine.read_lock(REPOSITORY / "requirements.lock")
    assert versions["torch"] and ("deepspeed" in versions) == (sys.platform == "linux")
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in versions.values())
