"""Training data: conversations and pictures as model inputs, their order over the whole run, and batches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from llava_ext.conversation import IGNORE, Encoded, build_segments, check_template, encode
from llava_ext.model import count_image_tokens, open_config, open_tokenizer, refusing_faults
from llava_ext.pixels import PixelReader, open_image_processor, read_training_picture
from llava_ext.settings import Recipe
from llava_ext.spelling import count_pieces
from robustmerge.stage.prompts import render
from robustmerge.stage.records import Example, read_examples
from robustmerge.stage.settings import UserError


@dataclass(frozen=True)
class Reader:
    """Converts texts and pictures to a model's input, by tokenizer, pixel readers and a picture's placeholder ids.

    pixels: for pictures padded to a square with the mean colour; cropped: for answers only, for pictures cut to their
    centre, or resized whole to a square if the model's processor crops nothing.
    """

    tokenizer: PreTrainedTokenizerBase
    pixels: PixelReader
    cropped: PixelReader
    image_ids: tuple[int, ...]
    template: str

    def encode(self, turns: Sequence[tuple[str, str | None]], image: bool) -> Encoded:
        """Token ids and labels of a conversation in this model's template."""
        return encode(self.tokenizer, build_segments(self.template, turns, image), self.image_ids)


def load_reader(base: Path | str, template: str) -> Reader:
    """Load the reader of a base model's folder; whether pictures are padded or cropped does not depend on the folder.

    Raises UserError if the folder is no complete LLaVA, or its parts do not fit each other or the template.
    """
    config = open_config(base)
    with refusing_faults(f"the image processor of {base} cannot be loaded"):
        pixels, cropped = (PixelReader(open_image_processor(base, pads)) for pads in (True, False))
    side = config.vision_config.image_size
    if pixels.size != (side, side):
        size = f"{pixels.size[0]} x {pixels.size[1]}"
        raise UserError(f"{base}: pictures become {size} pixels (crop_size), the vision tower takes {side} x {side}")
    tokenizer = open_tokenizer(base, config)
    check_template(template, tokenizer, base)
    return Reader(
        tokenizer=tokenizer,
        pixels=pixels,
        cropped=cropped,
        image_ids=(config.image_token_id,) * count_image_tokens(config),
        template=template,
    )


class Shape(NamedTuple):
    """What decides on the batch of a row that is grouped by length. length: in tokens, those of a picture included."""

    has_picture: bool
    length: int


@dataclass(frozen=True)
class Row:
    """A training row: token ids and labels [length] of a conversation.

    picture: as a path, as bytes, or read already; None for none. name: in messages, the task and the question.
    """

    ids: list[int]
    labels: list[int]
    picture: Path | bytes | Image.Image | None = None
    name: str = ""

    @property
    def shape(self) -> Shape:
        return Shape(self.picture is not None, len(self.ids))


class Rows(Dataset):
    """Training rows in the order of the whole run, for a sequential sampler. order: indices of `rows`."""

    def __init__(self, rows: Sequence, order: Sequence[int]):
        self.rows, self.order = rows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        return self.rows[self.order[index]]


@dataclass(frozen=True)
class TaskRows:
    """The training rows of a task. pieces: how many tokens each word of its answers is.

    counts: of rows by what became of them: `trained`, of these `truncated`; `skipped`, as too long; `ignored`, as
    nothing of their answers is left to learn.
    """

    rows: list[Row]
    pieces: Mapping[str, int]
    counts: Mapping[str, int]


def read_rows(reader: Reader, task: str, folder: Path, prompt: str | None, recipe: Recipe) -> TaskRows:
    """The training rows of a task's folder, each question in the prompt, if there is one.

    Raises UserError for a row longer than recipe.max_length if recipe.too_long says so, and if no row is left.
    """
    rows: list[Row] = []
    answers: list[str] = []
    counts = {"truncated": 0, "skipped": 0, "ignored": 0}
    most = recipe.max_length
    for example in read_examples(folder / "train.jsonl"):
        ids, labels = encode_example(reader, example, prompt)
        name, is_too_long = f"{task}: question {example.question_id}", len(ids) > most
        if is_too_long and recipe.too_long == "error":
            choices = "recipe.too_long=truncate cuts such rows, skip leaves them out"
            raise UserError(f"{name} has {len(ids)} tokens, above recipe.max_length {most}; {choices}")
        if is_too_long and recipe.too_long == "skip":
            counts["skipped"] += 1
        elif all(label == IGNORE for label in labels[:most]):
            counts["ignored"] += 1
        else:
            counts["truncated"] += is_too_long
            rows.append(Row(ids[:most], labels[:most], folder / example.image if example.image else None, name))
            answers += [example.answer, *(answer for _, answer in example.turns)]
    counts = {"trained": len(rows), **counts}
    if not rows:
        raise UserError(f"no training samples in {task}; {describe_counts(task, counts, recipe) or 'it has no rows'}")
    return TaskRows(rows, count_pieces(reader.tokenizer, answers), counts)


