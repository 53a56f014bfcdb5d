"""The sections of a report and their order. Tables come formatted: as Markdown for report.md, as HTML for the page."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.report.captions import CAPTIONS
from eval.report.estimates import Estimates
from eval.report.examples import ShownQuestion, format_examples_section
from eval.report.formats import FormatTable, escape_code, escape_markdown
from eval.report.general_tables import DRAWN_NOTE, general_notes
from eval.report.leaders import format_leaders_section
from eval.report.notes import PROTOCOL_MEANINGS, format_footnotes, format_partial_notice
from eval.report.provenance import format_provenance_section
from eval.report.published import read_published
from eval.report.ranking import COST
from eval.report.results import Context, ResultGroup, list_blocks, list_scores, list_seeds
from eval.report.secondary_tables import has_scores, under_other_protocol
from eval.report.section_base_model import format_base_section
from eval.report.section_methods import format_methods_section
from eval.report.section_training import Trained, format_training_section
from eval.report.standing import describe_standing
from eval.report.swept_key import SWEPT, zero_shot_ratios
from eval.report.tables import GENERAL, MISSING, Table
from eval.settings import BUILTIN_SUFFIX, Official
from robustmerge.stage.drawing import RenderedFigure

PROBLEMS = ("empty", "unparsed", "failed")
IN_SECTIONS = (
    "balance",
    "losses",
    "ranking",
    "standing",
    "strengths",
    *SWEPT.values(),
)  # figures that stand beside their table
LONGEST_FOLDED = 120  # rows; a longer table is in its files only
SMOKE = (
    "> **SMOKE RUN: THESE NUMBERS MEAN NOTHING.** It only shows that every stage works: "
    "far too few examples and training steps.\n"
)
CONTACT_SHEET = (
    "## What the tasks look like\n\nTest questions taken by the hash of their id, not chosen, with the answer that "
    'counts as right.\n\n<p><img class="wide" src="figures/sheet.png" alt="Test pictures of every task with question '
    'and expected answer"></p>\n'
)


@dataclass(frozen=True)
class Content:
    """Inputs of the sections: results, tables, figures. has_sheet: whether there is a contact sheet.

    constants: what the commonest answers score (`notes.format_constants`).
    """

    groups: Sequence[ResultGroup]
    context: Context
    estimates: Estimates
    tables: Mapping[str, Table]
    figures: Sequence[RenderedFigure]
    examples: Mapping[str, Sequence[ShownQuestion]]
    has_sheet: bool
    constants: str
    trained: Sequence[Trained]


def compose(content: Content, format_table: FormatTable) -> str:
    """Compose the whole report as Markdown."""
    groups, context, tables = content.groups, content.context, content.tables
    figures = {figure.name: figure for figure in content.figures}
    sections = [
        f"# {escape_markdown(context.benchmark)} on {escape_markdown(context.model)}\n",
        SMOKE if context.profile == "smoke" else "",
        _partial_section(groups, context),
        format_leaders_section(groups, context, content.estimates, tables) if context.profile != "smoke" else "",
        _swept_section(context, tables, figures, list_seeds(groups), format_table),
        _scores_section(groups, context, tables, content.constants, format_table),
        _beside_section(context, tables, format_table),
        _ranking_section(tables, figures, list_seeds(groups), format_table),
        _standing_section(tables, figures, list_seeds(groups), format_table),
        _balance_section(tables, figures, format_table),
        _figures_section([figure for figure in content.figures if figure.name not in IN_SECTIONS]),
        _differences_section(tables, format_table),
        _seeds_section(tables, format_table),
        _other_protocol_section(groups, context, tables, format_table),
        _parts_section(tables, format_table),
        _general_section(context, tables, format_table),
        _published_section(context, tables["published"], format_table),
        format_base_section(context.bases),
        format_training_section(
            content.trained, tables, _show(figures["losses"]) if "losses" in figures else "", format_table
        ),
        CONTACT_SHEET if content.has_sheet else "",
        _problems_section(groups, context),
        format_methods_section(groups, _show(figures["strengths"]) if "strengths" in figures else ""),
        format_examples_section(groups, context, content.examples),
        format_provenance_section(groups, context, content.estimates),
    ]
    return "\n".join(section for section in sections if section)


def _partial_section(groups: Sequence[ResultGroup], context: Context) -> str:
    notice = format_partial_notice(groups, context)
    return f"> **{escape_markdown(notice)}**\n" if notice else ""


def _swept_section(
    context: Context,
    tables: Mapping[str, Table],
    figures: Mapping[str, RenderedFigure],
    seeds: Sequence[int],
    format_table: FormatTable,
) -> str:
    """The section on a sweep over one key; "" where there is none."""
    names = [name for name in SWEPT.values() if name in tables]
    if context.swept is None or not names:
        return ""
    table = tables[names[0]]
    several, has_ranks = len(seeds) > 1, any(not column.is_average for column in table.columns)
    lines = [f"{table.title}.", *_explain_noise(several, has_ranks)]
    ratios = zero_shot_ratios(table, context.swept).items()
    measured = ", ".join(f"{escape_markdown(value)} {ratio:.2f}" for value, ratio in ratios)
    lines += [f"What the base knows before any expert, zero-shot over individual: {measured}."] if measured else []
    heading = f"## Against {escape_code(context.swept.key)}"
    shown = [f"{_show(figures[name])}\n{format_table(tables[name])}" for name in names]
    return f"{heading}\n\n{' '.join(lines)}\n\n" + "\n".join(shown)


def _explain_noise(several: bool, has_ranks: bool) -> list[str]:
    """What stands behind scores and ranks. several: whether there are several training seeds."""
    spread = " ± the deviation over seeds" if several else ""
    draw = "one of these training seeds with a resample" if several else "a resample"
    ranks = f"Behind a rank: the range of 95 % of the draws, each {draw} of the questions, the same for all methods."
    return [
        f"Behind a score: its 95 % interval over questions{spread}.",
        *([ranks] if has_ranks else []),
        *([] if several else ["Another training seed may change more."]),
    ]


def _beside_section(context: Context, tables: Mapping[str, Table], format_table: FormatTable) -> str:
    """Our averages beside the paper's; "" where the paper has none over these tasks."""
    if "beside" not in tables:
        return ""
    table = tables["beside"]
    return (
        f"## Beside the paper\n\n{escape_markdown(table.title)}. Models and data differ from ours unless the title of "
        f"this report says so: compare orders and distances, not values.\n\n{format_table(table)}"
    )


