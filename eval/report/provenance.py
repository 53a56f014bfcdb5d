"""The provenance section: how the numbers were made (seeds, questions, intervals, rank, command)."""

from __future__ import annotations

from collections.abc import Sequence

from eval.report.estimates import Estimates
from eval.report.formats import escape_block, escape_code, escape_markdown
from eval.report.notes import PROTOCOL_MEANINGS
from eval.report.results import Context, Regime, ResultGroup, list_metrics, list_scores, list_seeds
from eval.report.tables import list_averages
from eval.settings import Task
from eval.statistics import FEWEST_SEEDS, LEVEL


def format_provenance_section(groups: Sequence[ResultGroup], context: Context, estimates: Estimates) -> str:
    """The section as Markdown."""
    counts = {task.title: _count_questions(groups, task) for task in context.tasks}
    questions = ", ".join(f"{escape_markdown(title)} {count}" for title, count in counts.items())
    state = " (with uncommitted changes)" if context.dirty else ""
    trained = ", ".join(map(str, list_seeds(groups)))
    seeds = [f"{key} {value}" for key, value in sorted(context.seeds.items())]
    seeds += [f"experts {trained}"] if trained and "experts" not in context.seeds else []
    lines = [
        f"- Benchmark {escape_code(context.benchmark)}, model {escape_code(context.model)}, "
        f"profile {escape_code(context.profile)}.",
        f"- Protocol `{context.protocol}`: {PROTOCOL_MEANINGS[context.protocol]}.",
        f"- Commit {escape_code(context.commit or 'unknown')}{state}.",
        "- Seeds: " + ("; ".join(seeds) or "none") + ".",
        *([_describe_rank(context.regime)] if context.regime else []),
        f"- Questions: {questions}.",
        f"- Intervals: {LEVEL:.0f} % percentile bootstrap over questions within tasks, {context.bootstrap.draws} "
        f"draws, seed {context.bootstrap.seed}; differences are paired."
        f"{_describe_resampling(groups, context)}{_describe_seed_intervals(groups)}",
        *_describe_resolution(groups, context, estimates),
        f"- Metrics: {', '.join(_name_metrics(groups, task) for task in context.tasks)}.",
        *(f"- {escape_markdown(note)}" for note in context.notes),
    ]
    again = escape_block(context.command, "bash")
    return "## How this was made\n\n" + "\n".join(lines) + f"\n\nTo make it again:\n\n{again}"


def _describe_rank(regime: Regime) -> str:
    spanned = regime.experts * regime.rank
    return (
        f"- Low rank: {regime.experts} experts of rank {regime.rank} span at most {spanned} of {regime.width} "
        f"dimensions, N·r/d = {spanned / regime.width:.2f}; eight experts of rank 16 at 7B: 128 of 4096, 0.03."
    )


def _name_metrics(groups: Sequence[ResultGroup], task: Task) -> str:
    metrics = " and ".join(escape_code(metric) for metric in list_metrics(groups, task)) or "none"
    return f"{escape_markdown(task.title)} {metrics}"


def _describe_resampling(groups: Sequence[ResultGroup], context: Context) -> str:
    """The tasks that are resampled by picture, and those whose score follows from sums of statistics."""
    by_task = {task.title: [score for group in groups for score in list_scores(group, task)] for task in context.tasks}
    clustered = [title for title, scores in by_task.items() if any(score.clusters for score in scores)]
    summed = [title for title, scores in by_task.items() if any(score.statistics for score in scores)]
    sentences = [f"Questions on one picture are drawn together ({', '.join(clustered)})."] if clustered else []
    if summed:
        sentences.append(f"Scores that are no mean of values follow from resampled sums ({', '.join(summed)}).")
    return "".join(f" {escape_markdown(sentence)}" for sentence in sentences)


def _describe_seed_intervals(groups: Sequence[ResultGroup]) -> str:
    if len(list_seeds(groups)) < 2:
        return ""
    return (
        " Over questions, what each scored on average over the seeds is resampled; over seeds, the interval is "
        f"Student's t of the seeds' values or paired differences, from {FEWEST_SEEDS} seeds on."
    )


def _describe_resolution(groups: Sequence[ResultGroup], context: Context, estimates: Estimates) -> list[str]:
    """Half the width of the seen average's interval, over the sources that have one."""
    column = next((column for column in list_averages(context) if column.average_over == "seen"), None)
    if column is None:
        return []
    titles = [group.title for group in groups if estimates.has(group.title, column.tasks)]
    means = [estimates.interval(title, column.tasks) for title in titles]
    halves = sorted((mean.high - mean.low) / 2 for mean in means)
    if not halves:
        return []
    width = " to ".join(dict.fromkeys(f"{half:.2f}" for half in (halves[0], halves[-1])))
    return [f"- Resolution: the half-width of the {LEVEL:.0f} % interval of the seen average is {width} points."]


def _count_questions(groups: Sequence[ResultGroup], task: Task) -> int:
    return max((score.n_expected for group in groups for score in list_scores(group, task)), default=0)
