"""Stage `train`: one expert, or the multi-task model, by the Trainer of transformers and PEFT's LoRA.

The rows are put into the order of the whole run beforehand, so the Trainer sees one pass over them; going on from a
checkpoint skips the rows that were seen, restores optimizer and random state, and gives the same bytes as a run that
was never interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from tqdm import tqdm
from transformers import (
    LlavaForConditionalGeneration,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers import Trainer as HuggingFaceTrainer

from llava_ext.adapters import add_adapter, digest_of_a, save_adapter
from llava_ext.backend import fast_matmul, quiet_libraries
from llava_ext.checkpoints import mark_complete, newest_complete, pickles_in, remove_others
from llava_ext.data import Collator, Rows, load_reader, read_rows, seed_of, training_order
from llava_ext.settings import Expert
from robustmerge.runs import Address, UserError, run_stage

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def train_expert(
    address: Address,
    settings: Expert,
    base: Path,
    data: Mapping[str, Path],
    say: Callable[[str], None] = print,
) -> Path:
    """Train one adapter on the training samples of `data` (task -> its folder) and save it at `address`.

    Under torchrun every process calls this; only the first takes the lock and writes.
    Raises UserError if the loss is no number, or if a task has no samples.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        _train(address.path, settings, base, data, lambda _: None)
        return address.path
    return run_stage(address, lambda folder: _train(folder, settings, base, data, say), say)


def _train(
    folder: Path, settings: Expert, base: Path, data: Mapping[str, Path], say: Callable[[str], None]
) -> dict[str, Any]:
    quiet_libraries()
    work = folder / "unfinished"
    work.mkdir(parents=True, exist_ok=True)
    recipe, name = settings.recipe, settings.name
    reader = load_reader(base, settings.template)
    rows = read_rows(reader, {task: data[task] for task in settings.tasks}, settings.prompts, recipe.max_length)
    steps = count_steps(settings, len(rows))
    order = training_order(len(rows), recipe.global_batch, steps, seed_of(settings.seed, name))
    arguments = _arguments(settings, work, steps)  # before the model: ZeRO-3 partitions it while it is loaded
    model = _load(settings, base)
    first_a = digest_of_a(model)
    trainer = ExpertTrainer(
        settings,
        model,
        arguments,
        Rows(rows, order),
        Collator(reader),
        callbacks=[Journal(settings, work, steps, name)],
    )
    checkpoint = newest_complete(work, layout_of(settings))
    if trainer.is_world_process_zero():
        remove_others(work, checkpoint)
        if checkpoint is not None:
            say(f"{name}: going on from {checkpoint.name} of {steps} steps")
    started = time.perf_counter()
    with fast_matmul() if settings.trainer.device == "cpu" else contextlib.nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    _save(trainer, folder, work)
    return {
        "steps": steps,
        "samples": len(order),
        "tokens": sum(len(rows[index].ids) for index in order),
        "training_seconds": round(seconds, 2),
        "first_a_sha256": first_a,
        "trainable_parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "trainer": {"engine": settings.trainer.engine, "processes": settings.trainer.processes},
    }


