"""The pretrain stage: a small LLaVA trained from scratch to see, to read, to verify and to talk.

Part `see` trains the vision tower alone under attribute heads (colour, shape, place, ...) that read its patch features
with one attention query each, as a language model could. Part `read` trains the language model on exercises without
pictures. The tower is frozen then: part `verify` trains the projector and the language model on yes-or-no questions
about pictures, part `talk` on dialogues. `read` and `verify` follow the order of the corpus, in which the easy comes
first. The loss of the last three is over answers only. Each part resumes from its last checkpoint. Seeing and talking
are measured on held-out pictures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from llava_ext.backend import fast_matmul
from llava_ext.conversation import render
from llava_ext.data import Collator, Reader, derive_seed
from llava_ext.pixels import PixelReader, read_training_picture
from llava_ext.settings import LOSSES, Pretraining
from llava_ext.small.build import build_model, build_processor, save_base
from llava_ext.small.networks import (
    AnswerModel,
    Heads,
    TowerClassifier,
    measure_heads,
    read_features,
)
from llava_ext.small.parts import (
    MICRO_BATCH,
    READ_BATCH,
    PartRun,
    eager_attention,
    encode_dialogues,
    encode_turns,
    format_accuracies,
    measure_skills,
    train_in,
)
from llava_ext.small.probe import PICTURES, exact_products, probe
from llava_ext.small.tokenizer import build_tokenizer
from robustmerge.stage.address import Address, run_stage
from robustmerge.stage.files import read_json


def pretrain(address: Address, settings: Pretraining, corpus: Path, say: Callable[[str], None] = print) -> Path:
    """Train a LLaVA on `corpus` (vision/, instruct/, held_out/, tokenizer_corpus.txt) and save it at `address`.

    The record holds accuracies on held-out pictures: `heads`, of the attribute heads that trained the tower; `probe`,
    of linear probes on the frozen features that the projector reads; `skills`, of the answers to held_out/.
    """

    def work(folder: Path) -> dict:
        return train_in(folder, lambda work: _train(folder, work, settings, corpus, say))

    return run_stage(address, work, say)


def _train(folder: Path, work: Path, settings: Pretraining, corpus: Path, say: Callable[[str], None]) -> dict:
    lines = (corpus / "tokenizer_corpus.txt").read_text(encoding="utf-8").split("\n")
    template = render(settings.template, [("", "")], image=False)  # its words become one token each, too
    tokenizer = build_tokenizer([*lines, template], settings.vocabulary)
    model, processor = build_model(settings, tokenizer), build_processor(settings.vision, tokenizer)
    config = model.config
    pixels = PixelReader(processor.image_processor)  # pictures have the model's size: nothing is padded or cropped
    image_ids = (config.image_token_id,) * config.image_seq_length
    reader = Reader(tokenizer, pixels, pixels, image_ids, settings.template)
    parts = {"see": settings.see, "read": settings.read, "verify": settings.verify, "talk": settings.talk}
    see, read, verify, talk = (
        PartRun(
            (number, len(parts)),
            f"model.base.pretraining.{name}",
            part,
            derive_seed(settings.seed, name),
            settings.save_steps,
            work / name,
            say,
        )
        for number, (name, part) in enumerate(parts.items(), start=1)
    )
    with fast_matmul(), eager_attention(model):
        vision = train_to_see(model, reader.pixels, settings, corpus, see)
        train_to_read(model, reader, corpus, read)
        train_to_verify(model, reader, corpus, verify)
        skills = train_to_talk(model, reader, corpus, talk)
    save_base(folder, model, processor)
    for name in parts:
        os.replace(work / name / LOSSES, folder / f"losses_{name}.jsonl")
    size = sum(weight.numel() for weight in model.parameters())
    return {**vision, "skills": skills, "parameters": size, "vocabulary": len(tokenizer)}


def split(pictures: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Split pictures into training and held-out ones, by the seed; returns the indices of both."""
    order = torch.randperm(pictures, generator=torch.Generator().manual_seed(derive_seed(seed, "held_out"))).tolist()
    count = max(1, round(pictures * held_out))
    return sorted(order[count:]), sorted(order[:count])


def train_to_see(
    model: LlavaForConditionalGeneration, pixels: PixelReader, settings: Pretraining, corpus: Path, run: PartRun
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
    run.say(f"attribute heads, accuracy on {len(held_out):,} held-out pictures: {format_accuracies(heads)}")
    with exact_products():
        features = read_features(classifier, [rows[index] for index in train[:PICTURES]], collate)
        linear = probe(features, read_features(classifier, held_out, collate), sizes)
    run.say(f"linear probes on the frozen features, accuracy on the same: {format_accuracies(linear)}")
    return {"heads": heads, "probe": linear}


def train_to_read(model: LlavaForConditionalGeneration, reader: Reader, corpus: Path, run: PartRun) -> None:
    """Part 2: train the language model on read/, in its order."""
    exercises = datasets.load_from_disk(str(corpus / "read"))["turns"][:]
    rows = encode_turns(reader, exercises, [None] * len(exercises))
    run.fit(AnswerModel(model), rows, range(len(rows)), Collator(reader), READ_BATCH, shuffled=False)


def train_to_verify(model: LlavaForConditionalGeneration, reader: Reader, corpus: Path, run: PartRun) -> None:
    """Part 3: train projector and language model on verify/, in its order, vision frozen."""
    rows = encode_dialogues(reader, datasets.load_from_disk(str(corpus / "verify")))
    run.fit(AnswerModel(model), rows, range(len(rows)), Collator(reader), READ_BATCH, shuffled=False)


def train_to_talk(model: LlavaForConditionalGeneration, reader: Reader, corpus: Path, run: PartRun) -> dict[str, float]:
    """Part 4: train projector and language model on instruct/, vision frozen. Returns accuracies on held_out/."""
    rows = encode_dialogues(reader, datasets.load_from_disk(str(corpus / "instruct")))
    answer_model, collate = AnswerModel(model), Collator(reader)
    run.fit(answer_model, rows, range(len(rows)), collate, MICRO_BATCH)
    model.eval()
    return measure_skills(answer_model, reader, corpus, collate, run.say)
