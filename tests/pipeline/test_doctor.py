"""The doctor: it runs anywhere, says what is missing, and marks what it only estimates. Needs no network."""

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
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import program
from pipeline.tools.doctor import machine, paper, text
from pipeline.tools.doctor.text import WIDTH, show
from robustmerge.stage.address import REPOSITORY

PAPER = ["Mini benchmark", "Merging at 7B", "Evaluating at 7B", "Training at 7B"]


def device(name: str = "NVIDIA H100 80GB HBM3", memory: float = 80e9, speed: float = 650e12) -> dict[str, Any]:
    return {"name": name, "memory": memory, "free": memory, "bf16": True, "speed": speed}


def facts(*devices: dict[str, Any], memory: float = 64e9, disk: float = 500e9, speed: float = 1e11) -> dict[str, Any]:
    """A machine that has everything, and these GPUs."""
    torch = {"version": "2.13.0", "cuda": "13.0", "devices": list(devices), "unused": [], "speed": speed, "mps": False}
    place = {"path": "/runs", "free": disk, "device": 1}
    hub = {"endpoint": "https://hub", "offline": False, "reached": True, "token": True, "base": True, "experts": 8}
    return {
        "python": {"version": "3.11.7", "path": "/usr/bin/python3", "system": "Linux"},
        "torch": torch,
        "cpu": {"name": "A CPU", "cores": 8, "memory": memory, "available": memory},
        "java": {"path": "/usr/bin/java", "version": 'openjdk version "17"'},
        "disk": {"runs": place, "hub": {**place, "path": "/hub"}},
        "hub": hub,
        "packages": {"same": 90, "other": {}, "missing": []},
        "results": {"path": "/runs", "roots": {"mini-tiny": {"experts": 9, "reports": 1}}},
    }


def test_it_runs_without_any_package_and_says_so(tmp_path: Path) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "ROBUSTMERGE_RUNS": str(tmp_path / "runs")}
    typed = [sys.executable, "-S", "-I", str(REPOSITORY / "scripts" / "doctor.py"), "--json"]
    ran = subprocess.run(typed, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["facts"]["torch"]["version"] is None
    assert told["facts"]["packages"]["same"] == 0
    assert {one["name"]: one["state"] for one in told["machine"]}["Packages"] == "bad"
    assert [one["name"] for one in told["paper"]] == PAPER
    assert {one["state"] for one in told["paper"]} == {"no"}
    assert not list(tmp_path.iterdir())  # it only looks


def test_here_every_part_can_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("ROBUSTMERGE_RUNS", str(tmp_path))
    for kind, name in (("experts", "rec-0"), ("scores/merged/ties-0", "rec-1")):
        (tmp_path / "mini-tiny" / kind / name).mkdir(parents=True)
        (tmp_path / "mini-tiny" / kind / name / "manifest.json").write_text("{}")
    found = machine.look()
    assert not [name for name, part in found.items() if "error" in part]
    assert found["torch"]["speed"] > 1e9
    assert found["results"]["roots"] == {"mini-tiny": {"experts": 1, "scores": 1}}
    assert found["hub"]["token"] and "hf_secret" not in json.dumps(found)
    assert found["cpu"]["available"] <= found["cpu"]["memory"]
    assert [finding.name for finding in paper.estimate(found)] == PAPER
    assert text.describe(found)


@pytest.mark.parametrize("folder", [None, "elsewhere", "/absolute"])
def test_it_looks_where_results_are_written(folder: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROBUSTMERGE_RUNS", raising=False)
    if folder:
        monkeypatch.setenv("ROBUSTMERGE_RUNS", folder)
    assert machine.runs_folder() == program.runs_folder()


def test_the_cache_is_that_of_the_hubs_library() -> None:
    code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    for more in ({}, {"HF_HOME": "/a"}, {"HF_HUB_CACHE": "/b", "HF_HOME": "/a"}, {"XDG_CACHE_HOME": "/c"}):
        env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))} | more
        ours = f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
        ours += "from pipeline.tools.doctor.machine import hub_cache\n"
        ours += f"{code}\nassert str(hub_cache()) == HF_HUB_CACHE, hub_cache()"
        ran = subprocess.run([sys.executable, "-c", ours], env=env, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr


def test_what_is_half_fetched_is_not_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--ann--model"
    assert not machine.is_cached("ann/model")
    (folder / "snapshots" / "a" / "x").mkdir(parents=True)
    assert machine.is_cached("ann/model")
    (folder / "blobs").mkdir()
    (folder / "blobs" / "b.incomplete").touch()
    assert not machine.is_cached("ann/model")


class Answering(BaseHTTPRequestHandler):
    """A Hub that knows no model, and never answers a path below /slow."""

    def do_GET(self) -> None:
        if self.path.startswith("/slow"):
            time.sleep(1.5)
        self.send_error(404)

    def log_message(self, *said: object) -> None:
        pass


def test_the_hub_is_reached_if_anything_answers_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    assert machine.ask_hub(here)
    assert not machine.ask_hub(f"{here}/slow", seconds=0.2)
    server.shutdown()
    server.server_close()
    assert not machine.ask_hub(here)
    assert not machine.ask_hub("no address at all")


def test_a_gpu_is_told_with_its_memory_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="A GPU", major=7)
    for name, value in {
        "is_available": True, "device_count": 2, "mem_get_info": (3e9, 16e9), "get_device_properties": properties,
    }.items():  # fmt: skip
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *index, value=value: value)

    def measure(place: str, *rest: object) -> float:
        if place == "cuda:1":
            raise RuntimeError("out of memory")
        return 5e13

    monkeypatch.setattr(machine, "measure_speed", measure)
    one, other = machine.look_at_torch()["devices"]
    assert one == {"name": "A GPU", "memory": 16e9, "free": 3e9, "bf16": False, "speed": 5e13}
    assert other == {**one, "speed": 0.0}
    told = [finding.text for finding in text.describe(facts(one, other)) if finding.name == "GPU"]
    assert told[0].startswith("A GPU, 16 GB, 3.0 GB of it free; fp16, but no bf16")
    assert told[0].endswith("; 50 TFLOP/s in fp16")
    assert told[1].endswith("busy: its speed is not known")


