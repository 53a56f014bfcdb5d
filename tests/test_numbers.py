"""Every number of README.md and docs/ that repeats results/ equals it. Needs nothing."""

from __future__ import annotations

import csv
import json
import re
import tarfile
from collections.abc import Sequence
from functools import cache
from statistics import correlation, mean
from typing import Any

import pytest
import yaml

from pipeline.sweep import make_plans
from robustmerge.method import AnyMethod, Method, list_methods, read_method
from robustmerge.stage.address import REPOSITORY
from tests.plans import make_point

RESULTS = REPOSITORY / "results"
INDEPENDENT, SHARED = "independent A", "shared A"
METHODS = ("Task Arithmetic", "TIES", "DARE", "KnOTS-TIES", "RobustMerge")
AHEAD = ("Task Arithmetic", "DARE", "KnOTS-TIES")  # of RobustMerge
BEST = "TSV-M + LiNeS"
CHOSEN = ", strength chosen"
SEEDS = (1, 2, 3, 4, 5)
Row = dict[str, str]


@cache
def read_rows(name: str) -> list[Row]:
    """The rows of a CSV file under results/."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_csv(name: str, size: str = "tiny") -> list[Row]:
    return read_rows(f"mini-{size}/{name}")


def find_row(name: str, title: str, group: str = "", size: str = "tiny") -> Row:
    """The row of a CSV file whose first column is the title, or "title (group)"."""
    rows = {next(iter(row.values())): row for row in read_csv(name, size)}
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


def read_page(page: str) -> str:
    """The text of a page on one line."""
    return " ".join((REPOSITORY / page).read_text().split())


def with_noise(row: Row, average: str) -> str:
    """A mean with its interval over questions and its deviation over seeds, as the report prints it."""
    if not row[average]:
        return "—"
    value, low, high = (float(row[average + end]) for end in ("", "_low", "_high"))
    deviation = row.get(f"{average}_deviation")  # none of one seed
    return f"{value:.1f} ({low:.1f}–{high:.1f})" + (f" ± {float(deviation):.1f}" if deviation else "")


def test_the_scores_of_the_readme_are_those_of_the_report():
    rows = read_table("README.md", "| | independent A: seen")
    assert len(rows) == 15
    for title, cells in rows.items():
        report = "attempt/main" if title.startswith(BEST) else "tables/main"
        for group, pair in ((INDEPENDENT, cells[:2]), (SHARED, cells[2:])):
            row = find_row(report, title.removesuffix(", default"), group)
            assert pair == [with_noise(row, "seen_avg"), with_noise(row, "unseen_avg")], (title, group)


def test_the_scores_of_the_larger_base_are_those_of_its_report():
    rows = read_table("docs/findings.md", "| `small` | seen")
    assert len(rows) == 2 + 2 * len(METHODS)
    for title, (seen_avg, unseen_avg, behind) in rows.items():
        row = find_row("tables/main", title.removesuffix(", default"), size="small")
        assert [seen_avg, unseen_avg] == [with_noise(row, "seen_avg"), with_noise(row, "unseen_avg")], title
        if behind not in ("—", ""):
            row = find_row("tables/standing", title.removesuffix(", default"), size="small")
            value, low, high = (f"{float(row['seen_avg' + end]):+.1f}" for end in ("", "_seeds_low", "_seeds_high"))
            assert behind == f"{value} ({low} to {high})".replace("-", "−"), title


def test_the_differences_of_the_findings_are_those_of_the_report():
    rows = read_table("docs/findings.md", "| RobustMerge minus")
    assert rows.keys() == {*METHODS} - {"RobustMerge"}
    for title, cells in rows.items():
        columns = [(variant, group) for variant in ("", CHOSEN) for group in (INDEPENDENT, SHARED)]
        for (variant, group), cell in zip(columns, cells, strict=True):
            row = find_row("tables/standing", title + variant, group)
            value, low, high = (f"{float(row['seen_avg' + end]):+.1f}" for end in ("", "_seeds_low", "_seeds_high"))
            assert cell == f"{value} ({low} to {high})".replace("-", "−"), (title, group)


def test_the_spaces_of_the_findings_are_those_of_the_experiment():
    rows = read_table("docs/findings.md", "| seen average, strength chosen | A and B apart")
    knots = rows.pop("KnOTS-TIES")
    assert knots == ["—", in_spaces("KnOTS-TIES")]
    for title, cells in rows.items():
        products = "products, eq. 5" if title == "RobustMerge" else "products"
        assert cells == [in_spaces(f"{title} (factors)"), in_spaces(f"{title} ({products})")]


def test_the_dial_of_the_findings_is_that_of_the_experiment():
    rows = read_table("docs/findings.md", "| seen average, strength chosen | knows nothing")
    assert len(rows) == 2 + len(METHODS)
    for title, cells in rows.items():
        row = find_row("base_knows/swept", title)
        for key, cell in zip(("nothing", "half", "paper"), cells, strict=True):
            assert cell == with_noise(row, f"seen_avg_{key}")
    by_rank = {
        key: sorted(METHODS, key=lambda name: float(find_row("base_knows/swept", name)[f"rank_{key}"]))
        for key in ("nothing", "half", "paper")
    }
    assert by_rank["nothing"][:2] == ["KnOTS-TIES", "RobustMerge"]
    for key in ("half", "paper"):
        assert by_rank[key] == ["KnOTS-TIES", "Task Arithmetic", "DARE", "RobustMerge", "TIES"]


def test_the_lengths_of_training_of_the_findings_are_those_of_the_experiment():
    rows, lengths = read_table("docs/findings.md", "| seen average, strength chosen | a quarter"), ("0.25", "1", "4")
    assert len(rows) == 1 + len(METHODS)
    for title, cells in rows.items():
        assert cells == [with_noise(find_row("length/swept", title), f"seen_avg_{key}") for key in lengths]
    knots, robustmerge = (find_row("length/swept", title) for title in ("KnOTS-TIES", "RobustMerge"))
    assert [float(knots[f"rank_{key}"]) for key in lengths] == [3, 3, 1]
    assert min(float(robustmerge[f"rank_{key}"]) for key in lengths) == 4
    assert all(length(title, "4") < length(title, "1") for title in METHODS if title != "KnOTS-TIES")


@pytest.mark.parametrize(
    ("size", "seeds", "name", "title"),
    [("tiny", SEEDS, "multi_task", "Multi-task"), ("small", (1, 2, 3), "merged/ties", "TIES")],
)
def test_the_shipped_scores_are_those_of_the_report_where_today_s_configuration_looks_for_them(
    size, seeds, name, title, tmp_path
):
    plans = make_plans([make_point(tmp_path, f"model={size}", f"seed={seed}") for seed in seeds])
    found: dict[str, list[float]] = {}
    with tarfile.open(RESULTS / f"mini-{size}" / "scores.tar.xz") as archive:
        held = {
            member.name: archive.extractfile(member).read()
            for member in archive
            if f"/{name}-" in member.name and member.isfile()
        }
    for plan in plans:
        (source,) = [source for source in plan.configured if source.name == name]
        for one in plan.list_evaluations(source):
            score = json.loads(held[str(one.score.path.relative_to(plan.root))])
            found.setdefault(one.eval_set.task.name, []).append(score["value"])
    row = find_row("tables/main", title, size=size)
    assert {task: mean(values) for task, values in found.items()} == pytest.approx({t: float(row[t]) for t in found})
    assert len(found) == 12


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
    return seen(method + CHOSEN, group)


def rise(method: str, group: str) -> float:
    """What choosing the strength adds."""
    return chosen(method, group) - seen(method, group)


def in_spaces(title: str) -> str:
    """Mean and deviation of a row of `experiment=spaces`, strength chosen, on the seen tasks."""
    row = find_row("spaces/main", title + CHOSEN)
    return f"{float(row['seen_avg']):.1f} ± {float(row['seen_avg_deviation']):.1f}"


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


def all_rises() -> list[float]:
    return [rise(method, group) for method in METHODS for group in (INDEPENDENT, SHARED)]


def lead(group: str) -> float:
    """How far KnOTS-TIES is above the next on the seen tasks, at chosen strengths."""
    return chosen("KnOTS-TIES", group) - max(chosen(name, group) for name in METHODS if name != "KnOTS-TIES")


def regime(size: str = "tiny") -> dict[str, float]:
    """How far zero-shot over individual (unseen: over multi-task) is above the paper's ratio, by task.

    Without a multi-task model, as of `small`, of the seen tasks alone.
    """
    rows = yaml.safe_load((RESULTS / "paper.yaml").read_text())["table_2_mm_mergebench"]
    zero_shot, above = find_row("tables/main", "Zero-shot", size=size), {}
    parts = [("seen", "Individual", "individual"), ("unseen", "Multi-task", "multi_task")]
    for part, title, best in parts[: 1 if size == "small" else 2]:
        reached = find_row("tables/main", title, INDEPENDENT, size)
        for place, task in enumerate(rows[part]):
            paper = rows["rows"]["zero_shot"][part][place] / rows["rows"][best][part][place]
            above[task] = float(zero_shot[task]) / float(reached[task]) - paper
    return above


def in_small(title: str, key: str = "seen_avg") -> float:
    return float(find_row("tables/main", title, size="small")[key])


def readme_sentences() -> list[str]:
    return [
        f"the base reaches {seen('Zero-shot'):.0f} of the experts' {seen('Individual', INDEPENDENT):.0f}",
        "by {:.1f} points or more at defaults and {:.1f} at chosen strengths".format(
            *(min(behind_best(title)[i][0] for title in METHODS for i in pair) for pair in ((0, 2), (1, 3)))
        ),
        f"the strength chosen on `val` adds {min(all_rises()):.1f} to {max(all_rises()):.1f} points",
        "KnOTS-TIES {:.1f}, DARE {:.1f}, Task Arithmetic {:.1f}; TIES and RobustMerge {:.1f}".format(
            *(in_small(title + CHOSEN) for title in ("KnOTS-TIES", "DARE", "Task Arithmetic", "TIES"))
        ),
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
    rows = main_rows(*METHODS)
    deviations = [float(row["seen_avg_deviation"]) for row in rows]
    half = [(float(row["seen_avg_high"]) - float(row["seen_avg_low"])) / 2 for row in rows]
    ratios, far = chosen_over_default(), [task for task, above in regime().items() if abs(above) > 0.15]
    apart = [merged("outside", method, INDEPENDENT) for method in METHODS if method != "KnOTS-TIES"]
    rho = {
        key: column("findings/relations", "rho", group=INDEPENDENT, scope="methods", quantity=key)[0]
        for key in ("share_lowest", "outside")
    }
    cosine = mean(column("findings/cross", "cosine", group=SHARED, kind="plain"))
    share = mean(column("findings/merged", "share_mean", kind="multi_task"))
    retained = [
        (seen(name, group) - seen("Zero-shot")) / (seen("Individual", group) - seen("Zero-shot"))
        for name, group in (("Task Arithmetic", INDEPENDENT), ("RobustMerge", INDEPENDENT), ("RobustMerge", SHARED))
    ]
    reach = {task: [float(row[task]) for row in rows] for task in regime()}
    assert far == ["vizwiz", "screen2words", "tabmwp"]
    small = [row for row in read_csv("tables/main", "small") if row["source"].startswith(METHODS)]
    wide = [(float(row["seen_avg_high"]) - float(row["seen_avg_low"])) / 2 for row in small]
    stronger = [in_small(title + CHOSEN) - in_small(title) for title in METHODS]
    assert max(map(abs, regime("small").values())) < 0.11
    return [
        f"half-width of a merged seen average is {min(wide):.2f} to {max(wide):.2f}",
        f"which adds {min(stronger):.1f} to {max(stronger):.1f} points",
        f"KnOTS-TIES there is {in_small('KnOTS-TIES' + CHOSEN) - in_small('RobustMerge' + CHOSEN):.1f} points",
        "; ".join(
            f"{shown} {min(float(row[task]) for row in small):.0f} to {max(float(row[task]) for row in small):.0f}"
            for task, shown in (("iconqa", "IconQA"), ("ocrvqa", "OCR-VQA"))
        ).replace("; ", ", "),
        f"an update {merged('norm_over_mean', 'RobustMerge', SHARED):.1f} experts long with shared A",
        f"and {merged('norm_over_mean', 'RobustMerge', INDEPENDENT):.1f} without",
        f"choosing with shared A ({rise('RobustMerge', SHARED):.1f} points)",
        "Task Arithmetic keeps {:.2f} of what the experts gain over the base".format(*retained),
        "RobustMerge keeps {1:.2f} here, with shared A {2:.2f}".format(*retained),
        "VizWiz is {vizwiz:.2f} above, TabMWP {tabmwp:.2f}, Screen2Words {screen2words:.2f}".format(**regime()),
        f"{seen('Individual', INDEPENDENT):.1f} and {seen('Multi-task'):.1f}",
        "IconQA ({:.0f} to {:.0f})".format(min(reach["iconqa"]), max(reach["iconqa"])),
        "OCR-VQA ({:.0f} to {:.0f})".format(min(reach["ocrvqa"]), max(reach["ocrvqa"])),
        "ImageNet ({:.0f} to {:.0f})".format(min(reach["imagenet"]), max(reach["imagenet"])),
        f"{min(half):.2f} to {max(half):.2f}",
        f"Seeds move a merged average by {min(deviations):.1f} to {max(deviations):.1f} points",
        f"moves the same method by up to {max(all_rises()):.0f} points",
        f"the best strengths are {min(ratios):.2g} to {max(ratios):.2g} times the published defaults",
        f"{100 * min(apart):.0f} to {100 * max(apart):.0f} % of such a merged update is of no expert",
        f"is {100 * merged('outside', 'KnOTS-TIES', INDEPENDENT):.0f} %",
        f"correlation {rho['share_lowest']:.2f}) and falls with the part that is of no expert ({rho['outside']:.2f})",
        f"(cosine {cosine:.2f})",
        f"keeps {100 * share:.0f} % of their updates",
        f"Here its lead is {lead(INDEPENDENT):.1f} and {lead(SHARED):.1f} points",
        f"RobustMerge is second, {below_knots('nothing'):.1f} points below",
        f"clearly below KnOTS-TIES, by {below_knots('half'):.1f} points",
        f"are {-gains_when_short(['Individual'])[0]:.1f} points worse, and their merges better by all methods, by "
        f"{min(gains_when_short(METHODS)):.1f} to {max(gains_when_short(METHODS)):.1f} points",
        f"third before, gains {length('KnOTS-TIES', '4') - length('KnOTS-TIES', '1'):.1f} points and is first",
    ]


def length(title: str, epochs: str) -> float:
    return float(find_row("length/swept", title)[f"seen_avg_{epochs}"])


def gains_when_short(titles: Sequence[str]) -> list[float]:
    """What a quarter of the training adds, over once."""
    return [length(title, "0.25") - length(title, "1") for title in titles]


def below_knots(key: str) -> float:
    """How far RobustMerge is below KnOTS-TIES on a base of the dial, at chosen strengths."""
    knots, robustmerge = (
        float(find_row("base_knows/swept", x)[f"seen_avg_{key}"]) for x in ("KnOTS-TIES", "RobustMerge")
    )
    return knots - robustmerge


def standing(method: str, variant: str, group: str) -> tuple[float, bool]:
    """RobustMerge minus the method, on the seen tasks; and whether no 95 % interval holds zero."""
    return difference("tables/standing", method + variant, group, "seen_avg")


def difference(name: str, title: str, group: str, average: str, size: str = "tiny") -> tuple[float, bool]:
    row = find_row(name, title, group, size)
    ends = [[float(row[f"{average}{which}_{end}"]) for end in ("low", "high")] for which in ("", "_seeds")]
    return float(row[average]), all(low * high > 0 for low, high in ends)


def leads(title: str, group: str) -> list[tuple[float, bool]]:
    """How far KnOTS-TIES, first of its block on the seen tasks, is above the others, and whether clearly.

    title: of a row, with {method}.
    """
    others = [title.format(method=name) for name in METHODS if name != "KnOTS-TIES"]
    return [
        (-minus, is_clear)
        for minus, is_clear in (difference("tables/differences", o, group, "seen_avg") for o in others)
    ]


def chosen_lengths() -> list[float]:
    """Length of the update over the experts' mean, of all methods but TIES at chosen strengths, with a shared A."""
    return [
        mean(column("findings/merged", "norm_over_mean", method=method, variant="chosen", group=SHARED))
        for method in METHODS
        if method != "TIES"
    ]


