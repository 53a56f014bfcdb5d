"""The text of a report, section by section. Tables come formatted: as Markdown for report.md, as HTML for the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.examples import Shown
from eval.figures import Drawn
from eval.formats import escape_markdown
from eval.results import Context, SourceResult
from eval.settings import Task
from eval.statistics import LEVEL, Resampled
from eval.tables import MISSING, Table, list_columns, rank_merged, read_published, show_difference

Show = Callable[[Table], str]
SMOKE = (
    "> **SMOKE RUN: THESE NUMBERS MEAN NOTHING.** It only shows that every stage works: "
    "far too few examples and training steps.\n"
)


def compose(
    rows: Sequence[SourceResult],
    context: Context,
    resampled: Resampled,
    tables: Mapping[str, Table],
    figures: Sequence[Drawn],
    examples: Mapping[str, Sequence[Shown]],
    show: Show,
) -> str:
    """The whole report as Markdown."""
    sections = [
        f"# {escape_markdown(context.benchmark)} on {escape_markdown(context.model)}\n",
        SMOKE if context.profile == "smoke" else "",
        _finding(rows, context, resampled),
        f"## Scores\n\n{show(tables['main'])}\n{_reading(context)}",
        _figures(figures),
        _differences(tables, show),
        _published(context, tables["published"], show),
        _problems(rows, context),
        _methods(rows),
        _examples(context, examples),
        _provenance(rows, context),
    ]
    return "\n".join(section for section in sections if section)


def _finding(rows: Sequence[SourceResult], context: Context, resampled: Resampled) -> str:
    """One sentence an average: which merged model is first, and whether that is more than noise."""
    lines = []
    for column in (column for column in list_columns(context) if column.is_average):
        ranked = rank_merged(rows, column, resampled)
        if not ranked:
            continue
        best = rows[ranked[0]]
        value = resampled.interval(best.key, column.tasks).value
        line = f"- **{column.group}:** {escape_markdown(best.title)} is first of the merged models with {value:.1f} %"
        if len(ranked) > 1:
            second = rows[ranked[1]]
            found = resampled.difference(best.key, second.key, column.tasks)
            verdict = "outside" if found.is_clear else "**within**"
            line += (
                f"; its lead over {escape_markdown(second.title)}, {show_difference(found)}, is {verdict} the noise "
                "of the questions"
            )
        lines.append(line + ".")
    return "\n".join(lines) + "\n" if lines else ""


def _reading(context: Context) -> str:
    return (
        "Individual is each expert on its own task. Averages weigh tasks equally. In brackets: 95 % intervals. "
        "Of the merged models the best value is **bold** only where the 95 % interval of its paired difference to the "
        f"second best leaves out zero. {MISSING} is missing. Intervals tell the noise of the drawn questions "
        "only: another training seed may move a score by more.\n"
    )


def _figures(figures: Sequence[Drawn]) -> str:
    shown = [f"![{figure.alt}](figures/{figure.name}.svg)" for figure in figures]
    return "## Figures\n\n" + "\n".join([*shown, ""])


def _differences(tables: Mapping[str, Table], show: Show) -> str:
    if "differences" not in tables:
        return ""
    return f"## Are the differences real?\n\n{tables['differences'].title}.\n\n{show(tables['differences'])}"


def _published(context: Context, table: Table, show: Show) -> str:
    url = read_published(context.published)["url"]
    return (
        f"## Published values\n\n**Published, not measured here**: table 2 of [the paper]({url}), LLaVA-1.5-7B on the "
        "real data sets. Models and data differ from ours unless the title of this report says so: compare the order "
        f"of the rows, not the values. {MISSING} is missing: the paper has no such value.\n\n{show(table)}"
    )


def _problems(rows: Sequence[SourceResult], context: Context) -> str:
    """Answers that could not count, where there are any."""
    lines = []
    for row in rows:
        for task in context.tasks:
            score = row.scores.get(task.name)
            counts = {} if score is None else {kind: getattr(score, f"n_{kind}") for kind in _PROBLEMS}
            if any(counts.values()):
                shown = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
                lines.append(f"| {escape_markdown(row.title)} | {escape_markdown(task.title)} | {shown} |")
    if not lines:
        return "## Answers that could not count\n\nNone: every answer was there and could be read.\n"
    head = "These count as wrong. Empty: nothing was said; unparsed: no such answer in it; failed: an error.\n"
    return f"## Answers that could not count\n\n{head}\n| Source | Task | Answers |\n| --- | --- | --- |\n" + "\n".join(
        [*lines, ""]
    )


_PROBLEMS = ("empty", "unparsed", "failed")


def _methods(rows: Sequence[SourceResult]) -> str:
    lines = []
    for row in (row for row in rows if row.kind == "merged"):
        paper = f" [paper]({row.paper})." if row.paper else ""
        settings = _show_settings(row.settings)
        address = f" Address: `{row.address}`." if row.address else ""
        lines.append(f"- **{escape_markdown(row.title)}.**{paper} {settings}{address}")
    return "## Methods\n\n" + "\n".join([*lines, ""]) if lines else ""


def _show_settings(settings: Mapping[str, Any]) -> str:
    """`space=factors, prune.density=0.2` and so on, flat."""
    flat = ", ".join(f"{key}={_plain(value)}" for key, value in _flatten(settings))
    return f"`{flat}`." if flat else ""


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and value
        found += _flatten(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return found


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _examples(context: Context, examples: Mapping[str, Sequence[Shown]]) -> str:
    parts = [_example_table(task, examples[task.name]) for task in context.tasks if examples.get(task.name)]
    if not parts:
        return ""
    head = "Questions are taken by the hash of their id, not chosen. ✓ right, ✗ wrong, a number: a part of a point.\n"
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


def _provenance(rows: Sequence[SourceResult], context: Context) -> str:
    counts = {task.title: _n_questions(rows, task) for task in context.tasks}
    questions = ", ".join(f"{escape_markdown(title)} {count}" for title, count in counts.items())
    state = {True: " (with uncommitted changes)", False: "", None: ""}[context.dirty]
    lines = [
        f"- Benchmark `{context.benchmark}`, model `{context.model}`, profile `{context.profile}`.",
        f"- Commit `{context.commit or 'unknown'}`{state}.",
        "- Seeds: " + (", ".join(f"{key} {value}" for key, value in sorted(context.seeds.items())) or "none") + ".",
        f"- Questions: {questions}.",
        f"- Intervals: {LEVEL:.0f} % percentile bootstrap over questions within tasks, {context.bootstrap.draws} "
        f"draws, seed {context.bootstrap.seed}; differences are paired.",
        f"- Metrics: {', '.join(f'{escape_markdown(task.title)} `{task.metric}`' for task in context.tasks)}.",
        *(f"- {note}" for note in context.notes),
    ]
    return "## How this was made\n\n" + "\n".join(lines) + f"\n\nTo make it again:\n\n```bash\n{context.command}\n```\n"


def _n_questions(rows: Sequence[SourceResult], task: Task) -> int:
    return max((row.scores[task.name].n_expected for row in rows if task.name in row.scores), default=0)
