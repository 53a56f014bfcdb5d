"""The published values of docs/clip.md are those of results/, and its splits those of the tasks. Needs nothing."""

from __future__ import annotations

import json
from functools import cache
from statistics import mean
from typing import Any

import pytest
import yaml

from data_prep.clip.corpus import PUBLISHED
from robustmerge.stage.address import REPOSITORY
from tests.test_numbers import Row, read_page, read_rows, read_table, with_noise

PAGE = "docs/clip.md"
RANKED = "clip8_mini-clip_tiny/all_methods"
TASKS = ("cars", "mnist", "sun397", "gtsrb", "resisc45", "dtd", "eurosat", "svhn")
REFERENCES = ("Zero-shot", "Individual")
TITLES_HERE = {"zero-shot": "Zero-shot", "individual": "Individual", "multi-task": "Multi-task"}
TITLES = {
    "zero_shot": "zero-shot", "individual": "individual", "task_arithmetic": "Task Arithmetic", "dare": "DARE",
    "ties": "TIES", "robustmerge": "RobustMerge", "dare_ties": "DARE-TIES", "fisher": "Fisher", "regmean": "RegMean",
    "knots_ties": "KnOTS-TIES", "knots_dare_ties": "KnOTS-DARE-TIES", "iso_c": "Iso-C", "iso_cts": "Iso-CTS",
    "core_iso_c": "Iso-C in Core Space", "core_ties": "TIES in Core Space", "core_dare_ties": "DARE-TIES in Core Space",
    "geomerge": "GeoMerge", "adamerging": "AdaMerging", "tara_a": "TARA-A", "tara_b": "TARA-B", "ensemble": "ensemble",
    "svd_ties": "TIES in the SVD's subspace", "svd_dare_ties": "DARE-TIES in the SVD's subspace",
    "ctm_ties": "CtM, TIES", "ctm_dare_ties": "CtM, DARE-TIES",
    "knots_vit_b_32": "KnOTS, ViT-B/32", "knots_vit_b_32_again": "KnOTS, ViT-B/32, measured by DC-Merge",
    "knots_vit_l_14": "KnOTS, ViT-L/14", "dc_merge_vit_b_32": "DC-Merge, ViT-B/32",
    "dc_merge_vit_b_16": "DC-Merge, ViT-B/16", "dc_merge_vit_l_14": "DC-Merge, ViT-L/14",
}  # fmt: skip
SOURCES = {
    "knots": "KnOTS", "iso": "Iso", "core_space": "Core Space", "ctm": "CtM", "dc_merge": "DC-Merge", "tara": "TARA",
    "geomerge": "GeoMerge",
}  # fmt: skip
READ = {"code": "code", "paper": "second hand", "quoted": "quoted"}


@cache
def read_results(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "results" / name).read_text())


def show(score: float | None) -> str:
    return "—" if score is None else f"{score:.10g}" if score != int(score) else f"{score:.1f}"


def rows_of(table: str) -> dict[str, list[str]]:
    """The rows that the page shows of a table of published_clip.yaml, by title."""
    results = read_results("published_clip.yaml")
    shown = {}
    for name, row in results[table]["rows"].items():
        source, scores = results["sources"][row["source"]], [show(score) for score in row["scores"]]
        link = source["code" if row["read"] == "code" else "url"]
        said = f"[{SOURCES[row['source']]}]({link}), {READ[row['read']]}"
        needs = [row.get("needs", "—")] if table in ("normalised", "joint") else []
        shown[TITLES[name]] = [*scores, *needs, said]
    return shown