def deviation(title: str, group: str) -> float:
    return float(find_row("tables/main", title, group)["seen_avg_deviation"])


def published_leads() -> list[float]:
    """How far RobustMerge is above the next merged model in the paper's table 2: seen, unseen."""
    rows = yaml.safe_load((RESULTS / "paper.yaml").read_text())["table_2_mm_mergebench"]["rows"]
    merged_rows = [row for name, row in rows.items() if name in ("task_arithmetic", "dare", "ties", "pcb")]
    keys = ("seen_avg", "unseen_avg")
    return [rows["robustmerge"][key] - max(row[key] for row in merged_rows) for key in keys]


DIRECTIONS = ("TSV-M", "SWUDI", "CT-Merging", "Iso-C", "DC-Merge")
ENTRIES = ("TIES", "TIES (products)", "DARE", "DARE (products)", "DARE-TIES", "DELLA", "Breadcrumbs", "SCE", "PCB")
ENTRIES = (*ENTRIES, "Core-TIES", "KnOTS-TIES", "KnOTS-DARE-TIES", "RobustMerge", "RobustMerge (eq. 5)")


def ranked(title: str, key: str = "seen_avg", group: str = INDEPENDENT) -> float:
    """A value of the ranking of all methods."""
    return float(find_row("all_methods/ranking", title, group)[key])


