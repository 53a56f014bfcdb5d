"""One layer of shell quotes is enough for any path, and whatever is typed, the answer is a result or one message."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pipeline.program import compose, run
from pipeline.sweep import make_plans
from pipeline.words import explain_words, format_command, quote, quote_values
from robustmerge.hub.places import split_name
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.progress import Bar
from robustmerge.stage.terminal import protect_terminal
from tests.merge_cases import random_experts, write_expert

NAMES = (
    "lr=2e-4", "my run", "a,b", "x[1]", "v1:2", "tilde~1", "cost$5", "100", "1e3", "null", "été", "(copy)", "a+b",
    "50%", "it's", 'q"q', "a#b&c;d", "{a}", "[a", "a]", "${x}", "a\\", "a\nb", "~", "*",
)  # fmt: skip
WORDS = st.text(st.sampled_from("ab1,:=~[](){}$'\"\\ .-é%\n"), min_size=1, max_size=8)


@pytest.fixture
def folders(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (pairs,) = random_experts("a").values()
    for name in NAMES:
        write_expert(tmp_path / "OUT" / name, pairs)
    return [f"OUT/{name}" for name in NAMES]


def read_experts(*words: str) -> list[str]:
    config = make_plans([compose("merge", list(words))])[0].config
    return [str(place) for _, place in config.experts or ()]


def test_a_folder_of_any_name_is_an_expert_without_further_quotes(folders, tmp_path, monkeypatch):
    wanted = [str(tmp_path / folder) for folder in folders]
    assert read_experts(f"experts=[{','.join(folders)}]", "out=x") == wanted
    assert read_experts(f"experts=[{', '.join(folders)}]") == wanted
    named = ",".join(f"n{number}:{folder}" for number, folder in enumerate(folders))
    assert read_experts(f"experts=[{named}]") == wanted
    monkeypatch.chdir("OUT")
    bare = [name for name in NAMES if name not in ("~", "null")]
    assert read_experts(f"experts=[{','.join(bare)}]") == [str(tmp_path / "OUT" / name) for name in bare]


def read(word: str) -> object:
    """The value that Hydra and OmegaConf make of a word that was typed."""
    (quoted,) = quote_values([word])
    value = OverridesParser.create().parse_override(quoted).value()
    return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]


@pytest.mark.parametrize("key", ["out", "source", "model.checkpoint", "paths.runs", "task.vqav2.data.test", "merged"])
def test_a_path_of_any_name_is_read_as_it_is_typed(key, folders, monkeypatch):
    monkeypatch.chdir("OUT")
    assert [read(f"{key}={name}") for name in NAMES] == list(NAMES)
    assert [read(f"{key}={folder}") for folder in ("no/x[1]", "(no)")] == ["no/x[1]", "(no)"]


@settings(max_examples=150, deadline=None)
@given(WORDS)
def test_what_hydra_reads_of_a_quoted_text_is_that_text(text):
    assert OverridesParser.create().parse_override(f"key={quote(text)}").value() == text


def test_hydras_own_words_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    words = ["-m", "source=a,b", "experts=[a],[b]", "experts=[a,x:b, user/repo@v1]", "out=null", "paths.runs=${x}/b"]
    words += ["merge=ties,dare", "merge.strength=0.3,0.5", "seed=range(1,3)", "experts=['a b',\"c,d\"]", "--cfg", "job"]
    words += ["experts=[a\\,b,c]", "source='a,b'", "+task=x", "methods=[ties,dare]", "out=runs/x-1.2"]
    assert quote_values(words) == words


def test_commas_part_what_exists_apart_and_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "a,b", "c,d"):
        Path(name).mkdir()
    assert read("experts=[a,b,c,d]") == ["a", "b", "c,d"]
    assert split_name("a,b") == ("", "a,b")
    Path("v1:2").mkdir()
    assert (split_name("v1:2"), split_name("n:v1:2"), split_name("n:x")) == (("", "v1:2"), ("n", "v1:2"), ("n", "x"))


@pytest.mark.parametrize(
    "word", ["report=a=b", "report=x,y", "report=été", "tasks=[a,été]", "tasks=[a=b, c]", 'report="']
)
def test_where_a_text_must_be_quoted_the_message_holds_the_word_that_works(word):
    message = explain_words([word])
    assert message is not None
    (typed,) = shlex.split(message.rpartition(": ")[2])
    assert explain_words([typed]) is None
    value, wanted = read(typed), word.partition("=")[2]
    assert (value if isinstance(value, str) else f"[{','.join(value)}]") == wanted.replace(", ", ",")


def test_a_list_that_the_shell_cut_apart_is_shown_whole():
    assert "'tasks=[a, b]'" in str(explain_words(["jobs=2", "tasks=[a,", "b]", "seed=1"]))
    assert "'tasks=[a]'" in str(explain_words(["tasks=[a"]))


@settings(max_examples=20, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=3))
def test_a_printed_command_is_what_was_typed(words):
    words = [*words, "\x1b[2J", "\udcff"]
    printed = format_command(["printf", "%s\\n\\n", *words])
    assert "\x1b" not in printed
    shown = subprocess.run(["bash", "-c", printed], capture_output=True, check=True).stdout
    assert shown == os.fsencode("".join(f"{word}\n\n" for word in words))


def end(monkeypatch, capsys, *words: str, program: str = "merge") -> tuple[object, str]:
    """The exit status and what is printed to standard error."""
    monkeypatch.setattr(sys, "argv", [f"scripts/{program}.py", *words])
    with pytest.raises(SystemExit) as ended:
        run(program, make_plans)
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "word",
    [
        "~merge", "++task.vqav2=5", "seed=${seed}", "seed=${nope:1}", "limit=1e400", "experts=[\x1b[2J,~nobody/x]",
        "out=\udcff", "+task=../merge/ties", "hydra=5", "tasks=" + "[" * 300,
    ],
)  # fmt: skip
def test_whatever_is_typed_wrongly_is_one_message(word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, message = end(monkeypatch, capsys, word, "paths.runs=runs")
    assert status == 2
    assert message.startswith("error: ") and message.count("error: ") == 1
    assert len(message) < 2100 and "Traceback" not in message and "\x1b" not in message
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "content",
    [
        b"title: [", b"- a\n- b", b"!!python/object/apply:os.system [id]", b"1: 2", b"\xff\xfe\x00",
        b"defaults: [/task/mine]", b"# @package task.x\ntitle: ${nope}",
    ],
)  # fmt: skip
def test_a_task_file_that_cannot_be_read_is_one_message(content, tmp_path, monkeypatch, capsys):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_bytes(content)
    status, message = end(monkeypatch, capsys, f"--config-dir={tmp_path}", "+task=mine", "paths.runs=runs")
    assert status == 2
    assert message.startswith("error: ") and "Traceback" not in message


def test_no_terminal_obeys_what_a_program_prints_and_no_encoding_stops_it(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with protect_terminal():
        print("\x1b[2J\x9b1m\r done \u202e été \ud800", flush=True)
        sys.stdout.writelines(["a\tb\n"])
        assert not sys.stdout.isatty()
        assert sys.stdout.encoding == "ascii"
    assert sys.stdout is stream
    shown = stream.detach().getvalue().decode("ascii")
    assert shown == "\\x1b[2J\\x9b1m\\r done \\u202e \\xe9t\\xe9 \\ud800\na\tb\n"


def test_a_bar_shows_no_escape_sequence_either():
    drawn = io.StringIO()
    with Bar(range(2), "\x1b[2J\n", file=drawn) as bar:
        list(bar)
    assert "\x1b[2J" not in drawn.getvalue() and "\\x1b[2J" in drawn.getvalue()


def test_what_fails_in_a_job_of_a_launcher_is_no_mistake_of_the_command_line(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "from pipeline.program import run\n"
        "def main(points):\n"
        "    raise KeyError(points[0]['seed'])\n"
        "run('merge_eval', main)\n"
    )
    words = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "seed=1,2", f"paths.runs={tmp_path}"]
    done = subprocess.run(
        [sys.executable, str(script), *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "KeyError: 1" in done.stderr and "cannot be composed" not in done.stderr


def test_a_program_that_is_told_to_end_stops_as_by_ctrl_c():
    action = "lambda _: (print('begun', flush=True), time.sleep(99))"
    code = f"import time; from pipeline.program import run; run('prepare', {action})"
    started = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None and started.stdout.readline() == "begun\n"
    started.terminate()
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130 and "type the same command to go on (bash scripts/prepare.sh)" in said
