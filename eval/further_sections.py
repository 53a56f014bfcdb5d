"""What a report says beside its scores: that it is only a look, what each protocol does, which answers counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from eval.formats import escape_markdown
from eval.further_tables import has_scores, other_protocol, scores_of, under_other
from eval.official import FOOTNOTES
from eval.results import Context, SourceRow, seeds_of
from eval.settings import Official, Task
from eval.tables import MISSING, Table

PROBLEMS = ("empty", "unparsed", "failed")
LONGEST_FOLDED = 120  # rows; a longer table is in its files only
WORDS = {
    "corrected": "what each metric commonly means",
    "official": "what the published scripts do, their faults included",
}


def tell_look(rows: Sequence[SourceRow], context: Context) -> str:
    """That only some of the questions were asked, if so; "" otherwise."""
    asked: dict[str, list[str]] = {}
    for task in context.tasks:
        for score in (score for row in rows for score in scores_of(row, task) if score.n_asked):
            tasks = asked.setdefault(f"{score.n_expected:,} of {score.n_asked:,} questions", [])
            tasks += [task.title] if task.title not in tasks else []
    if not asked:
        return ""
    every = len(asked) == 1 and len(next(iter(asked.values()))) == len(context.tasks)
    told = (next(iter(asked)) + " a task") if every else "; ".join(f"{', '.join(t)} {n}" for n, t in asked.items())
    return f"A LOOK, NOT A RESULT: {told}."


def tell_missing(rows: Sequence[SourceRow], context: Context) -> str:
    """Why scores are missing that were asked for, as a footnote."""
    reasons: dict[str, list[str]] = {}
    for task in context.tasks:
        for score in (score for row in rows for score in scores_of(row, task) if score.value is None):
            tasks = reasons.setdefault(score.reason or "no reason is recorded", [])
            tasks += [task.title] if task.title not in tasks else []
    lines = [
        f"- {MISSING} of {escape_markdown(', '.join(t))}: {escape_markdown(reason)}." for reason, t in reasons.items()
    ]
    return "\n".join([*lines, ""]) if lines else ""


def tell_faults(context: Context) -> str:
    """What to know about the official numbers of the tasks shown, as footnotes."""
    noted: dict[str, list[Task]] = {}
    for task in context.tasks:
        official = task.under("official")
        for key in (official.metric, "crop" if official.image == "crop" else ""):
            if key in FOOTNOTES:
                noted.setdefault(key, []).append(task)
    lines = [
        f"- **{escape_markdown(', '.join(task.title for task in tasks))}** (`{key}`): {escape_markdown(FOOTNOTES[key])}"
        for key, tasks in noted.items()
    ]
    return "\n".join([*lines, ""]) if lines else ""


def tell_other(rows: Sequence[SourceRow], context: Context, tables: Mapping[str, Table], show: Callable) -> str:
    """The section on the scores under the other protocol."""
    others, other = under_other(rows), other_protocol(context)
    if not has_scores(others):
        return ""
    lacking = [t.title for t in context.tasks if not any(scores_of(row, t) for row in others)]
    alike = [t.title for t in context.tasks if t.official == Official() and t.title not in lacking]
    told = f"The same sources under the {other} protocol: {WORDS[other]}."
    told += f" Both protocols treat {escape_markdown(', '.join(alike))} alike." if alike else ""
    told += f" Not scored so: {escape_markdown(', '.join(lacking))}." if lacking else ""
    notes = [tell_missing(others, context), tell_faults(context) if other == "official" else ""]
    return f"## Scores under the {other} protocol\n\n{told}\n\n{show(tables['other_protocol'])}\n" + "\n".join(notes)


def tell_parts(tables: Mapping[str, Table], show: Callable) -> str:
    """The section on the parts of scores."""
    found = [tables[name] for name in ("parts", "other_parts") if name in tables]
    if not found:
        return ""
    shown = "\n".join(f"{table.title}. Means over seeds; no intervals.\n\n{show(table)}" for table in found)
    return f"## Further figures\n\n{shown}"


def tell_pairs(tables: Mapping[str, Table], show: Callable) -> str:
    """Every pair of merged models, folded."""
    table = tables["pairs"]
    if len(table.rows) > LONGEST_FOLDED:
        return f"{table.title}: {len(table.rows)} pairs, in `tables/pairs.csv`.\n"
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