def count_steps(settings: Expert, rows: int) -> int:
    """Optimizer steps of a run: whole batches of an epoch times the epochs, or `max_steps` a task."""
    recipe = settings.recipe
    if recipe.max_steps is not None:
        return recipe.max_steps * len(settings.tasks)
    return max(1, int(max(1, rows // recipe.global_batch) * recipe.epochs))


def layout_of(settings: Expert) -> dict[str, Any]:
    """What two runs must share for the one to go on from a checkpoint of the other."""
    trainer = settings.trainer
    batch, accumulation = trainer.accumulation(settings.recipe.global_batch)
    return {"engine": trainer.engine, "processes": trainer.processes, "batch": batch, "accumulation": accumulation}


def _load(settings: Expert, base: Path) -> torch.nn.Module:
    model = LlavaForConditionalGeneration.from_pretrained(
        base,
        dtype=DTYPES[settings.trainer.precision],
        attn_implementation="eager" if settings.trainer.device == "cpu" else "sdpa",
    )
    model.config.use_cache = False
    adapted = add_adapter(model, settings.peft, Path(base).name, settings.seed, settings.name)
    if settings.trainer.gradient_checkpointing:
        adapted.enable_input_require_grads()
    return adapted


def _arguments(settings: Expert, work: Path, steps: int) -> TrainingArguments:
    recipe, trainer = settings.recipe, settings.trainer
    batch, accumulation = trainer.accumulation(recipe.global_batch)
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=round(steps * recipe.warmup_ratio),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim="adamw_torch_fused" if "offload" not in trainer.engine else "adamw_torch",
        save_strategy="steps" if recipe.save_steps else "no",
        save_steps=recipe.save_steps or 1,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        seed=seed_of(settings.seed, settings.name, "dropout") % 2**32,
        use_cpu=trainer.device == "cpu",
        bf16=trainer.precision == "bf16",
        fp16=trainer.precision == "fp16",
        gradient_checkpointing=trainer.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if trainer.gradient_checkpointing else None,
        dataloader_num_workers=trainer.workers,
        dataloader_pin_memory=trainer.device != "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        deepspeed=dict(trainer.deepspeed) or None,
        ddp_backend="gloo" if trainer.device == "cpu" and trainer.processes > 1 else None,
        ddp_find_unused_parameters=False,
    )


class ExpertTrainer(HuggingFaceTrainer):
    """The Trainer with our order of rows, a learning rate for the projector, and no patience for a loss of NaN."""

    def __init__(self, settings: Expert, model, arguments, rows, collate, callbacks):
        super().__init__(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        self.settings = settings

    def _get_train_sampler(self, train_dataset=None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Two groups in the order of names: LoRA, and the modules that are trained whole."""
        if self.optimizer is None:
            recipe = self.settings.recipe
            named = sorted((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)
            whole = recipe.projector_learning_rate or recipe.learning_rate
            groups = [
                {"params": [weight for name, weight in named if "modules_to_save" not in name]},
                {"params": [weight for name, weight in named if "modules_to_save" in name], "lr": whole},
            ]
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            options["weight_decay"] = recipe.weight_decay
            self.optimizer = kind([group for group in groups if group["params"]], **options)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if "pixel_values" not in inputs:
            loss = loss + self._nothing_seen()
        if not torch.isfinite(loss.detach()):
            raise UserError(
                f"{self.settings.name}: the loss is {loss.item()} at step {self.state.global_step + 1}; lower "
                f"recipe.learning_rate, or look at the training samples"
            )
        return (loss, outputs) if return_outputs else loss

    def _nothing_seen(self) -> torch.Tensor:
        """Zero, through the projector: so every process has a gradient for it, in batches of text alone too."""
        model = self.accelerator.unwrap_model(self.model).get_base_model()
        side = model.config.vision_config.image_size
        blank = torch.zeros(1, 3, side, side, dtype=model.dtype, device=self.args.device)
        return 0.0 * sum(features.sum() for features in model.get_image_features(blank).pooler_output).float()


class Journal(TrainerCallback):
    """Writes losses.jsonl and a progress bar, and marks checkpoints as complete."""

    def __init__(self, settings: Expert, work: Path, steps: int, name: str):
        self.settings, self.work, self.steps, self.name = settings, work, steps, name
        self.bar: tqdm | None = None
        self.file = None

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.file = (self.work / "losses.jsonl").open("w", encoding="utf-8")
        for entry in state.log_history:  # of the steps before the checkpoint that we go on from
            self._write(entry)
        self.bar = tqdm(total=self.steps, initial=state.global_step, desc=self.name, mininterval=1.0)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.file is not None and state.log_history:
            self._write(state.log_history[-1])

    def on_save(self, args, state, control, **kwargs):
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process has written its part
        if state.is_world_process_zero:
            mark_complete(self.work / f"checkpoint-{state.global_step}", layout_of(self.settings))

    def on_train_end(self, args, state, control, **kwargs):
        if self.file is not None:
            self.file.close()
            self.bar.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        if "loss" in entry:
            line = {"step": entry["step"], "loss": round(entry["loss"], 6), "learning_rate": entry["learning_rate"]}
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()


def _save(trainer: ExpertTrainer, folder: Path, work: Path) -> None:
    """Write the adapter, keep the losses, remove the checkpoints. Raises UserError if a pickle is left."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    with _gathered(trainer, model):
        if trainer.is_world_process_zero():
            save_adapter(model, folder)
    if not trainer.is_world_process_zero():
        return
    os.replace(work / "losses.jsonl", folder / "losses.jsonl")
    remove_others(work, None)
    shutil.rmtree(work)
    if left := pickles_in(folder):
        raise UserError(f"an expert's folder must hold no pickle, found {left[0]}")


def _gathered(trainer: ExpertTrainer, model: torch.nn.Module) -> contextlib.AbstractContextManager:
    """Under ZeRO-3, all trained tensors in one piece; otherwise nothing to do."""
    if not trainer.settings.trainer.engine.startswith("zero3"):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([weight for weight in model.parameters() if weight.requires_grad])
