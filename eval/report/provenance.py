"""How the numbers of a report were made: seeds, questions, intervals, regime, command."""

from __future__ import annotations

from collections.abc import Sequence

from eval.report.counts_and_parts import list_scores
from eval.report.estimates import Estimates
from eval.report.formats import escape_markdown
from eval.report.notes import PROTOCOL_MEANINGS, list_metrics
from eval.report.results import Context, Regime, ResultGroup, list_seeds
from eval.report.tables import list_averages
from eval.settings import Task
from eval.statistics import FEWEST_SEEDS, LEVEL


def format_provenance_section(rows: Sequence[ResultGroup], context: Context, estimates: Estimates) -> str:
    """The section."""
    counts = {task.title: _n_questions(rows, task) for task in context.tasks}
    questions = ", ".join(f"{escape_markdown(title)} {count}" for title, count in counts.items())
    state = {True: " (with uncommitted changes)", False: "", None: ""}[context.dirty]
    trained = ", ".join(map(str, list_seeds(rows)))
    seeds = [f"{key} {value}" for key, value in sorted(context.seeds.items())]
    seeds += [f"experts {trained}"] if trained and "experts" not in context.seeds else []
    lines = [
        f"- Benchmark `{context.benchmark}`, model `{context.model}`, profile `{context.profile}`.",
        f"- Protocol `{context.protocol}`: {PROTOCOL_MEANINGS[context.protocol]}.",
        f"- Commit `{context.commit or 'unknown'}`{state}.",
        "- Seeds: " + ("; ".join(seeds) or "none") + ".",
        *([_tell_regime(context.regime)] if context.regime else []),
        f"- Questions: {questions}.",
        f"- Intervals: {LEVEL:.0f} % percentile bootstrap over questions within tasks, {context.bootstrap.draws} "
        f"draws, seed {context.bootstrap.seed}; differences are paired."
        f"{_tell_sums(rows, context)}{_tell_seed_intervals(rows)}",
        *_tell_resolution(rows, context, estimates),
        f"- Metrics: {', '.join(_name_metrics(rows, task) for task in context.tasks)}.",
        *(f"- {note}" for note in context.notes),
    ]
    return "## How this was made\n\n" + "\n".join(lines) + f"\n\nTo make it again:\n\n```bash\n{context.command}\n```\n"


def _tell_regime(regime: Regime) -> str:
    spanned = regime.experts * regime.rank
    return (
        f"- Low rank: {regime.experts} experts of rank {regime.rank} span at most {spanned} of {regime.width} "
        f"dimensions, N·r/d = {spanned / regime.width:.2f}; eight experts of rank 16 at 7B: 128 of 4096, 0.03."
    )


def _name_metrics(rows: Sequence[ResultGroup], task: Task) -> str:
    named = " and ".join(f"`{metric}`" for metric in list_metrics(rows, task)) or "none"
    return f"{escape_markdown(task.title)} {named}"


def _tell_sums(rows: Sequence[ResultGroup], context: Context) -> str:
    """What is drawn and summed where that is not questions and their values."""
    by_task = {task.title: [score for row in rows for score in list_scores(row, task)] for task in context.tasks}
    clustered = [title for title, scores in by_task.items() if any(score.clusters for score in scores)]
    summed = [title for title, scores in by_task.items() if any(score.statistics for score in scores)]
    told = [f"Questions on one picture are drawn together ({', '.join(clustered)})."] if clustered else []
    told += [f"Scores that are no mean of values follow from resampled sums ({', '.join(summed)})."] if summed else []
    return "".join(f" {escape_markdown(sentence)}" for sentence in told)


def _tell_seed_intervals(rows: Sequence[ResultGroup]) -> str:
    if len(list_seeds(rows)) < 2:
        return ""
    return (
        " Over questions, what each scored on average over the seeds is resampled; over seeds, the interval is "
        f"Student's t of the seeds' values or paired differences, from {FEWEST_SEEDS} seeds on."
    )


def _tell_resolution(rows: Sequence[ResultGroup], context: Context, estimates: Estimates) -> list[str]:
    """Half the width of the seen average's interval, over the rows that have one."""
    column = next((column for column in list_averages(context) if column.key == "seen_avg"), None)
    if column is None:
        return []
    found = [estimates.interval(row.key, column.tasks) for row in rows if estimates.has(row.key, column.tasks)]
    halves = sorted((one.high - one.low) / 2 for one in found)
    if not halves:
        return []
    width = " to ".join(dict.fromkeys(f"{half:.2f}" for half in (halves[0], halves[-1])))
    return [f"- Resolution: the half-width of the {LEVEL:.0f} % interval of the seen average is {width} points."]


def _n_questions(rows: Sequence[ResultGroup], task: Task) -> int:
    return max((p.scores[task.name].n_expected for r in rows for p in r.points if task.name in p.scores), default=0)
