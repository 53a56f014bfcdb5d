"""Every number of README.md and docs/ that repeats results/ equals it. Needs nothing."""

from __future__ import annotations

import csv
import json
import re
from functools import cache
from statistics import mean
from typing import Any

import pytest
import yaml

from robustmerge.method import AnyMethod, Method, list_methods, read_method
from robustmerge.stage.address import REPOSITORY

RESULTS = REPOSITORY / "results"
INDEPENDENT, SHARED = "independent A", "shared A"
METHODS = ("Task Arithmetic", "TIES", "DARE", "KnOTS-TIES", "RobustMerge")
BETTER_APART = ("Task Arithmetic", "DARE", "KnOTS-TIES")  # than RobustMerge, at defaults and with independent A
Row = dict[str, str]


@cache
def read_csv(name: str) -> list[Row]:
    with (RESULTS / "mini-tiny" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def find_row(name: str, title: str, group: str = "") -> Row:
    """The row of a CSV file whose first column is the title, or "title (group)"."""
    rows = {next(iter(row.values())): row for row in read_csv(name)}
    return rows[title] if title in rows else rows[f"{title} ({group})"]


def column(name: str, key: str, **where: str) -> list[float]:
    """The values of a column, in the rows that hold what `where` says."""
    return [float(row[key]) for row in read_csv(name) if where.items() <= row.items()]


def read_json(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def read_table(page: str, heading: str) -> dict[str, list[str]]:
    """The cells of every row, by the first, of the table whose first line begins with `heading`."""
    lines = (REPOSITORY / page).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading))
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 2 : end]]
    return {title: cells for title, *cells in rows}


def with_noise(row: Row, average: str) -> str:
    """A mean with its interval over questions and its deviation over seeds, as the report prints it."""
    if not row[average]:
        return "—"
    value, low, high = (float(row[average + end]) for end in ("", "_low", "_high"))
    deviation = row[f"{average}_deviation"]
    return f"{value:.1f} ({low:.1f}–{high:.1f})" + (f" ± {float(deviation):.1f}" if deviation else "")


def test_the_scores_of_the_readme_are_those_of_the_report():
    rows = read_table("README.md", "| | independent A: seen")
    assert len(rows) == 13
    for title, cells in rows.items():
        for group, pair in ((INDEPENDENT, cells[:2]), (SHARED, cells[2:])):
            row = find_row("tables/main", title.removesuffix(", default"), group)
            assert pair == [with_noise(row, "seen_avg"), with_noise(row, "unseen_avg")], (title, group)


def test_the_differences_of_the_findings_are_those_of_the_report():
    rows = read_table("docs/findings.md", "| RobustMerge minus")
    assert rows.keys() == {*METHODS} - {"RobustMerge"}
    for title, cells in rows.items():
        for group, cell in zip((INDEPENDENT, SHARED), cells, strict=True):
            row = find_row("tables/standing", f"{title}, strength chosen", group)
            value, low, high = (f"{float(row['seen_avg' + end]):+.1f}" for end in ("", "_seeds_low", "_seeds_high"))
            assert cell == f"{value} ({low} to {high})".replace("-", "−"), (title, group)


def test_the_costs_of_merging_are_those_that_were_measured():
    shown = read_table("docs/costs.md", "| method                      |  CPU s")
    measured = {row["name"]: row for row in read_json("bench_merge/table.json")["rows"]}
    assert shown.keys() == measured.keys()
    for name, row in measured.items():
        peft = row.get("peft")
        ratio = f"{row['cpu'] / peft['cpu']:.2g} of {peft['cpu']:.3g} s ({peft['kind']})" if peft else "—"
        numbers = f"{row['cpu']:.2f} {row['wall']:.2f} {row['private']:.0f} {row['cpu'] / row['bound']:.1f}"
        assert shown[name] == [*numbers.split(), ratio], name


# What the sentences repeat.


def seen(title: str, group: str = "") -> float:
    return float(find_row("tables/main", title, group)["seen_avg"])


def chosen(method: str, group: str) -> float:
    return seen(f"{method}, strength chosen", group)


def rise(method: str, group: str) -> float:
    """What choosing the strength adds."""
    return chosen(method, group) - seen(method, group)


