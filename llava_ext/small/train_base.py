"""Stage `base`: a small LLaVA trained from nothing, first to see, then to talk.

Part `see` trains the vision tower alone on attribute heads (colour, shape, place, ...) that read its patch features
with one attention query each, as a language model could. Part `talk` freezes it and trains the projector and the
language model on dialogues; the loss is over answers only. Each part goes on from its last checkpoint. Both are
measured on pictures that they were not trained on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from llava_ext.backend import fast_matmul, quiet_libraries
from llava_ext.conversation import render
from llava_ext.data import Collator, Reader, Row, Rows, group_by_length, seed_of, training_order
from llava_ext.pixels import PixelReader, open_picture
from llava_ext.settings import BaseModel, Part, Trainer
from llava_ext.small.build import build_model, build_processor, save_base
from llava_ext.small.networks import Collate, Heads, Seer, Speaker, measure_answers, measure_heads, read_features
from llava_ext.small.probe import PICTURES, exact_products, probe
from llava_ext.small.tokenizer import build_tokenizer
from llava_ext.trainer import LOSSES, OrderedTrainer, build_arguments, finish, read_finished, remove_work
from robustmerge.stage.address import Address, run_stage

MICRO_ROWS = 8  # dialogues at a time: attention is kept whole for the backward pass, and small tensors stay in cache


def train_base(address: Address, settings: BaseModel, corpus: Path, say: Callable[[str], None] = print) -> Path:
    """Train the base on `corpus` (vision/, instruct/, held_out/, tokenizer_corpus.txt) and save it at `address`.

    The record holds accuracies on pictures kept back: `heads`, of the attribute heads that trained the tower; `probe`,
    of linear probes on the frozen features that the projector reads; `skills`, of the answers to held_out/.
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
    frame = render(settings.template, [("", "")], image=False)  # its words are one token each too
    tokenizer = build_tokenizer([*lines, frame], settings.vocabulary)
    model, processor = build_model(settings, tokenizer), build_processor(settings, tokenizer)
    config = model.config
    reader = Reader(
        tokenizer,
        PixelReader(processor.image_processor),
        (config.image_token_id,) * config.image_seq_length,
        settings.template,
    )
    with fast_matmul(), eager_attention(model):
        seen = train_to_see(model, reader.pixels, settings, corpus, work / "see", say)
        talked = train_to_talk(model, reader, settings, corpus, work / "talk", say)
    save_base(folder, model, processor)
    for part in ("see", "talk"):
        os.replace(work / part / LOSSES, folder / f"losses_{part}.jsonl")
    size = sum(weight.numel() for weight in model.parameters())
    return finish(folder, work, {**seen, "skills": talked, "parameters": size, "vocabulary": len(tokenizer)})


def split(pictures: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """(training pictures, pictures kept back), drawn by the seed."""
    order = torch.randperm(pictures, generator=torch.Generator().manual_seed(seed_of(seed, "held_out"))).tolist()
    kept = max(1, round(pictures * held_out))
    return sorted(order[kept:]), sorted(order[:kept])


def train_to_see(
    model: LlavaForConditionalGeneration,
    pixels: PixelReader,
    settings: BaseModel,
    corpus: Path,
    work: Path,
    say: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """Part 1: the vision tower under attribute heads, on vision/.

    Returns accuracies on the pictures kept back: `heads`, of each head; `probe`, of a linear one instead of it.
    """
    sizes: dict[str, int] = json.loads((corpus / "heads.json").read_text())
    table = datasets.load_from_disk(str(corpus / "vision"))
    targets = torch.stack([torch.tensor(table[name][:]) for name in sizes], dim=1)  # [rows, heads], -1: none
    rows = list(zip(table["image"][:], targets, strict=True))
    train, kept = split(len(rows), settings.held_out, settings.seed)
    seer = Seer(model, Heads(settings.vision.width, list(sizes.values()), seed_of(settings.seed, "heads")))

    def collate(drawn: Sequence[tuple[bytes, Tensor]]) -> dict[str, Tensor]:
        raw = pixels.raw([open_picture(image) for image, _ in drawn])
        return {"pixel_values": pixels.normalise(raw), "targets": torch.stack([wanted for _, wanted in drawn])}

    _fit("part 1/2 see", seer, rows, train, collate, settings, settings.see, work, say)
    seer.tower.requires_grad_(False).eval()
    unseen = [rows[index] for index in kept]
    heads = measure_heads(seer, unseen, collate, sizes)
    say(f"sees, on {len(unseen):,} pictures kept back: {_told(heads)}")
    with exact_products():
        shown = read_features(seer, [rows[index] for index in train[:PICTURES]], collate)
        linear = probe(shown, read_features(seer, unseen, collate), sizes)
    say(f"sees, by a linear probe on the frozen features: {_told(linear)}")
    return {"heads": heads, "probe": linear}


def train_to_talk(
    model: LlavaForConditionalGeneration,
    reader: Reader,
    settings: BaseModel,
    corpus: Path,
    work: Path,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Part 2: projector and language model on instruct/, vision frozen. Returns each skill's accuracy on held_out/."""
    rows = _dialogues(datasets.load_from_disk(str(corpus / "instruct")), reader)
    speaker, collate = Speaker(model), Collator(reader)
    _fit("part 2/2 talk", speaker, rows, range(len(rows)), collate, settings, settings.talk, work, say, MICRO_ROWS)
    model.eval()
    kept = datasets.load_from_disk(str(corpus / "held_out"))
    accuracies = measure_answers(speaker, _dialogues(kept, reader), kept["skills"][:], collate)
    say(f"answers, in {len(kept):,} dialogues kept back: {_told(accuracies)}")
    return accuracies


def _dialogues(table: datasets.Dataset, reader: Reader) -> list[Row]:
    encoded = [reader.encode([tuple(turn) for turn in turns], True) for turns in table["turns"][:]]
    return [Row(found.ids, found.labels, image) for found, image in zip(encoded, table["image"][:], strict=True)]


def _told(accuracies: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items())


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
