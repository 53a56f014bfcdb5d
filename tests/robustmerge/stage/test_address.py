"""Addresses, identities, manifests and locks. Needs nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from robustmerge.stage.address import (
    REPOSITORY,
    Address,
    address_file,
    address_folder,
    address_foreign,
    commit,
    read_manifest,
    run_stage,
)
from robustmerge.stage.files import write_atomically
from robustmerge.stage.process import process_start
from robustmerge.stage.settings import UserError, later, outside_identity
from robustmerge.stage.text import plain


@dataclass(frozen=True)
class Settings:
    density: float = 0.2
    jobs: int = outside_identity(1)
    added: int = later(3)


def address_of(root: Path, settings: Settings = Settings(), **inputs: Address) -> Address:
    return address_folder(root, "merged", "ties", "merge", 1, settings, inputs)


def test_what_changes_the_result_changes_the_address(tmp_path):
    assert address_of(tmp_path).path != address_of(tmp_path, Settings(density=0.3)).path


def test_what_does_not_change_the_result_leaves_the_address_alone(tmp_path):
    assert address_of(tmp_path).path == address_of(tmp_path, Settings(jobs=8)).path


def test_a_later_field_leaves_old_addresses_alone_while_it_has_its_default(tmp_path):
    assert "added" not in address_of(tmp_path).identity["settings"]
    assert address_of(tmp_path).path != address_of(tmp_path, Settings(added=4)).path


def test_an_input_is_known_by_its_identity_not_by_its_place(tmp_path):
    here, there = address_of(tmp_path / "a"), address_of(tmp_path / "b")
    assert address_of(tmp_path, data=here).path == address_of(tmp_path, data=there).path
    other = address_of(tmp_path / "a", Settings(density=0.5))
    assert address_of(tmp_path, data=here).path != address_of(tmp_path, data=other).path


def test_a_stage_is_complete_only_when_its_manifest_is_written(tmp_path):
    address = address_of(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError):
        run_stage(address, fail)
    assert not address.is_complete()
    assert (address.path / "half").exists(), "what was begun stays, to go on from"
    run_stage(address, lambda folder: {"found": sorted(p.name for p in folder.iterdir())})
    record = read_manifest(address.manifest)["record"]
    assert record["found"] == ["half"]
    assert set(record["outputs"]) == {"half"}


@pytest.mark.parametrize("is_file", [False, True])
def test_the_seconds_of_interrupted_runs_count_as_long_as_something_is_left_of_them(tmp_path, is_file):
    file = address_file(tmp_path, tmp_path / "rec.jsonl", "predict", 1, Settings(), {})
    address = file if is_file else address_of(tmp_path)
    part = address.path.with_name(f"{address.path.name}.part-0") if is_file else address.path / "half"

    def fail_slowly(path: Path) -> None:
        part.write_text("half")
        time.sleep(0.3)
        raise RuntimeError("cut")

    def finish(path: Path) -> None:
        part.rename(path if is_file else path / "whole")

    for _ in range(2):
        with pytest.raises(RuntimeError):
            run_stage(address, fail_slowly)
    assert 0.6 <= float(address.seconds.read_text()) < 60
    run_stage(address, finish)
    record = read_manifest(address.manifest)["record"]
    assert 0.6 <= record["seconds"] < 60
    assert not address.seconds.exists()
    assert "rec" not in record["outputs"] and not any("seconds" in name for name in record["outputs"])

    address.manifest.unlink()
    (address.path if is_file else address.path / "whole").unlink()
    address.seconds.write_text("1000.0")  # of an unfinished result that somebody has removed
    run_stage(address, lambda path: (path if is_file else path / "whole").write_text("new") and None)
    assert read_manifest(address.manifest)["record"]["seconds"] < 60


def test_a_stage_that_is_refused_before_it_wrote_anything_leaves_nothing(tmp_path):
    address = address_of(tmp_path)
    with pytest.raises(UserError):
        run_stage(address, refuse_work)
    assert not list(address.path.parent.iterdir())


def refuse_work(folder: Path) -> None:
    raise UserError("refused")


def test_a_complete_stage_is_not_run_again(tmp_path):
    address = address_of(tmp_path)
    run_stage(address, lambda folder: None)
    run_stage(address, lambda folder: pytest.fail("ran again"))


def test_a_file_has_its_manifest_beside_it(tmp_path):
    address = address_file(tmp_path, tmp_path / "scores" / "rec.json", "score", 1, Settings(), {})
    run_stage(address, lambda path: path.write_text("{}") and None)
    assert address.manifest == address.path.with_suffix(".manifest.json")
    assert address.is_complete()


def test_a_manifest_that_tells_of_something_else_is_refused(tmp_path):
    address = address_of(tmp_path)
    run_stage(address, lambda folder: None)
    changed = json.loads(address.manifest.read_text())
    changed["identity"]["settings"]["density"] = 0.9
    address.manifest.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="nothing is overwritten"):
        address.is_complete()


def test_a_foreign_folder_is_known_by_its_content(tmp_path):
    for name in ("one", "two.v2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("same")
    first = address_foreign(tmp_path / "one")
    for card in ("README.md", ".DS_Store"):
        (tmp_path / "two.v2" / card).write_text("a card that was edited, and a hidden file")
    assert first.fingerprint == address_foreign(tmp_path / "two.v2").fingerprint
    assert first.is_complete()
    (tmp_path / "two.v2" / "weights").write_text("other")
    assert first.fingerprint != address_foreign(tmp_path / "two.v2").fingerprint


def test_an_unfinished_folder_of_ours_is_not_taken_for_a_foreign_one(tmp_path):
    (tmp_path / "expert" / "unfinished").mkdir(parents=True)
    with pytest.raises(UserError, match="not finished yet"):
        address_foreign(tmp_path / "expert")


def test_a_result_keeps_its_identity_elsewhere_until_a_file_is_changed_added_or_removed(tmp_path):
    address = address_of(tmp_path)

    def work(folder: Path) -> None:
        (folder / "pictures").mkdir()
        for name in ("weights", "README.md", "pictures/1.png"):
            (folder / name).write_text(name)

    def identity_after(change: Callable[[Path], object]) -> dict:
        folder = shutil.copytree(address.path, tmp_path / "copy", dirs_exist_ok=True)
        change(folder)
        identity = address_foreign(folder).identity
        shutil.rmtree(folder)
        return identity

    run_stage(address, work)
    assert identity_after(lambda folder: (folder / "README.md").write_text("edited")) == address.identity
    changes: list[Callable[[Path], object]] = [
        lambda folder: (folder / "weights").write_text("trained on"),
        lambda folder: (folder / "pictures" / "1.png").write_text("other"),
        lambda folder: (folder / "adapter_model.bin").write_text("added"),
        lambda folder: (folder / "weights").unlink(),
    ]
    for change in changes:
        assert identity_after(change)["stage"] == "foreign"


IDENTITY = '{"stage": "merge", "schema": 1, "settings": %s, "inputs": {}}'


@pytest.mark.parametrize(
    "manifest",
    [
        '{"version": 1}',
        "[" * 10**5,
        "[]",
        "\xff",
        '{"identity": [], "record": {}}',
        f'{{"identity": {IDENTITY % 1}, "record": 5}}',
        f'{{"identity": {IDENTITY % 1}, "record": {{"outputs": [1]}}}}',
        f'{{"identity": {IDENTITY % ("1" * 5000)}, "record": {{}}}}',
        f'{{"identity": {IDENTITY % chr(34) + chr(92) + "ud800" + chr(34)}, "record": {{}}}}',
        '{"identity": {"stage": "hub", "repository": "evil/one", "revision": "main"}, "record": {}}',
    ],
    ids=lambda text: text[:40],
)
def test_a_manifest_that_is_none_of_ours_is_an_ordinary_file_and_is_named_where_ours_should_be(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest, encoding="latin-1")
    assert address_foreign(tmp_path).identity["stage"] == "foreign"
    with pytest.raises(UserError, match="manifest.json"):
        Address(tmp_path, tmp_path, {"stage": "merge"}).is_complete()


def test_what_is_no_file_in_a_foreign_folder_is_not_read_and_any_name_counts(tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "weights").write_text("weights")
    before = address_foreign(folder).fingerprint
    os.mkfifo(folder / "pipe")
    os.mkfifo(tmp_path / "odd.lock")
    links = {"loop": "loop", "up": "..", "nowhere": "none", "device": "/dev/zero", "log": "/proc/kmsg"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    assert address_foreign(folder).fingerprint == before
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_text("")
    after = address_foreign(folder)
    assert after.fingerprint == Address.from_json(json.loads(json.dumps(after.to_json()))).fingerprint != before
    with pytest.raises(UserError, match="a name is not UTF-8"):
        address_of(tmp_path, **{"expert \udcff": after})


@pytest.mark.parametrize(
    "path", ["/proc", "/sys/kernel", "n" * 300, "loop", "nowhere", "pipe", "a\0b", "~nobody-here/a"]
)
def test_a_place_where_nothing_can_be_read_is_refused_by_name(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    with pytest.raises(UserError, match=re.escape(plain(path[:100]))):
        address_foreign(Path(path))


def test_what_a_kill_left_beside_a_file_does_not_stay_in_a_complete_result(tmp_path):
    address = address_of(tmp_path)
    run_stage(address, lambda folder: (folder / ".weights.123.part").write_text("cut") and None)
    assert [path.name for path in address.path.iterdir()] == ["manifest.json"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "file"
    write_atomically(target, "old")
    with pytest.raises(TypeError):
        write_atomically(target, 3)  # type: ignore[arg-type]
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


KILLED = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from robustmerge.stage.address import Address, run_stage
from robustmerge.stage.files import FolderWriter, WholeFile
out = Path(sys.argv[1]) / "place" / "out"

class Writer(FolderWriter):
    def complete(self):
        return {"README.md": "card", "config.json": "{}"}

def write(folder):
    weights = WholeFile(folder / "weights", alone=True)
    with Writer(folder, [weights]):
        weights.file.write(b"weights")

def make(number, after):
    calls = itertools.count(1)
    def die_at(function):
        def called(*arguments, **named):
            is_last = next(calls) == number
            if is_last and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return function(*arguments, **named)
            finally:
                if is_last:
                    os.kill(os.getpid(), signal.SIGKILL)
        return called
    os.fsync = lambda descriptor: None
    for name in ("replace", "fsync", "mkdir", "rmdir"):
        setattr(os, name, die_at(getattr(os, name)))
    run_stage(Address(out.parent, out, {"stage": "merge"}), write, at_once=True)

def status_of(number, after=False):
    child = os.fork()
    if not child:
        try:
            make(number, after)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def files():
    return {file.name: file.name == "manifest.json" or file.read_bytes() for file in out.iterdir()}

run_stage(Address(out.parent, out, {"stage": "merge"}), write, at_once=True)
undisturbed, statuses = files(), [-signal.SIGKILL]
while statuses[-1]:
    for after in (True, False):
        shutil.rmtree(out.parent)
        statuses.append(status_of(len(statuses) // 2 + 1, after))
        assert status_of(0) == 0 and files() == undisturbed and list(out.parent.iterdir()) == [out], statuses
assert set(statuses) == {0, -signal.SIGKILL} and len(statuses) > 24, statuses
"""


