"""The predict stage: answers of sources to the questions of their evaluation sets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from eval.questions import format_answer, format_expected, read_questions
from llava_ext.launch import list_gpus, trainer_for_answers
from pipeline.addresses import Adapter, require_complete
from pipeline.events import say
from pipeline.models import FAMILIES
from pipeline.plan import Evaluation, Plan, make_command
from pipeline.stages.convert import convert
from pipeline.work_items import describe_item, drop_finished, run_side_by_side
from robustmerge.stage.address import Address
from robustmerge.stage.process import loading_libraries
from robustmerge.stage.records import read_predictions
from robustmerge.stage.settings import UserError, build

LARGEST_ON_CPU = 1e9  # parameters; more answer too slowly
GPU_MEMORY = (
    "With 7 billion in fp16, batches of 16, 32 and 64 take 22, 30 and 46 GB (model.generation_batch), and an H100 "
    "answers 18 to 27 questions a second."
)  # results/bench_eval/gpu
TOKENS_OF_A_PROMPT = 8.0  # what reading a prompt costs, in tokens of an answer
NARROWED = "\ntasks= narrows what is merged, too: another model is named by its address, as source=merged/ties-1a2b3c4d"
SHOWN = 20  # answers of a partial evaluation that are printed


def check_sources(plans: Sequence[Plan]) -> None:
    """Raises UserError unless the selected source exists."""
    for plan in plans:
        source = plan.selected
        convert(plan, [Adapter(source.address, source.original)])
        if source.kind != "zero_shot":
            narrowed = source.kind == "merged" and "tasks" in plan.overrides
            hint = NARROWED if narrowed else ""
            require_complete([source.address], "result is", partial(make_command, source), hint)


def check_devices(plans: Sequence[Plan], is_short: bool = False) -> None:
    """Raises UserError early if generation needs a GPU that this machine lacks.

    is_short: only a few answers are wanted, which a CPU may give, however slowly, if device=cpu asks for it.
    """
    for config in (plan.config for plan in plans):
        trainer, model = trainer_for_answers(config.trainer, config.device), config.model
        few = config.device == "cpu" and (is_short or not config.only.is_all)
        parameters = model.parameters or 0
        if parameters > LARGEST_ON_CPU and not few and not (trainer.device == "cuda" and list_gpus()):
            raise UserError(
                f"answering with {model.name}, {parameters / 1e9:.1f} billion parameters, needs a GPU"
                f"{', and this machine shows none' if not list_gpus() else ' (device=cuda)'}. {GPU_MEMORY}\n"
                "Merging needs none: scripts/merge.py. A few answers can be looked at here, slowly: device=cpu limit=8"
            )
        if trainer.device == "cuda" and not list_gpus():
            raise UserError(
                f"trainer={config.trainer.engine} answers on GPUs, and this machine shows none; device=cpu needs none"
            )


def predict(evaluations: Sequence[Evaluation]) -> None:
    """Answer the questions of every evaluation; each process loads the base once for all of them.

    On a CPU, or with one GPU each, processes have sources and tasks of their own. An engine of several processes
    (`trainer=ddp trainer.processes=8`) does the evaluations one by one, its processes sharing the batches of each.
    """
    unfinished = drop_finished((one.predictions, one) for one in evaluations)
    if not unfinished:
        return
    unfinished.sort(key=lambda pair: _order(pair[1]))  # a stable sort
    first, items, costs = evaluations[0], [], []
    trainer = trainer_for_answers(first.plan.config.trainer, first.plan.config.device)
    for address, one in unfinished:
        adapter = str(one.source.adapter) if one.source.adapter else None
        model = {"base": str(one.plan.base.path), "adapter": adapter, "device": trainer.device}
        model["family"] = one.plan.config.model.family
        settings = one.plan.generation(one.eval_set)
        pooled = {task.name: str(one.plan.data(task).path) for task in one.plan.pooled(one.eval_set)}
        files = {"questions": str(one.questions), "pooled": pooled}
        items.append(describe_item("predict", address, settings, **files, **model))
        costs.append(one.expected_count * (settings.max_new_tokens + TOKENS_OF_A_PROMPT))
    split = first.eval_set.split
    run_side_by_side(first.plan, "predict" if split == "test" else f"predict {split}", items, costs, trainer)


def _order(one: Evaluation) -> tuple[str, str]:
    """Sort key that loads each base once, and decodes classified pictures, most of the work, once for all sources."""
    plan = one.plan
    return plan.base.fingerprint, str(one.questions) if plan.config.model.kind.answers_with_classes else ""


def work_predict(item: dict) -> None:
    with loading_libraries():
        from torch import OutOfMemoryError

        from eval.predict import predict
        from eval.settings import Generation
        from llava_ext.processes import run_stage_together

    settings = build(Generation, item["settings"], "generation")
    fast = settings.products == "fast"
    generate = load_base(item["family"], item["base"], settings.template, fast, item["device"], settings.precision)
    generate.use(Path(item["adapter"]) if item["adapter"] else None)
    if settings.pooled:
        generate = generate.among([(prompt, Path(item["pooled"][task])) for task, prompt in settings.pooled.items()])
    address, questions = Address.from_json(item["address"]), Path(item["questions"])
    try:
        predict(address, settings, questions, generate, say, runner=run_stage_together)
    except OutOfMemoryError as error:
        raise UserError(
            f"the GPU has too little memory for batches of {settings.batch_size}: take a smaller one, as "
            f"model.generation_batch={max(1, settings.batch_size // 2)} (answers begin anew: a batch's size is part of "
            f"what they are)"
        ) from error


@lru_cache(maxsize=1)
def load_base(family: str, base: str, template: str, fast: bool, device: str, precision: str) -> Any:
    """The base model, loaded once for all sources of this process, on the GPU of its rank."""
    return FAMILIES[family].load(Path(base), template, fast, device, precision)


def print_answers(evaluations: Sequence[Evaluation]) -> None:
    """Print the first questions with their answers if only some are asked (`limit` or `ids`)."""
    for one in (one for one in evaluations if not one.plan.config.only.is_all):
        examples = read_questions(one.questions, one.plan.generation(one.eval_set).only)
        answers = {answer.question_id: answer for answer in read_predictions(one.predictions.path)}
        print(f"\n{one.source.label} on {one.task.name}:")
        for example in examples[:SHOWN]:
            question = " ".join(example.text.split())
            answer, expected = format_answer(answers[example.question_id]), format_expected(example)
            print(f"  {example.question_id}: {question}\n    {answer}   (expected: {expected})")
        if len(examples) > SHOWN:
            print(f"  ... and {len(examples) - SHOWN} more")
