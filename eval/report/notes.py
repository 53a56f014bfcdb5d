"""Footnotes of the tables: partial evaluations, constant answers, missing scores, faults of the published scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from eval.report.formats import escape_code, escape_markdown
from eval.report.results import Context, ResultGroup, list_metrics, list_scores
from eval.report.secondary_tables import format_part
from eval.report.tables import MISSING
from eval.score import score_predictions
from eval.settings import BUILTIN_SUFFIX, CAPTION_NAMES, Task
from robustmerge.stage.records import Prediction, Score, read_examples

PROTOCOL_MEANINGS = {
    "corrected": "what each metric commonly means",
    "official": "what the published scripts do, their faults included",
    "joint": "a picture may be of any class of any of the tasks (the joint setting of KnOTS, arXiv:2410.19735)",
}
# By the name of a metric; `crop` where pictures are cropped.
FOOTNOTES = {
    "crop": "Only the centre of the picture is seen, although training pads it to a square. REC's boxes refer to the "
    "padded square, so that even a perfect answer about what is seen can miss.",
    "mean_of_seven": "The mean of BLEU-1 to BLEU-4, METEOR, ROUGE-L and CIDEr; CIDEr can exceed 100 and outweighs the "
    "others.",
    "official_equal": "Only case is forgiven: `3.` or `three` for `3` is wrong, and so is `B.` for `B`. Where a "
    "question has several references only the first counts.",
    "official_ocrvqa": "Only case is forgiven, and an answer that contains `Unanswerable` is wrong even where it is "
    "right.",
    "official_rec": "The last character of a box is cut off, as a rule the last digit of y2 (`0.9` becomes `0.`), and "
    "a box with any word beside it is a miss.",
    "official_scienceqa": "`b`, `B)`, `(B)`, `B.` and a final `The answer is B` without a full stop are wrong.",
    "official_substring": "Right if the answer contains the class or the class the answer: an empty answer is right, "
    "and so is a list of all classes, or `Hip` for `Whippet`.",
}


def format_partial_notice(groups: Sequence[ResultGroup], context: Context) -> str:
    """A warning if only some of the questions were asked; "" otherwise."""
    counts = _group_titles(
        (f"{score.n_expected:,} of {score.n_asked:,} questions", task)
        for score, task in _iterate_scores(groups, context)
        if score.n_asked
    )
    if not counts:
        return ""
    (count, titles), *others = counts.items()
    if not others and len(titles) == len(context.tasks):
        return f"PARTIAL EVALUATION, NOT A RESULT: {count} a task."
    listed = "; ".join(f"{', '.join(titles)} {count}" for count, titles in counts.items())
    return f"PARTIAL EVALUATION, NOT A RESULT: {listed}."


def format_footnotes(groups: Sequence[ResultGroup], context: Context, protocol: str) -> str:
    """The footnotes of a table of scores, as a Markdown list; "" if there are none."""
    lines = [*_explain_missing(groups, context), *_explain_coverage(groups, context)]
    lines += _explain_builtin(groups, context)
    lines += _explain_faults(context) if protocol == "official" else []
    return "\n".join([*lines, ""]) if lines else ""


def format_constants(context: Context) -> str:
    """What the commonest answer of each task scores, given to all of its questions; "" if all tasks are captions."""
    scored = []
    for task, questions in context.question_files():
        settings = task.under(context.protocol).scoring()
        if settings.metric not in CAPTION_NAMES:
            examples = read_examples(questions)
            ((answer, _),) = Counter(example.answer for example in examples).most_common(1)
            constant = [Prediction(example.question_id, answer) for example in examples]
            value = score_predictions(settings, examples, constant).value
            scored.append(f"{escape_markdown(task.title)} {escape_code(answer)} {value:.1f}")
    return f"The commonest answer of a task, given to all of its questions: {', '.join(scored)}.\n" if scored else ""


def _iterate_scores(groups: Sequence[ResultGroup], context: Context) -> Iterator[tuple[Score, Task]]:
    """Every score of the tables with its task, task by task."""
    return ((score, task) for task in context.tasks for group in groups for score in list_scores(group, task))


def _group_titles(pairs: Iterable[tuple[str, Task]]) -> dict[str, list[str]]:
    """The titles of the tasks that share a text, each title once."""
    grouped: dict[str, list[str]] = {}
    for text, task in pairs:
        titles = grouped.setdefault(text, [])
        titles += [task.title] if task.title not in titles else []
    return grouped


def _join(titles: Sequence[str]) -> str:
    return escape_markdown(", ".join(titles))


def _explain_missing(groups: Sequence[ResultGroup], context: Context) -> list[str]:
    """Why scores are missing although the questions were answered."""
    reasons = _group_titles(
        (score.reason or "no reason is recorded", task)
        for score, task in _iterate_scores(groups, context)
        if score.value is None
    )
    return [f"- {MISSING} of {_join(titles)}: {escape_markdown(reason)}." for reason, titles in reasons.items()]


def _explain_coverage(groups: Sequence[ResultGroup], context: Context) -> list[str]:
    """Tasks of whose dataset some questions could not be asked."""
    covered = _group_titles(
        (f"{score.coverage:.1%} of the questions ({score.n_left_out:,} left out)", task)
        for score, task in _iterate_scores(groups, context)
        if score.n_left_out
    )
    return [
        f"- {_join(titles)}: scored on {share}; the others, or their pictures, could not be used (rejected.jsonl)."
        for share, titles in covered.items()
    ]


def _explain_builtin(groups: Sequence[ResultGroup], context: Context) -> list[str]:
    """Caption scores by our own tokenizer, which are not what others call by that name."""
    metrics = ((metric, task) for task in context.tasks for metric in list_metrics(groups, task))
    builtin = _group_titles((metric, task) for metric, task in metrics if metric.endswith(BUILTIN_SUFFIX))
    return [
        f"- **{_join(titles)}** ({escape_code(metric)}): without Java our own tokenizer splits the words, so that no "
        f"published {format_part(metric.removesuffix(BUILTIN_SUFFIX))} compares."
        for metric, titles in builtin.items()
    ]


def _explain_faults(context: Context) -> list[str]:
    """The faults behind the official numbers of the tasks shown."""
    published = [task.under("official") for task in context.tasks]
    keys = [(task.metric, task) for task in published] + [("crop", task) for task in published if task.image == "crop"]
    noted = _group_titles((key, task) for key, task in keys if key in FOOTNOTES)
    return [f"- **{_join(titles)}** (`{key}`): {FOOTNOTES[key]}" for key, titles in noted.items()]
