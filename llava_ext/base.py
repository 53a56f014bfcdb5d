"""Stage `base`: a small LLaVA trained from nothing, first to see, then to talk.

Part `see` trains the vision tower alone on attribute heads (colour, shape, place, ...) that read its patch features
with one attention query each, as a language model could. Part `talk` freezes it and trains the projector and the
language model on dialogues; the loss is over answers only. Each part goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from llava_ext.backend import fast_matmul, quiet_libraries
from llava_ext.checkpoints import finish, read_finished, remove_work
from llava_ext.data import Collator, Reader, Row, Rows, group_by_length, seed_of, training_order
from llava_ext.parts import Collate, Heads, Seer, Speaker, measure_answers, measure_heads
from llava_ext.pixels import PixelReader, open_picture
from llava_ext.settings import BaseModel, Part, Trainer
from llava_ext.tiny import build_model, build_processor, save_base
from llava_ext.tokenizer import build_tokenizer
from llava_ext.training import LOSSES, OrderedTrainer, build_arguments
from robustmerge.runs import Address, run_stage

MICRO_ROWS = 8  # dialogues at a time: attention is kept whole for the backward pass, and small tensors stay in cache


def train_base(address: Address, settings: BaseModel, corpus: Path, say: Callable[[str], None] = print) -> Path:
    """Train the base on `corpus` (folders vision/ and instruct/, tokenizer_corpus.txt) and save it at `address`.

    The record holds the accuracy on rows kept back: of every head, and of every skill of the dialogues (see
    `parts.measure_answers`).
    """
    return run_stage(address, lambda folder: _train(folder, settings, corpus, say), say)


def _train(folder: Path, settings: BaseModel, corpus: Path, say: Callable[[str], None]) -> dict:
    datasets.disable_progress_bars()
    quiet_libraries()
    work = folder / "unfinished"
    if (record := read_finished(folder)) is not None:
        remove_work(work)
        return record
    lines = (corpus / "tokenizer_corpus.txt").read_text(encoding="utf-8").split("\n")
    tokenizer = build_tokenizer(lines, settings.vocabulary)
    model, processor = build_model(settings, tokenizer), build_processor(settings, tokenizer)
    config = model.config
    reader = Reader(
        tokenizer,
        PixelReader(processor.image_processor),
        (config.image_token_id,) * config.image_seq_length,
        settings.template,
    )
    with fast_matmul(), eager_attention(model):
        seen = train_to_see(model, reader.pixels, settings, corpus / "vision", work / "see", say)
        talked = train_to_talk(model, reader, settings, corpus / "instruct", work / "talk", say)
    save_base(folder, model, processor)
    for part in ("see", "talk"):
        os.replace(work / part / LOSSES, folder / f"losses_{part}.jsonl")
    size = sum(weight.numel() for weight in model.parameters())
    return finish(folder, work, {"heads": seen, "skills": talked, "parameters": size, "vocabulary": len(tokenizer)})


def split(rows: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """(training rows, rows kept back), drawn by the seed."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed_of(seed, "held_out"))).tolist()
    kept = max(1, round(rows * held_out))
    return sorted(order[kept:]), sorted(order[:kept])


def train_to_see(
    model: LlavaForConditionalGeneration,
    pixels: PixelReader,
    settings: BaseModel,
    corpus: Path,
    work: Path,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Part 1: the vision tower under attribute heads. Returns the accuracy of each head on the rows kept back."""
    sizes: dict[str, int] = json.loads((corpus.parent / "heads.json").read_text())
    table = datasets.load_from_disk(str(corpus))
    targets = torch.stack([torch.tensor(table[name][:]) for name in sizes], dim=1)  # [rows, heads], -1: none
    rows = list(zip(table["image"][:], targets, strict=True))
    train, kept = split(len(rows), settings.held_out, settings.seed)
    seer = Seer(model, Heads(settings.vision.width, list(sizes.values()), seed_of(settings.seed, "heads")))

    def collate(drawn: Sequence[tuple[bytes, Tensor]]) -> dict[str, Tensor]:
        raw = pixels.raw([open_picture(image) for image, _ in drawn])
        return {"pixel_values": pixels.normalise(raw), "targets": torch.stack([wanted for _, wanted in drawn])}

    _fit("part 1/2 see", seer, rows, train, collate, settings, settings.see, work, say)
    seer.tower.requires_grad_(False).eval()
    accuracies = dict(zip(sizes, measure_heads(seer, [rows[index] for index in kept], collate), strict=True))
    say("sees, on pictures kept back: " + ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items()))
    return accuracies


def train_to_talk(
    model: LlavaForConditionalGeneration,
    reader: Reader,
    settings: BaseModel,
    corpus: Path,
    work: Path,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Part 2: projector and language model on dialogues, vision frozen. Returns the accuracy of each skill."""
    table = datasets.load_from_disk(str(corpus))
    encoded = [reader.encode([tuple(turn) for turn in turns], True) for turns in table["turns"][:]]
    rows = [Row(found.ids, found.labels, image) for found, image in zip(encoded, table["image"][:], strict=True)]
    train, kept = split(len(rows), settings.held_out, settings.seed)
    speaker, collate = Speaker(model), Collator(reader)
    _fit("part 2/2 talk", speaker, rows, train, collate, settings, settings.talk, work, say, MICRO_ROWS)
    model.eval()
    accuracies = measure_answers(speaker, [rows[index] for index in kept], _skills(table, kept), collate)
    say("answers, in dialogues kept back: " + ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items()))
    return accuracies


def _fit(
    name: str,
    module: nn.Module,
    rows: Sequence,
    train: Sequence[int],
    collate: Collate,
    settings: BaseModel,
    part: Part,
    work: Path,
    say: Callable[[str], None],
    most: int | None = None,
) -> None:
    """Train `module` on the rows `train` by the recipe of `part`.

    most: rows at a time; rows of like length then share a batch. Raises UserError when the loss is no number.
    """
    batch = min(part.batch, len(train))
    steps = part.max_steps or max(1, int(len(train) // batch * part.epochs))
    seed = seed_of(settings.seed, work.name)
    order = [train[index] for index in training_order(len(train), batch, steps, seed)]
    if most is not None:
        order = group_by_length(order, batch, [len(row.ids) for row in rows], seed)
    micro, accumulation = Trainer(per_device_batch=most).accumulation(batch)
    arguments = build_arguments(
        work,
        steps,
        micro,
        accumulation,
        settings.save_steps,
        part.warmup_ratio,
        learning_rate=part.learning_rate,
        lr_scheduler_type="cosine",
        weight_decay=part.weight_decay,
        adam_beta2=0.99,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    layout, advice = {"batch": micro, "accumulation": accumulation}, f"lower model.base.{work.name}.learning_rate"
    OrderedTrainer(name, module, arguments, Rows(rows, order), collate, layout, advice).go_on(say)


@contextmanager
def eager_attention(model: LlavaForConditionalGeneration) -> Iterator[None]:
    """Attention as plain products: with `fast_matmul`, twice as fast as the fused CPU kernel."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _skills(table: datasets.Dataset, kept: Sequence[int]) -> list[list[str | None]] | None:
    """The skill that each turn of the kept dialogues asks for, None for turns without a tag."""
    if "skills" not in table.column_names:
        return None
    talks = table[list(kept)]
    return [
        [skill if tagged else None for skill, tagged in zip(*talk, strict=True)]
        for talk in zip(talks["skills"], talks["tagged"], strict=True)
    ]