def first_two_seeds(method: str) -> float:
    row = find_row("tables/seeds", f"{method}, strength chosen", INDEPENDENT)
    return mean(float(row[f"seen_seed_{seed}"]) for seed in (1, 2))


def exact_sums(name: str) -> list[tuple[float, float]]:
    """Mean and deviation of a method on the products, at its default strength and at the chosen one."""
    return [(float(row["seen_avg"]), float(row["seen_avg_deviation"])) for row in read_csv(f"exact_sums/{name}")[2:]]


def merged(key: str, method: str, group: str) -> float:
    return mean(column("findings/merged", key, method=method, variant="", group=group))


def chosen_over_default() -> list[float]:
    """The chosen strength over the default one, of every method, group and seed."""
    both = [
        [column("findings/merged", "factor", method=name, variant=variant, group=group) for variant in ("", "chosen")]
        for name in METHODS
        for group in (INDEPENDENT, SHARED)
    ]
    return [after / before for pair in both for before, after in zip(*pair, strict=True)]


def main_rows(*titles: str) -> list[Row]:
    return [row for row in read_csv("tables/main") if row["source"].startswith(titles)]


def gpu_row(pictures: str, batch: int) -> dict[str, float]:
    rows = read_json("bench_eval/gpu/table.json")["rows"]
    return next(row for row in rows if (row["picture"], row["batch"]) == (pictures, batch))


def readme_sentences() -> list[str]:
    lead = [
        chosen("KnOTS-TIES", group) - chosen(second, group)
        for group, second in ((INDEPENDENT, "Task Arithmetic"), (SHARED, "RobustMerge"))
    ]
    (_, equation_5), (_, products) = exact_sums("robustmerge_eq5"), exact_sums("task_arithmetic_delta")
    return [
        f"KnOTS-TIES gains {rise('KnOTS-TIES', INDEPENDENT):.0f} points",
        f"Task Arithmetic with a shared A {rise('Task Arithmetic', SHARED):.0f}",
        f"by {lead[0]:.0f} points over Task Arithmetic with independent A and by {lead[1]:.0f} over RobustMerge",
        "equation 5 as printed to {:.1f} ± {:.1f}".format(*equation_5),
        "`merge.space=delta` to {:.1f} ± {:.1f}".format(*products),
    ]


def costs_sentences() -> list[str]:
    memory = [gpu_row("336x336", batch)["memory"] for batch in (16, 32, 64)]
    fast = next(row for row in read_json("bench_eval/table.json")["rows"] if row["name"] == "batches of 64")
    return [
        f"one H100 answers {gpu_row('336x336', 64)['times']:.0f} times as many questions in batches of 64",
        f"({gpu_row('640x480', 64)['times']:.0f} times with 640x480 pictures",
        "in batches of 16, 32 (the default) and 64 took {:.0f}, {:.0f} and {:.0f} GB".format(*memory),
        f"the tiny model on two cores answers {fast['times']:.1f} times as many",
    ]


