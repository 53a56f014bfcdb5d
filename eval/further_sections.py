"""What a report says beside its main table: the other protocol, parts, pairs, and which answers could not count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.footnotes import tell_notes
from eval.formats import Show, escape_markdown
from eval.further_tables import BUILTIN, has_scores, scores_of, under_other
from eval.general_tables import general_notes
from eval.results import Context, SourceRow, seeds_of
from eval.settings import Official, other_protocol
from eval.tables import Table

PROBLEMS = ("empty", "unparsed", "failed")
LONGEST_FOLDED = 120  # rows; a longer table is in its files only
MEANING = {  # of the protocols
    "corrected": "what each metric commonly means",
    "official": "what the published scripts do, their faults included",
}


def tell_other(rows: Sequence[SourceRow], context: Context, tables: Mapping[str, Table], show: Show) -> str:
    """The section on the scores under the other protocol."""
    others, other = under_other(rows), other_protocol(context.protocol)
    if not has_scores(others):
        return ""
    lacking = [t.title for t in context.tasks if not any(scores_of(row, t) for row in others)]
    alike = [t.title for t in context.tasks if t.official == Official() and t.title not in lacking]
    told = f"The same sources under the {other} protocol: {MEANING[other]}."
    told += f" Both protocols treat {escape_markdown(', '.join(alike))} alike." if alike else ""
    told += f" Not scored so: {escape_markdown(', '.join(lacking))}." if lacking else ""
    notes = tell_notes(others, context, other)
    return f"## Scores under the {other} protocol\n\n{told}\n\n{show(tables['other_protocol'])}\n{notes}"


def tell_parts(tables: Mapping[str, Table], show: Show) -> str:
    """The section on the parts of scores."""
    found = [tables[name] for name in ("parts", "other_parts") if name in tables]
    if not found:
        return ""
    told = "Parts of scores, and further figures of the same answers: means over seeds, without intervals."
    if any(column.key.endswith(BUILTIN) for table in found for column in table.columns):
        told += " *Own words*: our own tokenizer splits them, so that nothing published compares."
    return f"## Further figures\n\n{told}\n\n" + "\n".join(_fold(table, show) for table in found)


def tell_general(context: Context, tables: Mapping[str, Table], show: Show) -> str:
    """The section on general benchmarks, and the paper's own values for them."""
    if "general" not in tables:
        return ""
    notes = "\n".join(f"- {escape_markdown(note)}" for note in general_notes(context.general))
    return (
        f"## General benchmarks\n\n{tables['general'].title}.\n\n{show(tables['general'])}\n{notes}\n\n"
        f"{tables['general_published'].title}.\n\n{show(tables['general_published'])}"
    )


def tell_pairs(tables: Mapping[str, Table], show: Show) -> str:
    """Every pair of merged models, folded."""
    table = tables["pairs"]
    if len(table.rows) > LONGEST_FOLDED:
        return f"{table.title}: {len(table.rows)} pairs, in `tables/pairs.csv`.\n"
    return _fold(table, show)


def _fold(table: Table, show: Show) -> str:
    return f"<details><summary>{table.title}</summary>\n\n{show(table)}\n</details>\n"


def tell_problems(rows: Sequence[SourceRow], context: Context) -> str:
    """Answers that could not count, where there are any."""
    lines = []
    for row in rows:
        for task in context.tasks:
            scores = scores_of(row, task)
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
    head += "Counted over all seeds. " if len(seeds_of(rows)) > 1 else ""
    columns = "| Source | Task | Answers | Of |\n| --- | --- | --- | ---: |"
    return "\n".join([f"{title}{head}{files}\n", columns, *lines, ""])
