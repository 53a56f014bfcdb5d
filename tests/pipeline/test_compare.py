"""compare.py: any two sources on the same questions, from the scores that exist."""

from __future__ import annotations

import csv
import subprocess

import pytest

from pipeline.stages.report_context import make_context, read_general
from pipeline.tools.compare import compare as compare_sources
from pipeline.tools.compare import read_request
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import ConfigError, UserError
from tests.plans import finish_scores, make_plan, make_point
from tests.report_cases import TASKS, N


def all_tasks(right: int) -> dict[str, int]:
    return {task.name: right for task in TASKS}


Rights = dict[str, dict[str, int]]  # by method, by task: how many answers are right
WORDS = ("tasks=[vqav2,rec,aokvqa]", "methods=[ties,dare,pcb]", "strength_grid=null", "bootstrap.draws=400")
TIES, DARE, PCB = "merged/ties", "merged/dare", "merged/pcb"


@pytest.fixture
def run(tmp_path, capsys):
    """Compare sources at points given as (words, scores): what is printed, and the CSV file by its text columns."""

    def compare(sweep: list[tuple[list[str], Rights]], *sources: str) -> tuple[str, dict[tuple, dict[str, str]]]:
        file = tmp_path / "new" / "x.csv"
        named = (f"sources=[{','.join(sources)}]", f"out={file}")
        for words, rights in sweep:
            plan = make_plan(tmp_path, *WORDS, *words)
            for source, right in rights.items():
                finish_scores(plan, source, right)
        compare_sources([make_point(tmp_path, *WORDS, *words, *named, program="compare") for words, _ in sweep])
        rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
        by_text = {(row["source"], row["minus"], row["at"], row["task"]): row for row in rows}
        return capsys.readouterr().out, by_text

    return compare


def test_a_pair_is_compared_task_by_task_and_on_both_averages(run):
    rights = {TIES: {"vqav2": 80, "rec": 60, "aokvqa": 50}, DARE: all_tasks(60)}
    printed, rows = run([([], rights)], TIES, DARE)
    assert [key[-1] for key in rows] == ["vqav2", "rec", "seen_avg", "aokvqa", "unseen_avg"]
    one = {key: float(value) for key, value in rows[TIES, DARE, "", "seen_avg"].items() if key.startswith("diff")}
    assert one["difference"] == pytest.approx(100 * 10 / N, abs=1e-3) and one["difference_p"] < 0.01
    assert one["difference_low"] < one["difference"] < one["difference_high"]
    assert rows[TIES, DARE, "", "rec"]["difference_p"] == "1.0000"
    lines = {line.split("  ")[0]: line for line in printed.splitlines()}
    assert "+8.3*" in lines["Seen avg"] and "+0.0 " in lines["REC"] and "*" not in lines["REC"]
    assert "−8.3*" in lines["AOKVQA"] and "66.7 (" in lines["VQAv2"]


def test_the_other_way_round_every_sign_turns_and_p_stays(run):
    point = ([], {TIES: all_tasks(70), DARE: all_tasks(50)})
    (_, there), (_, back) = run([point], TIES, DARE), run([point], DARE, TIES)
    for task in ("rec", "unseen_avg"):
        one, other = there[TIES, DARE, "", task], back[DARE, TIES, "", task]
        assert float(one["difference"]) == -float(other["difference"])
        assert float(one["difference_low"]) == -float(other["difference_high"])
        assert one["difference_p"] == other["difference_p"]


def test_three_sources_are_three_pairs(run):
    _, rows = run([([], {name: all_tasks(9) for name in (TIES, DARE, PCB)})], TIES, DARE, PCB)
    assert list(dict.fromkeys(key[:2] for key in rows)) == [(TIES, DARE), (TIES, PCB), (DARE, PCB)]


def test_the_spread_over_seeds_stands_apart_and_the_base_has_none(run):
    levels = {1: 20, 2: 50, 3: 80}
    sweep = [
        ([f"seed={seed}"], {TIES: all_tasks(right + 12), DARE: all_tasks(right), "zero_shot": all_tasks(20)})
        for seed, right in levels.items()
    ]
    printed, rows = run(sweep, TIES, DARE, "zero_shot")
    steady, wide = rows[TIES, DARE, "", "rec"], rows[TIES, "zero_shot", "", "rec"]
    assert float(steady["difference"]) == pytest.approx(10) and float(steady["difference_deviation"]) == 0
    assert float(wide["difference_deviation"]) == pytest.approx(25)
    assert float(wide["difference_low"]) > 0 > float(wide["difference_seeds_low"])
    assert wide["minus_score_deviation"] == "" and float(wide["source_score_deviation"]) == pytest.approx(25)
    assert "0.0, +10.0 to +10.0 (3)" in printed and "p is that of the questions" in printed
    rec = [line for line in printed.splitlines() if line.startswith("REC")]
    assert ["*" in line for line in rec] == [True, False, False]


def test_points_of_a_sweep_are_compared_each_by_itself(run):
    sweep = [
        ([f"seed={seed}", f"peft.r={rank}"], {TIES: all_tasks(right), DARE: all_tasks(40)})
        for rank, right in ((4, 60), (8, 20))
        for seed in (1, 2)
    ]
    printed, rows = run(sweep, TIES, DARE)
    at = {place: float(rows[TIES, DARE, f"peft.r={place}", "rec"]["difference"]) for place in (4, 8)}
    assert at[4] > 0 > at[8] and f"{TIES} minus {DARE} (peft.r=4)" in printed


def test_what_only_one_of_them_has_is_named_and_what_neither_shares_is_refused(run):
    point = ([], {TIES: {"rec": 60}, DARE: all_tasks(50), PCB: {"vqav2": 3}})
    printed, rows = run([point], TIES, DARE)
    assert f"no score of {TIES}: VQAv2, AOKVQA" in printed
    assert rows[TIES, DARE, "", "seen_avg"]["difference"] == "" != rows[TIES, DARE, "", "rec"]["difference"]
    with pytest.raises(UserError, match=r"no score on a common task(.|\n)*predict\.py .*source=merged/pcb\n"):
        run([point], TIES, PCB)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sources": ["a"], "out": None}, "at least two different sources"),
        ({"sources": ["a", "a"], "out": None}, "at least two different sources"),
        ({"sources": ["a", "b"], "out": "x.txt"}, "out must be a CSV file"),
    ],
)
def test_what_cannot_be_compared_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        read_request([keys])


def test_what_is_compared_needs_nothing_of_what_is_not(tmp_path):
    plan = make_plan(tmp_path)  # no val scores, nothing is chosen
    assert make_context("compare", [plan]).protocol == "corrected"
    with pytest.raises(UserError, match="val scores are missing"):
        read_general([plan])


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
