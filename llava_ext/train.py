"""The train stage: one expert or the multi-task model, with the Trainer of transformers and PEFT's LoRA.

What a kind of model trains on, and how, is its `Training`: that of a LLaVA is here.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import LlavaForConditionalGeneration, TrainingArguments

from llava_ext.adapters import LLAVA, ModelParts, add_adapter, hash_a, save_adapter
from llava_ext.backend import DTYPES, quiet_libraries
from llava_ext.checkpoints import EARLIER, find_checkpoint
from llava_ext.conversation import IGNORE
from llava_ext.data import (
    Collator,
    Rows,
    Shape,
    derive_seed,
    describe_counts,
    load_reader,
    read_rows,
    training_order,
)
from llava_ext.model import load_model
from llava_ext.pace import Pace
from llava_ext.processes import Team, run_stage_together
from llava_ext.quantized import quantizing_options
from llava_ext.settings import LOSSES, Expert, Trainer
from llava_ext.spelling import describe_spelled, list_spelled
from llava_ext.trainer import (
    OrderedTrainer,
    build_arguments,
    finish_training,
    read_training_record,
    remove_work,
)
from llava_ext.unread import UNREAD, ReadableRows, describe_unread, forget_unread, summarise_unread
from robustmerge.stage.address import Address
from robustmerge.stage.settings import UserError


@dataclass(frozen=True)
class Material:
    """What a run trains on. rows: with the steps over them; collate: makes a batch of rows.

    sizes: of each row, by what is counted, for the record: `tokens`. pieces: by task, how many tokens each word of its
    answers is. counts: by task, its rows by what became of them (`TaskRows`). shapes: of the rows, if they are grouped.
    """

    rows: Sequence
    steps: int
    collate: Callable[[Sequence], dict[str, torch.Tensor]]
    sizes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    pieces: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    shapes: Sequence[Shape] = ()


@dataclass(frozen=True)
class Training:
    """How experts of a kind of model are trained.

    read: the material of a run, from its settings, the base and the folders of its tasks; load: the base with the
    untrained adapter; trainer: its class; parts: of the model.
    """

    read: Callable[[Expert, Path, Mapping[str, Path]], Material]
    load: Callable[[Expert, Path], PeftModel]
    trainer: type[ExpertTrainer]
    parts: ModelParts


def train_expert(
    address: Address,
    settings: Expert,
    base: Path,
    data: Mapping[str, Path],
    training: Training,
    say: Callable[[str], None] = print,
) -> Path:
    """Train one adapter on the training samples of `data` (task -> its folder) and save it at `address`.

    Under torchrun every process calls this; only the first takes the lock and writes.
    Raises UserError if the loss is not finite, a task has no samples, there is a checkpoint that this run must not go
    on from, or another number of processes was started than the trainer has.
    """

    def work(folder: Path, team: Team) -> dict[str, Any]:
        nodes, processes = settings.trainer.nodes, settings.trainer.processes
        if team.size != settings.trainer.world:  # the global batch would be another one
            of_all = f" on each of {nodes} machines (trainer.nodes)" if nodes > 1 else ""
            raise UserError(f"{team.size} processes were started, and trainer.processes is {processes}{of_all}")
        unfinished = folder / "unfinished"
        if (record := read_training_record(folder)) is not None:
            remove_work(unfinished)
            return record
        unfinished.mkdir(exist_ok=True)
        checkpoint = find_checkpoint(unfinished, describe_batching(settings), settings.trainer)
        forget_unread(unfinished / UNREAD, checkpoint.step * settings.recipe.global_batch if checkpoint else 0)
        team.begin()
        return _train(folder, unfinished, settings, base, data, say, training)

    return run_stage_together(address, work, say)


def _train(
    folder: Path,
    work: Path,
    settings: Expert,
    base: Path,
    data: Mapping[str, Path],
    say: Callable[[str], None],
    training: Training,
) -> dict[str, Any]:
    quiet_libraries()
    material = training.read(settings, base, data)
    recipe, seed = settings.recipe, derive_seed(settings.seed, settings.name)
    order = training_order(len(material.rows), recipe.global_batch, material.steps, seed, material.shapes)
    readable = recipe.on_error == "skip"
    rows = ReadableRows(material.rows, order, work / UNREAD) if readable else Rows(material.rows, order)
    arguments = _build_arguments(settings, work, material.steps)  # before the model: ZeRO-3 partitions it as it loads
    model = training.load(settings, base)
    first_a = hash_a(model)
    trainer = training.trainer(settings, model, arguments, rows, material)
    if trainer.is_world_process_zero():
        for line in _describe(material, settings):
            say(line)
    start = time.perf_counter()
    trainer.train_or_resume(say)
    seconds = time.perf_counter() - start
    unread = summarise_unread(work / UNREAD) if trainer.is_world_process_zero() else None
    if unread:
        say(f"{settings.name}: {describe_unread(unread)}")
    spelled = {task: len(list_spelled(pieces)) for task, pieces in material.pieces.items()}
    record = {
        "steps": material.steps,
        "samples": len(order),
        **{name: sum(sizes[index] for index in order) for name, sizes in material.sizes.items()},
        "training_seconds": round(seconds, 2),
        "first_a_sha256": first_a,
        "trainable_parameters": sum(map(_count, (one for one in model.parameters() if one.requires_grad))),
        "trainer": {"engine": settings.trainer.engine, "processes": settings.trainer.world},
    }
    details = {
        "words_in_pieces": spelled,
        "rows": material.counts,
        "unread_pictures": unread,
        "resumed_across": trainer.marker.get(EARLIER),
    }
    record |= {name: value for name, value in details.items() if value}
    _save(trainer, folder, work, record, training.parts)
    return record


def _describe(material: Material, settings: Expert) -> Iterator[str]:
    """What is to be known of the rows before they are trained on."""
    for task, counts in material.counts.items():
        if line := describe_counts(task, counts, settings.recipe):
            yield line
    if len(settings.tasks) == 1:  # the experts have said it before multi_task
        yield from filter(None, itertools.starmap(describe_spelled, material.pieces.items()))


def read_conversations(settings: Expert, base: Path, data: Mapping[str, Path]) -> Material:
    """The training conversations of all tasks, tasks sorted by name."""
    reader, recipe = load_reader(base, settings.template), settings.recipe
    tasks = {
        task: read_rows(reader, task, data[task], settings.prompts.get(task), recipe) for task in sorted(settings.tasks)
    }
    rows = [row for of_task in tasks.values() for row in of_task.rows]
    steps = count_steps(settings, [len(of_task.rows) for of_task in tasks.values()])
    pieces = {task: of_task.pieces for task, of_task in tasks.items()}
    counts = {task: of_task.counts for task, of_task in tasks.items()}
    shapes = [row.shape for row in rows] if recipe.group_by_length else ()
    return Material(rows, steps, Collator(reader), {"tokens": [len(row.ids) for row in rows]}, pieces, counts, shapes)


def count_steps(settings: Expert, samples: Sequence[int]) -> int:
    """Optimizer steps of a run over several tasks: the sum of the steps that each task's expert takes.

    These are the whole batches of an epoch times the epochs, or `max_steps`.
    """
    recipe = settings.recipe
    if recipe.max_steps is not None:
        return recipe.max_steps * len(samples)
    return sum(max(1, int(max(1, count // recipe.global_batch) * recipe.epochs)) for count in samples)


def describe_batching(settings: Expert) -> dict[str, Any]:
    """The properties that two runs must share for one to end with the same bytes from a checkpoint of the other."""
    trainer = settings.trainer
    batch, accumulation = trainer.accumulation(settings.recipe.global_batch)
    return {"engine": trainer.engine, "processes": trainer.world, "batch": batch, "accumulation": accumulation}


def load_with_adapter(settings: Expert, base: Path) -> PeftModel:
    """The base model with the untrained adapter, in the precision of training."""
    trainer = settings.trainer
    dtype = DTYPES[trainer.precision]
    options = quantizing_options(settings.quantize, dtype, trainer.device) if settings.quantize else {}
    if (place := find_place_of_weights(trainer)) is not None:
        options = {"device_map": {"": place}, **options}
    model = load_model(base, dtype, trainer.kernel, **options)
    return prepare_for_training(model, settings, settings.base_name or base.name)


def prepare_for_training(model: LlavaForConditionalGeneration, settings: Expert, base: str) -> PeftModel:
    """Put the untrained adapter on a model. base: its name in the adapter's config."""
    trainer = settings.trainer
    model.config.use_cache = False
    adapted = add_adapter(model, settings.peft, base, settings.seed, settings.name, not trainer.uses_deepspeed)
    if trainer.gradient_checkpointing:
        adapted.enable_input_require_grads()
    return adapted


