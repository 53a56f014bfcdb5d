"""The training of experts: LoRA on the image encoder, cross-entropy over the cosines with the task's fixed head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from clip_ext.heads import build_head, open_tokenizer, read_classes
from clip_ext.model import CLIP, Pictures, load_clip, take_image_encoder
from llava_ext.adapters import add_adapter
from llava_ext.backend import DTYPES
from llava_ext.pixels import read_training_picture
from llava_ext.settings import Expert
from llava_ext.train import ExpertTrainer, Material, Training, count_steps
from robustmerge.stage.records import read_examples
from robustmerge.stage.settings import UserError


@dataclass(frozen=True)
class Row:
    """A training row. task: the number of its head; label: of a row of the head; name: in messages.

    picture: as a path, or read already.
    """

    picture: Path | Image.Image
    task: int
    label: int
    name: str


@dataclass(frozen=True)
class LabelledPictures(Material):
    """Training pictures of tasks. heads: of the tasks, each [classes, width], times the logit scale."""

    heads: tuple[Tensor, ...] = field(default=(), kw_only=True)


def read_labelled(settings: Expert, base: Path, data: Mapping[str, Path]) -> LabelledPictures:
    """The training pictures of all tasks, tasks sorted by name. Raises UserError for a task without one."""
    tasks = sorted(settings.tasks)
    rows = [_read_task(task, data[task], number) for number, task in enumerate(tasks)]
    clip, tokenizer = load_clip(base, torch.float32).eval(), open_tokenizer(base)
    heads = [build_head(clip, tokenizer, settings.prompts[task], read_classes(data[task])) for task in tasks]
    steps = count_steps(settings, [len(of_task) for of_task in rows])
    collate = partial(_collate, Pictures.open(base))
    return LabelledPictures([row for of_task in rows for row in of_task], steps, collate, heads=tuple(heads))


def _read_task(task: str, folder: Path, number: int) -> list[Row]:
    places = {name: index for index, name in enumerate(read_classes(folder))}
    file = folder / "train.jsonl"
    examples = read_examples(file)
    if not examples:
        raise UserError(f"no training samples in {file}")
    for example in examples:
        if example.image is None or example.answer not in places:
            wanted = "a picture and one of the task's classes as its answer"
            raise UserError(f"{file}: question {example.question_id} must have {wanted}, got {example.answer!r}")
    return [
        Row(folder / str(one.image), number, places[one.answer], f"{task}: question {one.question_id}")
        for one in examples
    ]


def _collate(pictures: Pictures, rows: Sequence[Row]) -> dict[str, Tensor]:
    pixels = pictures.resize([read_training_picture(row.picture, row.name) for row in rows])
    return {
        "pixel_values": pictures.normalise(pixels),
        "tasks": torch.tensor([row.task for row in rows]),
        "labels": torch.tensor([row.label for row in rows]),
    }


def load_with_adapter(settings: Expert, base: Path) -> PeftModel:
    """The image encoder with the untrained adapter, in the precision of training."""
    encoder = take_image_encoder(load_clip(base, DTYPES[settings.trainer.precision], settings.trainer.kernel))
    float32, name = not settings.trainer.uses_deepspeed, settings.base_name or base.name
    adapted = add_adapter(encoder, settings.peft, name, settings.seed, settings.name, float32, CLIP)
    if settings.trainer.gradient_checkpointing:
        adapted.enable_input_require_grads()
    return adapted


class ClassTrainer(ExpertTrainer):
    """The trainer of an image encoder: each picture is compared with the classes of its own task."""

    def __init__(self, settings: Expert, model: Any, arguments: Any, rows: Any, material: LabelledPictures):
        super().__init__(settings, model, arguments, rows, material)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, whatever the encoder's signature
        self.heads = material.heads

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(pixel_values=inputs["pixel_values"])
        embeddings = normalize(outputs.image_embeds.float(), dim=-1)
        losses = []
        for number, head in enumerate(self.heads):
            if (rows := inputs["tasks"] == number).any():
                logits = embeddings[rows] @ head.to(embeddings.device).T
                losses.append(cross_entropy(logits, inputs["labels"][rows], reduction="sum"))
        loss = torch.stack(losses).sum() / len(embeddings)
        return (loss, outputs) if return_outputs else loss


CLIP_TRAINING = Training(read_labelled, load_with_adapter, ClassTrainer, CLIP)