def _ranking_section(
    tables: Mapping[str, Table],
    figures: Mapping[str, RenderedFigure],
    seeds: Sequence[int],
    format_table: FormatTable,
) -> str:
    """The section on the ranking of many merged models; "" where there are few."""
    if "ranking" not in tables:
        return ""
    table = tables["ranking"]
    lines = [f"{table.title}.", *_explain_noise(len(seeds) > 1, True)]
    if table.columns[-1] == COST:
        lines.append(
            "Cost: CPU seconds of merging eight experts of LLaVA-1.5-7B's shape by the method as in its file, measured "
            "apart from this run (docs/costs.md)."
        )
    return f"## Ranking\n\n{' '.join(lines)}\n\n{_show(figures['ranking'])}\n{format_table(table)}"


def _scores_section(
    groups: Sequence[ResultGroup],
    context: Context,
    tables: Mapping[str, Table],
    constants: str,
    format_table: FormatTable,
) -> str:
    notes = format_footnotes(groups, context, context.protocol)
    table, legend = format_table(tables["main"]), _explain_marks(groups)
    parts = (table, legend, constants, notes)
    return "## Scores\n\n" + "\n".join(part for part in parts if part)


def _explain_marks(groups: Sequence[ResultGroup]) -> str:
    """How to read brackets, ± and bold type in the main table."""
    seeds, blocks = list_seeds(groups), list_blocks(groups)
    within = " of a block" if len(blocks) > 1 else ""
    bold = (
        f"Of the merged models{within} the best value is **bold** only where the 95 % interval of its paired "
        "difference to the second best leaves out zero"
    )
    intro = f"Individual is each expert on its own task. Averages weigh tasks equally. {MISSING} is missing. "
    if len(seeds) <= 1:
        return (
            f"{intro}In brackets: 95 % intervals. {bold}. Intervals tell the noise of the drawn questions "
            "only: another training seed may move a score by more.\n"
        )
    return (
        f"{intro}Values are means over {len(seeds)} training seeds ({', '.join(map(str, seeds))}); the zero-shot base "
        "has none. **In brackets, the noise of the questions**: 95 % intervals of that mean if other questions were "
        "drawn. **Behind ±, the noise of training**: the sample standard deviation over the seeds. "
        f"{bold}, over the questions and, by the seeds' paired differences, over the seeds.\n"
    )


