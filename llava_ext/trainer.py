"""What every training run here shares: the Trainer of transformers, a journal, and going on exactly.

The rows are put into the order of the whole run beforehand, so the Trainer sees one pass over them; going on from a
checkpoint skips the rows that were seen, restores optimizer and random state, and gives the same bytes as a run that
was never interrupted.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import SequentialSampler
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers import Trainer as HuggingFaceTrainer

from llava_ext.backend import fast_matmul
from llava_ext.data import Rows
from robustmerge.stage.files import write_atomically
from robustmerge.stage.settings import UserError

LOSSES = "losses.jsonl"

MARKER = "complete.json"
RECORD = "training.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle")


def build_arguments(
    work: Path, steps: int, batch: int, accumulation: int, save_steps: int, warmup_ratio: float, **others: Any
) -> TrainingArguments:
    """The Trainer's arguments: ours for what all runs share, and `others`. save_steps: 0 for no checkpoint."""
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
    """The Trainer over rows that are in order already, with no patience for a loss of NaN.

    name: of the run, in messages and on its progress bar; layout: what a run must share to go on from a checkpoint
    of this one; advice: what to do about a loss that is no number.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        arguments: TrainingArguments,
        rows: Rows,
        collate: Callable[[Sequence], dict[str, torch.Tensor]],
        layout: Mapping[str, Any],
        advice: str,
    ):
        journal = Journal(name, layout)
        super().__init__(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[journal])
        self.remove_callback(PrinterCallback)
        self.name, self.layout, self.advice = name, layout, advice

    def go_on(self, say: Callable[[str], None]) -> None:
        """Train to the end, from the newest complete checkpoint of this layout if there is one.

        Raises UserError when the loss is no number, or a picture cannot be read.
        """
        work = Path(self.args.output_dir)
        first = self.is_world_process_zero()
        (checkpoint,) = broadcast_object_list([newest_complete(work, self.layout) if first else None])
        if first:
            if lost := lost_to_layout(work, checkpoint, self.layout):
                say(f"{self.name}: {lost}")
            remove_others(work, checkpoint)
            if checkpoint is not None:
                say(f"{self.name}: going on from {checkpoint.name} of {self.args.max_steps} steps")
        try:
            with fast_matmul() if self.args.device.type == "cpu" else contextlib.nullcontext():
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except UserError as error:  # out of a worker of the data loader, its message is the end of a traceback
            raise UserError(str(error).rpartition(f"{UserError.__module__}.UserError: ")[2].strip()) from error

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            step = self.state.global_step + 1
            raise UserError(f"{self.name}: the loss is {loss.item()} at step {step}; {self.advice}")
        return loss

    def _get_train_sampler(self, train_dataset=None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class Journal(TrainerCallback):
    """Writes losses.jsonl and a progress bar, and marks checkpoints as complete."""

    def __init__(self, name: str, layout: Mapping[str, Any]):
        self.name, self.layout = name, layout
        self.bar: tqdm | None = None
        self.file = None

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.file = (Path(args.output_dir) / LOSSES).open("w", encoding="utf-8")
        for entry in state.log_history:  # of the steps before the checkpoint that we go on from
            self._write(entry)
        self.bar = tqdm(total=args.max_steps, initial=state.global_step, desc=self.name, mininterval=1.0)

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
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.layout)

    def on_train_end(self, args, state, control, **kwargs):
        if self.file is not None:
            self.file.close()
            self.bar.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        if "loss" in entry:
            line = {"step": entry["step"], "loss": round(entry["loss"], 6), "learning_rate": entry["learning_rate"]}
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()


def mark_complete(checkpoint: Path, layout: Mapping[str, object]) -> None:
    """Say that everything in `checkpoint` is written. layout: what a run must share to go on from it."""
    write_atomically(checkpoint / MARKER, json.dumps(dict(layout), sort_keys=True) + "\n")


def newest_complete(folder: Path, layout: Mapping[str, object]) -> Path | None:
    """The complete checkpoint of the highest step that was written by a run of this layout."""
    return max((path for path in _all(folder) if _layout(path) == dict(layout)), key=_step, default=None)


def lost_to_layout(folder: Path, kept: Path | None, layout: Mapping[str, object]) -> str | None:
    """In words, what `remove_others` takes away only because it was written by a run of another layout."""
    further = [path for path in _all(folder) if kept is None or _step(path) > _step(kept)]
    path = max((path for path in further if _layout(path) not in (None, dict(layout))), key=_step, default=None)
    if path is None:
        return None
    found = _layout(path)
    changed = [f"{key} {found.get(key)}, now {value}" for key, value in layout.items() if found.get(key) != value]
    return f"{path.name} cannot be used and is removed: it was written with {'; '.join(changed)}"


def remove_others(folder: Path, kept: Path | None) -> None:
    """Remove every checkpoint but `kept`: cut ones, older ones and those of another layout.

    The marker goes first, so that a removal that is cut short does not leave half a checkpoint that counts.
    """
    for path in _all(folder):
        if path != kept:
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)


def finish(folder: Path, work: Path, record: dict) -> dict:
    """End a training whose results are all in `folder`: write its record there, then remove `work`. Returns the record.

    Raises UserError if a pickle is among the results.
    """
    if left := [path for path in pickles_in(folder) if work not in path.parents]:
        raise UserError(f"a trained model's folder must hold no pickle, found {left[0]}")
    write_atomically(folder / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    remove_work(work)
    return record


def read_finished(folder: Path) -> dict | None:
    """The record of a training that has ended, even if it was killed just then; None if there is more to train."""
    try:
        return json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return None


def remove_work(work: Path) -> None:
    """Remove the folder of checkpoints."""
    if work.exists():
        shutil.rmtree(work)


def pickles_in(folder: Path) -> list[Path]:
    """Files that would have to be unpickled to be read."""
    return sorted(path for path in folder.rglob("*") if path.suffix in PICKLES)


def _all(folder: Path) -> list[Path]:
    found = folder.glob("checkpoint-*") if folder.exists() else ()
    return [path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)]


def _step(path: Path) -> int:
    return int(path.name.rsplit("-", 1)[1])


def _layout(path: Path) -> dict | None:
    try:
        return json.loads((path / MARKER).read_text())
    except (OSError, ValueError):
        return None
