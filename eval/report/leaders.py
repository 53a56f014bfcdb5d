"""The paragraph that a report opens with: which merged model is first, by how much, and whether that means anything."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from eval.report.beside_paper import describe_orders
from eval.report.estimates import Estimates
from eval.report.formats import escape_markdown
from eval.report.results import CHOSEN, Context, ResultGroup, list_blocks, lower_first
from eval.report.standing import format_difference
from eval.report.tables import Column, Table, find_clear_best, list_averages, rank_merged
from eval.statistics import FEWEST_SEEDS, Difference

MANY_BLOCKS = 4  # if there are more, they share a line per average


def format_leaders_section(
    groups: Sequence[ResultGroup], context: Context, estimates: Estimates, tables: Mapping[str, Table]
) -> str:
    """State for each average and block which merged model is first, and whether its lead exceeds the noise.

    If strengths were chosen, only the blocks with those: the others are in the tables. More than MANY_BLOCKS share one
    line per average. Then it states the order of the methods in the paper and here.
    """
    blocks = list_blocks(groups)
    chosen = {block: members for block, members in blocks.items() if members[0].first.variant == CHOSEN}
    lines = []
    for column in list_averages(context):
        ranked = {block: rank_merged(members, column, estimates) for block, members in (chosen or blocks).items()}
        ranked = {block: members for block, members in ranked.items() if members}
        if len(ranked) > MANY_BLOCKS:
            lines.append(f"- **{escape_markdown(column.heading)}:** {_describe_firsts(ranked, column, estimates)}")
            continue
        for block, members in ranked.items():
            place = f"{column.heading}, {lower_first(block)}" if block else column.heading
            lines.append(f"- **{escape_markdown(place)}:** {_describe_first(members, column, estimates)}.")
    orders = describe_orders(tables["beside"]) if "beside" in tables else []
    lines += [f"- **Order by {lower_first(average)}:** {escape_markdown(order)}." for average, order in orders]
    return "\n".join(lines) + "\n" if lines else ""


def _describe_firsts(ranked: Mapping[str, Sequence[ResultGroup]], column: Column, estimates: Estimates) -> str:
    """Which merged models are first, each with its blocks; marked where the lead is outside all noise."""
    start = os.path.commonprefix(list(ranked))
    start = start if start.endswith("= ") else ""
    places: dict[str, list[str]] = {}
    for block, members in ranked.items():
        mark = "*" if find_clear_best(members, column, estimates) else ""
        places.setdefault(members[0].short_title, []).append(block.removeprefix(start) + mark)
    by = f" by {lower_first(start.removesuffix(' = '))}" if start else ""
    firsts = "; ".join(f"{title}: {', '.join(values)}" for title, values in places.items())
    note = " (* its lead is outside the noise)" if "*" in firsts else ""
    return f"first of the merged models{by}: {escape_markdown(firsts + note)}."


def _describe_first(ranked: Sequence[ResultGroup], column: Column, estimates: Estimates) -> str:
    best = ranked[0]
    mean = estimates.interval(best.title, column.tasks)
    sentence = f"{escape_markdown(best.short_title)} is first of the merged models with {mean.value:.1f} %"
    if len(ranked) < 2:
        return sentence
    difference = estimates.difference(best.title, ranked[1].title, column.tasks)
    lead = f"its lead over {escape_markdown(ranked[1].short_title)}, {format_difference(difference)}"
    return f"{sentence}; {lead}, {_judge_lead(difference)}"


def _judge_lead(lead: Difference) -> str:
    """Whether a lead exceeds question noise, seed noise, both or neither."""
    if lead.value < 0:
        return "is **none** over the seeds that both have"
    if lead.seeds is None:
        verdict = "outside" if lead.is_significant else "**within**"
        return f"is {verdict} the noise of the questions"
    questions = "outside" if lead.is_significant_over_questions else "**within**"
    if lead.seeds.low is None:
        return f"is {questions} the noise of the questions; {FEWEST_SEEDS} shared seeds are needed to tell theirs"
    seeds = "outside" if lead.seeds.is_significant else "**within**"
    if questions == seeds:
        return f"is {questions} the noise of the questions and that of the seeds"
    return f"is {questions} the noise of the questions, but {seeds} that of the seeds"