def test_wherever_a_stage_is_killed_its_files_appear_together_in_the_next_run(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


HOLD = """
import sys, time
from pathlib import Path
from robustmerge.stage import address as module
from robustmerge.stage.address import Address, run_stage
module.KEEP_SECONDS_EVERY = 0.1
address = Address(Path(sys.argv[1]), Path(sys.argv[1]) / "merged" / sys.argv[3], {"stage": "merge"})
def work(path):
    (path if address.is_file else path / "holding").write_text("")
    time.sleep(float(sys.argv[2]))
run_stage(address, work)
"""


def _hold(root: Path, seconds: float, name: str = "x-1") -> subprocess.Popen:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(root), str(seconds), name], cwd=REPOSITORY)
    held = root / "merged" / name
    while not (held.is_file() or (held / "holding").exists()):
        time.sleep(0.02)
    return child


@pytest.mark.parametrize("name", ["x-1", "x-1.jsonl"])
def test_a_live_lock_is_waited_for_with_a_message(tmp_path, name):
    child = _hold(tmp_path, 1.0, name)
    said: list[str] = []
    address = Address(tmp_path, tmp_path / "merged" / name, {"stage": "merge"})
    run_stage(address, lambda folder: pytest.fail("the other process has done it"), said.append)
    assert child.wait() == 0
    assert f"process {child.pid}" in said[0]