def findings_sentences() -> list[str]:
    deviations = [float(row["seen_avg_deviation"]) for row in main_rows(*METHODS)]
    half = [(float(row["seen_avg_high"]) - float(row["seen_avg_low"])) / 2 for row in main_rows("")]
    rises = [rise(method, group) for method in METHODS for group in (INDEPENDENT, SHARED)]
    ratios = chosen_over_default()
    apart = [merged("outside", method, INDEPENDENT) for method in METHODS if method != "KnOTS-TIES"]
    rho = {
        key: column("findings/relations", "rho", group=INDEPENDENT, scope="methods", quantity=key)[0]
        for key in ("share_lowest", "outside")
    }
    cosine = mean(column("findings/cross", "cosine", group=SHARED, kind="plain"))
    lengths = [mean(column("findings/experts", "norm_over_mean", expert=name)) for name in ("imagenet", "flickr30k")]
    (default_5, equation_5), (_, products) = exact_sums("robustmerge_eq5"), exact_sums("task_arithmetic_delta")
    share = mean(column("findings/merged", "share_mean", kind="multi_task"))
    broken = max(float(row[task]) for row in main_rows(*METHODS) for task in ("rec", "ocrvqa"))
    rec = [float(main_rows(title)[0]["rec"]) for title in ("Multi-task", "Individual")]
    return [
        f"an update {merged('norm_over_mean', 'RobustMerge', SHARED):.1f} experts long with shared A",
        f"and {merged('norm_over_mean', 'RobustMerge', INDEPENDENT):.1f} long without",
        f"on all eight; {seen('Individual', INDEPENDENT):.1f} against {seen('Zero-shot'):.1f}",
        f"no: {seen('Multi-task'):.1f}, one point above individual, by REC ({rec[0]:.0f} against {rec[1]:.0f})",
        f"REC and OCR-VQA are at 0 to {broken:.0f} for every *merged* model",
        f"{min(half):.2f} to {max(half):.2f}",
        f"Seeds move a merged average by {min(deviations):.1f} to {max(deviations):.1f} points",
        f"moves the same method by up to {max(rises):.0f} points",
        f"the best strengths are {min(ratios):.2g} to {max(ratios):.2g} times the published defaults",
        f"{100 * min(apart):.0f} to {100 * max(apart):.0f} % of such a merged update is of no expert",
        f"is {100 * merged('outside', 'KnOTS-TIES', INDEPENDENT):.0f} %",
        f"correlation {rho['share_lowest']:.2f}) and falls with the part that is of no expert ({rho['outside']:.2f})",
        f"(cosine {cosine:.2f})",
        "{:.1f} ± {:.1f} against ".format(*products) + f"{first_two_seeds('Task Arithmetic'):.1f} with A and B apart",
        "{:.1f} ± {:.1f} against ".format(*equation_5) + f"{first_two_seeds('RobustMerge'):.1f} as released",
        f"({default_5[0]:.1f} at the default)",
        f"KnOTS-TIES has {first_two_seeds('KnOTS-TIES'):.1f} there",
        "of unlike length ({:.1f} to {:.1f} of their mean)".format(*lengths),
        f"keeps {100 * share:.0f} % of their updates",
    ]


def standing(method: str, variant: str, group: str) -> tuple[float, bool]:
    """RobustMerge minus the method, on the seen tasks; and whether no 95 % interval holds zero."""
    return difference("tables/standing", method + variant, group, "seen_avg")


def difference(name: str, title: str, group: str, average: str) -> tuple[float, bool]:
    row = find_row(name, title, group)
    ends = [[float(row[f"{average}{which}_{end}"]) for end in ("low", "high")] for which in ("", "_seeds")]
    return float(row[average]), all(low * high > 0 for low, high in ends)


def leads(average: str, group: str) -> list[tuple[float, bool]]:
    """How far KnOTS-TIES is above each other method at chosen strengths."""
    others = [f"{method}, strength chosen" for method in METHODS if method != "KnOTS-TIES"]
    found = [difference("tables/differences", title, group, average) for title in others]
    return [(-minus, is_clear) for minus, is_clear in found]


def chosen_lengths() -> list[float]:
    """Length of the update over the experts' mean, of all methods but TIES at chosen strengths."""
    return [
        mean(column("findings/merged", "norm_over_mean", method=method, variant="chosen", group=group))
        for method in METHODS
        if method != "TIES"
        for group in (INDEPENDENT, SHARED)
    ]


def published_leads() -> list[float]:
    """How far RobustMerge is above the next merged model in the paper's table 2: seen, unseen."""
    rows = yaml.safe_load((RESULTS / "paper.yaml").read_text())["table_2_mm_mergebench"]["rows"]
    merged_rows = [row for name, row in rows.items() if name in ("task_arithmetic", "dare", "ties", "pcb")]
    keys = ("seen_avg", "unseen_avg")
    return [rows["robustmerge"][key] - max(row[key] for row in merged_rows) for key in keys]


