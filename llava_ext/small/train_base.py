"""The base stage: a small LLaVA trained from scratch, first to see, then to talk.

Part `see` trains the vision tower alone under attribute heads (colour, shape, place, ...) that read its patch features
with one attention query each, as a language model could. Part `talk` freezes it and trains the projector and the
language model on dialogues; the loss is over answers only. Each part resumes from its last checkpoint. Both are
measured on held-out pictures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from llava_ext.backend import fast_matmul, quiet_libraries
from llava_ext.conversation import render
from llava_ext.data import Collator, Reader, Row, Rows, derive_seed, group_by_length, training_order
from llava_ext.pixels import PixelReader, read_training_picture
from llava_ext.settings import BaseModel, Part, Trainer
from llava_ext.small.build import build_model, build_processor, save_base
from llava_ext.small.networks import (
    AnswerModel,
    Collate,
    Heads,
    TowerClassifier,
    measure_answers,
    measure_heads,
    read_features,
)
from llava_ext.small.probe import PICTURES, exact_products, probe
from llava_ext.small.tokenizer import build_tokenizer
from llava_ext.trainer import (
    LOSSES,
    OrderedTrainer,
    build_arguments,
    finish_training,
    read_training_record,
    remove_work,
)
from robustmerge.stage.address import Address, run_stage
from robustmerge.stage.files import read_json

MICRO_BATCH = 8  # dialogues: attention is kept whole for the backward pass, and small tensors stay in the cache


@dataclass(frozen=True)
class PartRun:
    """One part of the base's training. number: 1 or 2; work: folder of its checkpoints, named after the part."""

    number: int
    part: Part
    seed: int
    save_steps: int
    work: Path
    say: Callable[[str], None]

    def fit(
        self, module: nn.Module, rows: Sequence, train: Sequence[int], collate: Collate, micro_batch: int | None = None
    ) -> None:
        """Train `module` on the rows at `train`.

        micro_batch: rows at a time; rows of similar length then share a batch.
        Raises UserError if the loss is not finite.
        """
        part = self.part
        batch = min(part.batch, len(train))
        steps = part.max_steps or max(1, int(len(train) // batch * part.epochs))
        order = [train[index] for index in training_order(len(train), batch, steps, self.seed)]
        if micro_batch is not None:
            order = group_by_length(order, batch, [len(row.ids) for row in rows], self.seed)
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
            dataloader_pin_memory=False,
        )
        batching = {"batch": micro, "accumulation": accumulation}
        advice = f"lower model.base.{self.work.name}.learning_rate"
        trainer = OrderedTrainer(
            self.work.name, module, arguments, Rows(rows, order), collate, batching, advice, (self.number, 2)
        )
        trainer.train_or_resume(self.say)


def train_base(address: Address, settings: BaseModel, corpus: Path, say: Callable[[str], None] = print) -> Path:
    """Train the base on `corpus` (vision/, instruct/, held_out/, tokenizer_corpus.txt) and save it at `address`.

    The record holds accuracies on held-out pictures: `heads`, of the attribute heads that trained the tower; `probe`,
    of linear probes on the frozen features that the projector reads; `skills`, of the answers to held_out/.
    """
    return run_stage(address, lambda folder: _train(folder, settings, corpus, say), say)


def _train(folder: Path, settings: BaseModel, corpus: Path, say: Callable[[str], None]) -> dict:
    datasets.disable_progress_bars()
    quiet_libraries()
    work = folder / "unfinished"
    if (record := read_training_record(folder)) is not None:
        remove_work(work)
        return record
    lines = (corpus / "tokenizer_corpus.txt").read_text(encoding="utf-8").split("\n")
    template = render(settings.template, [("", "")], image=False)  # its words become one token each, too
    tokenizer = build_tokenizer([*lines, template], settings.vocabulary)
    model, processor = build_model(settings, tokenizer), build_processor(settings, tokenizer)
    config = model.config
    pixels = PixelReader(processor.image_processor)  # pictures have the model's size: nothing is padded or cropped
    image_ids = (config.image_token_id,) * config.image_seq_length
    reader = Reader(tokenizer, pixels, pixels, image_ids, settings.template)
    see, talk = (
        PartRun(number, part, derive_seed(settings.seed, name), settings.save_steps, work / name, say)
        for number, name, part in ((1, "see", settings.see), (2, "talk", settings.talk))
    )
    with fast_matmul(), eager_attention(model):
        vision = train_to_see(model, reader.pixels, settings, corpus, see)
        skills = train_to_talk(model, reader, corpus, talk)
    save_base(folder, model, processor)
    for name in ("see", "talk"):
        os.replace(work / name / LOSSES, folder / f"losses_{name}.jsonl")
    size = sum(weight.numel() for weight in model.parameters())
    record = {**vision, "skills": skills, "parameters": size, "vocabulary": len(tokenizer)}
    return finish_training(folder, work, record)


def split(pictures: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Split pictures into training and held-out ones, by the seed; returns the indices of both."""
    order = torch.randperm(pictures, generator=torch.Generator().manual_seed(derive_seed(seed, "held_out"))).tolist()
    count = max(1, round(pictures * held_out))
    return sorted(order[count:]), sorted(order[:count])


def train_to_see(
    model: LlavaForConditionalGeneration, pixels: PixelReader, settings: BaseModel, corpus: Path, run: PartRun
) -> dict[str, dict[str, float]]:
    """Part 1: train the vision tower under attribute heads on vision/.

    Returns accuracies on held-out pictures: `heads`, of each attribute head; `probe`, of a linear probe in its place.
    """
    sizes: dict[str, int] = read_json(corpus / "heads.json", "the sizes of the attribute heads")
    table = datasets.load_from_disk(str(corpus / "vision"))
    targets = torch.stack([torch.tensor(table[name][:]) for name in sizes], dim=1)  # [rows, heads], -1: none
    rows = list(zip(table["image"][:], targets, strict=True))
    train, held_out_indices = split(len(rows), settings.held_out, settings.seed)
    classifier = TowerClassifier(
        model, Heads(settings.vision.width, list(sizes.values()), derive_seed(settings.seed, "heads"))
    )

    def collate(batch: Sequence[tuple[bytes, Tensor]]) -> dict[str, Tensor]:
        raw = pixels.raw([read_training_picture(image) for image, _ in batch])
        return {"pixel_values": pixels.normalise(raw), "targets": torch.stack([target for _, target in batch])}

    run.fit(classifier, rows, train, collate)
    classifier.tower.requires_grad_(False).eval()
    held_out = [rows[index] for index in held_out_indices]
    heads = measure_heads(classifier, held_out, collate, sizes)
    run.say(f"attribute heads, accuracy on {len(held_out):,} held-out pictures: {_format_accuracies(heads)}")
    with exact_products():
        features = read_features(classifier, [rows[index] for index in train[:PICTURES]], collate)
        linear = probe(features, read_features(classifier, held_out, collate), sizes)
    run.say(f"linear probes on the frozen features, accuracy on the same: {_format_accuracies(linear)}")
    return {"heads": heads, "probe": linear}


def train_to_talk(model: LlavaForConditionalGeneration, reader: Reader, corpus: Path, run: PartRun) -> dict[str, float]:
    """Part 2: train projector and language model on instruct/, vision frozen. Returns accuracies on held_out/."""
    rows = _encode_dialogues(datasets.load_from_disk(str(corpus / "instruct")), reader)
    answer_model, collate = AnswerModel(model), Collator(reader)
    run.fit(answer_model, rows, range(len(rows)), collate, MICRO_BATCH)
    model.eval()
    held_out = datasets.load_from_disk(str(corpus / "held_out"))
    skills = measure_answers(answer_model, _encode_dialogues(held_out, reader), held_out["skills"][:], collate)
    run.say(f"answers, accuracy on {len(held_out):,} held-out dialogues: {_format_accuracies(skills)}")
    return skills


def _encode_dialogues(table: datasets.Dataset, reader: Reader) -> list[Row]:
    encoded = [reader.encode([tuple(turn) for turn in turns], True) for turns in table["turns"][:]]
    return [Row(one.ids, one.labels, image) for one, image in zip(encoded, table["image"][:], strict=True)]


def _format_accuracies(accuracies: Mapping[str, float]) -> str:
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
