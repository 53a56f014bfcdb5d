"""Child processes side by side: order, failures, what they say, progress. Needs nothing; a few seconds."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import child
from pipeline.jobs import Job, _Running, run_jobs
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.process import process_start
from robustmerge.stage.settings import UserError


def job_of(name: str, code: str, cost: float = 1.0) -> Job:
    """A job whose process runs `code`; the job file is `sys.argv[1]`."""
    return Job(name, [{}], cost, lambda script, file, slot: ([sys.executable, "-c", code, str(file), str(slot)], {}))


def test_the_longest_job_starts_first(tmp_path, capsys):
    run_jobs("work", [job_of("short", "", 1), job_of("long", "", 9), job_of("middle", "", 5)], 1, tmp_path)
    printed = capsys.readouterr().out
    assert printed.index("long: done") < printed.index("middle: done") < printed.index("short: done")


def test_a_failed_job_does_not_stop_the_others_and_all_failures_are_told(tmp_path):
    written = tmp_path / "written"
    jobs = [
        job_of("bad", "import sys; print('error: no such picture\\nerror: nor this one'); sys.exit(2)", 3),
        job_of("worse", "raise RuntimeError('boom')", 2),
        job_of("good", f"open({str(written)!r}, 'w')", 1),
    ]
    with pytest.raises(UserError) as told:
        run_jobs("work", jobs, 1, tmp_path / "logs")
    assert written.exists()
    assert "bad: no such picture\nnor this one\n" in str(told.value)
    assert "RuntimeError: boom" in str(told.value)
    assert str(tmp_path / "logs" / "worse.log") in str(told.value)
    assert not list((tmp_path / "logs").glob("*.job.json"))


def test_what_a_child_says_reaches_the_user_and_its_output_the_log(tmp_path, capsys):
    run_jobs("work", [job_of("one", "print('say: going on'); print('detail')")], 1, tmp_path)
    printed = capsys.readouterr().out
    assert "  going on" in printed
    assert "detail" not in printed
    assert "detail" in (tmp_path / "one.log").read_text()


def test_jobs_side_by_side_have_slots_of_their_own(tmp_path):
    code = "import sys, time; print('slot', sys.argv[2]); time.sleep(0.5)"
    run_jobs("work", [job_of(str(number), code) for number in range(4)], 2, tmp_path)
    slots = [(tmp_path / f"{number}.log").read_text().split()[1] for number in range(4)]
    assert sorted(slots[:2]) == ["0", "1"]
    assert set(slots) == {"0", "1"}


@pytest.mark.parametrize(
    ("lines", "fraction"),
    [
        ([" 50%|#####     | 3/6"], 0.25),
        (["part 1/2 see:  50%|##   |"], 0.125),
        (["part 1/2 see: 100%|#####|", "part 2/2 talk:  50%|##   |"], 0.375),
        (["[2/2] second", " 20%|#    |"], 0.6),
        (["[2/2] second", " 90%|#### |", "a line that is no bar", " 10%|     |"], 0.95),
    ],
)
def test_progress_is_read_from_the_bars_of_a_child_and_never_goes_back(lines, fraction):
    running = _Running(Job("two items", [{}, {}]), None, Path(), Path(), 0)
    for line in ["[1/2] first", *lines]:
        running.take(line)
    assert running.fraction == pytest.approx(fraction)


def test_an_item_that_is_refused_does_not_stop_those_after_it(tmp_path, monkeypatch):
    done = []

    def work(item: dict) -> None:
        if item["name"] == "bad":
            raise UserError("cannot be merged")
        done.append(item["name"])

    monkeypatch.setitem(child.WORK, "merge", work)
    monkeypatch.setattr(child, "end_with_process", lambda pid, start: None)
    items = [{"stage": "merge", "name": name} for name in ("first", "bad", "last")]
    (tmp_path / "job.json").write_text(json.dumps({"parent": {"pid": 1, "start": ""}, "items": items}))
    with pytest.raises(UserError, match="bad: cannot be merged"):
        child.main(tmp_path / "job.json")
    assert done == ["first", "last"]


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("print('done')", 0, "done"),
        ("import sys; sys.exit(2)", 2, ""),
        ("raise ValueError('boom')", 1, "ValueError: boom"),
        ("import atexit, os; atexit.register(os.abort)", 0, ""),
    ],
)
def test_a_child_ends_with_the_status_of_its_work_whatever_its_libraries_do_at_the_end(code, status, told):
    program = f"from pipeline.child import end_with\ndef work():\n    {code}\nend_with(work)"
    ended = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == status
    assert told in ended.stdout + ended.stderr


def test_job_files_of_a_line_that_was_killed_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""], cwd=REPOSITORY)
    start = process_start(ended.pid)
    ended.wait()
    orphan = tmp_path / "x.job.json"
    orphan.write_text(
        json.dumps({"parent": {"host": socket.gethostname(), "pid": ended.pid, "start": start}, "items": []})
    )
    run_jobs("work", [job_of("one", "")], 1, tmp_path)
    assert not orphan.exists()
