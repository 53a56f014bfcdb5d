"""The Trainer of transformers with exact resume: an interrupted run ends with the same bytes as an uninterrupted one.

The rows are put into the order of the whole run beforehand, so the Trainer sees one pass over them. Resuming from a
checkpoint skips the rows before it and restores optimizer and random state. A run of another batching (engine,
processes, batch, accumulation) takes the same rows for each step, but does not end with the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers import Trainer as HuggingFaceTrainer

from llava_ext.backend import fast_matmul
from llava_ext.checkpoints import find_checkpoint, mark_complete, remove_other_checkpoints
from llava_ext.data import Rows
from llava_ext.pace import MEASURED
from llava_ext.settings import LOSSES, TRAINING_RECORD
from llava_ext.settings import Trainer as Setup
from robustmerge.stage.files import read_json, write_atomically
from robustmerge.stage.progress import Bar
from robustmerge.stage.settings import UserError

ERROR = "error"  # the key of a batch that could not be made
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle")


def build_arguments(
    work: Path, steps: int, batch: int, accumulation: int, save_steps: int, warmup_ratio: float, **others: Any
) -> TrainingArguments:
    """Build the Trainer's arguments: those that all runs share, and `others`. save_steps: 0 for no checkpoint."""
    return TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        warmup_steps=round(steps * warmup_ratio),
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 1,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        **others,
    )


class OrderedTrainer(HuggingFaceTrainer):
    """The Trainer of transformers over rows that are already in order; it stops at a loss that is not finite.

    name: of the run, in messages and on its progress bar; batching: what a run must share with this one to end with the
    same bytes; advice: what to do about a loss that is not finite; part: which of how many parts of a longer training
    this is; setup: whose `resume` says from which checkpoints it goes on.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        arguments: TrainingArguments,
        rows: Rows,
        collate: Callable[[Sequence], dict[str, torch.Tensor]],
        batching: Mapping[str, Any],
        advice: str,
        part: tuple[int, int] = (1, 1),
        setup: Setup | None = None,
    ):
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=ErrorAsBatch(collate),
        )
        self.remove_callback(PrinterCallback)
        self.name, self.batching, self.advice, self.part, self.setup = name, batching, advice, part, setup or Setup()

    def train_or_resume(self, say: Callable[[str], None]) -> None:
        """Train to the end, from the newest complete checkpoint if there is one.

        Raises UserError if that is one of another batching and must not be used (`find_checkpoint`), if the loss is not
        finite, or if a picture cannot be read.
        """
        work = Path(self.args.output_dir)
        first = self.is_world_process_zero()
        (checkpoint,) = broadcast_object_list([find_checkpoint(work, self.batching, self.setup) if first else None])
        if first:
            remove_other_checkpoints(work, checkpoint.path if checkpoint else None)
            if checkpoint is not None:
                say(f"{self.name}: going on from {checkpoint.path.name} of {self.args.max_steps} steps")
        self.marker = checkpoint.mark(self.batching) if checkpoint else dict(self.batching)
        self.add_callback(Journal(self.name, self.marker, self.part))
        with fast_matmul() if self.args.device.type == "cpu" else contextlib.nullcontext():
            self.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        return super().get_batch_samples(_raise_errors(epoch_iterator), num_batches, device)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            step = self.state.global_step + 1
            raise UserError(f"{self.name}: the loss is {loss.item()} at step {step}; {self.advice}")
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


@dataclass(frozen=True)
class ErrorAsBatch:
    """Collates batches in a worker of the data loader; returns a UserError in place of the batch that raised it.

    An error raised in a worker would reach the training process only as the text of a traceback.
    """

    collate: Callable[[Sequence], dict[str, torch.Tensor]]

    def __call__(self, rows: Sequence) -> dict[str, Any]:
        try:
            return self.collate(rows)
        except UserError as error:
            return {ERROR: str(error)}


def _raise_errors(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        if ERROR in batch:
            raise UserError(batch[ERROR])
        yield batch


class Journal(TrainerCallback):
    """Writes losses.jsonl, shows a progress bar, and marks checkpoints as complete."""

    def __init__(self, name: str, marker: Mapping[str, Any], part: tuple[int, int]):
        self.name, self.marker, self.part = name, marker, part
        self.bar: Bar | None = None
        self.file: TextIO | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.file = (Path(args.output_dir) / LOSSES).open("w", encoding="utf-8")
        for entry in state.log_history:  # of the steps before the checkpoint
            self._write(entry)
        self.bar = Bar(desc=self.name, part=self.part, total=args.max_steps, initial=state.global_step, mininterval=1.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.file is not None and state.log_history:
            self._write(state.log_history[-1])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process has written its part
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.marker)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for output in (self.file, self.bar):
            if output is not None:
                output.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self.file is not None and "loss" in entry:
            record = {"step": entry["step"], "loss": round(entry["loss"], 6), "learning_rate": entry["learning_rate"]}
            record |= {name: entry[name] for name in MEASURED if name in entry}
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()


def finish_training(folder: Path, work: Path, record: dict) -> dict:
    """Write the record beside the results in `folder`, then remove the checkpoints in `work`. Returns the record.

    Raises UserError if a pickle is among the results.
    """
    if pickles := [path for path in list_pickles(folder) if work not in path.parents]:
        raise UserError(f"a trained model's folder must hold no pickle, but has {pickles[0]}")
    write_atomically(folder / TRAINING_RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    remove_work(work)
    return record


def read_training_record(folder: Path) -> dict | None:
    """Read the record of a finished training, even one killed right after its end; None if there is more to train."""
    file = folder / TRAINING_RECORD
    return read_json(file, "the record of a training") if file.exists() else None


def remove_work(work: Path) -> None:
    """Remove the folder of checkpoints."""
    if work.exists():
        shutil.rmtree(work)


def list_pickles(folder: Path) -> list[Path]:
    """Files under a folder that can only be read by unpickling."""
    return sorted(path for path in folder.rglob("*") if path.suffix in PICKLES)
