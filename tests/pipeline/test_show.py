"""show.py: one page of questions with every source's answer, from the answers and scores that exist."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import subprocess
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from eval.questions import format_answer
from pipeline.plan import Evaluation, Plan
from pipeline.tools.show.command import read_request, show
from pipeline.tools.show.gallery import FEWEST, LONGEST_SIDE
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.records import (
    Example,
    Prediction,
    Score,
    read_predictions,
    read_score,
    write_examples,
    write_predictions,
)
from robustmerge.stage.settings import ConfigError, UserError
from robustmerge.stage.text import plain
from tests.eval.test_hostile_text import PAYLOADS, Structure
from tests.plans import finish, finish_score, make_plan, make_point

WORDS = ("tasks=[vqav2,rec,aokvqa]", "methods=[ties,dare]", "strength_grid=null")
N = 60


def write_questions(plan: Plan, texts: Iterator[str]) -> None:
    """N questions a task; of the pictures one is large, one shared, one broken, and one is gone."""
    for task in plan.config.tasks:
        path = plan.questions(plan.test_set(task))
        path.parent.mkdir(parents=True)
        for name, size in (("small.png", (8, 6)), ("large.png", (600, 300))):
            Image.new("RGB", size, "red").save(path.parent / name)
        (path.parent / "broken.png").write_text("no picture")
        pictures = itertools.cycle(["small.png", "large.png", "broken.png", "gone.png", None])
        examples = [Example(f"{task.name}-{i}", next(texts), next(texts), next(pictures)) for i in range(N)]
        write_examples(path, examples)


def answer(one: Evaluation, random: Random, texts: Iterator[str]) -> None:
    """Write the answers of a source to a task, and scores by chance."""
    names = [f"{one.task.name}-{i}" for i in range(N)]
    values = {name: random.choice([0.0, 1 / 3, 1.0]) for name in names}
    finish(one.predictions)
    write_predictions(one.predictions.path, [Prediction(name, next(texts)) for name in names])
    finish_score(one, Score(one.task.name, "exact_match", 50.0, N, N, 0, 0, 0, values))


def read_page(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    (content,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', text, re.DOTALL)
    return json.loads(content)


def lay_out(
    runs: Path, *sweep: Sequence[str], texts: Iterator[str] | None = None, lacks=lambda one: False
) -> list[Plan]:
    """Write questions, answers and scores of the points of a sweep, but for what `lacks` says."""
    texts = texts or (f"word {number % 7}" for number in itertools.count())
    plans = [make_plan(runs, *WORDS, *words) for words in sweep or [()]]
    write_questions(plans[0], texts)
    random = Random(0)
    for one in (one for plan in plans for one in plan.evaluations):
        if not (lacks(one) or one.score.is_complete()):
            answer(one, random, texts)
    return plans


def write_page(plans: Sequence[Plan], *words: str) -> Path:
    """Show plans as `show.py` does."""
    runs, typed = plans[0].config.paths.runs, ("open=false", *words)
    show([make_point(runs, *plan.config.overrides, *typed, program="show") for plan in plans])
    (page,) = plans[0].root.glob("reports/*/gallery.html")
    return page


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    """A finished run without val questions."""
    (plan,) = lay_out(tmp_path_factory.mktemp("runs"))
    return plan


def test_every_answer_and_score_is_that_on_disk_and_below_the_expert_means_a_lower_score(plan, capsys):
    page = write_page([plan], "count=7")
    shown = read_page(page)
    assert capsys.readouterr().out == f"gallery: {page}\n"
    titles = {
        "Zero-shot": "zero_shot",
        "Individual": "expert",
        "Multi-task": "multi_task",
        "TIES": "ties",
        "DARE": "dare",
    }
    assert {title for title, _ in shown["sources"]} == titles.keys()
    for number, task in enumerate(shown["tasks"]):
        on_disk = {
            one.source.name.split("/")[one.source.kind == "merged"].removesuffix(f"/{task['name']}"): one
            for one in plan.evaluations
            if one.task.name == task["name"]
        }
        sources = [on_disk.get(titles[title]) for title, _ in shown["sources"]]
        scores = [one and read_score(one.score.path).values for one in sources]
        texts = [
            one and {p.question_id: format_answer(p) for p in read_predictions(one.predictions.path)} for one in sources
        ]
        expert = "expert" in on_disk and read_score(on_disk["expert"].score.path).values
        below = [
            {name for name in values if values[name] < expert[name]} if kind == "merged" and expert else None
            for values, (_, kind) in zip(scores, shown["sources"], strict=True)
        ]
        assert task["below"] == [None if names is None else len(names) for names in below]
        questions = [one for one in shown["questions"] if one["task"] == number]
        for one in questions:
            name = one["id"]
            answers = [None if place is None else tuple(one["answers"][place]) for place in one["by_source"]]
            assert answers == [
                values and (text[name], values[name]) for text, values in zip(texts, scores, strict=True)
            ]
            assert one["below"] == [place for place, names in enumerate(below) if names and name in names]
        names = [one["id"] for one in questions]
        ordered = sorted(
            (f"{task['name']}-{i}" for i in range(N)), key=lambda name: hashlib.sha256(name.encode()).digest()
        )
        assert names[:7] == ordered[:7] and names == [name for name in ordered if name in names]
        assert [one["added"] for one in questions] == [False] * 7 + [True] * task["added"]
        assert (task["of"], task["by_hash"]) == (N, 7) and (task["added"] > 0) == ("expert" in on_disk)
        assert all(len(wrong & {*names}) >= min(FEWEST, len(wrong)) for wrong in below if wrong is not None)
    assert f"of {3 * N} questions are on this page" in shown["sample"]


def test_in_a_sweep_a_merged_model_is_compared_with_the_expert_of_its_own_point_and_of_the_first_seed(tmp_path):
    starts = {"independent A": "peft.shared_a_init=false", "shared A": "peft.shared_a_init=true"}
    plans = lay_out(tmp_path, *(("seed=1", start) for start in starts.values()))
    shown = read_page(write_page([make_plan(tmp_path, *WORDS, "seed=2"), *plans]))
    places = {title: place for place, (title, _) in enumerate(shown["sources"])}
    for title, plan in zip(starts, plans, strict=True):
        scores = {
            one.source.name: read_score(one.score.path).values for one in plan.evaluations if one.task.name == "rec"
        }
        lower = [name for name, value in scores["merged/ties"].items() if value < scores["expert/rec"][name]]
        assert shown["tasks"][1]["below"][places[f"TIES ({title})"]] == len(lower) > 0
    assert len(places) == 1 + 1 + 2 * 3 and "experts of seed 1, the first of 1, 2" in shown["notes"][-1]


def test_a_picture_is_there_once_and_small_and_what_is_no_picture_is_left_out(plan):
    shown = read_page(write_page([plan], "count=null"))
    assert len(shown["questions"]) == 3 * N and not any(one["added"] for one in shown["questions"])
    assert shown["sample"] == f"All {3 * N} questions are on this page."
    assert [url.partition(";")[0] for url in shown["pictures"]] == ["data:image/png", "data:image/webp"]
    assert sum(one["picture"] is None for one in shown["questions"]) == 3 * N * 3 // 5
    assert len(shown["pictures"][1]) < LONGEST_SIDE**2


def test_no_text_becomes_markup_and_the_page_runs_nothing_but_its_own_script(tmp_path):
    hostile = (*PAYLOADS, "</script><script>alert(1)</script>", "<!--<script>", "</SCRIPT >", "CONTENT POLICY")
    page = write_page(lay_out(tmp_path, texts=itertools.cycle(hostile)), "count=null")
    template = (REPOSITORY / "pipeline" / "tools" / "show" / "gallery.html").read_text()
    text = page.read_text(encoding="utf-8")
    assert Structure(text).tags == Structure(template).tags
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]", text)
    assert not re.search(r"https?://|\bsrc=|@import|url\(|innerHTML|\beval\(", template)
    texts = {one[key] for one in read_page(page)["questions"] for key in ("text", "expected")}
    assert {plain(payload).strip() for payload in hostile if len(payload) < 100} <= {one.strip() for one in texts}


def test_what_is_not_finished_is_named_and_what_is_finished_is_shown(tmp_path, capsys):
    lacks = {"expert/rec": ["rec"], "merged/ties": ["rec"], "merged/dare": ["vqav2", "rec", "aokvqa"]}
    plans = lay_out(tmp_path, lacks=lambda one: one.task.name in lacks.get(one.source.label, []))
    page = write_page(plans)
    missing, _ = capsys.readouterr().out.splitlines()
    assert missing.startswith(
        "missing: expert/rec; merged/ties (on rec); merged/dare. Make them: bash scripts/merge_eval"
    )
    assert [title for title, _ in read_page(page)["sources"]] == ["Zero-shot", "Individual", "Multi-task", "TIES"]


def test_where_nothing_is_finished_the_message_names_the_command(tmp_path):
    with pytest.raises(UserError, match=r"no source .* has answers and scores(.|\n)*bash scripts/merge_eval\.sh"):
        show([make_point(tmp_path, *WORDS, program="show")])


def test_the_page_is_opened_only_where_there_is_a_desktop_and_it_is_wanted(plan, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    point = make_point(plan.config.paths.runs, *WORDS, "count=1", program="show")
    for display, wanted in (("", True), (":0", False), (":0", True)):
        monkeypatch.setenv("DISPLAY", display)
        show([{**point, "open": wanted}])
    (page,) = plan.root.glob("reports/*/gallery.html")
    assert opened == [page.as_uri()]


def test_what_cannot_be_shown_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="count must be at least 1"):
        read_request([make_point(tmp_path, "count=0", program="show")])
    points = [{"count": count, "open": True} for count in (1, 2)]
    with pytest.raises(UserError, match="a sweep cannot run over count"):
        read_request(points)


def test_a_finished_line_is_shown_as_typed(smoke):
    words = ["profile=smoke", f"paths.runs={smoke.runs}", "open=false", "count=3"]
    command = [str(smoke.python), "scripts/show.py", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = smoke.root / "reports" / "main" / "gallery.html"
    assert done.stdout == f"gallery: {page}\n"
    shown = read_page(page)
    assert len(shown["tasks"]) == 12 and "smoke" in shown["warning"]
    assert [title for title, kind in shown["sources"] if kind != "merged"] == ["Zero-shot", "Individual", "Multi-task"]
    assert "TIES, strength chosen" in dict(shown["sources"])
    assert all(one["picture"] is not None for one in shown["questions"])