def find_place_of_weights(trainer: Trainer) -> str | None:
    """The GPU onto which a process reads the base's weights, from pages of the file that a machine holds only once.

    None on a CPU, and for ZeRO-3, which spreads the weights while the first process reads them.
    """
    if trainer.device == "cpu" or trainer.engine.startswith("zero3"):
        return None
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def _leave_out_shared_memory() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives: that takes a minute and a compiler of C++.

    One process, which is all that DeepSpeed has on a CPU here, communicates with nobody.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _build_arguments(settings: Expert, work: Path, steps: int) -> TrainingArguments:
    recipe, trainer = settings.recipe, settings.trainer
    batch, accumulation = trainer.accumulation(recipe.global_batch)
    if trainer.uses_deepspeed and trainer.device == "cpu":
        _leave_out_shared_memory()
    return build_arguments(
        work,
        steps,
        batch,
        accumulation,
        recipe.save_steps,
        recipe.warmup_ratio,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim="adamw_torch_fused" if "offload" not in trainer.engine else "adamw_torch",
        seed=derive_seed(settings.seed, settings.name, "dropout") % 2**32,
        use_cpu=trainer.device == "cpu" and not trainer.uses_deepspeed,
        bf16=trainer.precision == "bf16",
        fp16=trainer.precision == "fp16",
        gradient_checkpointing=trainer.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if trainer.gradient_checkpointing else None,
        dataloader_num_workers=trainer.workers,
        dataloader_pin_memory=trainer.device != "cpu",
        deepspeed=dict(trainer.deepspeed) if trainer.uses_deepspeed else None,
        ddp_backend="gloo" if trainer.device == "cpu" and trainer.world > 1 else None,
        ddp_find_unused_parameters=False,
    )


