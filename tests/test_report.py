"""Tables, figures, the report and W&B on made-up scores of which everything is known.

Run: pytest tests/test_report.py
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib import image

from eval import wandb_log
from eval.examples import EXAMPLES_A_TASK, LONGEST_SIDE
from eval.figures import draw_figures, look_of
from eval.formats import escape_latex, escape_markdown, format_csv, format_latex, format_markdown, format_text
from eval.page import make_page
from eval.report import make_report, show_summary, write_report
from eval.results import PUBLISHED, Context, SourceResult, arrange_rows
from eval.settings import Bootstrap, Logger, Task
from eval.tables import MISSING, main_table, published_table, resample
from robustmerge.records import Example, Prediction, Score, write_examples, write_predictions
from robustmerge.settings import UserError, build

REPOSITORY = Path(__file__).resolve().parent.parent
PAPER_URL = "https://arxiv.org/abs/2502.17159"
N = 120


def make_task(name: str, title: str, seen: bool) -> Task:
    return Task(name, title, seen, "{text}", 8, "text", "exact_match")


TASKS = (make_task("vqav2", "VQAv2", True), make_task("rec", "REC", True), make_task("aokvqa", "AOKVQA", False))


def make_score(task: str, right: int, **counts: int) -> Score:
    """The first `right` of N questions are right."""
    values = {f"{task}-{i}": float(i < right) for i in range(N)}
    known = {"n_empty": 0, "n_unparsed": 0, "n_failed": 0, **counts}
    return Score(task, "exact_match", 100 * right / N, N, N - sum(known.values()), **known, values=values)


def make_result(source: str, kind: str, title: str, right: dict[str, int], **more) -> SourceResult:
    scores = {task: make_score(task, count) for task, count in right.items()}
    return SourceResult(source, kind, title, scores, address=f"{source}-1a2b3c4d", **more)


def make_results() -> list[SourceResult]:
    return [
        make_result("merged/robustmerge", "merged", "RobustMerge", {"vqav2": 80, "rec": 60, "aokvqa": 50}),
        make_result("merged/mine", "merged", "Mine", {"vqav2": 60, "rec": 60, "aokvqa": 49}),
        make_result("merged/task_arithmetic", "merged", "Task Arithmetic", {"vqav2": 50, "rec": 59, "aokvqa": 40}),
        make_result("multi_task", "multi_task", "Multi-task", {"vqav2": 90, "rec": 80, "aokvqa": 60}),
        make_result("expert/vqav2", "expert", "VQAv2 expert", {"vqav2": 100, "rec": 1}),
        make_result("expert/rec", "expert", "REC expert", {"rec": 90}),
        make_result("zero_shot", "zero_shot", "Zero-shot", {"vqav2": 20, "rec": 30, "aokvqa": 40}),
    ]


@pytest.fixture
def context(tmp_path) -> Context:
    questions = {}
    for task in TASKS:
        folder = tmp_path / "data" / task.name
        folder.mkdir(parents=True)
        image.imsave(folder / "0.png", np.full((2, 3, 3), 0.5))
        image.imsave(folder / "big.png", np.full((500, 3, 3), 0.5))
        pictures = [None, "0.png", "big.png", "gone.png"]
        examples = [
            Example(f"{task.name}-{i}", f"What | is <{i}>?", "red", image=pictures[i % 4], choices=("red", "blue"))
            for i in range(N)
        ]
        questions[task.name] = folder / "test.jsonl"
        write_examples(questions[task.name], examples)
    return Context(
        name="main",
        benchmark="mini",
        model="tiny",
        profile="full",
        tasks=TASKS,
        questions=questions,
        seeds={"data": 0, "training": 7},
        command="bash scripts/merge_eval.sh",
        commit="0123abc",
        dirty=True,
        bootstrap=Bootstrap(draws=400),
    )


def with_predictions(results: list[SourceResult], folder: Path) -> list[SourceResult]:
    made = []
    for result in results:
        files = {}
        for task, score in result.scores.items():
            files[task] = folder / f"{result.source.replace('/', '_')}-{task}.jsonl"
            answers = [
                Prediction(name, f"red <b>{name}</b>" if value else "*blue*|") for name, value in score.values.items()
            ]
            write_predictions(files[task], answers)
        made.append(dataclasses.replace(result, predictions=files))
    return made


def tables_of(results, context):
    rows = arrange_rows(results)
    resampled = resample(rows, context)
    return main_table(rows, context, resampled), published_table(rows, context)


def cell(table, title, column):
    (row,) = [row for row in table.rows if row.title == title]
    return row.cells[[one.key for one in table.columns].index(column)]


def test_rows_come_in_the_papers_order_and_experts_become_one(context):
    main, _ = tables_of(make_results(), context)
    titles = ["Zero-shot", "Individual", "Multi-task", "Task Arithmetic", "Mine", "RobustMerge"]
    assert [row.title for row in main.rows] == titles
    assert [column.key for column in main.columns] == ["vqav2", "rec", "seen_avg", "aokvqa", "unseen_avg"]


def test_individual_is_each_expert_on_its_own_task_and_has_no_unseen_score(context):
    main, _ = tables_of(make_results(), context)
    assert cell(main, "Individual", "rec").value == pytest.approx(100 * 90 / N)
    assert cell(main, "Individual", "aokvqa").text == cell(main, "Individual", "unseen_avg").text == MISSING


def test_an_average_over_tasks_of_which_one_is_missing_is_missing(context):
    results = [make_result("zero_shot", "zero_shot", "Zero-shot", {"vqav2": 20, "aokvqa": 40})]
    main, _ = tables_of(results, context)
    assert cell(main, "Zero-shot", "seen_avg").text == MISSING
    assert cell(main, "Zero-shot", "unseen_avg").low is not None


def test_only_a_best_merged_value_that_is_clear_is_bold(context):
    main, _ = tables_of(make_results(), context)
    bold = {
        (row.title, column.key)
        for row in main.rows
        for column, one in zip(main.columns, row.cells, strict=True)
        if one.bold
    }
    # vqav2: 80 against 60 of 120. rec: a tie. aokvqa: 50 against 49 is noise. Multi-task is no merged model.
    assert bold == {("RobustMerge", "vqav2"), ("RobustMerge", "seen_avg")}


def test_a_single_merged_model_is_never_bold(context):
    main, _ = tables_of(make_results()[:1], context)
    assert not any(one.bold for row in main.rows for one in row.cells)


def test_the_points_of_a_sweep_are_rows_labelled_by_what_differs(context):
    points = [
        make_result(
            "merged/task_arithmetic",
            "merged",
            "Task Arithmetic",
            {"vqav2": 50},
            overrides={"space": "delta", **strength},
        )
        for strength in ({"strength": 0.3}, {"strength": 0.5}, {})
    ]
    assert [row.title for row in arrange_rows(points)] == [
        "Task Arithmetic (strength=0.3)",
        "Task Arithmetic (strength=0.5)",
        "Task Arithmetic (strength=default)",
    ]
    assert arrange_rows(points[:1])[0].title == "Task Arithmetic (space=delta, strength=0.3)"
    main, published = tables_of(points, context)
    assert len(main.rows) == 3
    assert [row.title for row in published.rows].count("Task Arithmetic") == 1


def test_sources_that_cannot_be_told_apart_get_their_address():
    same = make_result("merged/dare", "merged", "DARE", {"vqav2": 5})
    rows = arrange_rows([same, dataclasses.replace(same, address="merged/dare-99999999")])
    assert [row.title for row in rows] == ["DARE [merged/dare-1a2b3c4d]", "DARE [merged/dare-99999999]"]


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([make_result("x", "mergd", "X", {})], "unknown kind 'mergd'"),
        ([make_result("expert/rec", "expert", "X", {"vqav2": 1})], "no score for its own task rec"),
        ([make_result("expert/rec", "expert", "X", {"rec": 1})] * 2, "more than one expert for rec"),
    ],
)
def test_results_that_make_no_table_are_refused(results, said):
    with pytest.raises(UserError, match=said):
        arrange_rows(results)


def test_published_values_are_the_papers_and_a_missing_one_shows_as_missing(context):
    _, published = tables_of(make_results(), context)
    assert cell(published, "RobustMerge", "vqav2").text == "67.20"
    assert cell(published, "Individual", "aokvqa").text == MISSING
    assert {one.text for row in published.rows if row.title == "Mine" for one in row.cells} == {MISSING}
    # The printed average is over eight tasks, these columns are two of them.
    assert cell(published, "RobustMerge", "seen_avg").text == MISSING


def test_printed_averages_are_shown_where_all_their_tasks_are(context):
    paper = yaml.safe_load(PUBLISHED.read_text())["table_2_mm_mergebench"]
    names = [(name, title, group == "seen") for group in ("seen", "unseen") for name, title in paper[group].items()]
    whole = dataclasses.replace(context, tasks=tuple(make_task(*name) for name in names))
    _, published = tables_of([], whole)
    assert cell(published, "RobustMerge", "seen_avg").text == "57.33"
    assert cell(published, "Zero-shot", "unseen_avg").text == "25.22"
    assert cell(published, "Individual", "unseen_avg").text == MISSING


def test_every_row_of_the_published_file_has_a_value_a_column():
    paper = yaml.safe_load(PUBLISHED.read_text())
    table_2 = paper["table_2_mm_mergebench"]
    for row in table_2["rows"].values():
        assert len(row["seen"]) == len(table_2["seen"]) == 8
        assert len(row.get("unseen", table_2["unseen"])) == len(table_2["unseen"]) == 4
        assert sum(row["seen"]) / 8 == pytest.approx(row["seen_avg"], abs=0.08)
    for name in ("table_4_clip_vit_b_32", "table_5_clip_vit_l_14", "table_6_components", "table_9_dora"):
        for row in paper[name]["rows"].values():
            assert sum(row["scores"]) / 8 == pytest.approx(row["avg"], abs=0.1)


def test_a_file_that_holds_no_published_values_is_named(context, tmp_path):
    (tmp_path / "paper.yaml").write_text("rows: 1\n")
    with pytest.raises(UserError, match=r"paper\.yaml is not a file of published values"):
        published_table([], dataclasses.replace(context, published=tmp_path / "paper.yaml"))


def test_every_format_holds_the_same_rows_and_escapes_its_own_marks(context):
    results = [make_result("merged/a_b", "merged", "A_b | 50% <c>", {"vqav2": 60})]
    main, _ = tables_of(results, context)
    assert "A&#95;b &#124; 50% &#60;c&#62;" in format_markdown(main)
    assert r"A\_b | 50\% <c>" in format_latex(main)
    rows = list(csv.DictReader(io.StringIO(format_csv(main))))
    assert rows[0]["source"] == "A_b | 50% <c>"
    assert float(rows[0]["vqav2"]) == 50.0 and float(rows[0]["vqav2_low"]) < 50 < float(rows[0]["vqav2_high"])
    assert rows[0]["rec"] == ""
    assert escape_latex("a&b\\") == r"a\&b\textbackslash{}"
    assert escape_markdown("a\n`b`") == "a &#96;b&#96;"


def test_the_text_table_is_aligned_and_keeps_to_the_width(context):
    main, _ = tables_of(make_results(), context)
    text = format_text(main, width=60)
    assert max(map(len, text.splitlines())) <= 60
    first = text.split("\n\n")[0].splitlines()
    assert first[0].split()[1:3] == ["Seen", "avg"]
    ends = {re.search(r"\d+\.\d \(", line).start() for line in first[2:]}
    assert len(ends) == 1
    assert "66.7*" in text and text.count("Zero-shot") >= 2


def test_a_report_is_whole_and_its_page_needs_nothing_else(context, tmp_path):
    path = write_report(tmp_path / "report", with_predictions(make_results(), tmp_path), context)
    text, page = path.read_text(), (tmp_path / "report" / "report.html").read_text()
    for wanted in ("Zero-shot", "0123abc", "uncommitted", "training 7", "VQAv2 120", "400 draws", context.command):
        assert wanted in text and wanted in page
    for name in re.findall(r'(?:src="|\]\()(figures/[^")]+)', text):
        assert (tmp_path / "report" / name).exists(), name
    assert not re.findall(r'(?:src|href)="(?!data:|https://arxiv)', page)
    for name in ("main", "published", "differences"):
        assert (tmp_path / "report" / "tables" / f"{name}.tex").exists()
        assert (tmp_path / "report" / "tables" / f"{name}.csv").exists()
    for name in ("seen_unseen.png", "seen_unseen.svg", "tasks.png", "tasks.svg"):
        assert (tmp_path / "report" / "figures" / name).stat().st_size > 5000
    assert "SMOKE" not in text and "None: every answer was there" in text


def test_examples_show_pictures_questions_and_every_answer_unharmed(context, tmp_path):
    report = make_report(with_predictions(make_results(), tmp_path), context)
    text, page = report.files["report.md"].decode(), report.files["report.html"].decode()
    assert text.count("| **Expected** |") == len(TASKS)
    assert text.count("| Question |") == len(TASKS) and EXAMPLES_A_TASK == 3
    assert "<b>vqav2" not in page and "*blue*|" in re.sub(r"&#(\d+);", lambda m: chr(int(m[1])), page)
    assert "✓" in page and "✗" in page
    shapes = [image.imread(io.BytesIO(data)).shape for name, data in report.files.items() if "examples/" in name]
    assert shapes and all(max(shape[:2]) <= LONGEST_SIDE for shape in shapes)


def test_the_same_scores_give_the_same_bytes_and_what_an_earlier_report_left_goes(context, tmp_path):
    results = with_predictions(make_results(), tmp_path)
    first, second = make_report(results, context), make_report(results, context)
    assert first.files == second.files
    (tmp_path / "report" / "figures" / "examples").mkdir(parents=True)
    (tmp_path / "report" / "tables").mkdir()
    for name in ("figures/examples/old-1.png", "tables/old.tex"):
        (tmp_path / "report" / name).write_text("old")
    (tmp_path / "report" / "tables" / "notes.txt").write_text("mine")
    write_report(tmp_path / "report", results, context)
    left = {path.relative_to(tmp_path / "report").as_posix() for path in (tmp_path / "report").rglob("*.*")}
    assert left == {*first.files, "tables/notes.txt"}


def test_a_smoke_report_says_first_that_its_numbers_mean_nothing(context):
    smoke = dataclasses.replace(context, profile="smoke")
    files = make_report(make_results(), smoke).files
    assert files["report.md"].decode().splitlines()[2].startswith("> **SMOKE RUN: THESE NUMBERS MEAN NOTHING")
    assert "<blockquote>" in files["report.html"].decode()


def test_answers_that_could_not_count_are_listed_where_there_are_any(context):
    scores = {"rec": make_score("rec", 10, n_empty=2, n_unparsed=3, n_failed=1)}
    text = make_report([SourceResult("zero_shot", "zero_shot", "Zero-shot", scores)], context).files["report.md"]
    assert "| Zero-shot | REC | 2 empty, 3 unparsed, 1 failed |" in text.decode()


def test_the_legend_tells_settings_paper_and_address(context):
    settings = {"space": "factors", "prune": {"density": 0.2}, "scale": {"A": None}, "weights": {}}
    result = make_result(
        "merged/robustmerge", "merged", "RobustMerge", {"vqav2": 9}, settings=settings, paper=PAPER_URL
    )
    text = make_report([result], context).files["report.md"].decode()
    assert f"- **RobustMerge.** [paper]({PAPER_URL}). `space=factors, prune.density=0.2, scale.A=null" in text
    assert "`merged/robustmerge-1a2b3c4d`" in text


def test_the_finding_calls_noise_noise(context):
    text = make_report(make_results(), context).files["report.md"].decode()
    seen, unseen = [line for line in text.splitlines() if line.startswith(("- **Seen", "- **Unseen"))]
    assert "RobustMerge is first" in seen and "is outside the noise" in seen
    assert "is **within** the noise" in unseen


def test_a_report_without_unseen_tasks_or_pictures_or_predictions_still_stands(context, tmp_path):
    few = dataclasses.replace(context, tasks=TASKS[:2], questions={})
    report = make_report(make_results(), few)
    assert "figures/seen_unseen.svg" not in report.files and "figures/tasks.svg" in report.files
    assert "## Examples" not in report.files["report.md"].decode()
    assert "Unseen avg" not in show_summary(report)


def test_a_source_that_lacks_tasks_has_no_average_over_them_and_the_report_stands(context, tmp_path):
    part = {"density": 0.3}
    results = [
        *make_results(),
        make_result("merged/robustmerge", "merged", "RobustMerge", {"vqav2": 110, "rec": 110}, overrides=part),
        make_result("merged/dare", "merged", "DARE", {"rec": 100}),
    ]
    report = make_report(with_predictions(results, tmp_path), context)
    main, differences = report.tables["main"], report.tables["differences"]
    lacking = "RobustMerge (density=0.3)"
    assert cell(main, lacking, "seen_avg").bold and cell(main, lacking, "vqav2").bold
    assert [cell(main, lacking, key).text for key in ("aokvqa", "unseen_avg")] == [MISSING] * 2
    assert [cell(main, "DARE", key).text for key in ("vqav2", "seen_avg", "unseen_avg")] == [MISSING] * 3
    assert cell(differences, "DARE", "seen_avg").text == cell(differences, lacking, "unseen_avg").text == MISSING
    figure = report.files["figures/seen_unseen.svg"].decode()
    assert "Individual (seen only)" in figure and figure.count("(seen only)") == 1
    assert "DARE" not in figure and "DARE" in report.files["figures/tasks.svg"].decode()


def test_merged_models_of_which_no_two_share_an_average_are_not_compared(context):
    results = [
        make_result("merged/robustmerge", "merged", "RobustMerge", {"vqav2": 80}),
        make_result("merged/dare", "merged", "DARE", {"rec": 60, "aokvqa": 10}),
    ]
    report = make_report(results, context)
    assert "differences" not in report.tables and "figures/seen_unseen.svg" not in report.files
    assert "Are the differences real" not in report.files["report.md"].decode()


def tasks_figure(titles, context) -> str:
    scores = [{"vqav2": 9, "rec": i, "aokvqa": i} for i in range(len(titles))]
    results = [make_result(f"merged/m{i}", "merged", title, scores[i]) for i, title in enumerate(titles)]
    (drawn,) = [one for one in draw_figures(tables_of(results, context)[0]) if one.name == "tasks"]
    return drawn.svg.decode()


def axes_width(figure: str) -> float:
    left, right = re.search(r'id="patch_2">\s*<path d="M ([\d.]+) \S+ \nL ([\d.]+) ', figure).groups()
    return float(right) - float(left)


def test_long_titles_take_no_room_from_the_axes(context):
    label = "RobustMerge (prune.density={}, scale.normalize=false)"
    long = tasks_figure([label.format(i) for i in range(8)], context)
    assert axes_width(long) > axes_width(tasks_figure(["A", "B"], context))


def test_the_legend_has_the_order_of_the_rows_whatever_they_lack(context):
    results = [
        make_result("multi_task", "multi_task", "Multi-task", {"rec": 1}),
        make_result("merged/dare", "merged", "DARE", {"aokvqa": 1}),
        make_result("merged/robustmerge", "merged", "RobustMerge", {"vqav2": 1}),
    ]
    figure = draw_figures(tables_of(results, context)[0])[0].svg.decode()
    assert re.findall("<!-- (Multi-task|DARE|RobustMerge) -->", figure) == ["Multi-task", "DARE", "RobustMerge"]


def test_every_source_of_a_large_table_looks_different(context):
    kinds = ["zero_shot"] * 3 + ["individual"] * 3 + ["multi_task"] * 3 + ["merged"] * 20
    results = [make_result(f"s{i}", kind, f"s{i}", {"vqav2": i}) for i, kind in enumerate(kinds)]
    main, _ = tables_of(results, context)
    looks = look_of(main.rows)
    assert len(set(looks)) == len(looks) == 29


def test_nothing_to_report_is_said(context):
    with pytest.raises(UserError, match="no score"):
        make_report([], context)


def test_a_title_cannot_break_the_page(context):
    page = make_page("text", dataclasses.replace(context, benchmark="<script>"), {})
    assert "<script>" not in page


def test_scoring_imports_neither_figures_nor_wandb_nor_torch():
    code = (
        "import sys, eval.score, eval.predict, eval.statistics, eval.tables;"
        "print([name for name in ('torch', 'matplotlib', 'markdown', 'wandb', 'hydra') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["none", "wandb"])
def test_every_logger_file_builds(name):
    values = yaml.safe_load((REPOSITORY / "configs" / "logger" / f"{name}.yaml").read_text())
    assert build(Logger, values, "logger").name == name
    assert len(list((REPOSITORY / "configs" / "logger").glob("*.yaml"))) == 2


class FakeRun:
    def __init__(self, broken: bool):
        self.broken, self.logged, self.summary = broken, {}, {}
        self.url, self.settings = "https://wandb.test/run", types.SimpleNamespace(sync_dir="wandb/offline")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def log(self, values):
        if self.broken:
            raise ConnectionError("no route to host")
        self.logged.update(values)


def fake_wandb(monkeypatch, key: bool = False, broken: bool = False) -> types.SimpleNamespace:
    run, started = FakeRun(broken), {}
    module = types.SimpleNamespace(
        run=run,
        started=started,
        login=lambda **_: key,
        init=lambda **values: started.update(values) or run,
        Settings=lambda **values: values,
        Table=lambda columns, data: (columns, data),
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.mark.parametrize(
    ("mode", "key", "expected"), [("auto", False, "offline"), ("auto", True, "online"), ("offline", True, "offline")]
)
def test_tables_and_averages_go_to_wandb_offline_without_a_key(context, tmp_path, monkeypatch, mode, key, expected):
    module, said = fake_wandb(monkeypatch, key), []
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tables = make_report(make_results(), context).tables
    assert wandb_log.log_report(Logger("wandb", mode=mode), tmp_path, tables, context, said.append) == expected
    assert module.started["mode"] == expected and module.started["dir"] == str(tmp_path)
    assert set(module.run.logged) == {"main", "published", "differences"}
    columns, data = module.run.logged["main"]
    assert columns[:2] == ["Source", "VQAv2"] and data[0][0] == "Zero-shot"
    assert module.run.summary["seen_avg/RobustMerge"] == pytest.approx(100 * 140 / 240)
    assert "unseen_avg/Individual" not in module.run.summary
    assert ("wandb sync" in said[0]) == (expected == "offline")


def test_a_failure_of_wandb_is_a_warning(context, tmp_path, monkeypatch):
    fake_wandb(monkeypatch, broken=True)
    said: list[str] = []
    tables = make_report(make_results(), context).tables
    assert wandb_log.log_report(Logger("wandb"), tmp_path, tables, context, said.append) is None
    assert said == ["warning: the report was not logged to W&B: ConnectionError: no route to host"]
