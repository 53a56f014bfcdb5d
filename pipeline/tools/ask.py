"""Ask one source the user's own questions, in this process; nothing is written."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.settings import Task
from llava_ext.launch import trainer_for_answers
from pipeline.plan import Plan
from pipeline.stages import predict
from pipeline.stages.base import require_bases
from pipeline.sweep import make_plan_with
from robustmerge.stage.files import expand
from robustmerge.stage.pictures import PictureError, read_picture
from robustmerge.stage.prompts import render
from robustmerge.stage.records import Example
from robustmerge.stage.settings import ConfigError, Problem, UserError, suggest


@dataclass(frozen=True)
class AskRequest:
    """The keys of ask.py. ask_as: the task whose prompt, image mode and length are taken.

    Without it the question is asked as it is.
    """

    image: str | None = None
    question: str | None = None
    ask_as: str | None = None
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(Problem(f"max_new_tokens must be at least 1, got {self.max_new_tokens}"))
        if self.image is not None:
            check_picture(expand(self.image))


def check_picture(file: Path) -> None:
    """Raises ConfigError if the file does not exist or is no picture."""
    try:
        read_picture(file)
    except PictureError as error:
        raise ConfigError(Problem(str(error), "image")) from error


def ask(point: Mapping[str, Any]) -> None:
    """Print the answer to `question`, or to every line that is typed. Raises UserError for what is not there."""
    plan, request = make_plan_with(AskRequest, point)
    predict.check_devices([plan], is_short=True)
    predict.check_sources([plan])
    require_bases([plan])
    task = _find_task(plan, request)
    source = plan.selected

    print(f"loading {source.label} ...", file=sys.stderr, flush=True)
    from pipeline.stages.predict import load_base

    model = plan.config.model
    device = trainer_for_answers(plan.config.trainer, plan.config.device).device
    fast = model.products == "fast"
    generate = load_base(model.family, str(plan.base.path), model.template, fast, device, plan.precision)
    generate.use(source.adapter)
    picture = str(expand(request.image).resolve()) if request.image else None
    for question in [request.question] if request.question is not None else _read_questions(source.label):
        example = Example("asked", question, "", image=picture)
        example = dataclasses.replace(example, text=render(task.prompt, example))
        folder = plan.data(task).path if task.has_classes else Path("/")
        (answer,) = generate([example], folder, task.max_new_tokens, task.image)
        print(answer or "(empty)", flush=True)


def _find_task(plan: Plan, request: AskRequest) -> Task:
    """Find the task whose prompt is used; without `ask_as` one that asks the question as it is."""
    tasks = {task.name: task for task in plan.config.tasks}
    if request.ask_as is None and (family := plan.config.model.kind).answers_with_classes:
        raise UserError(f"a {family.title} answers with a class of a task; {suggest('', tasks)} (ask_as)")
    if request.ask_as is None:
        return Task("asked", "Asked", False, "{text}", "text", "exact_match", request.max_new_tokens)
    if request.ask_as not in tasks:
        raise UserError(f"unknown task '{request.ask_as}'; {suggest(request.ask_as, tasks)} (ask_as)")
    task = tasks[request.ask_as].under(plan.config.protocol)
    if "{choices}" in task.prompt:
        raise UserError(
            f"the prompt of {task.name} lists options, and a question asked here has none (ask_as); leave ask_as "
            f"out and write the whole prompt as the question: {task.prompt!r}"
        )
    return task


def _read_questions(source: str) -> Iterator[str]:
    """Read questions from the terminal or a pipe, one per line, until a line is empty."""
    if sys.stdin.isatty():
        print(f"asking {source}; an empty line ends it")
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        question = sys.stdin.readline().strip()
        if not question:
            return
        yield question