def test_the_lock_of_a_killed_process_is_free_and_its_seconds_count(tmp_path):
    child = _hold(tmp_path, 60)
    address = Address(tmp_path, tmp_path / "merged" / "x-1", {"stage": "merge"})
    while not address.seconds.exists() or not address.seconds.read_text():
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert float(address.seconds.read_text()) >= 0.1
    said: list[str] = []
    run_stage(address, lambda folder: None, said.append)
    assert address.is_complete()
    assert read_manifest(address.manifest)["record"]["seconds"] >= 0.1
    assert not said
    assert not address.lock.exists() and not address.seconds.exists()


PARENT = """
import os, subprocess, sys, time
from robustmerge.stage.address import process_start
child = ("import sys, time; from robustmerge.stage.address import end_with_process; "
         "end_with_process(int(sys.argv[1]), sys.argv[2], 0.05); time.sleep(60)")
started = subprocess.Popen([sys.executable, "-c", child, str(os.getpid()), process_start(os.getpid())])
print(started.pid, flush=True)
time.sleep(60)
"""


def test_a_child_ends_when_its_parent_is_killed(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    start = process_start(child)
    time.sleep(0.5)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while start is not None and process_start(child) == start and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process_start(child) != start


def test_a_process_is_told_from_a_later_one_of_the_same_number():
    assert process_start(os.getpid()) == process_start(os.getpid())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert process_start(ended.pid) is None


def test_what_runs_write_into_results_is_no_change_of_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr("robustmerge.stage.address.REPOSITORY", tmp_path)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)

    def is_changed_by(name: str) -> bool:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        return commit.__wrapped__()["dirty"]

    assert not is_changed_by("results/mini-tiny/reproduced/report.md")
    assert is_changed_by("results/paper.yaml")
    (tmp_path / "results" / "paper.yaml").unlink()
    assert is_changed_by("code.py")


def test_an_address_survives_the_way_through_a_job_file(tmp_path):
    address = address_of(tmp_path)
    assert Address.from_json(json.loads(json.dumps(address.to_json()))) == address
    assert replace(address).hash8 == address.hash8
