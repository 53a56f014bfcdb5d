"""General benchmarks: lmms-eval's files and drawn questions as scores and tables of ours."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.general.lmms_results import GeneralResult, GeneralRun, LmmsOutput, find_results, read_output
from eval.general.scores import COGNITION, score_output
from eval.metrics.aggregates import AGGREGATES
from eval.report.assemble import assemble_report
from eval.report.general_tables import general_notes, general_table
from eval.report.published import published_general_table
from eval.score import score_predictions
from eval.settings import Task
from eval.statistics import sum_statistics
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.records import Example, Prediction, Score
from robustmerge.stage.settings import UserError
from tests.report_cases import make_results, tables_of
from tests.tiny_model import TEMPLATE

GOLDEN = REPOSITORY / "tests" / "golden" / "general"
LIMITS = {"pope": 12, "mme": 16, "mmbench": 16}
TASKS = {name: f"{name}_local" for name in LIMITS}


def lay_out(folder: Path, name: str) -> Path:
    """The recorded files of a task, under the names that lmms-eval gives them."""
    place = folder / "mini__model"
    place.mkdir(parents=True)
    shutil.copy(GOLDEN / "recorded" / f"{name}_results.json", place / "20261123_081151_results.json")
    samples = place / f"20261123_081151_samples_{TASKS[name]}.jsonl"
    shutil.copy(GOLDEN / "recorded" / f"{name}_samples.jsonl", samples)
    return folder


def read(folder: Path, name: str, limit: int | None = None, n_failed: int = 0):
    run = GeneralRun(TASKS[name], TEMPLATE, limit=limit or LIMITS[name])
    return score_output(read_output(*find_results(folder, run.task), run), run, n_failed)


@pytest.mark.parametrize(("name", "value", "parts"), [
    ("pope", 600 / 7, {"accuracy": 250 / 3, "said_yes": 200 / 3, "recall": 100.0, "precision": 75.0}),
    ("mme", 125.0, {"cognition": 162.5, "color": 125.0, "commonsense_reasoning": 162.5}),
    ("mmbench", 0.0, {}),
])  # fmt: skip
def test_recorded_files_become_the_scores_that_lmms_eval_gave(tmp_path, name, value, parts):
    score = read(lay_out(tmp_path, name), name)
    assert score.value == pytest.approx(value) and score.n_expected == LIMITS[name] and score.n_asked in (36, 80)
    assert {key: score.parts[key] for key in parts} == pytest.approx(parts)
    if score.values:
        assert 100 * AGGREGATES[score.aggregate](sum_statistics(score)) == pytest.approx(score.value)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_files_that_are_not_whole_or_not_of_this_run_are_refused(tmp_path):
    def broken(change, match: str, limit: int | None = None, n_failed: int = 0) -> None:
        folder = lay_out(tmp_path / match[:12].replace(" ", "_"), "pope")
        (results,), (samples,) = folder.rglob("*_results.json"), folder.rglob("*.jsonl")
        change(results, samples)
        with pytest.raises(UserError, match=match):
            read(folder, "pope", limit, n_failed)

    broken(lambda results, _: results.unlink(), "wrote no results")
    broken(lambda results, _: shutil.copy(results, results.with_name("20261124_000000_results.json")), "several runs")
    broken(
        lambda results, _: edit(results, '"pope_local": {', '"other": {'), "no task 'pope_local'; choose one of other"
    )
    broken(lambda results, _: results.write_text("{}"), "another version")
    broken(lambda results, _: edit(results, '"n-samples"', '"samples"'), "files of another version")
    broken(lambda results, _: edit(results, "LlavaHf (chat)", "LlavaHf (simple)"), "the model class")
    broken(lambda _, samples: samples.unlink(), "wrote no answers")
    broken(lambda _, samples: edit(samples, '"doc_id": 3,', '"doc_id": 2,'), "12 answers to 11 questions")
    broken(lambda _, samples: edit(samples, '"prediction": "no"', '"prediction": "yes"'), "is .* by its answers")
    broken(lambda _, samples: edit(samples, '"doc_id": 3,', '"doc_id": "3",'), "is no whole number")
    broken(lambda _, samples: samples.write_text("[" * 10**5), "line 1: it is nested deeper")
    broken(lambda _, samples: samples.write_text("5\n"), "line 1 holds a int, not an object")
    broken(lambda _, samples: edit(samples, '"pope_accuracy"', '"pope"'), "cannot be scored .*another version")
    broken(lambda *_: None, "and 20 of 80 were to be asked", limit=20)
    broken(lambda *_: None, "1 failed answers, and 0 are empty", n_failed=1)


ANSWERS = st.sampled_from(("yes", "no", "maybe", ""))


@given(st.lists(st.tuples(ANSWERS, st.booleans()), min_size=1, max_size=20))
def test_pope_counts_every_answer_and_its_f1_follows_from_sums(pairs):
    pairs = [(answer, "yes" if gold else "no") for answer, gold in pairs]
    tp, fp = (sum(pair == ("yes", gold) for pair in pairs) for gold in ("yes", "no"))
    fn, right = sum(pair == ("no", "yes") for pair in pairs), sum(answer == gold for answer, gold in pairs)
    precision, recall = (tp / whole if whole else 0 for whole in (tp + fp, tp + fn))
    f1 = 2 * precision * recall / (precision + recall) if tp else 0
    figures = {"pope_accuracy": right / len(pairs), "pope_precision": precision, "pope_recall": recall}
    samples = [
        {"doc_id": i, "filtered_resps": [answer], "pope_accuracy": {"prediction": answer, "ground_truth": gold}}
        for i, (answer, gold) in enumerate(pairs)
    ]
    n = len(pairs)
    score = score_output(LmmsOutput({**figures, "pope_f1_score": f1}, samples, n, n), GeneralRun("pope", TEMPLATE))
    assert score.n_scored + score.n_empty + score.n_unparsed == score.n_expected == n
    assert score.value == pytest.approx(100 * f1) and score.parts["f1_of_all"] <= score.value + 1e-9
    assert 100 * AGGREGATES["f1"](sum_statistics(score)) == pytest.approx(score.value)


@given(st.dictionaries(st.sampled_from(("color", "count", "OCR", COGNITION[0])), st.lists(
    st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=4), min_size=1))  # fmt: skip
def test_mme_adds_its_categories_and_a_perfect_one_has_200_points(pictures):
    rows = [(c, f"{i}.png", right) for c, pairs in pictures.items() for i, pair in enumerate(pairs) for right in pair]
    points = {c: sum(50 * sum(p) + 100 * all(p) for p in pairs) / len(pairs) for c, pairs in pictures.items()}
    perception = sum(value for category, value in points.items() if category not in COGNITION)
    figures = {"mme_perception_score": perception, "mme_cognition_score": points.get(COGNITION[0], 0.0)}
    samples = [
        {
            "doc_id": i,
            "filtered_resps": ["yes"],
            f"mme_{'cognition' if c in COGNITION else 'perception'}_score": {
                "category": c, "question_id": picture, "score": float(right)
            },
        }
        for i, (c, picture, right) in enumerate(rows)
    ]  # fmt: skip
    score = score_output(LmmsOutput(figures, samples, len(rows), len(rows)), GeneralRun("mme", TEMPLATE))
    assert score.value == pytest.approx(perception) and {c: score.parts[c] for c in points} == pytest.approx(points)
    assert all(points[c] == 200 for c, pairs in pictures.items() if all(all(pair) for pair in pairs))
    if score.values:
        assert 100 * AGGREGATES[score.aggregate](sum_statistics(score)) == pytest.approx(score.value)


def test_a_task_of_no_known_family_has_no_value_and_keeps_lmms_evals_figures():
    output = LmmsOutput({"gqa_exact_match": 0.5}, [{"doc_id": 0, "filtered_resps": "a"}], 1, 1)
    score = score_output(output, GeneralRun("gqa", TEMPLATE))
    assert score.value is None and score.reason and score.parts == {"gqa_exact_match": 0.5}
    assert general_table([GeneralResult("x", "merged", {"gqa": score})]).rows[0].cells[0].value is None


def test_the_tables_show_both_figures_of_pope_and_keep_the_papers_apart(tmp_path):
    rows = [
        GeneralResult(name, "merged", {TASKS[name]: read(lay_out(tmp_path / name, name), name)})
        for name in ("pope", "mme")
    ]
    table = general_table(rows)
    assert [column.title for column in table.columns] == ["pope_local F1", "pope_local accuracy", "mme_local"]
    f1, accuracy, mme = table.rows[0].cells
    assert f1.low < f1.value < f1.high and accuracy.value == pytest.approx(250 / 3) and mme.value is None
    notes = general_notes(rows)
    assert "12 of 80 questions: a partial evaluation" in notes[0] and any("does not say" in note for note in notes)
    published = published_general_table(REPOSITORY / "results" / "paper.yaml", {"ties": "TIES"})
    assert {row.title for row in published.rows} > {"TIES", "robustmerge"}
    assert all("published" in column.title for column in published.columns)
    assert general_table([]) is None


@pytest.mark.usefixtures("undrawn")
def test_a_report_shows_general_scores_beside_the_papers_own_and_nothing_where_nothing_was_asked(plain_context):
    results = make_results()
    values = {f"q{index}": float(index % 4 > 0) for index in range(40)}
    score = Score("pope", "accuracy", 75.0, 40, 40, 0, 0, 0, values)
    rows = (GeneralResult("RobustMerge", "merged", {"pope": score}, "robustmerge"),)
    without, with_scores = (
        assemble_report(results, plain_context),
        assemble_report(results, replace(plain_context, general=rows)),
    )
    assert "General benchmarks" not in without.files["report.md"].decode()
    shown = with_scores.files["report.md"].decode().split("## General benchmarks")[1].split("\n## ")[0]
    assert "| RobustMerge | 75.0 (" in shown
    assert "not measured here" in shown and "1494.9" in shown, "the paper's MME for RobustMerge"
    assert {name for name in with_scores.files if "general" in name} == {
        f"tables/{name}.{kind}" for name in ("general", "general_published") for kind in ("csv", "tex")
    }


@pytest.mark.usefixtures("undrawn")
def test_general_tasks_stand_last_in_no_average_and_beside_the_papers_table_3(plain_context):
    task = Task("pope_like", "POPE-like", False, "{text}", "yes_no", "f1_of_yes", 8, general=True)
    context = replace(plain_context, tasks=(task, *plain_context.tasks))
    examples = [Example(f"q{i}", "?", "yes" if i % 2 else "no", image=f"{i // 2}.png") for i in range(40)]
    answers = [Prediction(one.question_id, "yes") for one in examples]
    scored = score_predictions(task.scoring(), examples, answers)
    results = [
        replace(one, scores={**one.scores, "pope_like": scored}) if one.kind in ("merged", "zero_shot") else one
        for one in make_results()
    ]
    report = assemble_report(results, context)
    main, published = tables_of(make_results(), plain_context)
    *columns, last = report.tables["main"].columns
    assert (last.title, last.heading) == ("POPE-like", "General benchmarks")
    assert tuple(columns) == main.columns and report.tables["published"] == published
    assert [row.cells[:-1] for row in report.tables["main"].rows] == [row.cells for row in main.rows]
    drawn = report.tables["general_drawn"]
    assert [column.title for column in drawn.columns] == ["POPE-like F1", "POPE-like accuracy"]
    assert [row.title for row in drawn.rows] == ["Zero-shot", "Task Arithmetic", "Mine", "RobustMerge"]
    assert drawn.rows[0].cells[0].text == "66.7 (66.7–66.7)" and drawn.rows[0].cells[1].text == "50.0"
    shown = report.files["report.md"].decode().split("## General benchmarks")[1].split("\n## ")[0]
    assert "not these themselves" in shown and "not measured here" in shown and "1494.9" in shown