def agreement(variant: str) -> float:
    """Rank correlation of the methods' seen averages without and with a shared A."""
    ranking = [row["source"] for row in read_csv("all_methods/ranking")]
    titles = [title.removesuffix(f" ({SHARED})") for title in ranking if title.endswith(f" ({SHARED})")]
    names = [title for title in titles if title.endswith(CHOSEN) == bool(variant)]
    return correlation(*([ranked(name, "rank_seen_avg", group) for name in names] for group in (INDEPENDENT, SHARED)))


def ranked_on_small(title: str, key: str = "seen_avg") -> float:
    return float(find_row("all_methods/ranking", title, size="small")[key])


def agreement_of_sizes(key: str) -> float:
    """Rank correlation of the methods' averages, at defaults, on the two sizes of the base."""
    names = [row["source"] for row in read_csv("all_methods/ranking", "small")]
    return correlation([ranked_on_small(name, key) for name in names], [ranked(name, key) for name in names])


def choose_sentences() -> list[str]:
    independent = max(standing(method, "", INDEPENDENT)[0] for method in AHEAD)
    robustmerge = [seen("RobustMerge", group) for group in (INDEPENDENT, SHARED)]
    knots = [seen("KnOTS-TIES", group) for group in (INDEPENDENT, SHARED)]
    ratios, lengths, rises = chosen_over_default(), chosen_lengths(), all_rises()
    cpu = {row["name"]: row["cpu"] for row in read_json("bench_merge/table.json")["rows"]}
    seeds = [key for key in read_csv("tables/seeds")[0] if key.startswith("seen_seed_")]
    columns = [*read_csv("tables/published")[0]]
    tasks = columns[1 : columns.index("seen_avg")]
    spread = [
        deviation("KnOTS-TIES", INDEPENDENT),
        deviation("KnOTS-TIES", SHARED),
        deviation("Task Arithmetic", SHARED),
    ]
    default_lengths = [merged("norm_over_mean", method, SHARED) for method in ("Task Arithmetic", "KnOTS-TIES")]
    compared = read_table("docs/choose.md", "| | default: seen")
    searched = {
        group: ranked("Task Arithmetic (products), weights searched" + CHOSEN, group=group)
        - ranked(BEST + CHOSEN, group=group)
        for group in (INDEPENDENT, SHARED)
    }
    best_pruned = max(map(ranked, ENTRIES)), max(ranked(name, group=SHARED) for name in ENTRIES)
    five = min(map(ranked, DIRECTIONS)) - best_pruned[0]
    four = min(ranked(name, group=SHARED) for name in DIRECTIONS if name != "SWUDI") - best_pruned[1]
    chosen_entries = [max(ranked(name + CHOSEN, group=group) for name in ENTRIES) for group in (INDEPENDENT, SHARED)]
    assert min(ranked(name + CHOSEN) for name in DIRECTIONS) > chosen_entries[0]
    assert max(ranked(name + CHOSEN, group=SHARED) for name in DIRECTIONS) < chosen_entries[1]
    by_entries = sorted(ENTRIES, key=lambda name: ranked(name + CHOSEN, group=SHARED))
    assert by_entries[-2:] == ["KnOTS-TIES", "Core-TIES"]
    gains = [
        ranked(name, "unseen_avg", SHARED) - ranked(name, "unseen_avg")
        for name in ("RobustMerge", "Task Arithmetic", "DARE", "Breadcrumbs")
    ]
    assert ranked("DC-Merge", "rank_seen_avg", SHARED) == 2
    shared_gain = {name: ranked(name, group=SHARED) - ranked(name) for name in ("DC-Merge", "SWUDI")}
    assert ranked("Iso-C") > max(ranked("RobustMerge"), ranked("KnOTS-TIES"))
    lifts = [ranked(x + CHOSEN) - ranked(x) for x in ("DO-Merging", "Task Arithmetic (products)")]
    return [
        f"the first of all: {searched[INDEPENDENT]:.1f} points above `tsv_m_lines`, a clear lead over five seeds, "
        f"and with a shared A {searched[SHARED]:.1f}, which is not clear",
        f"are at defaults {five:.1f} points or more above every rule that prunes or elects entries, "
        f"with a shared A all but SWUDI {four:.1f} or more",
        "seen averages {:.2f} at defaults, {:.2f} at chosen strengths".format(*map(agreement, ("", CHOSEN))),
        "{:.2f} on the seen tasks and {:.2f} on the unseen ones. `tsv_m_lines` is first with {:.1f}, clearly".format(
            *map(agreement_of_sizes, ("rank_seen_avg", "rank_unseen_avg")), ranked_on_small(BEST)
        ),
        f"{ranked_on_small(BEST) - ranked_on_small('TSV-M'):.1f} points above TSV-M; Task Arithmetic has "
        f"{ranked_on_small('Task Arithmetic'):.1f}, RobustMerge {ranked_on_small('RobustMerge'):.1f}",
        f"DC-Merge gains {shared_gain['DC-Merge']:.1f} points and is the second",
        f"gain {min(gains):.1f} to {max(gains):.1f} points on the unseen tasks",
        f"SWUDI loses {-shared_gain['SWUDI']:.1f}, as its default is too long there: at a chosen strength it has "
        f"{ranked('SWUDI' + CHOSEN, group=SHARED):.1f}",
        "of DO-Merging by {:.1f} points, that of the sum of products by {:.1f}".format(*lifts),
        f"with {len(compared)} methods, {len(tasks)} tasks and {len(seeds)} training seeds",
        f"by {-independent:.1f} points or more (seen tasks)",
        f"with one it scores {robustmerge[1] - robustmerge[0]:.1f} points higher",
        "scores {:.1f} without and {:.1f} with a shared A".format(*knots),
        f"it adds {min(rises):.1f} to {max(rises):.1f} points",
        f"the best strengths are {min(ratios):.2g} to {max(ratios):.2g} times the published defaults",
        f"{min(lead(INDEPENDENT), lead(SHARED)):.1f} points or more above the next",
        f"without a shared A, by {min(minus for minus, _ in leads('{method}', INDEPENDENT)):.1f} points or more",
        "by {:.1f} and {:.1f} points; Task Arithmetic's with a shared A by {:.1f}".format(*spread),
        f"made updates {min(lengths):.1f} to {max(lengths):.1f} times as long as an expert's",
        "Task Arithmetic's has {:.1f}, and KnOTS-TIES' {:.1f}".format(*default_lengths),
        f"Task Arithmetic takes {cpu['task_arithmetic']:.1f} s, RobustMerge {cpu['robustmerge']:.1f} s and "
        f"KnOTS-TIES {cpu['knots_ties']:.0f} s",
        f"with one threshold over the model took {cpu['ties, delta, whole model'] / 60:.0f} minutes of CPU",
        "{:.1f} and {:.1f} points above the next merged model".format(*published_leads()),
    ]


