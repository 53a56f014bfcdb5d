"""Stage `base`: a small LLaVA trained from nothing, first to see, then to talk.

Part `see` trains the vision tower alone on attribute heads (colour, shape, place, ...) that read its patch features
with one attention query each, as a language model could. Part `talk` freezes it and trains the projector and the
language model on dialogues; the loss is over answers only. Each part goes on from its last checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from llava_ext.backend import fast_matmul, quiet_libraries
from llava_ext.data import Collator, Reader, Row, seed_of
from llava_ext.fit import fit, grouped_batches
from llava_ext.pixels import PixelReader, open_picture
from llava_ext.settings import BaseModel
from llava_ext.tiny import build_model, build_processor, save_base
from llava_ext.tokenizer import build_tokenizer
from robustmerge.runs import Address, run_stage

MICRO_TOKENS = 1600  # at a time: attention is kept whole for the backward pass, and small tensors stay in cache
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
    work.mkdir(exist_ok=True)
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
        seen = train_to_see(model, reader.pixels, settings, corpus / "vision", work, say)
        talked = train_to_talk(model, reader, settings, corpus / "instruct", work, say)
    save_base(folder, model, processor)
    for path in work.iterdir():
        path.unlink()
    work.rmdir()
    size = sum(weight.numel() for weight in model.parameters())
    return {"heads": seen, "skills": talked, "parameters": size, "vocabulary": len(tokenizer)}


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


def patch_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """What the projector reads: the tower's last hidden states without the class token, [n, patches, width]."""
    outputs = model.model.vision_tower(pixels, output_hidden_states=True)
    return outputs.hidden_states[model.config.vision_feature_layer][:, 1:]


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
    pictures = table.select_columns(["image"])
    train, kept = split(len(table), settings.held_out, settings.seed)
    heads = Heads(settings.vision.width, list(sizes.values()), seed_of(settings.seed, "heads"))
    tower = model.model.vision_tower

    def logits_of(rows: Sequence[int]) -> list[Tensor]:
        raw = pixels.raw([open_picture(image) for image in pictures[list(rows)]["image"]])
        return heads(patch_features(model, pixels.normalise(raw)))

    def losses_of(rows: Sequence[int]) -> Iterator[Tensor]:
        wanted = targets[list(rows)]
        losses = [
            functional.cross_entropy(found, wanted[:, index], ignore_index=-1, reduction="sum")
            / (wanted[:, index] >= 0).sum().clamp(min=1)
            for index, found in enumerate(logits_of(rows))
        ]
        yield torch.stack(losses).mean()

    batches = grouped_batches(train, settings.see, seed_of(settings.seed, "see"))
    fit("see", nn.ModuleList([tower, heads]), losses_of, batches, settings.see, work, settings.save_steps, say)
    tower.requires_grad_(False).eval()
    accuracies = dict(zip(sizes, _measure_heads(logits_of, targets, kept), strict=True))
    say("sees, on pictures kept back: " + ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items()))
    return accuracies


@torch.inference_mode()
def _measure_heads(
    logits_of: Callable[[Sequence[int]], list[Tensor]], targets: Tensor, kept: Sequence[int]
) -> list[float]:
    """Accuracy of every head over the kept rows to which it applies."""
    right = torch.zeros(targets.shape[1])
    for start in range(0, len(kept), MEASURE_BATCH):
        rows = list(kept[start : start + MEASURE_BATCH])
        for index, found in enumerate(logits_of(rows)):
            right[index] += (found.argmax(-1) == targets[rows, index]).sum()
    asked = (targets[list(kept)] >= 0).sum(0).clamp(min=1)
    return [round(value, 4) for value in (right / asked).tolist()]


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
    pictures = table.select_columns(["image"])
    encoded = [reader.encode([tuple(turn) for turn in turns], True) for turns in table["turns"][:]]
    train, kept = split(len(table), settings.held_out, settings.seed)
    collate = Collator(reader)

    def batch_of(rows: Sequence[int]) -> dict[str, Tensor]:
        images = pictures[list(rows)]["image"]
        return collate([Row(encoded[i].ids, encoded[i].labels, image) for i, image in zip(rows, images, strict=True)])

    lengths = [len(conversation.ids) for conversation in encoded]

    def losses_of(rows: Sequence[int]) -> Iterator[Tensor]:
        learned = sum(label >= 0 for row in rows for label in encoded[row].labels)
        pieces = -(-len(rows) * max(lengths[row] for row in rows) // MICRO_TOKENS)
        size = -(-len(rows) // pieces)  # pieces of equal size
        for start in range(0, len(rows), size):
            found, wanted, _ = _answer_logits(model, batch_of(rows[start : start + size]))
            yield functional.cross_entropy(found, wanted, reduction="sum") / learned

    batches = grouped_batches(train, settings.talk, seed_of(settings.seed, "talk"), lengths)
    speaking = nn.ModuleList([model.model.multi_modal_projector, model.model.language_model, model.lm_head])
    fit("talk", speaking, losses_of, batches, settings.talk, work, settings.save_steps, say)
    model.eval()
    skills = table["skills"][:] if "skills" in table.column_names else None
    accuracies = _measure_answers(model, kept, skills, batch_of)
    say("answers, in dialogues kept back: " + ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items()))
    return accuracies


@contextmanager
def eager_attention(model: LlavaForConditionalGeneration) -> Iterator[None]:
    """Attention as plain products: with `fast_matmul`, twice as fast as the fused CPU kernel."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _answer_logits(model: LlavaForConditionalGeneration, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [answers' tokens, vocabulary], the tokens wanted, and the row of each; other positions cost nothing."""
    labels = batch.pop("labels")
    hidden = model.model(**batch).last_hidden_state
    row, column = torch.nonzero(labels[:, 1:] >= 0, as_tuple=True)
    return model.lm_head(hidden[row, column]), labels[row, column + 1], torch.stack([row, column])


@torch.inference_mode()
def _measure_answers(
    model: LlavaForConditionalGeneration,
    kept: Sequence[int],
    skills: Sequence | None,
    batch_of: Callable[[Sequence[int]], dict[str, Tensor]],
) -> dict[str, float]:
    """Share of answers whose every token is the most likely one, given the true answers before it."""
    right: dict[str, list[bool]] = {"all": []}
    for start in range(0, len(kept), MEASURE_BATCH):
        rows = kept[start : start + MEASURE_BATCH]
        found, wanted, where = _answer_logits(model, batch_of(rows))
        hits = found.argmax(-1) == wanted
        turns: dict[tuple[int, int], bool] = {}
        previous, turn = (-1, -1), 0
        for hit, row, column in zip(hits.tolist(), *where.tolist(), strict=True):
            turn = 0 if row != previous[0] else turn + (column != previous[1] + 1)
            turns[row, turn] = turns.get((row, turn), True) and hit
            previous = (row, column)
        for (row, turn), hit in turns.items():
            right["all"].append(hit)
            if skills is not None:
                named = skills[rows[row]]
                right.setdefault(named if isinstance(named, str) else named[turn], []).append(hit)
    return {name: round(sum(hits) / max(1, len(hits)), 4) for name, hits in sorted(right.items())}
