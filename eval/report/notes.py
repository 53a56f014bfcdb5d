"""What to know about the numbers of a table: why some are missing, and what the published scripts get wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from eval.metrics.official import FOOTNOTES
from eval.report.counts_and_parts import BUILTIN, has_scores, list_scores, title_of_part, under_other_protocol
from eval.report.formats import FormatTable, escape_markdown
from eval.report.general_tables import general_notes
from eval.report.results import Context, ResultGroup, list_seeds
from eval.report.tables import MISSING, Table
from eval.settings import Official, Task, other_protocol

PROBLEMS = ("empty", "unparsed", "failed")
LONGEST_FOLDED = 120  # rows; a longer table is in its files only
PROTOCOL_MEANINGS = {  # of the protocols
    "corrected": "what each metric commonly means",
    "official": "what the published scripts do, their faults included",
}


def format_partial_notice(rows: Sequence[ResultGroup], context: Context) -> str:
    """That only some of the questions were asked, if so; "" otherwise."""
    asked = _titles_by(
        (f"{score.n_expected:,} of {score.n_asked:,} questions", task)
        for task in context.tasks
        for row in rows
        for score in list_scores(row, task)
        if score.n_asked
    )
    if not asked:
        return ""
    (count, titles), *others = asked.items()
    if not others and len(titles) == len(context.tasks):
        return f"A LOOK, NOT A RESULT: {count} a task."
    told = "; ".join(f"{', '.join(titles)} {count}" for count, titles in asked.items())
    return f"A LOOK, NOT A RESULT: {told}."


def format_footnotes(rows: Sequence[ResultGroup], context: Context, protocol: str) -> str:
    """The footnotes of a table of scores, as a Markdown list; "" of none."""
    lines = [*_tell_missing(rows, context), *_tell_builtin(rows, context)]
    lines += _tell_faults(context) if protocol == "official" else []
    return "\n".join([*lines, ""]) if lines else ""


def list_metrics(rows: Sequence[ResultGroup], task: Task) -> list[str]:
    """The names that the values of a task go by."""
    return list(dict.fromkeys(score.metric for row in rows for score in list_scores(row, task)))


def _titles_by(pairs: Iterable[tuple[str, Task]]) -> dict[str, list[str]]:
    """The titles of the tasks of each word, each once."""
    found: dict[str, list[str]] = {}
    for word, task in pairs:
        titles = found.setdefault(word, [])
        titles += [task.title] if task.title not in titles else []
    return found


def _name(titles: Sequence[str]) -> str:
    return escape_markdown(", ".join(titles))


def _tell_missing(rows: Sequence[ResultGroup], context: Context) -> list[str]:
    """Why scores are missing that were asked for."""
    reasons = _titles_by(
        (score.reason or "no reason is recorded", task)
        for task in context.tasks
        for row in rows
        for score in list_scores(row, task)
        if score.value is None
    )
    return [f"- {MISSING} of {_name(titles)}: {escape_markdown(reason)}." for reason, titles in reasons.items()]


def _tell_builtin(rows: Sequence[ResultGroup], context: Context) -> list[str]:
    """Caption scores that are not what others call by that name."""
    pairs = (
        (metric, task) for task in context.tasks for metric in list_metrics(rows, task) if metric.endswith(BUILTIN)
    )
    return [
        f"- **{_name(titles)}** (`{metric}`): without Java our own tokenizer splits the words, so that no published "
        f"{title_of_part(metric.removesuffix(BUILTIN))} compares."
        for metric, titles in _titles_by(pairs).items()
    ]


def _tell_faults(context: Context) -> list[str]:
    """What to know about the official numbers of the tasks shown."""
    published = {task.name: task.under("official") for task in context.tasks}
    metrics = ((task.metric, task) for task in published.values())
    cropped = (("crop", task) for task in published.values() if task.image == "crop")
    noted = _titles_by(pair for pairs in (metrics, cropped) for pair in pairs if pair[0] in FOOTNOTES)
    return [f"- **{_name(titles)}** (`{key}`): {FOOTNOTES[key]}" for key, titles in noted.items()]


def tell_other(rows: Sequence[ResultGroup], context: Context, tables: Mapping[str, Table], show: FormatTable) -> str:
    """The section on the scores under the other protocol."""
    others, other = under_other_protocol(rows), other_protocol(context.protocol)
    if not has_scores(others):
        return ""
    lacking = [t.title for t in context.tasks if not any(list_scores(row, t) for row in others)]
    alike = [t.title for t in context.tasks if t.official == Official() and t.title not in lacking]
    told = f"The same sources under the {other} protocol: {PROTOCOL_MEANINGS[other]}."
    told += f" Both protocols treat {escape_markdown(', '.join(alike))} alike." if alike else ""
    told += f" Not scored so: {escape_markdown(', '.join(lacking))}." if lacking else ""
    notes = format_footnotes(others, context, other)
    return f"## Scores under the {other} protocol\n\n{told}\n\n{show(tables['other_protocol'])}\n{notes}"


def tell_parts(tables: Mapping[str, Table], show: FormatTable) -> str:
    """The section on the parts of scores."""
    found = [tables[name] for name in ("parts", "other_parts") if name in tables]
    if not found:
        return ""
    told = "Parts of scores, and further figures of the same answers: means over seeds, without intervals."
    if any(column.key.endswith(BUILTIN) for table in found for column in table.columns):
        told += " *Own words*: our own tokenizer splits them, so that nothing published compares."
    return f"## Further figures\n\n{told}\n\n" + "\n".join(_fold(table, show) for table in found)


def tell_general(context: Context, tables: Mapping[str, Table], show: FormatTable) -> str:
    """The section on general benchmarks, and the paper's own values for them."""
    if "general" not in tables:
        return ""
    notes = "\n".join(f"- {escape_markdown(note)}" for note in general_notes(context.general))
    return (
        f"## General benchmarks\n\n{tables['general'].title}.\n\n{show(tables['general'])}\n{notes}\n\n"
        f"{tables['general_published'].title}.\n\n{show(tables['general_published'])}"
    )


def tell_pairs(tables: Mapping[str, Table], show: FormatTable) -> str:
    """Every pair of merged models, folded."""
    table = tables["pairs"]
    if len(table.rows) > LONGEST_FOLDED:
        return f"{table.title}: {len(table.rows)} pairs, in `tables/pairs.csv`.\n"
    return _fold(table, show)


def _fold(table: Table, show: FormatTable) -> str:
    return f"<details><summary>{table.title}</summary>\n\n{show(table)}\n</details>\n"


def tell_problems(rows: Sequence[ResultGroup], context: Context) -> str:
    """Answers that could not count, where there are any."""
    lines = []
    for row in rows:
        for task in context.tasks:
            scores = list_scores(row, task)
            counts = {kind: sum(getattr(score, f"n_{kind}") for score in scores) for kind in PROBLEMS}
            if any(counts.values()):
                shown = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
                expected = sum(score.n_expected for score in scores)
                cells = (escape_markdown(row.title), escape_markdown(task.title), shown, str(expected))
                lines.append(f"| {' | '.join(cells)} |")
    title, files = "## Answers that could not count\n\n", "Every count: `tables/counts.csv`."
    if not lines:
        return f"{title}None: every answer was there and could be read. {files}\n"
    head = "These count as wrong. Empty: nothing was said; unparsed: no such answer in it; failed: an error. "
    head += "Counted over all seeds. " if len(list_seeds(rows)) > 1 else ""
    columns = "| Source | Task | Answers | Of |\n| --- | --- | --- | ---: |"
    return "\n".join([f"{title}{head}{files}\n", columns, *lines, ""])