def behind_best(title: str, average: str = "seen_avg") -> list[tuple[float, bool]]:
    """How far a method is behind TSV-M + LiNeS, and if clearly, at default and chosen: independent A, then shared A."""
    pairs = [(group, variant) for group in (INDEPENDENT, SHARED) for variant in ("", CHOSEN)]
    found = [difference("attempt/differences", title + variant, group, average) for group, variant in pairs]
    return [(-minus, is_clear) for minus, is_clear in found]


THREE = ("KnOTS-TIES", "Task Arithmetic", "RobustMerge")


def dial_row(title: str, value: str) -> float:
    """The seen average, strength chosen, on a base of the dial with the method of the attempt beside the five."""
    return float(find_row("attempt/base_knows/swept", title)[f"seen_avg_{value}"])


def dial_differences(value: str) -> list[tuple[float, bool]]:
    """Each of the five minus the method of the attempt, strength chosen, and whether it is clear."""
    names = [f"{title}{CHOSEN} (base knows = {value})" for title in METHODS]
    return [difference("attempt/base_knows/differences", name, "", "seen_avg") for name in names]


def attempt_sentences() -> list[str]:
    behind = {title: [points for points, _ in behind_best(title)] for title in ("TSV-M", "CT-Merging", "KnOTS-TIES")}
    best = [find_row("attempt/main", BEST + variant, g) for variant in ("", CHOSEN) for g in (INDEPENDENT, SHARED)]
    small = {
        a: [difference("attempt/differences", t, "", a, "small") for t in METHODS] for a in ("seen_avg", "unseen_avg")
    }
    assert all(minus < 0 and is_clear for found in small.values() for minus, is_clear in found)
    above = {average: min(-minus for minus, _ in found) for average, found in small.items()}
    knots, is_clear = difference("attempt/differences", "KnOTS-TIES" + CHOSEN, "", "seen_avg", "small")
    unseen, is_told = difference("attempt/differences", BEST + CHOSEN, "", "unseen_avg", "small")
    assert not is_clear and not is_told and unseen < 0
    rows = {
        title: find_row("attempt/main", title, size="small") for title in (BEST, BEST + CHOSEN, "KnOTS-TIES" + CHOSEN)
    }
    means = {title: [float(row[average]) for average in small] for title, row in rows.items()}
    half, nothing = ([dial_row(title, value) for title in (BEST, *THREE)] for value in ("half", "nothing"))
    assert all(is_clear and minus < 0 for minus, is_clear in dial_differences("half"))
    assert not any(is_clear for _, is_clear in dial_differences("nothing"))
    return [
        f"it scores {means[BEST][0]:.1f} on the seen tasks at its default",
        f"{half[0]:.1f} where the base knows half",
        "(KnOTS-TIES {:.1f}, Task Arithmetic {:.1f}, RobustMerge {:.1f})".format(*half[1:]),
        "{:.1f} where it knows nothing ({:.1f}, {:.1f}, {:.1f})".format(*nothing),
        f"by {above['seen_avg']:.1f} points or more; at chosen strengths",
        f"at chosen strengths {means[BEST + CHOSEN][0]:.1f}, which is {-knots:.1f} above KnOTS-TIES",
        f"at its default, by {above['unseen_avg']:.1f} points or more",
        f"KnOTS-TIES ({means[BEST + CHOSEN][1]:.1f} and {means['KnOTS-TIES' + CHOSEN][1]:.1f})",
        *(f"{title} by {min(points):.1f} to {max(points):.1f}" for title, points in behind.items()),
        "its default scores {:.1f} and {:.1f}, the chosen strengths {:.1f} and {:.1f}".format(
            *(float(row["seen_avg"]) for row in best)
        ),
    ]