class ExpertTrainer(OrderedTrainer):
    """An `OrderedTrainer` with a separate learning rate for modules that are trained whole, such as a projector.

    It also measures its pace.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(self, settings: Expert, model: Any, arguments: Any, rows: Any, material: Any):
        advice = "lower recipe.learning_rate, or check the training samples"
        batching, setup = describe_batching(settings), settings.trainer
        super().__init__(settings.name, model, arguments, rows, material.collate, batching, advice, setup=setup)
        self.settings, self.pace = settings, Pace()
        self.add_callback(self.pace)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        measured = self.pace.measure(self.state, self.args.device) if "loss" in logs else {}
        super().log({**logs, **measured}, start_time)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """An optimizer with two groups of parameters, sorted by name: LoRA, and modules that are trained whole."""
        if self.optimizer is None:
            recipe = self.settings.recipe
            named = sorted((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)
            whole = recipe.projector_learning_rate or recipe.learning_rate
            groups: list[dict[str, Any]] = [
                {"params": [weight for name, weight in named if "modules_to_save" not in name]},
                {"params": [weight for name, weight in named if "modules_to_save" in name], "lr": whole},
            ]
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            options["weight_decay"] = recipe.weight_decay
            self.optimizer = kind([group for group in groups if group["params"]], **options)
        return self.optimizer


class ConversationTrainer(ExpertTrainer):
    """The trainer of a LLaVA; it counts tokens, and accepts batches without any picture."""

    def __init__(self, settings: Expert, model: Any, arguments: Any, rows: Any, material: Material):
        super().__init__(settings, model, arguments, rows, material)
        self.args.include_num_input_tokens_seen = "non_padding"

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = {**inputs, **keep_answers(inputs["labels"])}
        base = self.accelerator.unwrap_model(self.model).get_base_model()
        with contextlib.nullcontext() if "pixel_values" in inputs else through_projector(base):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


@contextlib.contextmanager
def through_projector(model: LlavaForConditionalGeneration) -> Iterator[None]:
    """Add to the language model's input, where pictures would enter, a zero that a blank picture gives.

    So every process has a gradient for the projector even in batches of text, and computes in the same order as those
    with pictures: ZeRO-2 adds up gradients, and ZeRO-3 gathers weights, in the order in which they come.
    """

    def add(_: Any, arguments: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        embeddings, side = options["inputs_embeds"], model.config.vision_config.image_size
        blank = torch.zeros(1, 3, side, side, dtype=model.dtype, device=embeddings.device)
        images = model.get_image_features(blank).pooler_output
        zero = 0.0 * sum(features.sum() for features in images)
        return arguments, {**options, "inputs_embeds": embeddings + zero.to(embeddings.dtype)}

    handle = model.model.language_model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _count(weight: torch.Tensor) -> int:
    """The numbers of a weight, also of one that ZeRO-3 has partitioned."""
    return getattr(weight, "ds_numel", weight.numel())


def keep_answers(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Arguments with which a LLaVA computes logits only where some row of the batch has a token to learn.

    The loss is the same. Logits of whole sequences would take most of the memory with a large vocabulary, and a fifth
    of the time of a small model.
    """
    following = labels[:, 1:]
    columns = (following != IGNORE).any(dim=0).nonzero().squeeze(1)
    return {"logits_to_keep": columns, "shift_labels": following[:, columns]}


def _save(trainer: ExpertTrainer, folder: Path, work: Path, record: dict, parts: ModelParts) -> None:
    """Write the adapter and the losses, then the record, and remove the checkpoints."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    with _gathered(trainer, model):
        if trainer.is_world_process_zero():
            save_adapter(model, folder, parts)
    if trainer.is_world_process_zero():
        os.replace(work / LOSSES, folder / LOSSES)
        finish_training(folder, work, record)


def _gathered(trainer: ExpertTrainer, model: torch.nn.Module) -> contextlib.AbstractContextManager:
    """Context manager: every trained tensor is whole, while ZeRO-3 otherwise keeps it in parts."""
    settings = trainer.settings.trainer
    if not (settings.uses_deepspeed and settings.engine.startswith("zero3")):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([weight for weight in model.parameters() if weight.requires_grad])


LLAVA_TRAINING = Training(read_conversations, load_with_adapter, ConversationTrainer, LLAVA)