def _standing_section(
    tables: Mapping[str, Table],
    figures: Mapping[str, RenderedFigure],
    seeds: Sequence[int],
    format_table: FormatTable,
) -> str:
    if "standing" not in tables:
        return ""
    table = tables["standing"]
    verdicts = [
        f"- **{escape_markdown(place)}:** {escape_markdown(sentence)}" for place, sentence in describe_standing(table)
    ]
    figure = _show(figures["standing"]) if "standing" in figures else ""
    noise = "the 95 % interval over the questions leaves out zero"
    if len(seeds) > 1:
        noise = "both 95 % intervals leave out zero, that over the questions and that over the seeds (Student's t)"
    lines = "\n".join(verdicts)
    return (
        f"## Where RobustMerge stands\n\n{table.title}. Clearly, and **bold**: {noise}. Nothing is corrected for the "
        f"number of comparisons.\n\n{lines}\n\n{figure}\n{format_table(table)}"
    )


def _balance_section(
    tables: Mapping[str, Table], figures: Mapping[str, RenderedFigure], format_table: FormatTable
) -> str:
    """The section on how even sources are over the seen tasks; "" where there are no experts to compare with."""
    if "balance" not in tables:
        return ""
    table = tables["balance"]
    return f"## How even over the tasks?\n\n{table.title}.\n\n{_show(figures['balance'])}\n{_fold(table, format_table)}"


def _figures_section(figures: Sequence[RenderedFigure]) -> str:
    """Narrow figures side by side with their captions below, then wide ones."""
    narrow = [figure for figure in figures if not figure.wide]
    images = [f"![{figure.alt}](figures/{figure.name}.svg)" for figure in narrow]
    captions = [f'\n<p class="caption">{CAPTIONS[figure.name]}</p>' for figure in narrow]
    wide = [_show(figure) for figure in figures if figure.wide]
    return "## Figures\n\n" + "\n".join([*images, *captions, *([""] if narrow and wide else []), *wide, ""])


def _show(figure: RenderedFigure) -> str:
    """A figure by itself, as wide as the page where it is drawn so, with its caption below."""
    wide = ' class="wide"' if figure.wide else ""
    image = f'<p><img{wide} src="figures/{figure.name}.svg" alt="{figure.alt}"></p>'
    return f'{image}\n\n<p class="caption">{CAPTIONS[figure.name]}</p>\n'


def _differences_section(tables: Mapping[str, Table], format_table: FormatTable) -> str:
    """The section on differences to the best model, with all pairs folded below."""
    if "differences" not in tables:
        return ""
    table, pairs = tables["differences"], tables["pairs"]
    if len(pairs.rows) > LONGEST_FOLDED:
        folded = f"{pairs.title}: {len(pairs.rows)} pairs, in `tables/pairs.csv`.\n"
    else:
        folded = _fold(pairs, format_table)
    return f"## Are the differences real?\n\n{table.title}.\n\n{format_table(table)}\n{folded}"


def _fold(table: Table, format_table: FormatTable) -> str:
    return f"<details><summary>{table.title}</summary>\n\n{format_table(table)}\n</details>\n"


def _seeds_section(tables: Mapping[str, Table], format_table: FormatTable) -> str:
    if "seeds" not in tables:
        return ""
    return (
        "## Seed by seed\n\nThe averages of each training seed. ± is their sample standard deviation: what another "
        f"training would change, on the same questions.\n\n{format_table(tables['seeds'])}"
    )