@pytest.mark.parametrize(
    ("page", "sentences"),
    [
        ("README.md", readme_sentences),
        ("docs/costs.md", costs_sentences),
        ("docs/findings.md", findings_sentences),
        ("docs/choose.md", choose_sentences),
        ("docs/attempt.md", attempt_sentences),
    ],
)
def test_a_sentence_says_what_was_measured(page, sentences):
    text = read_page(page)
    assert [sentence for sentence in sentences() if sentence not in text] == []


def test_the_scores_of_the_attempt_are_those_of_its_report():
    rows = read_table("docs/attempt.md", "| test, five seeds")
    assert len(rows) == 20
    for title, cells in rows.items():
        for group, pair in ((INDEPENDENT, cells[:2]), (SHARED, cells[2:])):
            row = find_row("attempt/main", title.removesuffix(", default"), group)
            assert pair == [with_noise(row, "seen_avg"), with_noise(row, "unseen_avg")], (title, group)


def test_the_table_of_every_method_is_that_of_its_ranking():
    rows = read_table("docs/choose.md", "| method | independent A: seen")
    ending = f" ({INDEPENDENT})"
    ranking = [row["source"] for row in read_csv("all_methods/ranking")]
    titles = [title.removesuffix(ending) for title in ranking if title.endswith(ending)]
    assert list(rows) == [title for title in titles if not title.endswith(CHOSEN)] + [
        title.removesuffix(CHOSEN) for title in titles if "weights searched" in title
    ]
    for title, (*cells, cost) in rows.items():
        shown = [
            f"{ranked(name, key, group):.1f} ({ranked(name, f'rank_{key}', group):g})" if name in titles else "—"
            for group in (INDEPENDENT, SHARED)
            for name in (title, title + CHOSEN)
            for key in ("seen_avg", "unseen_avg")
        ]
        assert cells == shown, title
        measured = find_row("all_methods/ranking", title, INDEPENDENT)["cpu"] if title in titles else ""
        assert cost == (f"{float(measured):.1f}" if measured else "—"), title


