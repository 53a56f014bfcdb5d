"""What to know about the numbers of a table: why some are missing, and what the published scripts get wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from eval.formats import escape_markdown
from eval.further_tables import BUILTIN, scores_of, title_of_part
from eval.official import FOOTNOTES
from eval.results import Context, SourceRow
from eval.settings import Task
from eval.tables import MISSING


def tell_look(rows: Sequence[SourceRow], context: Context) -> str:
    """That only some of the questions were asked, if so; "" otherwise."""
    asked = _titles_by(
        (f"{score.n_expected:,} of {score.n_asked:,} questions", task)
        for task in context.tasks
        for row in rows
        for score in scores_of(row, task)
        if score.n_asked
    )
    if not asked:
        return ""
    (count, titles), *others = asked.items()
    if not others and len(titles) == len(context.tasks):
        return f"A LOOK, NOT A RESULT: {count} a task."
    told = "; ".join(f"{', '.join(titles)} {count}" for count, titles in asked.items())
    return f"A LOOK, NOT A RESULT: {told}."


def tell_notes(rows: Sequence[SourceRow], context: Context, protocol: str) -> str:
    """The footnotes of a table of scores, as a Markdown list; "" of none."""
    lines = [*_tell_missing(rows, context), *_tell_builtin(rows, context)]
    lines += _tell_faults(context) if protocol == "official" else []
    return "\n".join([*lines, ""]) if lines else ""


def metrics_of(rows: Sequence[SourceRow], task: Task) -> list[str]:
    """The names that the values of a task go by."""
    return list(dict.fromkeys(score.metric for row in rows for score in scores_of(row, task)))


def _titles_by(pairs: Iterable[tuple[str, Task]]) -> dict[str, list[str]]:
    """The titles of the tasks of each word, each once."""
    found: dict[str, list[str]] = {}
    for word, task in pairs:
        titles = found.setdefault(word, [])
        titles += [task.title] if task.title not in titles else []
    return found


def _name(titles: Sequence[str]) -> str:
    return escape_markdown(", ".join(titles))


def _tell_missing(rows: Sequence[SourceRow], context: Context) -> list[str]:
    """Why scores are missing that were asked for."""
    reasons = _titles_by(
        (score.reason or "no reason is recorded", task)
        for task in context.tasks
        for row in rows
        for score in scores_of(row, task)
        if score.value is None
    )
    return [f"- {MISSING} of {_name(titles)}: {escape_markdown(reason)}." for reason, titles in reasons.items()]


def _tell_builtin(rows: Sequence[SourceRow], context: Context) -> list[str]:
    """Caption scores that are not what others call by that name."""
    pairs = ((metric, task) for task in context.tasks for metric in metrics_of(rows, task) if metric.endswith(BUILTIN))
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
