"""What the parts of a small base's training share: their runs, their batches, their encoded dialogues."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
from torch import nn
from transformers import LlavaForConditionalGeneration

from llava_ext.backend import quiet_libraries
from llava_ext.data import Reader, Row, Rows, group_by_length, training_order
from llava_ext.settings import Part, Trainer
from llava_ext.small.networks import AnswerModel, Collate, measure_answers
from llava_ext.trainer import (
    OrderedTrainer,
    build_arguments,
    finish_training,
    read_training_record,
    remove_work,
)
from robustmerge.stage.address import UNFINISHED

MICRO_BATCH = 8  # dialogues: attention is kept whole for the backward pass, and small tensors stay in the cache
READ_BATCH = 32  # exercises and single questions, which are short


@dataclass(frozen=True)
class PartRun:
    """One part of a base's training. number: which of how many; work: folder of its checkpoints, named after the part.

    key: of the part's settings, for messages.
    """

    number: tuple[int, int]
    key: str
    part: Part
    seed: int
    save_steps: int
    work: Path
    say: Callable[[str], None]

    def fit(
        self,
        module: nn.Module,
        rows: Sequence,
        train: Sequence[int],
        collate: Collate,
        micro_batch: int | None = None,
        shuffled: bool = True,
    ) -> None:
        """Train `module` on the rows at `train`.

        micro_batch: rows at a time. shuffled: rows of similar length then share a batch, where `micro_batch` is given;
        False to keep the order of the rows, in which fewer steps than an epoch leave gaps.
        Raises UserError if the loss is not finite.
        """
        part = self.part
        batch = min(part.batch, len(train))
        steps = part.max_steps or max(1, int(len(train) // batch * part.epochs))
        if shuffled:
            order = [train[index] for index in training_order(len(train), batch, steps, self.seed)]
            if micro_batch is not None:
                order = group_by_length(order, batch, [len(row.ids) for row in rows], self.seed)
        else:
            order = [train[index * len(train) // (steps * batch)] for index in range(steps * batch)]
        micro, accumulation = Trainer(per_device_batch=micro_batch).accumulation(batch)
        arguments = build_arguments(
            self.work,
            steps,
            micro,
            accumulation,
            self.save_steps,
            part.warmup_ratio,
            learning_rate=part.learning_rate,
            lr_scheduler_type="cosine",
            weight_decay=part.weight_decay,
            adam_beta2=0.99,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            use_cpu=True,
            bf16=part.precision == "bf16",
            dataloader_pin_memory=False,
        )
        batching = {"batch": micro, "accumulation": accumulation}
        advice = f"lower {self.key}.learning_rate"
        trainer = OrderedTrainer(
            self.work.name, module, arguments, Rows(rows, order), collate, batching, advice, self.number
        )
        trainer.train_or_resume(self.say)


def train_in(folder: Path, train: Callable[[Path], dict]) -> dict:
    """Train into a stage's folder, unless a run that was killed right after its end has done so; returns the record.

    train: takes the folder of checkpoints, which is removed at the end, and returns the record.
    """
    datasets.disable_progress_bars()
    quiet_libraries()
    work = folder / UNFINISHED
    if (record := read_training_record(folder)) is not None:
        remove_work(work)
        return record
    return finish_training(folder, work, train(work))


def encode_dialogues(reader: Reader, table: datasets.Dataset) -> list[Row]:
    """The training rows of an Arrow dataset of dialogues."""
    return encode_turns(reader, table["turns"][:], table["image"][:])


def encode_turns(
    reader: Reader, dialogues: Iterable[Sequence[Sequence[str]]], images: Iterable[bytes | None]
) -> list[Row]:
    """Training rows of dialogues, each a list of (question, answer), and their pictures, if any."""
    rows = []
    for turns, image in zip(dialogues, images, strict=True):
        ids, labels = reader.encode([(question, answer) for question, answer in turns], image is not None)
        rows.append(Row(ids, labels, image))
    return rows


def measure_skills(
    answer_model: AnswerModel, reader: Reader, corpus: Path, collate: Collate, say: Callable[[str], None]
) -> dict[str, float]:
    """Accuracy by skill on the dialogues of held_out/."""
    held_out = datasets.load_from_disk(str(corpus / "held_out"))
    skills = measure_answers(answer_model, encode_dialogues(reader, held_out), held_out["skills"][:], collate)
    say(f"answers, accuracy on {len(held_out):,} held-out dialogues: {format_accuracies(skills)}")
    return skills


def format_accuracies(accuracies: Mapping[str, float]) -> str:
    """Accuracies as words: `colour 0.991, shape 0.973`."""
    return ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items())


@contextmanager
def eager_attention(model: LlavaForConditionalGeneration) -> Iterator[None]:
    """Attention by plain matrix products: with `fast_matmul` twice as fast as the fused CPU kernel."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