def test_what_methods_score_and_cost_is_what_was_measured():
    costs = {row["name"]: row["cpu"] for row in read_json("bench_merge/table.json")["rows"]}
    names = {read_method(name).title: name for name in list_methods()}
    for title, (*cells, cost) in read_table("docs/choose.md", "| | default: seen").items():
        name, _, changes = title.replace("`", "").partition(", ")
        report = read_method(name).title + {"": "", "products": " (products)"}.get(changes, " (products, LiNeS)")
        scores = [
            " and ".join(f"{float(find_row('attempt/main', report + v, g)[a]):.1f}" for g in (INDEPENDENT, SHARED))
            for v in ("", CHOSEN)
            for a in ("seen_avg", "unseen_avg")
        ]
        assert cells == scores, title
        measured = costs.get(f"{name}, delta" if changes else "tsv_m" if names[report] == "tsv_m_lines" else name)
        assert cost == ("—" if measured is None else f"{measured:.1f}"), title


def test_tsv_m_with_a_strength_that_rises_is_clearly_first_on_the_seen_tasks():
    others = {
        row["source"].partition(" (independent")[0].removesuffix(CHOSEN) for row in read_csv("attempt/differences")
    }
    others = {title for title in others if "shared A" not in title and not title.startswith(BEST)}
    level = "Task Arithmetic (products, LiNeS)"
    assert level in others
    for title in others - {level}:
        assert all(points > 0 and is_clear for points, is_clear in behind_best(title)), title
    assert [is_clear for _, is_clear in behind_best(level)] == [True, False, True, False]