def _other_protocol_section(
    groups: Sequence[ResultGroup], context: Context, tables: Mapping[str, Table], format_table: FormatTable
) -> str:
    others, protocol = under_other_protocol(groups), context.other_protocol
    if not has_scores(others):
        return ""
    lacking = [task.title for task in context.tasks if not any(list_scores(group, task) for group in others)]
    is_alike = [task.official == Official() and not task.has_classes for task in context.tasks]
    alike = [task.title for task in itertools.compress(context.tasks, is_alike) if task.title not in lacking]
    intro = f"The same sources under the {protocol} protocol: {PROTOCOL_MEANINGS[protocol]}."
    intro += f" Both protocols treat {escape_markdown(', '.join(alike))} alike." if alike else ""
    intro += f" Not scored so: {escape_markdown(', '.join(lacking))}." if lacking else ""
    table, notes = format_table(tables["other_protocol"]), format_footnotes(others, context, protocol)
    return f"## Scores under the {protocol} protocol\n\n{intro}\n\n{table}\n{notes}"


def _parts_section(tables: Mapping[str, Table], format_table: FormatTable) -> str:
    """Parts of scores, and further figures of the same answers."""
    parts = [tables[name] for name in ("parts", "other_parts") if name in tables]
    if not parts:
        return ""
    intro = "Parts of scores, and further figures of the same answers: means over seeds, without intervals."
    if any(column.part.endswith(BUILTIN_SUFFIX) for table in parts for column in table.columns):
        intro += " *Own words*: our own tokenizer splits them, so that nothing published compares."
    return f"## Further figures\n\n{intro}\n\n" + "\n".join(_fold(table, format_table) for table in parts)


def _general_section(context: Context, tables: Mapping[str, Table], format_table: FormatTable) -> str:
    """General benchmarks, and the paper's own values for them."""
    if "general_published" not in tables:
        return ""
    parts = [f"## {GENERAL}"]
    for name, notes in (("general_drawn", [DRAWN_NOTE]), ("general", general_notes(context.general))):
        if name in tables:
            listed = "\n".join(f"- {escape_markdown(note)}" for note in notes)
            parts.append(f"{tables[name].title}.\n\n{format_table(tables[name])}\n{listed}")
    published = tables["general_published"]
    return "\n\n".join([*parts, f"{published.title}.\n\n{format_table(published)}"])


def _published_section(context: Context, table: Table, format_table: FormatTable) -> str:
    published = read_published(context.published, context.paper_table.name)
    return (
        f"## Published values\n\n**Published, not measured here**: table {published.number} of [the paper]"
        f"({published.url}), {published.of}. Models and data differ from ours unless the title of this report says so: "
        f"compare the order of the rows, not the values. {MISSING} is missing: the paper has no such value."
        f"{published.footnote and ' ' + published.footnote}\n\n{format_table(table)}"
    )


def _problems_section(groups: Sequence[ResultGroup], context: Context) -> str:
    """The section on answers that could not be scored; "" if there are none."""
    lines = []
    for group in groups:
        for task in context.tasks:
            scores = list_scores(group, task)
            counts = {kind: sum(getattr(score, f"n_{kind}") for score in scores) for kind in PROBLEMS}
            if any(counts.values()):
                answers = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
                expected = sum(score.n_expected for score in scores)
                cells = (escape_markdown(group.title), escape_markdown(task.title), answers, str(expected))
                lines.append(f"| {' | '.join(cells)} |")
    heading, files = "## Answers that could not count\n\n", "Every count: `tables/counts.csv`."
    if not lines:
        return f"{heading}None: every answer was there and could be read. {files}\n"
    intro = "These count as wrong. Empty: nothing was said; unparsed: no such answer in it; failed: an error. "
    intro += "Counted over all seeds. " if len(list_seeds(groups)) > 1 else ""
    columns = "| Source | Task | Answers | Of |\n| --- | --- | --- | ---: |"
    return "\n".join([f"{heading}{intro}{files}\n", columns, *lines, ""])