def test_a_gpu_that_torch_cannot_use_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'Tesla T4, 15360 MiB'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = facts()
    found["torch"] = machine.look_at_torch()
    assert "GPU there, but PyTorch cannot use it: Tesla T4, 15360 MiB" in [
        f"{finding.name} {finding.text}" for finding in text.describe(found)
    ]


def states(found: dict[str, Any]) -> list[str]:
    return [finding.state for finding in paper.estimate(found)]


def test_what_can_be_run_follows_from_the_machine() -> None:
    assert states(facts(device())) == ["yes", "yes", "yes", "yes"]
    assert states(facts(device(memory=16e9))) == ["yes", "yes", "yes", "no"]
    assert states(facts()) == states(facts(device(memory=8e9))) == ["yes", "yes", "slow", "no"]
    assert states(facts(device(speed=0.0))) == ["yes", "yes", "slow", "no"]
    assert states(facts(memory=8e9)) == ["yes", "yes", "no", "no"]
    full = facts(device(), disk=1e9)
    assert states(full) == ["no", "yes", "yes", "yes"]  # the base is there already
    full["hub"]["base"] = False
    assert states(full) == ["no", "yes", "no", "yes"]
    for part in ("cpu", "disk", "torch"):
        assert "no" in states({**facts(), part: {"error": "OSError: gone"}})


@settings(max_examples=30, deadline=None)
@given(st.floats(1e12, 1e15), st.floats(16e9, 1e11), st.integers(1, 8))
def test_a_faster_a_larger_or_a_further_gpu_never_answers_slower(speed: float, memory: float, count: int) -> None:
    low, high = paper.rates_of(device("A GPU", memory, speed))
    assert 0 < low <= high
    for better in (device("A GPU", memory, 2 * speed), device("A GPU", 2 * memory, speed)):
        assert paper.rates_of(better) >= (low, high)
    told = paper.estimate(facts(*[device("A GPU", memory, speed)] * count))[2].text
    assert "~" in told and f"on {count} GPU" in told


@pytest.mark.parametrize("table", ["there", "gone"])
def test_every_hour_that_was_not_measured_is_marked_and_has_its_source(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"picture": "336x336", "batch": 32, "memory": 30.0, "rate": 20.0}]
    (tmp_path / "there").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(paper, "ANSWERING", tmp_path / table)
    for found in (facts(), facts(device()), facts(device("Other", 24e9, 1e14))):
        for finding in paper.estimate(found)[2:]:
            for hours in re.findall(r"(\S+) (?:to \S+ )?(?:hours|days)", finding.text):
                assert hours.startswith("~") or "measured rate" in finding.text
            assert re.search(r"measured rate|rate measured|arithmetic|from its speed|on this CPU ~", finding.text)
            assert table == "there" or not re.search(r"measured rate|rate measured", finding.text)


def test_what_is_missing_is_told_with_what_to_do() -> None:
    bare = facts()
    bare["python"]["version"] = "3.9.1"
    bare["torch"] |= {"version": None, "error": "ModuleNotFoundError: No module named 'torch'", "unused": ["T4, 15 GB"]}
    bare["java"] = {"path": None, "version": None}
    bare["hub"] |= {"reached": False, "token": False}
    bare["packages"] = {"same": 1, "other": {"numpy": ["1", "2"]}, "missing": list("abcdef")}
    bare["results"]["roots"] = {}
    bare["disk"]["runs"] = {**bare["disk"]["runs"], "free": 1e9, "device": 2}
    found = {finding.name: finding for finding in text.describe(bare)}
    assert all(
        found[name].remedy for name in ("Python", "PyTorch", "GPU", "Java", "Disk", "Hub", "Packages", "Results")
    )
    assert found["Packages"].text.endswith("6 missing: a, b, c, d and 2 more")
    screen = show("Here", list(found.values()))
    assert max(map(len, screen.splitlines())) <= WIDTH
    broken = text.describe({**facts(), "java": {"error": "TimeoutExpired: java"}})
    assert [finding.text for finding in broken if finding.state == "bad"] == [
        "could not be looked at: TimeoutExpired: java"
    ]


def test_the_lock_is_read_as_it_is_meant_for_this_system() -> None:
    read = machine.read_lock(REPOSITORY / "requirements.lock")
    assert read["torch"] and ("deepspeed" in read) == (sys.platform == "linux")
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in read.values())
