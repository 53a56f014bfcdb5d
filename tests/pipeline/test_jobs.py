"""Child processes side by side: order, failures, what they say, progress. Needs nothing; a few seconds."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import child, jobs
from pipeline.events import Event, read_event, write_event
from pipeline.jobs import Job, RunningJob, run_jobs
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.process import process_start
from robustmerge.stage.progress import Bar
from robustmerge.stage.settings import UserError


def job_of(name: str, code: str, cost: float = 1.0) -> Job:
    """A job whose process runs `code`; the job file is `sys.argv[1]`."""
    return Job(name, [{}], cost, lambda script, file, slot: ([sys.executable, "-c", code, str(file), str(slot)], {}))


EVENTS = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from pipeline.events import *;"


def test_the_longest_job_starts_first(tmp_path, capsys):
    run_jobs("work", [job_of("short", "", 1), job_of("long", "", 9), job_of("middle", "", 5)], 1, tmp_path)
    printed = capsys.readouterr().out
    assert printed.index("long: done") < printed.index("middle: done") < printed.index("short: done")


def test_a_failed_job_does_not_stop_the_others_and_all_failures_are_told(tmp_path):
    written = tmp_path / "written"
    jobs = [
        job_of("bad", f"{EVENTS} report_error('no such picture\\nnor this one'); sys.exit(2)", 3),
        job_of("worse", "raise RuntimeError('boom')", 2),
        job_of("good", f"open({str(written)!r}, 'w')", 1),
    ]
    with pytest.raises(UserError) as failed:
        run_jobs("work", jobs, 1, tmp_path / "logs")
    assert written.exists()
    assert "bad: no such picture\nnor this one\n" in str(failed.value)
    assert "RuntimeError: boom" in str(failed.value)
    assert str(tmp_path / "logs" / "worse.log") in str(failed.value)
    assert not list((tmp_path / "logs").glob("*.job.json"))


def test_what_a_child_says_reaches_the_user_and_its_output_the_log(tmp_path, capsys):
    code = f"{EVENTS} report_progress(0.5, 'halfway'); say('going on'); print('detail')"
    run_jobs("work", [job_of("one", code)], 1, tmp_path)
    printed = capsys.readouterr().out
    assert "  going on" in printed
    assert "detail" not in printed
    assert (tmp_path / "one.log").read_text().splitlines() == ["going on", "detail"]


@pytest.mark.parametrize("kept", ["", "4096"])
def test_a_child_keeps_its_memory_between_batches_unless_the_user_says_otherwise(tmp_path, monkeypatch, kept):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    if kept:
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", kept)
    run_jobs("work", [job_of("one", "import os; print(os.environ['MALLOC_TRIM_THRESHOLD_'])")], 1, tmp_path)
    assert (tmp_path / "one.log").read_text().split() == [kept or str(2**30)]


def test_jobs_side_by_side_have_slots_of_their_own(tmp_path):
    code = "import sys, time; print('slot', sys.argv[2]); time.sleep(0.5)"
    run_jobs("work", [job_of(str(number), code) for number in range(4)], 2, tmp_path)
    slots = [(tmp_path / f"{number}.log").read_text().split()[1] for number in range(4)]
    assert sorted(slots[:2]) == ["0", "1"]
    assert set(slots) == {"0", "1"}


@pytest.mark.parametrize(
    ("events", "fraction"),
    [
        ([(1, 0.5)], 0.25),
        ([(1, 1.0)], 0.5),
        ([(1, 0.4), (2, 0.2)], 0.6),
        ([(1, 0.4), (2, 0.9), (2, 0.1)], 0.95),
        ([(2, 1.5)], 1.0),
    ],
)
def test_progress_is_that_of_all_items_and_never_goes_back(events, fraction):
    running = RunningJob(Job("two items", [{}, {}]), None, Path(), Path(), 0)
    for number, within in events:
        running.handle(Event("item", number=number))
        running.handle(Event("progress", fraction=within))
    assert running.fraction == pytest.approx(fraction)
    running.handle(Event("item", "experts/vqav2", number=2))
    assert running.share == f"two items {100 * running.fraction:.0f} % (experts/vqav2)"


def test_the_time_left_is_told_by_the_pace_of_now_and_not_by_what_was_there_before(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now)
    running = RunningJob(Job("base", [{}]), None, Path(), Path(), 0)
    with jobs._Display("train", [running.job]) as display:
        for fraction in (0.5, 0.6, 0.7):  # half of it is found done
            now += 100
            running.handle(Event("progress", fraction=fraction))
            display.show([running])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.partition(" (")[0] for line in lines] == [
        "train: 50 %",
        "train: 60 %, about 400 s left",
        "train: 70 %, about 300 s left",
    ]


def test_a_bar_reports_its_part_of_the_work_even_without_a_terminal(monkeypatch):
    reported = []
    monkeypatch.setattr(Bar, "report", lambda fraction, status: reported.append((fraction, status)))
    for _ in Bar(range(4), "measure", part=(2, 2), disable=None):
        pass
    assert reported[0][0] == 0.5 and reported[-1][0] == 1.0
    assert reported[-1][1].startswith("part 2/2 measure: 4/4 [")
    list(Bar(range(4), disable=True))
    assert reported[-1][0] == 1.0 and len(reported) <= 6


def test_processes_of_one_child_report_an_error_once_and_other_lines_are_no_events():
    running = RunningJob(Job("one", [{}]), None, Path(), Path(), 0)
    for _ in range(2):
        running.handle(Event("error", "no such picture"))
    assert running.errors == ["no such picture"]
    others = ('{"event": "epoch"}', '{"event": "progress", "unknown": 1}', '{"event": "progress", "fraction": "a"}')
    for line in ("", "{}", '{"event": ', *others, "a{", " 50%|#####     | 3/6"):
        assert read_event(line) is None


@pytest.mark.parametrize("before", ["Loading... ", "\\rLoading weights:  50%|#####     | 3/6"])
def test_why_a_child_fails_is_read_although_a_library_has_not_ended_its_line(tmp_path, before):
    code = f"{EVENTS} print('{before}', end='', flush=True); report_error('no such picture \\udcff'); sys.exit(2)"
    with pytest.raises(UserError, match="^one: no such picture"):
        run_jobs("work", [job_of("one", code)], 1, tmp_path)
    assert (tmp_path / "one.log").read_text().splitlines()[-1] == r"no such picture \udcff"


def test_a_child_with_an_open_bar_that_fails_with_a_full_disk_says_so(tmp_path):
    code = f"""{EVENTS}