def test_the_rules_that_were_tried_are_those_of_the_file():
    page = (REPOSITORY / "docs" / "attempt.md").read_text()
    tried = [
        f"| {row['round']} | {row['rule']} | {row['A']}{', five seeds' if row['seeds'] == '1-5' else ''} | "
        f"{row['strengths']} | {float(row['val mean']):.1f} ± {float(row['deviation']):.1f} |"
        for row in read_csv("attempt/candidates")
    ]
    shown = re.findall(r"^\| \d+ \|.*$", page, re.MULTILINE)
    assert shown
    assert [line for line in shown if line not in tried] == []
    assert f"All {len(tried)} rows" in page


# What docs/choose.md advises.


def test_robustmerge_at_its_default_is_for_experts_that_share_a():
    apart = [standing(name, "", INDEPENDENT) for name in AHEAD]
    assert all(minus < 0 and is_clear for minus, is_clear in apart)
    assert not any(standing(name, "", SHARED)[1] for name in AHEAD)


def test_knots_ties_is_first_at_its_default_and_steadiest():
    assert all(lead > 0 and is_clear for lead, is_clear in leads("{method}", INDEPENDENT))
    assert all(lead > 0 for lead, _ in leads("{method}", SHARED))
    for group in (INDEPENDENT, SHARED):
        assert deviation("KnOTS-TIES", group) < 1


def test_knots_ties_has_the_highest_mean_where_strengths_are_chosen_and_clearly_so_with_a_shared_a():
    assert all(lead > 0 for lead, _ in leads("{method}" + CHOSEN, INDEPENDENT))
    assert all(lead > 0 and is_clear for lead, is_clear in leads("{method}" + CHOSEN, SHARED))


def test_task_arithmetic_on_the_products_is_level_with_knots_ties():
    assert not difference("spaces/differences", "KnOTS-TIES" + CHOSEN, "", "seen_avg")[1]  # of the first, which it is


def test_the_defaults_that_are_worth_a_second_look_are_far_from_what_was_chosen():
    assert merged("norm_over_mean", "Task Arithmetic", SHARED) > max(chosen_lengths())
    assert merged("norm_over_mean", "KnOTS-TIES", SHARED) < min(chosen_lengths())


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
