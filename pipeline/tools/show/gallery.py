"""The gallery: questions with their pictures and every source's answer, as a page that is complete in one file.

All texts reach the page as JSON, and its script shows them as text, so nothing in them can become markup.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from eval.questions import first_by_hash, format_answer
from eval.report.examples import format_question
from eval.report.results import Context, ResultGroup, group_results
from eval.settings import Task
from pipeline.plan import Evaluation, Plan
from pipeline.program import command
from pipeline.stages.report import collect_results
from pipeline.stages.report_context import make_context
from robustmerge.stage.pictures import PictureError, read_picture
from robustmerge.stage.records import Example, read_examples, read_predictions
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import plain, shorten

TEMPLATE = Path(__file__).with_name("gallery.html")
FEWEST = 10  # questions of a task shown per merged model on which it is below the expert, if there are so many
LONGEST_SIDE = 256  # pixels
LONGEST = 4000  # characters of a text
SCORES = (
    "A score of 1 is right, 0 wrong, between them a part; CIDEr, of captions, can exceed 1. Merged wrong, expert "
    "right: the merged model scored below the expert of the task."
)
SCRIPT, STYLE = (re.compile(f"<{tag}>(.*?)</{tag}>", re.DOTALL) for tag in ("script", "style"))


@dataclass(frozen=True)
class ShownTask:
    """A task of the page. of: how many questions have answers; by_hash, added: how many are shown for which reason.

    below: for each source, on how many of all questions it scored below the expert; None without a pair of scores.
    """

    name: str
    title: str
    of: int
    by_hash: int
    added: int
    below: list[int | None]


@dataclass(frozen=True)
class ShownQuestion:
    """A question of the page. task, picture: places in the lists of the gallery. added: not taken by the hash alone.

    answers: each different one once, with its score (None if it was not scored). by_source: each source's place
    in `answers`, None without an answer. below: the merged sources that scored below the expert.
    """

    task: int
    id: str
    text: str
    expected: str
    picture: int | None
    added: bool
    answers: list[tuple[str, float | None]]
    by_source: list[int | None]
    below: list[int]


@dataclass(frozen=True)
class Gallery:
    """The content of the page. warning: "" for none. sample: what of the questions it holds.

    sources: titles and kinds. pictures: data URLs, each once.
    """

    title: str
    warning: str
    sample: str
    notes: list[str]
    sources: list[tuple[str, str]]
    tasks: list[ShownTask]
    pictures: list[str]
    questions: list[ShownQuestion]


@dataclass(frozen=True)
class _Answers:
    """What a source answered to the questions of a task, and its scores."""

    texts: Mapping[str, str]
    values: Mapping[str, float]

    def below(self, expert: _Answers) -> set[str]:
        """The questions on which it scored below the expert."""
        return {name for name, value in self.values.items() if value < expert.values.get(name, value)}


def collect_gallery(finished: Mapping[Plan, Sequence[Evaluation]], count: int | None, seeds: Sequence[int]) -> Gallery:
    """Collect what is shown. finished: by plan, what has answers and scores; all plans have the first of the seeds.

    count: questions a task; None: all. Raises UserError where the points of a sweep ask different questions.
    """
    plans = list(finished)
    _check_questions(plans)
    context = make_context("gallery", plans)
    groups = group_results(collect_results(plans, finished.__getitem__))
    experts = _pair_with_experts(finished)
    tasks: list[ShownTask] = []
    questions: list[ShownQuestion] = []
    pictures: dict[str, int] = {}
    for task, path in context.question_files():
        answers = [_read_answers(group, task) for group in groups]
        below = _find_below(groups, answers, task, experts)
        asked = [one for one in read_examples(path) if any(one.question_id in source.texts for source in answers)]
        if not asked:
            continue
        chosen, by_hash = choose_questions(asked, count, [ids or set() for ids in below])
        for number, example in enumerate(chosen):
            file = _embed(path.parent / example.image) if example.image else None
            picture = None if file is None else pictures.setdefault(file, len(pictures))
            questions.append(_show(example, len(tasks), picture, number >= by_hash, answers, below))
        totals = [None if ids is None else len(ids) for ids in below]
        tasks.append(ShownTask(task.name, _fit(task.title), len(asked), by_hash, len(chosen) - by_hash, totals))
    return Gallery(
        title=_fit(f"{context.benchmark} on {context.model}"),
        warning="" if context.profile == "full" else f"Profile {context.profile}: the answers mean nothing.",
        sample=describe_sample(tasks, count),
        notes=[SCORES, _describe_run(context, seeds)],
        sources=[(_fit(group.title), group.kind) for group in groups],
        tasks=tasks,
        pictures=list(pictures),
        questions=questions,
    )


def _check_questions(plans: Sequence[Plan]) -> None:
    files: dict[str, Path] = {}
    for plan in plans:
        for task in plan.config.tasks:
            path = plan.questions(plan.test_set(task))
            if files.setdefault(task.name, path) != path:
                raise UserError(f"the points of this sweep ask different questions of {task.name}; show each by itself")


def _pair_with_experts(finished: Mapping[Plan, Sequence[Evaluation]]) -> dict[Path, Path]:
    """Map the answer file of each merged source to that of the expert of the same task and point."""
    pairs: dict[Path, Path] = {}
    for evaluations in finished.values():
        experts = {one.task.name: one.predictions.path for one in evaluations if one.source.kind == "expert"}
        merged = [one for one in evaluations if one.source.kind == "merged" and one.task.name in experts]
        pairs |= {one.predictions.path: experts[one.task.name] for one in merged}
    return pairs


def _read_answers(group: ResultGroup, task: Task) -> _Answers:
    if task.name not in group.first.scores:
        return _Answers({}, {})
    predictions = read_predictions(group.first.predictions[task.name])
    return _Answers({one.question_id: format_answer(one) for one in predictions}, group.first.scores[task.name].values)


def _find_below(
    groups: Sequence[ResultGroup], answers: Sequence[_Answers], task: Task, experts: Mapping[Path, Path]
) -> list[set[str] | None]:
    """For each source, the questions on which it scored below the expert; None where it has no expert."""
    files = [group.first.predictions.get(task.name, Path()) for group in groups]
    places = [files.index(experts[file]) if file in experts else None for file in files]
    return [None if place is None else one.below(answers[place]) for one, place in zip(answers, places, strict=True)]


def choose_questions(
    examples: Sequence[Example], count: int | None, below: Sequence[Collection[str]]
) -> tuple[list[Example], int]:
    """The first `count` questions by hash, then more until FEWEST of each of `below`, if it has so many, are there.

    Also returns how many were taken by the hash alone.
    """
    ordered = first_by_hash(examples, len(examples))
    chosen = ordered[:count]
    by_hash = len(chosen)
    wanted = [FEWEST - sum(one.question_id in ids for one in chosen) for ids in below]
    for example in ordered[by_hash:]:
        inside = [example.question_id in ids for ids in below]
        if any(is_in and lacking > 0 for is_in, lacking in zip(inside, wanted, strict=True)):
            chosen.append(example)
            wanted = [lacking - is_in for is_in, lacking in zip(inside, wanted, strict=True)]
    return chosen, by_hash


def _show(
    example: Example,
    task: int,
    picture: int | None,
    added: bool,
    answers: Sequence[_Answers],
    below: Sequence[Collection[str] | None],
) -> ShownQuestion:
    name = example.question_id
    text, expected = format_question(example)
    given = [(_fit(one.texts[name]), one.values.get(name)) if name in one.texts else None for one in answers]
    different = list(dict.fromkeys(one for one in given if one is not None))
    return ShownQuestion(
        task=task,
        id=_fit(name),
        text=_fit(text),
        expected=_fit(expected),
        picture=picture,
        added=added,
        answers=different,
        by_source=[None if one is None else different.index(one) for one in given],
        below=[place for place, ids in enumerate(below) if ids is not None and name in ids],
    )


def _fit(text: str) -> str:
    """A text as the page shows it: with its lines, of bounded length, control characters by their escapes."""
    return plain(shorten(text, LONGEST))


def _embed(file: Path) -> str | None:
    """A picture as a data URL, shrunk if it is large; None if it cannot be read."""
    try:
        picture = read_picture(file)
    except PictureError:
        return None
    is_drawn = picture.format == "PNG" and max(picture.size) <= LONGEST_SIDE
    picture = picture.convert("RGB")
    picture.info = {}  # nothing but pixels
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    data = io.BytesIO()
    kind = "png" if is_drawn else "webp"  # a photo as PNG would be ten times as large
    picture.save(data, kind, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def _describe_run(context: Context, seeds: Sequence[int]) -> str:
    of = f", the first of {', '.join(map(str, seeds))}" if len(seeds) > 1 else ""
    experts = f", experts of seed {seeds[0]}{of}" if "experts" in context.seeds else ""
    return f"Protocol {context.protocol}{experts}. Made by: {_fit(command('show'))}"


def describe_sample(tasks: Sequence[ShownTask], count: int | None) -> str:
    """What of the questions is on the page, and how it was taken."""
    of, by_hash, added = (sum(getattr(task, key) for task in tasks) for key in ("of", "by_hash", "added"))
    if by_hash == of:
        return f"All {of:,} questions are on this page."
    text = (
        f"{by_hash + added:,} of {of:,} questions are on this page. {by_hash:,} are the first {count} of each task by "
    )
    text += "the hash of their id: an arbitrary sample, the same in every run."
    if added:
        text += (
            f" {added:,} are added, so that of each task and merged model there are {FEWEST} on which it scored below "
            "the expert, where there are so many: with these, no share on this page is a score."
        )
    return text


def make_page(gallery: Gallery) -> str:
    """The page: the template with the content inside, which may load nothing and run nothing but the page's script."""
    page = TEMPLATE.read_text(encoding="utf-8")
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            *(f"{kind}-src '{_digest(tag, page)}'" for kind, tag in (("script", SCRIPT), ("style", STYLE))),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    content = json.dumps(asdict(gallery), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    head, tail = page.replace("POLICY", policy, 1).split("CONTENT")
    return f"{head}{content}{tail}"


def _digest(tag: re.Pattern[str], page: str) -> str:
    """The digest by which a policy admits what stands in a tag."""
    (match,) = tag.finditer(page)
    return f"sha256-{base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()}"