def choose_sentences() -> list[str]:
    shared = min(standing(method, "", SHARED)[0] for method in METHODS[:4])
    independent = max(standing(method, "", INDEPENDENT)[0] for method in METHODS if method in BETTER_APART)
    rises = [rise(method, group) for method in METHODS for group in (INDEPENDENT, SHARED)]
    ratios, lengths = chosen_over_default(), chosen_lengths()
    lead = min(minus for group in (INDEPENDENT, SHARED) for minus, _ in leads("seen_avg", group))
    cpu = {row["name"]: row["cpu"] for row in read_json("bench_merge/table.json")["rows"]}
    seeds = [key for key in read_csv("tables/seeds")[0] if key.startswith("seen_seed_")]
    columns = [*read_csv("tables/published")[0]]
    tasks = columns[1 : columns.index("seen_avg")]
    return [
        f"with {len(METHODS)} methods, {len(tasks)} tasks and {len(seeds)} training seeds",
        f"clearly above all four others, by {shared:.1f} points or more",
        f"clearly below Task Arithmetic, DARE and KnOTS-TIES, by {-independent:.1f} points or more",
        f"it adds up to {max(rises):.0f} points",
        f"the best strengths are {min(ratios):.2g} to {max(ratios):.2g} times the published defaults",
        f"with and without a shared A, by {lead:.0f} points or more",
        f"were {min(lengths):.1f} to {max(lengths):.1f} times as long as an expert's",
        f"Task Arithmetic's has {merged('norm_over_mean', 'Task Arithmetic', SHARED):.1f} where A is shared",
        f"RobustMerge takes {cpu['robustmerge']:.1f} s and KnOTS-TIES {cpu['knots_ties']:.0f} s",
        f"with one threshold over the model took {cpu['ties, delta, whole model'] / 60:.0f} minutes of CPU",
        "{:.1f} and {:.1f} points above the next merged model".format(*published_leads()),
    ]


@pytest.mark.parametrize(
    ("page", "sentences"),
    [
        ("README.md", readme_sentences),
        ("docs/costs.md", costs_sentences),
        ("docs/findings.md", findings_sentences),
        ("docs/choose.md", choose_sentences),
    ],
)
def test_a_sentence_says_what_was_measured(page, sentences):
    text = " ".join((REPOSITORY / page).read_text().split())
    assert [sentence for sentence in sentences() if sentence not in text] == []


# What docs/choose.md advises.


def test_robustmerge_at_its_default_is_for_experts_that_share_a():
    assert all(minus > 0 and is_clear for minus, is_clear in (standing(name, "", SHARED) for name in METHODS[:4]))
    apart = [standing(name, "", INDEPENDENT) for name in BETTER_APART]
    assert all(minus < 0 and is_clear for minus, is_clear in apart)


def test_without_a_shared_a_task_arithmetic_and_knots_ties_are_not_told_apart_at_defaults():
    assert max(METHODS, key=lambda name: seen(name, INDEPENDENT)) == "Task Arithmetic"
    assert not difference("tables/differences", "KnOTS-TIES", INDEPENDENT, "seen_avg")[1]


def test_knots_ties_is_first_where_strengths_are_chosen():
    for group in (INDEPENDENT, SHARED):
        assert all(lead > 0 and is_clear for lead, is_clear in leads("seen_avg", group))
        assert not min(leads("unseen_avg", group))[1]  # the next on the unseen tasks


def test_the_default_that_is_worth_a_second_look_is_longer_than_any_that_was_chosen():
    assert merged("norm_over_mean", "Task Arithmetic", SHARED) > max(chosen_lengths())


def test_no_merge_needs_more_than_a_gigabyte():
    assert max(row["private"] for row in read_json("bench_merge/table.json")["rows"]) < 1000


def test_the_methods_for_experts_of_other_ranks_are_those_of_the_page():
    text = (REPOSITORY / "docs" / "choose.md").read_text().partition("of any ranks:")[2].partition("\n\n")[0]
    free, _, moved = text.partition("; and ")
    methods = {name: read_method(name) for name in list_methods()}
    assert set(re.findall(r"`(\w+)`", free)) == {name for name, method in methods.items() if not is_bound(method)}
    names = set(re.findall(r"`(\w+)`", moved.partition(" with ")[0]))
    assert names == {name for name, method in methods.items() if is_bound(method)} - {"robustmerge"}
    for name in names:
        assert not any(is_bound(read_method(name, space=space)) for space in ("delta", "knots", "core"))


def is_bound(method: AnyMethod) -> bool:
    return isinstance(method, Method) and method.needs_equal_ranks