import errno, threading, time
from tqdm import tqdm
from pipeline.child import run_and_exit
from robustmerge.stage.failures import run_guarded
def draw():
    while True:
        bar.refresh()
bar = tqdm(range(30), "see")
bar.update(18)
def fail():
    raise OSError(errno.ENOSPC, "No space left on device", "x/weights")
threading.Thread(target=draw, daemon=True).start()
time.sleep(0.1)
run_and_exit(lambda: run_guarded(fail, "again", report_error))"""
    with pytest.raises(UserError, match="^one: the disk is full while writing x/weights. Nothing finished is lost"):
        run_jobs("work", [job_of("one", code)], 1, tmp_path)


def test_any_output_of_a_child_is_read_to_its_end_and_shown_bounded_and_plain(tmp_path, capsys):
    code = f"""{EVENTS}
out = sys.stdout.buffer
for odd in (b"\\xff\\x00\\x1b[2J", START.encode() + b"[" * 99999, START.encode() + b'"message"}}', b"x" * 10**7):
    out.write(odd + b"\\n")
say("\\x1b[2Jgood \\u202e" + "m" * 10**7)
report_progress(float("nan"), "\\x1b[1A")
report_error("bad\\ud800 " + "\U0001f600" * 10**6 + " the remedy")
sys.exit(2)"""
    with pytest.raises(UserError, match=r"^o\\x1bne: bad\\ud800 .*the remedy\n") as failed:
        run_jobs("work", [job_of("o\x1bne", code)], 1, tmp_path)
    printed = capsys.readouterr().out
    assert "\\x1b[2Jgood \\u202emmm" in printed and "\x1b" not in printed + str(failed.value)
    assert len(printed) < 3000 and len(str(failed.value).encode()) < 2000


def test_an_event_is_one_write_that_a_pipe_takes_whole(capfdbinary):
    for text in ('"' * 9999, "\n" * 9999, "\x1b" * 9999, f"a\n{'b' * 9999}\U0001f600" * 9):
        write_event(Event("error", text))
        assert len(capfdbinary.readouterr().out) < 4096


def test_bars_of_a_library_do_not_hide_the_last_words_of_a_killed_child(tmp_path):
    bars = r"for n in range(99): print(f'\rLoading weights: {n:3}%|#    | 1/2', end='', flush=True)"
    code = f"import os; print('out of memory')\n{bars}\nos.kill(os.getpid(), 9)"
    with pytest.raises(UserError, match="^one: ended with status -9\nout of memory\n"):
        run_jobs("work", [job_of("one", code)], 1, tmp_path)


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
    ("code", "status", "output"),
    [
        ("print('done')", 0, "done"),
        ("import sys; sys.exit(2)", 2, ""),
        ("raise ValueError('boom')", 1, "ValueError: boom"),
        ("import atexit, os; atexit.register(os.abort)", 0, ""),
    ],
)
def test_a_child_ends_with_the_status_of_its_work_whatever_its_libraries_do_at_the_end(code, status, output):
    program = f"from pipeline.child import run_and_exit\ndef work():\n    {code}\nrun_and_exit(work)"
    ended = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == status
    assert output in ended.stdout + ended.stderr


def test_job_files_of_a_program_that_was_killed_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""], cwd=REPOSITORY)
    start = process_start(ended.pid)
    ended.wait()
    orphan = tmp_path / "x.job.json"
    orphan.write_text(
        json.dumps({"parent": {"host": socket.gethostname(), "pid": ended.pid, "start": start}, "items": []})
    )
    run_jobs("work", [job_of("one", "")], 1, tmp_path)
    assert not orphan.exists()
