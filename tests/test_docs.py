"""README.md, CONTRIBUTING.md and docs/ say what is there: links lead somewhere, tables are complete. Needs nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from data_prep.settings import TaskData, load_release
from pipeline.config import read_config
from pipeline.program import compose, list_options
from robustmerge.mergekit import read_mergekit
from robustmerge.method import read_method
from robustmerge.recipe import read_recipe
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.prompts import render
from robustmerge.stage.records import read_examples
from robustmerge.stage.settings import build
from tests.pages import PAGES, blocks


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", page.read_text()):
        path, _, section = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if section:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.M)
            assert section in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    for path in re.findall(
        r"`((?:scripts|pipeline|robustmerge|eval|data_prep|llava_ext|clip_ext|tests)/[\w./]+)`", page.read_text()
    ):
        assert (REPOSITORY / path).exists(), path


# docs/methods.md


def test_every_method_is_in_the_table_with_its_file_and_the_code_of_its_formula() -> None:
    text = (REPOSITORY / "docs" / "methods.md").read_text()
    rows = re.findall(r"^\| \[`(\w+)`\]\(\.\./configs/merge/(\w+)\.yaml\) \|.*\]\((https:.*?)\)", text, flags=re.M)
    assert sorted(name for name, _, _ in rows) == list_options("merge")
    for name, file, paper in rows:
        assert (file, paper) == (name, read_method(name).paper)
    functions = re.findall(r"\[`(\w+)`\]\(\.\./(robustmerge/\w+\.py)\)", text)
    assert len(functions) > 8
    for function, file in functions:
        assert f"def {function}(" in (REPOSITORY / file).read_text(), (function, file)


# docs/library.md


def test_the_recipes_of_the_page_are_understood() -> None:
    ours, graded, mergekits = map(yaml.safe_load, blocks("yaml", REPOSITORY / "docs" / "library.md"))
    recipe, translated = read_recipe(ours, "page"), read_mergekit(mergekits, "page")
    assert read_recipe({**ours, **graded}, "page").settings["strength"] == [0.2, 1.0]
    for one in (recipe, translated):
        assert read_method(one.method, **one.settings).space == "delta"
    assert set(translated.experts) == {"vqav2", "rec"} and set(recipe.experts) == {"vqa", "rec"}


# docs/data.md


def test_the_tables_of_releases_say_what_their_converters_say() -> None:
    downloads, unseen = [], []
    for task in read_config(compose("merge_eval", ["benchmark=mm_mergebench"])).tasks:
        origin = load_release(task.data["release"]["name"]).ORIGIN
        heads = [f"{origin.title}: {origin.licence}", *[""] * (len(origin.downloads) - 1)]
        downloads += [
            [head, one.files, one.address, one.size] for head, one in zip(heads, origin.downloads, strict=True)
        ]
        unseen.append([origin.title, origin.unseen])
    tables: dict[str, list[list[str]]] = {"": []}
    title = ""
    for line in (REPOSITORY / "docs" / "data.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
        if not line.startswith("|"):
            title = ""
        elif not title:
            tables[title := cells[-1]] = []
        elif cells[0] != "---":
            tables[title].append(cells)
    assert tables["size"] == downloads
    assert tables["taken from documentation, not seen on real files"] == unseen


# docs/evaluation.md and docs/tasks.md


def test_the_table_of_tasks_is_that_of_the_configuration() -> None:
    lines = (REPOSITORY / "docs" / "evaluation.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.count("|") == 8]
    cells = {row[0]: row[2:] for row in rows}
    for task in read_config(compose("merge_eval", ["benchmark=mm_mergebench"])).tasks:
        official = task.under("official")
        questions = [(one.prompt, one.image, one.max_new_tokens) for one in (task, official)]
        shared = questions[0] == questions[1]
        limits = str(task.max_new_tokens), f"`{official.metric}`", str(official.max_new_tokens)
        assert cells.pop(task.title) == [*limits, official.image, "yes" if shared else "no"]
        assert task.image == "pad"
    assert cells.keys() == {"task", "---"}


def test_the_example_of_a_task_is_one_and_asks_the_example_of_a_question(tmp_path: Path) -> None:
    page = REPOSITORY / "docs" / "tasks.md"
    (example,), (questions,) = blocks("yaml", page), blocks("json", page)
    assert example.startswith("# @package task.mine\n")
    point = compose("train_all", [])
    point["task"]["mine"] = yaml.safe_load(example)
    task = read_config(point).tasks[-1]
    assert (task.name, task.title) == ("mine", "My task")
    build(TaskData, {"task": "mine", **task.data}, "task.mine.data")
    (tmp_path / "test.jsonl").write_text(questions)
    (question,) = read_examples(tmp_path / "test.jsonl")
    assert render(task.prompt, question).startswith("What is on the table?\nA. fork\nB. knife\n")
