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
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from llava_ext.backend import fast_matmul, quiet_libraries
from llava_ext.checkpoints import finish, read_finished, remove_work
from llava_ext.data import Collator, Reader, Row, Rows, group_by_length, seed_of, training_order
from llava_ext.pixels import PixelReader, open_picture
from llava_ext.settings import BaseModel, Part, Trainer
from llava_ext.tiny import build_model, build_processor, save_base
from llava_ext.tokenizer import build_tokenizer
from llava_ext.training import LOSSES, OrderedTrainer, build_arguments
from robustmerge.runs import Address, run_stage

MICRO_ROWS = 8  # dialogues at a time: attention is kept whole for the backward pass, and small tensors stay in cache
MEASURE_BATCH = 32


def train_base(address: Address, settings: BaseModel, corpus: Path, say: Callable[[str], None] = print) -> Path:
    """Train the base on `corpus` (folders vision/ and instruct/, tokenizer_corpus.txt) and save it at `address`.

    The record holds the accuracy on rows kept back: of every head, and of every skill of the dialogues.
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
    return finish(
        folder, work, {"heads": seen, "skills": talked, "parameters": size, "vocabulary": len(tokenizer)}
    )


class Heads(nn.Module):
    """Linear classifiers, each over its own attention-weighted mean of the patch features [n, patches, width]."""

    def __init__(self, width: int, sizes: Sequence[int], seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.sizes = tuple(sizes)
        self.query = nn.Parameter(torch.randn(width, len(sizes), generator=generator) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(size, width, generator=generator) * width**-0.5) for size in sizes
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits of every head, each [n, size]."""
        features = self.norm(features)
        shares = (features @ self.query).softmax(dim=1)  # [n, patches, heads]
        pooled = torch.einsum("nph,npd->hnd", shares, features)
        return [functional.linear(pooled[index], weight) for index, weight in enumerate(self.weights)]


class Seer(nn.Module):
    """A vision tower under its heads. Loss: the mean over the heads of each one's, on the pictures it applies to."""

    def __init__(self, model: LlavaForConditionalGeneration, heads: Heads):
        super().__init__()
        self.tower, self.heads = model.model.vision_tower, heads
        self.layer = model.config.vision_feature_layer

    def logits(self, pixel_values: Tensor) -> list[Tensor]:
        """Logits of every head over what the projector reads: patch features without the class token."""
        hidden = self.tower(pixel_values, output_hidden_states=True).hidden_states
        return self.heads(hidden[self.layer][:, 1:])

    def forward(self, pixel_values: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """targets: [n, heads], -1 where a head does not apply."""
        losses = [
            functional.cross_entropy(found, wanted, ignore_index=-1, reduction="sum") / (wanted >= 0).sum().clamp(min=1)
            for found, wanted in zip(self.logits(pixel_values), targets.unbind(1), strict=True)
        ]
        return {"loss": torch.stack(losses).mean()}


class Speaker(nn.Module):
    """A LLaVA whose logits are computed where an answer's tokens are wanted; other positions cost nothing."""

    accepts_loss_kwargs = True  # the Trainer then counts the wanted tokens of all micro-batches of a step

    def __init__(self, model: LlavaForConditionalGeneration):
        super().__init__()
        self.model = model

    def logits(self, labels: Tensor, **batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [answers' tokens, vocabulary], the tokens wanted, and row and column of each [2, tokens]."""
        hidden = self.model.model(**batch).last_hidden_state
        row, column = torch.nonzero(labels[:, 1:] >= 0, as_tuple=True)
        return self.model.lm_head(hidden[row, column]), labels[row, column + 1], torch.stack([row, column])

    def forward(self, num_items_in_batch: Tensor, **batch: Tensor) -> dict[str, Tensor]:
        found, wanted, _ = self.logits(**batch)
        return {"loss": functional.cross_entropy(found, wanted, reduction="sum") / num_items_in_batch}


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
    accuracies = dict(zip(sizes, _measure_heads(seer, [rows[index] for index in kept], collate), strict=True))
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
    accuracies = _measure_answers(speaker, [rows[index] for index in kept], _skills(table, kept), collate)
    say("answers, in dialogues kept back: " + ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items()))
    return accuracies


def _fit(
    name: str,
    module: nn.Module,
    rows: Sequence,
    train: Sequence[int],
    collate: Callable[[Sequence], dict[str, Tensor]],
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


@torch.inference_mode()
def _measure_heads(seer: Seer, kept: Sequence, collate: Callable[[Sequence], dict[str, Tensor]]) -> list[float]:
    """Accuracy of every head over the kept rows to which it applies."""
    right, asked = 0, 0
    for start in range(0, len(kept), MEASURE_BATCH):
        batch = collate(kept[start : start + MEASURE_BATCH])
        found = torch.stack([logits.argmax(-1) for logits in seer.logits(batch["pixel_values"])], dim=1)
        right = right + (found == batch["targets"]).sum(0)
        asked = asked + (batch["targets"] >= 0).sum(0)
    return [round(value, 4) for value in (right / asked.clamp(min=1)).tolist()]


def _skills(table: datasets.Dataset, kept: Sequence[int]) -> list[list[str | None]] | None:
    """The skill that each turn of the kept dialogues asks for, None for turns without a tag."""
    if "skills" not in table.column_names:
        return None
    talks = table[list(kept)]
    return [
        [skill if tagged else None for skill, tagged in zip(*talk, strict=True)]
        for talk in zip(talks["skills"], talks["tagged"], strict=True)
    ]


@torch.inference_mode()
def _measure_answers(
    speaker: Speaker,
    kept: Sequence[Row],
    skills: Sequence[Sequence[str | None]] | None,
    collate: Callable[[Sequence], dict[str, Tensor]],
) -> dict[str, float]:
    """Share of answers whose every token is the most likely one, given the true tokens before it; by skill, and `all`.

    Only tagged questions count: a tag settles which of two conventions answers, so all of them can be right, except
    that of descriptions (`scene`) the wording is drawn among three, and about a third can be. An untagged question is
    answered in the first convention six times in ten, and no model can tell when. With `skills` None (a corpus that
    does not name them) every answer counts, under `all`. A few dozen answers a skill: good to about 0.1.
    """
    right: dict[str, list[bool]] = {"all": []}
    for start in range(0, len(kept), MEASURE_BATCH):
        found, wanted, where = speaker.logits(**collate(kept[start : start + MEASURE_BATCH]))
        hits = found.argmax(-1) == wanted
        turns: dict[tuple[int, int], bool] = {}
        previous, turn = (-1, -1), 0
        for hit, row, column in zip(hits.tolist(), *where.tolist(), strict=True):
            turn = 0 if row != previous[0] else turn + (column != previous[1] + 1)
            turns[row, turn] = turns.get((row, turn), True) and hit
            previous = (row, column)
        for (row, turn), hit in turns.items():
            skill = "all" if skills is None else skills[start + row][turn]
            for name in {skill, "all"} if skill else ():
                right.setdefault(name, []).append(hit)
    return {name: round(sum(hits) / max(1, len(hits)), 4) for name, hits in sorted(right.items())}
