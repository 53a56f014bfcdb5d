"""show.py: one page of questions with every source's answer, from the answers and scores that exist."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import subprocess
import sys
import webbrowser
from collections.abc import Iterator
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
    read_examples,
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


@pytest.fixture
def make(tmp_path, capsys):
    """Show a run whose texts are the next ones of `texts`, but for what `lacks` says: the page, and what is printed."""

    def make_page(*words: str, texts: Iterator[str] | None = None, lacks=lambda one: False) -> tuple[Path, str]:
        texts = texts or (f"word {number % 7}" for number in itertools.count())
        plan = make_plan(tmp_path, *WORDS)
        write_questions(plan, texts)
        random = Random(0)
        for one in plan.evaluations:
            if not lacks(one):
                answer(one, random, texts)
        show([make_point(tmp_path, *WORDS, "open=false", *words, program="show")])
        (page,) = plan.root.glob("reports/*/gallery.html")
        return page, capsys.readouterr().out

    return make_page


def test_every_answer_and_score_is_that_on_disk_and_below_the_expert_means_a_lower_score(make, tmp_path):
    page, printed = make("count=7")
    shown, plan = read_page(page), make_plan(tmp_path, *WORDS)
    assert printed == f"gallery: {page}\n"
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
    assert f"of {3 * N} questions are on this page" in shown["notes"][0]


def test_a_picture_is_there_once_and_small_and_what_is_no_picture_is_left_out(make):
    shown = read_page(make("count=null")[0])
    assert len(shown["questions"]) == 3 * N and not any(one["added"] for one in shown["questions"])
    assert shown["notes"][0] == f"All {3 * N} questions are on this page."
    assert [url.partition(";")[0] for url in shown["pictures"]] == ["data:image/png", "data:image/webp"]
    assert sum(one["picture"] is None for one in shown["questions"]) == 3 * N * 3 // 5
    assert len(shown["pictures"][1]) < LONGEST_SIDE**2


def test_no_text_becomes_markup_and_the_page_runs_nothing_but_its_own_script(make, tmp_path):
    hostile = (*PAYLOADS, "</script><script>alert(1)</script>", "<!--<script>", "</SCRIPT >", "CONTENT POLICY")
    page, _ = make("count=null", texts=itertools.cycle(hostile))
    template = (REPOSITORY / "pipeline" / "tools" / "show" / "gallery.html").read_text()
    text = page.read_text(encoding="utf-8")
    assert Structure(text).tags == Structure(template).tags
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]", text)
    assert not re.search(r"https?://|\bsrc=|@import|url\(|innerHTML|\beval\(", template)
    texts = {one[key] for one in read_page(page)["questions"] for key in ("text", "expected")}
    assert {plain(payload).strip() for payload in hostile if len(payload) < 100} <= {one.strip() for one in texts}


def test_what_is_not_finished_is_named_and_what_is_finished_is_shown(make, tmp_path):
    page, printed = make(
        lacks=lambda one: one.source.name == "merged/dare" or one.task.name == "rec" != one.source.kind
    )
    assert printed.startswith("missing: ") and printed.count("\n") == 2
    assert "merged/dare" in printed and "bash scripts/merge_eval.sh" in printed
    assert "DARE" not in dict(read_page(page)["sources"])


def test_where_nothing_is_finished_the_message_names_the_command(tmp_path):
    with pytest.raises(UserError, match=r"no source .* has answers and scores(.|\n)*bash scripts/merge_eval\.sh"):
        show([make_point(tmp_path, *WORDS, program="show")])


def test_the_page_is_opened_only_where_there_is_a_desktop_and_it_is_wanted(make, tmp_path, monkeypatch):
    page, _ = make()
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for display, wanted in (("", "true"), (":0", "false"), (":0", "true")):
        monkeypatch.setenv("DISPLAY", display)
        show([make_point(tmp_path, *WORDS, f"open={wanted}", program="show")])
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
