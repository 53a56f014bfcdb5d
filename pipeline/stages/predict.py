"""The steps from a source to its scores, each over all configurations at once: answers, scores, chosen strengths."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from eval.questions import format_answer, format_expected, read_questions
from eval.settings import Task
from llava_ext.launch import list_gpus, trainer_for_answers
from pipeline.jobs import say
from pipeline.plan import Plan, make_command, require
from pipeline.program import read_overrides
from pipeline.sources import Source
from pipeline.stages.convert import convert
from pipeline.todo import item_of, once, share_out
from robustmerge.stage.address import Address
from robustmerge.stage.records import read_predictions
from robustmerge.stage.settings import UserError, build

Sources = Callable[[Plan], Sequence[Source]]
ON_A_CPU = 1e9  # parameters; more answer too slowly
TAKES = (
    "With 7 billion in fp16, batches of 16, 32 and 64 take 22, 30 and 46 GB (model.generation_batch), and an H100 "
    "answers 18 to 27 questions a second."
)  # results/bench_eval/gpu
TOKENS_OF_A_PROMPT = 8.0  # what reading a prompt costs, in tokens of an answer
NARROWED = "\ntasks= narrows what is merged, too: another model is named by its address, as source=merged/ties-1a2b3c4d"

SHOWN = 20  # answers of a look that are printed


def predict(plans: Sequence[Plan], sources: Sources, split: str = "test") -> None:
    """Answer the questions of a split with every source; each process loads the base once for all of them.

    On a CPU, and on one GPU each, processes have sources and tasks of their own. An engine of several processes
    (`trainer=ddp trainer.processes=8`) answers each batch by batch, all processes at one.
    """

    def list_one(plan: Plan) -> list[tuple[Address, Any]]:
        return [(plan.predictions(source, task, split), (plan, source, task)) for source, task in _pairs(plan, sources)]

    config, items, costs = plans[0].config, [], []
    trainer = trainer_for_answers(config.trainer, config.device)
    for address, (plan, source, task) in once(plans, list_one):
        adapter = str(source.adapter) if source.adapter else None
        model = {"base": str(plan.base.path), "adapter": adapter, "device": trainer.device}
        settings, questions = plan.generation(task, split), str(plan.questions(task, split))
        items.append(item_of("predict", address, settings, questions=questions, **model))
        costs.append(_count(plan, task, split) * (settings.max_new_tokens + TOKENS_OF_A_PROMPT))
    share_out(plans, "predict" if split == "test" else f"predict {split}", items, costs, trainer)


def _pairs(plan: Plan, sources: Sources) -> list[tuple[Source, Task]]:
    return [(source, task) for source in sources(plan) for task in source.tasks]


def _count(plan: Plan, task: Task, split: str) -> int:
    """About how many questions are asked: what the configuration says of the task's split."""
    count = max(1, getattr(plan.config.data(task).counts, split))
    return min(count, plan.config.limit or count)


def chosen_source(plan: Plan) -> Sequence[Source]:
    """The one source that `source=` names. Raises UserError with the choices."""
    return (plan.find_source(plan.config.source),)


def check_sources(plans: Sequence[Plan]) -> None:
    """Raises UserError unless the chosen source is there to be asked."""
    chosen = [chosen_source(plan) for plan in plans]
    convert(plans, {source.address.path for (source,) in chosen})
    for plan, (source,) in zip(plans, chosen, strict=True):
        if source.kind != "zero_shot":
            narrowed = source.kind == "merged" and "tasks" in read_overrides(plan.config.overrides)
            require([source.address], "result is", make_command(source) + (NARROWED if narrowed else ""))


def check_devices(plans: Sequence[Plan], look: bool = False) -> None:
    """Raises UserError, before anything long, if the answers want a GPU that is not there.

    look: only a few are wanted, which a CPU that is asked for (device=cpu) gives in the end.
    """
    for config in (plan.config for plan in plans):
        trainer, model = trainer_for_answers(config.trainer, config.device), config.model
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


def predictions_of(plan: Plan) -> list[Address]:
    """The prediction files of the chosen source."""
    return [plan.predictions(source, task) for source in chosen_source(plan) for task in source.tasks]


def tell_answers(plans: Sequence[Plan]) -> None:
    """After predict with `limit` or `ids`: the first questions with their answers."""
    for plan in (plan for plan in plans if not plan.config.only.is_all):
        source = plan.find_source(plan.config.source)
        for task in source.tasks:
            examples = read_questions(plan.questions(task), plan.config.only)
            given = {one.question_id: one for one in read_predictions(plan.predictions(source, task).path)}
            print(f"\n{source.label} on {task.name}:")
            for example in examples[:SHOWN]:
                asked = " ".join(example.text.split())
                answer, expected = format_answer(given[example.question_id]), format_expected(example)
                print(f"  {example.question_id}: {asked}\n    {answer}   (expected: {expected})")
            if len(examples) > SHOWN:
                print(f"  ... and {len(examples) - SHOWN} more")


def work_predict(item: dict) -> None:
    from torch import OutOfMemoryError

    from eval.predict import predict
    from eval.settings import Generation
    from llava_ext.processes import run_stage_together

    settings = build(Generation, item["settings"], "generation")
    fast = settings.products == "fast"
    generate = load_base(item["base"], settings.template, fast, item["device"], settings.precision)
    generate.use(Path(item["adapter"]) if item["adapter"] else None)
    answer = partial(generate, image=settings.image)
    address, questions = Address.from_json(item["address"]), Path(item["questions"])
    ahead = partial(generate.prefetch, image=settings.image)
    try:
        predict(address, settings, questions, answer, say, together=run_stage_together, ahead=ahead)
    except OutOfMemoryError as error:
        raise UserError(
            f"the GPU has too little memory for batches of {settings.batch_size}: take a smaller one, as "
            f"model.generation_batch={max(1, settings.batch_size // 2)} (answers begin anew: a batch's size is part of "
            f"what they are)"
        ) from error


@lru_cache(maxsize=1)
def load_base(base: str, template: str, fast: bool, device: str, precision: str) -> Any:
    """The base model, loaded once for all sources of this process, on the GPU of its rank."""
    import torch

    from llava_ext.backend import DTYPES
    from llava_ext.generate import Generator

    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    return Generator(Path(base), template, device, DTYPES[precision], fast)