def encode_example(reader: Reader, example: Example, prompt: str | None) -> Encoded:
    """Token ids and labels of a training example, its question in the prompt if there is one."""
    text = render(prompt, example) if prompt is not None else example.text
    return reader.encode([(text, example.answer), *example.turns], example.image is not None)


def describe_counts(task: str, counts: Mapping[str, int], recipe: Recipe) -> str | None:
    """A line on the rows of a task that are not trained on as they are; None if there are none."""
    limit = f"recipe.max_length {recipe.max_length}"
    words = {
        "truncated": f"cut to {limit}",
        "skipped": f"left out as longer than {limit}",
        "ignored": f"left out as nothing of their answers is within {limit}",
    }
    parts = [f"{counts[key]:,} {text}" for key, text in words.items() if counts[key]]
    total = sum(count for key, count in counts.items() if key != "truncated")
    return f"{task}: of {total:,} rows {', '.join(parts)}" if parts else None


def derive_seed(*parts: object) -> int:
    """A seed below 2^63 from the sha256 of the parts."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") % 2**63


def training_order(rows: int, batch: int, steps: int, seed: int, shapes: Sequence[Shape] = ()) -> list[int]:
    """The order of the rows in `steps` batches: one permutation an epoch, a function of (seed, epoch).

    The rows that do not fill a last batch are left out of their epoch, so that per-device batch, accumulation and
    number of processes change nothing. With fewer rows than a batch, rows are repeated.
    shapes: of the rows, to group them in their epoch (`group_by_shape`).
    """
    order: list[int] = []
    epoch = 0
    while len(order) < steps * batch:
        generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        permutation = torch.randperm(rows, generator=generator).tolist()
        permutation = permutation[: rows // batch * batch] or permutation  # before grouping: the rest is of any shape
        order += group_by_shape(permutation, batch, shapes, generator) if shapes else permutation
        epoch += 1
    return order[: steps * batch]


def group_by_shape(
    permutation: Sequence[int], batch: int, shapes: Sequence[Shape], generator: torch.Generator
) -> list[int]:
    """Reorder an epoch's rows as LLaVA's group_by_modality_length does: separate batches with and without pictures.

    Each is a random one of its kind, sorted by length, so that what a process computes at a time is of similar length.
    Only the last batches, of what is left of both kinds, may mix them.
    """
    batches, left = [], []
    for has_picture in (True, False):
        kind = [row for row in permutation if shapes[row].has_picture == has_picture]
        whole = len(kind) // batch * batch
        batches += [kind[start : start + batch] for start in range(0, whole, batch)]
        left += kind[whole:]
    batches = [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]
    batches += [left[start : start + batch] for start in range(0, len(left), batch)]
    return [row for one in batches for row in sorted(one, key=lambda row: shapes[row].length, reverse=True)]


GROUP = 32  # batches whose rows are sorted by length together


def group_by_length(order: Sequence[int], batch: int, lengths: Sequence[int], seed: int) -> list[int]:
    """Reorder rows so that a batch holds similar lengths, for less padding; the order of batches is shuffled again."""
    span = GROUP * batch
    chunks = [sorted(order[start : start + span], key=lengths.__getitem__) for start in range(0, len(order), span)]
    batches = [rows[start : start + batch] for rows in chunks for start in range(0, len(rows), batch)]
    shuffled = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed % 2**62 + 1)).tolist()
    return [row for index in shuffled for row in batches[index]]


def pad(sequences: Sequence[Sequence[int]], value: int, side: str, multiple: int = 1) -> Tensor:
    """Pad sequences to one tensor, int64 [n, longest], on the `left` or the `right`.

    multiple: the longest length is rounded up to a multiple of it.
    """
    longest = -(-max(len(sequence) for sequence in sequences) // multiple) * multiple
    padded = [
        [*([value] * (longest - len(sequence))), *sequence]
        if side == "left"
        else [*sequence, *([value] * (longest - len(sequence)))]
        for sequence in sequences
    ]
    return torch.tensor(padded, dtype=torch.long)


LENGTHS = 8  # training lengths are multiples of it: each shape costs oneDNN a kernel and its memory


@dataclass(frozen=True)
class Collator:
    """Makes a training batch of rows, padded on the right; some of them may have no picture."""

    reader: Reader

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        batch = {
            "input_ids": pad([row.ids for row in rows], self.reader.tokenizer.pad_token_id, "right", LENGTHS),
            "attention_mask": pad([[1] * len(row.ids) for row in rows], 0, "right", LENGTHS),
            "labels": pad([row.labels for row in rows], IGNORE, "right", LENGTHS),
        }
        pictures = [read_training_picture(row.picture, row.name) for row in rows if row.picture is not None]
        if pictures:
            batch["pixel_values"] = self.reader.pixels(pictures)
        return batch


def encode_prompt(reader: Reader, example: Example) -> list[int]:
    """Encode a prompt for generation as token ids. The text of `example` is the whole prompt."""
    return reader.encode([(example.text, None)], example.image is not None).ids
