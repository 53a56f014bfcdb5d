"""compare.py: any two sources on the same questions, from the scores that exist."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.settings import Task
from pipeline.plan import make_plans
from pipeline.program import compose
from pipeline.stages.report_context import make_context, read_general
from pipeline.tools.compare import compare as compare_sources
from pipeline.tools.compare import read_request
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.records import write_score
from robustmerge.stage.settings import ConfigError, UserError
from tests.report_cases import TASKS, N, make_score


def make_line(folder: Path, seed: int, rights: dict[str, dict[str, int]], *words: str) -> SimpleNamespace:
    """A point of which each source has so many right answers of each task; what is alike in all seeds is the base."""

    def find_source(name: str) -> SimpleNamespace:
        where = "base" if name == "zero_shot" else f"{name}-{'-'.join(words)}-{seed}"
        return SimpleNamespace(label=name, tasks=TASKS, address=SimpleNamespace(path=folder / where))

    def score(source: SimpleNamespace, task: Task) -> SimpleNamespace:
        path = source.address.path / f"{task.name}.json"
        if task.name in rights[source.label]:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_score(path, make_score(task.name, rights[source.label][task.name]))
        return SimpleNamespace(path=path, is_complete=path.exists)

    config = SimpleNamespace(seed=seed, overrides=(f"seed={seed}", *words))
    return SimpleNamespace(config=config, find_source=find_source, score=score)


def all_tasks(right: int) -> dict[str, int]:
    return {task.name: right for task in TASKS}


@pytest.fixture
def run(context, monkeypatch, tmp_path, capsys):
    """Compare sources of made-up lines: what is printed, and the CSV file as a line a source, other, point and task."""

    def compare(lines: list[SimpleNamespace], *sources: str) -> tuple[str, dict[tuple[str, ...], dict[str, str]]]:
        monkeypatch.setattr("pipeline.tools.compare.make_plans", lambda points: lines)
        monkeypatch.setattr("pipeline.tools.compare.make_context", lambda name, lines: context)
        compare_sources([{"sources": list(sources), "out": str(tmp_path / "new" / "x.csv")} for _ in lines])
        with open(tmp_path / "new" / "x.csv", encoding="utf-8") as file:
            found = {(one["source"], one["minus"], one["at"], one["task"]): one for one in csv.DictReader(file)}
        return capsys.readouterr().out, found

    return compare


def test_a_pair_is_compared_task_by_task_and_on_both_averages(run, tmp_path):
    line = make_line(tmp_path, 0, {"a": {"vqav2": 80, "rec": 60, "aokvqa": 50}, "b": all_tasks(60)})
    printed, found = run([line], "a", "b")
    assert [key[-1] for key in found] == ["vqav2", "rec", "seen_avg", "aokvqa", "unseen_avg"]
    one = {key: float(value) for key, value in found["a", "b", "", "seen_avg"].items() if key.startswith("diff")}
    assert one["difference"] == pytest.approx(100 * 10 / N, abs=1e-3) and one["difference_p"] < 0.01
    assert one["difference_low"] < one["difference"] < one["difference_high"]
    assert found["a", "b", "", "rec"]["difference_p"] == "1.0000"
    lines = {line.split("  ")[0]: line for line in printed.splitlines()}
    assert "+8.3*" in lines["Seen avg"] and "+0.0 " in lines["REC"] and "*" not in lines["REC"]
    assert "−8.3*" in lines["AOKVQA"] and "66.7 (" in lines["VQAv2"]


def test_the_other_way_round_every_sign_turns_and_p_stays(run, tmp_path):
    line = make_line(tmp_path, 0, {"a": all_tasks(70), "b": all_tasks(50)})
    (_, there), (_, back) = run([line], "a", "b"), run([line], "b", "a")
    for task in ("rec", "unseen_avg"):
        one, other = there["a", "b", "", task], back["b", "a", "", task]
        assert float(one["difference"]) == -float(other["difference"])
        assert float(one["difference_low"]) == -float(other["difference_high"])
        assert one["difference_p"] == other["difference_p"]


def test_three_sources_are_three_pairs(run, tmp_path):
    _, found = run([make_line(tmp_path, 0, {name: all_tasks(9) for name in "abc"})], "a", "b", "c")
    assert list(dict.fromkeys(key[:2] for key in found)) == [("a", "b"), ("a", "c"), ("b", "c")]


def test_the_spread_over_seeds_stands_apart_and_the_base_has_none(run, tmp_path):
    levels = {1: 20, 2: 50, 3: 80}
    lines = [
        make_line(tmp_path, seed, {"a": all_tasks(right + 12), "b": all_tasks(right), "zero_shot": all_tasks(20)})
        for seed, right in levels.items()
    ]
    printed, found = run(lines, "a", "b", "zero_shot")
    steady, wide = found["a", "b", "", "rec"], found["a", "zero_shot", "", "rec"]
    assert float(steady["difference"]) == pytest.approx(10) and float(steady["difference_deviation"]) == 0
    assert float(wide["difference_deviation"]) == pytest.approx(25)
    assert float(wide["difference_low"]) > 0 > float(wide["difference_seeds_low"])
    assert wide["minus_score_deviation"] == "" and float(wide["source_score_deviation"]) == pytest.approx(25)
    assert "0.0, +10.0 to +10.0 (3)" in printed and "p is that of the questions" in printed
    rec = [line for line in printed.splitlines() if line.startswith("REC")]
    assert ["*" in line for line in rec] == [True, False, False]


def test_points_of_a_sweep_are_compared_each_by_itself(run, tmp_path):
    lines = [
        make_line(tmp_path, seed, {"a": all_tasks(right), "b": all_tasks(40)}, f"peft.r={rank}")
        for rank, right in ((4, 60), (8, 20))
        for seed in (1, 2)
    ]
    printed, found = run(lines, "a", "b")
    at = {place: float(found["a", "b", f"peft.r={place}", "rec"]["difference"]) for place in (4, 8)}
    assert at[4] > 0 > at[8] and "a minus b (peft.r=4)" in printed


def test_what_only_one_of_them_has_is_named_and_what_neither_shares_is_refused(run, tmp_path):
    rights = {"a": {"rec": 60}, "b": all_tasks(50), "c": {"vqav2": 3}}
    printed, found = run([make_line(tmp_path, 0, rights)], "a", "b")
    assert "no score of a: VQAv2, AOKVQA" in printed
    assert found["a", "b", "", "seen_avg"]["difference"] == "" != found["a", "b", "", "rec"]["difference"]
    with pytest.raises(UserError, match=r"no score on a common task(.|\n)*predict\.py .*source=c\n"):
        run([make_line(tmp_path, 0, rights)], "a", "c")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"sources": ["a"], "out": None}, "at least two different sources"),
        ({"sources": ["a", "a"], "out": None}, "at least two different sources"),
        ({"sources": ["a", "b"], "out": "x.txt"}, "out must be a CSV file"),
    ],
)
def test_what_cannot_be_compared_is_said(own, said):
    with pytest.raises(ConfigError, match=said):
        read_request([own])


def test_what_is_compared_needs_nothing_of_what_is_not(tmp_path):
    (line,) = make_plans([compose("merge_eval", [f"paths.runs={tmp_path}"])])  # no val scores, nothing is chosen
    assert make_context("compare", [line]).protocol == "corrected"
    with pytest.raises(UserError, match="val scores are missing"):
        read_general([line])


def test_a_sweep_over_sources_is_refused():
    points = [{"sources": ["a", name], "out": None} for name in "bc"]
    with pytest.raises(UserError, match="a sweep cannot run over sources"):
        read_request(points)


def test_two_sources_of_a_finished_line_are_compared_as_typed_and_nothing_is_written(smoke):
    before = {path: path.stat().st_mtime_ns for path in smoke.runs.rglob("*")}
    words = ["profile=smoke", f"paths.runs={smoke.runs}", "sources=[merged/robustmerge,merged/ties@chosen]"]
    command = [str(smoke.python), "scripts/compare.py", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "merged/robustmerge minus merged/ties@chosen" in done.stdout and "Unseen avg" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in smoke.runs.rglob("*")}
