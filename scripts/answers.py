"""The steps from a source to its scores, each over all configurations at once: answers, scores, chosen strengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from eval.predict import list_shards, read_shards
from eval.score import score as score_answers
from eval.score import score_partial
from eval.settings import CAPTION_NAMES, PROTOCOLS, Task, other_protocol
from llava_ext.launch import answering, list_gpus
from robustmerge.records import Score
from robustmerge.runs import Address
from robustmerge.settings import UserError
from scripts.commands import read_overrides
from scripts.fetching import convert
from scripts.items import item_of, once
from scripts.line import Line, require
from scripts.sources import Source
from scripts.steps import make_command, share_out

Sources = Callable[[Line], Sequence[Source]]
ON_A_CPU = 1e9  # parameters; more answer too slowly
TAKES = (
    "With 7 billion in fp16, batches of 16, 32 and 64 take 22, 30 and 46 GB (model.generation_batch), and an H100 "
    "answers 18 to 27 questions a second."
)  # results/bench_eval/gpu
TOKENS_OF_A_PROMPT = 8.0  # what reading a prompt costs, in tokens of an answer
NARROWED = "\ntasks= narrows what is merged, too: another model is named by its address, as source=merged/ties-1a2b3c4d"
CAPTION_COST = 100.0  # of scoring a caption, beside a short answer


def predict(lines: Sequence[Line], sources: Sources, split: str = "test") -> None:
    """Answer the questions of a split with every source; each process loads the base once for all of them.

    On a CPU, and on one GPU each, processes have sources and tasks of their own. An engine of several processes
    (`trainer=ddp trainer.processes=8`) answers each batch by batch, all processes at one.
    """

    def list_one(line: Line) -> list[tuple[Address, Any]]:
        return [(line.predictions(source, task, split), (line, source, task)) for source, task in _pairs(line, sources)]

    config, items, costs = lines[0].config, [], []
    trainer = answering(config.trainer, config.device)
    for address, (line, source, task) in once(lines, list_one):
        adapter = str(source.adapter) if source.adapter else None
        model = {"base": str(line.base.path), "adapter": adapter, "device": trainer.device}
        settings, questions = line.generation(task, split), str(line.questions(task, split))
        items.append(item_of("predict", address, settings, questions=questions, **model))
        costs.append(_count(line, task, split) * (settings.max_new_tokens + TOKENS_OF_A_PROMPT))
    share_out(lines, "predict" if split == "test" else f"predict {split}", items, costs, trainer)


def _pairs(line: Line, sources: Sources) -> list[tuple[Source, Task]]:
    return [(source, task) for source in sources(line) for task in source.tasks]


def _count(line: Line, task: Task, split: str) -> int:
    """About how many questions are asked: what the configuration says of the task's split."""
    count = max(1, getattr(line.config.data(task).counts, split))
    return min(count, line.config.limit or count)


def score(lines: Sequence[Line], sources: Sources, split: str = "test") -> None:
    """Score the answers to the questions of a split; needs no model."""

    def list_one(line: Line) -> list[tuple[Address, Any]]:
        return [(line.score(source, task, split), (line, source, task)) for source, task in _pairs(line, sources)]

    for address, (line, source, task) in tqdm(once(lines, list_one), desc="score", leave=False, disable=None):
        predictions = line.predictions(source, task, split)
        if not predictions.is_complete():
            left = list_shards(predictions.path)
            begun = "; what is there so far can be looked at with score.py partial=true" if left else ""
            asked = f" with protocol={line.config.protocol}" if line.config.protocol != PROTOCOLS[0] else ""
            raise UserError(
                f"{source.label} has no predictions for {task.name}; run scripts/predict.py first{asked}{begun}"
            )
        score_answers(address, line.scoring(task, split), line.questions(task, split), predictions.path)


def score_otherwise(lines: Sequence[Line], sources: Sources) -> None:
    """Score the same sources by the other protocol, wherever the answers that it needs exist: side by side."""
    if not lines[0].config.other_protocol:
        return

    def list_one(line: Line) -> list[tuple[Address, Any]]:
        found = [(line.other_score(source, task), (line, source, task)) for source, task in _pairs(line, sources)]
        return [(address, value) for address, value in found if address is not None]

    other, items, costs = other_protocol(lines[0].config.protocol), [], []
    for address, (line, source, task) in once(lines, list_one):
        settings = line.scoring(task, "test", other)
        predictions = line.predictions(source, task, "test", other)
        files = {"questions": str(line.questions(task)), "predictions": str(predictions.path)}
        items.append(item_of("score", address, settings, **files))
        costs.append(_count(line, task, "test") * (CAPTION_COST if settings.metric in CAPTION_NAMES else 1.0))
    share_out(lines, f"score, {other}", items, costs)


def score_partly(lines: Sequence[Line]) -> list[tuple[str, str, Score | None]]:
    """Of the chosen sources, by source and task: the score over the questions that have an answer so far."""
    found = []
    for line in lines:
        for source, task in _pairs(line, chosen_source):
            answered = read_shards(line.predictions(source, task).path)
            score_so_far = score_partial(line.scoring(task), line.questions(task), answered)
            found.append((source.label, task.name, score_so_far))
    return found


def choose_strengths(lines: Sequence[Line]) -> None:
    """Answer and score the val questions at every strength, so that the lines can choose."""
    predict(lines, lambda line: line.tried, "val")
    score(lines, lambda line: line.tried, "val")


def chosen_source(line: Line) -> Sequence[Source]:
    """The one source that `source=` names. Raises UserError with the choices."""
    return (line.find_source(line.config.source),)


def check_sources(lines: Sequence[Line]) -> None:
    """Raises UserError unless the chosen source is there to be asked."""
    chosen = [chosen_source(line) for line in lines]
    convert(lines, {source.address.path for (source,) in chosen})
    for line, (source,) in zip(lines, chosen, strict=True):
        if source.kind != "zero_shot":
            narrowed = source.kind == "merged" and "tasks" in read_overrides(line.config.overrides)
            require([source.address], "result is", make_command(source) + (NARROWED if narrowed else ""))


def check_devices(lines: Sequence[Line], look: bool = False) -> None:
    """Raises UserError, before anything long, if the answers want a GPU that is not there.

    look: only a few are wanted, which a CPU that is asked for (device=cpu) gives in the end.
    """
    for config in (line.config for line in lines):
        trainer, model = answering(config.trainer, config.device), config.model
        few = config.device == "cpu" and (look or not config.only.is_all)
        if (model.parameters or 0) > ON_A_CPU and not few and not (trainer.device == "cuda" and list_gpus()):
            raise UserError(
                f"answering with {model.name}, {model.parameters / 1e9:.1f} billion parameters, needs a GPU"
                f"{', and this machine shows none' if not list_gpus() else ' (device=cuda)'}. {TAKES}\n"
                "Merging needs none: scripts/merge.py. A few answers can be looked at here, slowly: device=cpu limit=8"
            )
        if trainer.device == "cuda" and not list_gpus():
            raise UserError(
                f"trainer={config.trainer.engine} answers on GPUs, and this machine shows none; device=cpu needs none"
            )


def predictions_of(line: Line) -> list[Address]:
    """The prediction files of the chosen source."""
    return [line.predictions(source, task) for source in chosen_source(line) for task in source.tasks]
