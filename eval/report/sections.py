"""The text of a report, section by section. Tables come formatted: as Markdown for report.md, as HTML for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.report.estimates import Estimates
from eval.report.examples import Shown, select_example_groups
from eval.report.figures import RenderedFigure
from eval.report.formats import FormatTable, escape_markdown
from eval.report.notes import (
    format_footnotes,
    format_partial_notice,
    tell_general,
    tell_other,
    tell_pairs,
    tell_parts,
    tell_problems,
)
from eval.report.provenance import format_provenance_section
from eval.report.published import read_published
from eval.report.results import CHOSEN, Context, ResultGroup, list_seeds
from eval.report.section_base import format_base_section
from eval.report.section_methods import format_methods_section
from eval.report.standing import describe_standing, format_difference
from eval.report.tables import MISSING, Column, Table, list_averages, list_blocks, rank_merged
from eval.settings import Task
from eval.statistics import FEWEST_SEEDS, Difference

SMOKE = (
    "> **SMOKE RUN: THESE NUMBERS MEAN NOTHING.** It only shows that every stage works: "
    "far too few examples and training steps.\n"
)
SHEET = (
    "## What the tasks look like\n\nTest questions taken by the hash of their id, not chosen, with the answer that "
    'counts as right.\n\n<p><img class="wide" src="figures/sheet.png" alt="Test pictures of every task with question '
    'and expected answer"></p>\n'
)


def compose(
    rows: Sequence[ResultGroup],
    context: Context,
    estimates: Estimates,
    tables: Mapping[str, Table],
    figures: Sequence[RenderedFigure],
    examples: Mapping[str, Sequence[Shown]],
    has_sheet: bool,
    show: FormatTable,
) -> str:
    """The whole report as Markdown."""
    drawn = {figure.name: figure for figure in figures}
    sections = [
        f"# {escape_markdown(context.benchmark)} on {escape_markdown(context.model)}\n",
        SMOKE if context.profile == "smoke" else "",
        _look(rows, context),
        _finding(rows, context, estimates),
        _scores(rows, context, tables, show),
        _standing(tables, drawn, list_seeds(rows), show),
        _figures([figure for figure in figures if figure.name != "standing"]),
        _differences(tables, show),
        _seeds(tables, show),
        tell_other(rows, context, tables, show),
        tell_parts(tables, show),
        tell_general(context, tables, show),
        _published(context, tables["published"], show),
        format_base_section(context),
        SHEET if has_sheet else "",
        tell_problems(rows, context),
        format_methods_section(rows),
        _examples(rows, context, examples),
        format_provenance_section(rows, context, estimates),
    ]
    return "\n".join(section for section in sections if section)


def _look(rows: Sequence[ResultGroup], context: Context) -> str:
    told = format_partial_notice(rows, context)
    return f"> **{escape_markdown(told)}**\n" if told else ""


def _scores(rows: Sequence[ResultGroup], context: Context, tables: Mapping[str, Table], show: FormatTable) -> str:
    notes = format_footnotes(rows, context, context.protocol)
    return f"## Scores\n\n{show(tables['main'])}\n{_reading(rows)}" + (f"\n{notes}" if notes else "")


def _finding(rows: Sequence[ResultGroup], context: Context, estimates: Estimates) -> str:
    """One sentence an average and block: which merged model is first, and whether that is more than noise.

    Where strengths were chosen, of the blocks with those: the others are in the tables.
    """
    blocks = list_blocks(rows)
    chosen = {block: members for block, members in blocks.items() if members[0].first.variant == CHOSEN}
    lines = []
    for column in list_averages(context):
        for block, members in (chosen or blocks).items():
            ranked = rank_merged(members, column, estimates)
            if ranked:
                place = f"{column.group}, {block[:1].lower()}{block[1:]}" if block else column.group
                lines.append(f"- **{place}:** {_tell_first(ranked, column, estimates)}.")
    return "\n".join(lines) + "\n" if lines else ""


def _tell_first(ranked: Sequence[ResultGroup], column: Column, estimates: Estimates) -> str:
    best = ranked[0]
    value = estimates.interval(best.key, column.tasks)
    told = f"{escape_markdown(_called(best))} is first of the merged models with {value.value:.1f} %"
    if len(ranked) < 2:
        return told
    found = estimates.difference(best.key, ranked[1].key, column.tasks)
    lead = f"its lead over {escape_markdown(_called(ranked[1]))}, {format_difference(found)}"
    return f"{told}; {lead}, {_judge(found)}"


def _judge(found: Difference) -> str:
    """Of which noise a lead is free."""
    if found.value < 0:
        return "is **none** over the seeds that both have"
    if found.seeds is None:
        verdict = "outside" if found.is_significant else "**within**"
        return f"is {verdict} the noise of the questions"
    questions = "outside" if found.is_significant_over_questions else "**within**"
    if found.seeds.low is None:
        return f"is {questions} the noise of the questions; {FEWEST_SEEDS} shared seeds are needed to tell theirs"
    seeds = "outside" if found.seeds.is_significant else "**within**"
    if questions == seeds:
        return f"is {questions} the noise of the questions and that of the seeds"
    return f"is {questions} the noise of the questions, but {seeds} that of the seeds"


def _called(row: ResultGroup) -> str:
    return row.label if row.block else row.title


def _reading(rows: Sequence[ResultGroup]) -> str:
    seeds, blocks = list_seeds(rows), list_blocks(rows)
    several = len(seeds) > 1
    within = " of a block" if len(blocks) > 1 else ""
    bold = (
        f"Of the merged models{within} the best value is **bold** only where the 95 % interval of its paired "
        "difference to the second best leaves out zero"
    )
    told = f"Individual is each expert on its own task. Averages weigh tasks equally. {MISSING} is missing. "
    if not several:
        return (
            f"{told}In brackets: 95 % intervals. {bold}. Intervals tell the noise of the drawn questions "
            "only: another training seed may move a score by more.\n"
        )
    return (
        f"{told}Values are means over {len(seeds)} training seeds ({', '.join(map(str, seeds))}); the zero-shot base "
        "has none. **In brackets, the noise of the questions**: 95 % intervals of that mean if other questions were "
        "drawn. **Behind ±, the noise of training**: the sample standard deviation over the seeds. "
        f"{bold}, over the questions and, by the seeds' paired differences, over the seeds.\n"
    )


def _figures(figures: Sequence[RenderedFigure]) -> str:
    """Wide ones stand alone."""
    narrow = [f"![{figure.alt}](figures/{figure.name}.svg)" for figure in figures if not figure.wide]
    wide = [_wide(figure) for figure in figures if figure.wide]
    return "## Figures\n\n" + "\n".join([*narrow, *([""] if narrow and wide else []), *wide, ""])


def _wide(figure: RenderedFigure) -> str:
    return f'<p><img class="wide" src="figures/{figure.name}.svg" alt="{figure.alt}"></p>\n'


def _standing(
    tables: Mapping[str, Table], drawn: Mapping[str, RenderedFigure], seeds: Sequence[int], show: FormatTable
) -> str:
    if "standing" not in tables:
        return ""
    table = tables["standing"]
    told = "\n".join(f"- **{place}:** {escape_markdown(words)}" for place, words in describe_standing(table))
    figure = _wide(drawn["standing"]) if "standing" in drawn else ""
    noise = "the 95 % interval over the questions leaves out zero"
    if len(seeds) > 1:
        noise = "both 95 % intervals leave out zero, that over the questions and that over the seeds (Student's t)"
    return (
        f"## Where RobustMerge stands\n\n{table.title}. Clearly, and **bold**: {noise}. Nothing is corrected for the "
        f"number of comparisons.\n\n{told}\n\n{figure}\n{show(table)}"
    )


def _differences(tables: Mapping[str, Table], show: FormatTable) -> str:
    if "differences" not in tables:
        return ""
    title, pairs = tables["differences"].title, tell_pairs(tables, show)
    return f"## Are the differences real?\n\n{title}.\n\n{show(tables['differences'])}\n{pairs}"


def _seeds(tables: Mapping[str, Table], show: FormatTable) -> str:
    if "seeds" not in tables:
        return ""
    return (
        "## Seed by seed\n\nThe averages of each training seed. ± is their sample standard deviation: what another "
        f"training would change, on the same questions.\n\n{show(tables['seeds'])}"
    )


def _published(context: Context, table: Table, show: FormatTable) -> str:
    url = read_published(context.published)["url"]
    return (
        f"## Published values\n\n**Published, not measured here**: table 2 of [the paper]({url}), LLaVA-1.5-7B on the "
        "real data sets. Models and data differ from ours unless the title of this report says so: compare the order "
        f"of the rows, not the values. {MISSING} is missing: the paper has no such value.\n\n{show(table)}"
    )


def _examples(rows: Sequence[ResultGroup], context: Context, examples: Mapping[str, Sequence[Shown]]) -> str:
    parts = [_example_table(task, examples[task.name]) for task in context.tasks if examples.get(task.name)]
    if not parts:
        return ""
    head = "Questions are taken by the hash of their id, not chosen. ✓ right, ✗ wrong, a number: a part of a point."
    blocks = [row.block for row in select_example_groups(rows) if row.block]
    head += f" Of the merged models: {blocks[0][:1].lower()}{blocks[0][1:]}." if blocks else ""
    head += f" Answers are those of seed {list_seeds(rows)[0]}.\n" if len(list_seeds(rows)) > 1 else "\n"
    return "## Examples\n\n" + "\n".join([head, *parts])


def _example_table(task: Task, shown: Sequence[Shown]) -> str:
    """A column a question, a row a source."""
    pictures = [
        f'<img src="figures/examples/{task.name}-{number}.png" width="144" alt="question {number}">'
        if one.picture is not None
        else "(no picture)"
        for number, one in enumerate(shown, start=1)
    ]
    lines = [
        f"### {escape_markdown(task.title)}\n",
        _line("", pictures),
        "| --- |" + " --- |" * len(shown),
        _line("Question", [escape_markdown(one.text) for one in shown]),
        _line("**Expected**", [f"**{escape_markdown(one.expected)}**" for one in shown]),
    ]
    for index, (title, _, _) in enumerate(shown[0].answers):
        answers = [one.answers[index] for one in shown]
        lines.append(_line(escape_markdown(title), [_judged(text, value) for _, text, value in answers]))
    return "\n".join([*lines, ""])


def _line(head: str, cells: Sequence[str]) -> str:
    return f"| {head} | " + " | ".join(cells) + " |"


def _judged(text: str, value: float | None) -> str:
    mark = {None: "", 1.0: " ✓", 0.0: " ✗"}.get(value, f" {value:.2f}" if value is not None else "")
    return escape_markdown(text if len(text) <= 160 else text[:159] + "…") + mark