def rows_of_paper(table: str) -> dict[str, list[str]]:
    """The rows that the page shows of the paper's table 4 or 5, and the mean of the scores over the individual ones."""
    rows = read_results("paper.yaml")[table]["rows"]
    experts = rows["individual"]["seen"]
    over = {name: 100 * mean(x / y for x, y in zip(row["seen"], experts, strict=True)) for name, row in rows.items()}
    return {
        TITLES[name]: [*map(show, row["seen"]), show(row["seen_avg"]), f"{over[name]:.1f}"]
        for name, row in rows.items()
    }


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("| ViT-B/32 (published)", "table_4_clip_vit_b_32"),
        ("| ViT-L/14 (published)", "table_5_clip_vit_l_14"),
        ("| experts (published)", "individual"),
        ("| over individual (published)", "normalised"),
        ("| rank 16 (published)", "normalised_rank_16"),
        ("| joint labels (published)", "joint"),
    ],
)
def test_a_table_of_published_values_is_that_of_its_file(heading: str, table: str) -> None:
    is_papers = table.startswith("table_")
    assert read_table(PAGE, heading) == (rows_of_paper if is_papers else rows_of)(table)
    results = read_results("paper.yaml" if is_papers else "published_clip.yaml")[table]
    columns = list(results["seen"].values()) if is_papers else results["columns"]
    (line,) = (line for line in (REPOSITORY / PAGE).read_text().splitlines() if line.startswith(heading))
    assert [cell.strip() for cell in line.strip("|").split("|")][1 : 1 + len(columns)] == columns


def test_every_published_value_says_whose_it_is_and_how_it_was_read() -> None:
    results = read_results("published_clip.yaml")
    assert results["sources"].keys() == SOURCES.keys()
    for table in (results[name] for name in results if name != "sources"):
        for row in table["rows"].values():
            assert row["source"] in SOURCES and row["read"] in READ and len(row["scores"]) == len(table["columns"])


def test_the_splits_of_the_page_are_those_of_the_tasks() -> None:
    tasks = [yaml.safe_load(file.read_text()) for file in (REPOSITORY / "configs/task/clip8").iterdir()]
    rows = read_table(PAGE, "| task | dataset")
    assert rows.keys() == {task["title"] for task in tasks}
    for task in tasks:
        dataset, classes, templates, _, val, test = rows[task["title"]]
        data, count = task["data"], len(task["prompt"].split("\n"))
        assert (dataset, classes, templates) == (data["dataset"], str(len(data["classes"])), str(count))
        of_val, of_test = (int(cell.removesuffix(" of test").replace(",", "")) for cell in (val, test))
        assert ("val_of_test" in data) == val.endswith(" of test")
        if "val_of_test" in data:
            assert of_val == int((of_val + of_test) * data["val_of_test"])


def by_source(name: str) -> dict[str, Row]:
    return {row["source"]: row for row in read_rows(name)}


def test_the_scores_of_the_small_clip_are_those_of_its_reports():
    table4, ranked = by_source("mini-tiny/reproduced/table4/tables/main"), by_source(f"{RANKED}/ranking")
    rows = read_table(PAGE, "| measured here")
    assert len(rows) == len(table4) == 3 + 2 * 4
    for title, (*cells, average) in rows.items():
        row = table4[TITLES_HERE.get(title, title.removesuffix(", default"))]
        assert cells == [f"{float(row[task]):.1f}" for task in TASKS], title
        assert average == with_noise(row, "seen_avg"), title
    scores = by_source(f"{RANKED}/main")
    for title, (default, chosen, kept, _) in read_table(PAGE, "| three seeds").items():
        assert default == with_noise(ranked[title], "seen_avg"), title
        assert chosen == with_noise(ranked[f"{title}, strength chosen"], "seen_avg"), title
        ratios = [float(scores[title][task]) / float(scores["Individual"][task]) for task in TASKS]
        assert kept == f"{100 * mean(ratios):.1f}", title


def test_what_the_small_clip_knows_is_what_its_report_and_the_paper_say():
    zero_shot, individual = (by_source("mini-tiny/reproduced/table4/tables/main")[name] for name in REFERENCES)
    probe = json.loads((REPOSITORY / "bases" / "clip-tiny" / "training.json").read_text())["probe"]
    measured, here, there = read_table(PAGE, "| | Cars").values()
    assert measured == [f"{100 * probe[task]:.1f}" for task in TASKS]
    assert here == [f"{float(zero_shot[task]) / float(individual[task]):.2f}" for task in TASKS]
    ratios = [zero / expert for zero, expert in (PUBLISHED[f"clip_{task}"] for task in TASKS)]
    assert there == [f"{ratio:.2f}" for ratio in ratios]
    near = sum(abs(float(one) - other) <= 0.15 for one, other in zip(here, ratios, strict=True))
    assert near == 2 and "is within 0.15 of the paper's on two tasks of eight" in read_page(PAGE)
    assert f"in {100 * min(probe.values()):.1f} % of the pictures or more" in read_page(PAGE)
